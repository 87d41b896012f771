"""Tables of the history. What is here and what the migrations make is held equal by a test."""

from sqlalchemy import BigInteger, Boolean, Column, Double, ForeignKey, Index, Integer, MetaData, String, Table
from sqlalchemy import UniqueConstraint as Unique

from hermosis_client import EnergySample

metadata = MetaData()

# SQLite numbers its rows by a key that is called INTEGER and by no other.
_Key = BigInteger().with_variant(Integer, "sqlite")

lives = Table(
    "lives",
    metadata,
    Column("life_key", _Key, primary_key=True),
    Column("session_id", String, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("until_step", BigInteger),
    Column("closed", Boolean, nullable=False),
    Unique("session_id", "create_time_s", "generation", name="lives_are_told_apart"),
)

readings = Table(
    "readings",
    metadata,
    Column("reading_id", _Key, primary_key=True, autoincrement=False),
    Column("life_key", _Key, ForeignKey("lives.life_key"), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time_s", Double, nullable=False),
    Column("minute", BigInteger, nullable=False),  # of time_s, since 1970
    *(Column(name, Double) for name in EnergySample._fields),  # NULL means undefined
    Column("contributions", BigInteger, nullable=False),
    Column("staleness", BigInteger, nullable=False),
    Column("received_bytes", BigInteger, nullable=False),
    Column("sent_bytes", BigInteger, nullable=False),
    Column("device_s", Double),
    Column("batch_sessions", BigInteger, nullable=False),
    Column("wait_s", Double),
    Column("compression_error", Double),
    Column("stands_for", BigInteger, nullable=False),  # readings of its minute; zero as long as all are kept
    Column("loss_min", Double),
    Column("loss_max", Double),
    Column("loss_mean", Double),
    Unique("life_key", "step", name="readings_have_a_step"),
    Index("readings_by_minute", "stands_for", "minute"),
)

events = Table(
    "events",
    metadata,
    Column("event_id", _Key, primary_key=True, autoincrement=False),
    Column("life_key", _Key, ForeignKey("lives.life_key"), nullable=False),
    Column("time_s", Double, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("text", String, nullable=False),
    Index("events_by_life", "life_key"),
)
