"""Lives, readings and events. Written out: a migration says what was true when it was made."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_ENERGIES = (
    *("loss", "smoothed_loss", "kinetic_energy", "potential_energy", "thermal_energy", "total_energy"),
    *("kinetic_loss", "kinetic_temperature", "energy_defect", "internal_energy", "entropy", "log_beta", "retention"),
    *("cooling_rate", "braking", "step_norm", "gradient_norm", "momentum_norm", "learning_rate"),
)


def upgrade() -> None:
    op.create_table(
        "lives",
        sa.Column("life_key", _KEY, primary_key=True),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("until_step", sa.BigInteger),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.UniqueConstraint("session_id", "create_time_s", "generation", name="lives_are_told_apart"),
    )
    op.create_table(
        "readings",
        sa.Column("reading_id", _KEY, primary_key=True, autoincrement=False),
        sa.Column("life_key", _KEY, sa.ForeignKey("lives.life_key"), nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("minute", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Double) for name in _ENERGIES),
        sa.Column("contributions", sa.BigInteger, nullable=False),
        sa.Column("staleness", sa.BigInteger, nullable=False),
        sa.Column("received_bytes", sa.BigInteger, nullable=False),
        sa.Column("sent_bytes", sa.BigInteger, nullable=False),
        sa.Column("device_s", sa.Double),
        sa.Column("batch_sessions", sa.BigInteger, nullable=False),
        sa.Column("wait_s", sa.Double),
        sa.Column("stands_for", sa.BigInteger, nullable=False),
        sa.Column("loss_min", sa.Double),
        sa.Column("loss_max", sa.Double),
        sa.Column("loss_mean", sa.Double),
        sa.UniqueConstraint("life_key", "step", name="readings_have_a_step"),
    )
    op.create_index("readings_by_minute", "readings", ["stands_for", "minute"])
    op.create_table(
        "events",
        sa.Column("event_id", _KEY, primary_key=True, autoincrement=False),
        sa.Column("life_key", _KEY, sa.ForeignKey("lives.life_key"), nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("text", sa.String, nullable=False),
    )
    op.create_index("events_by_life", "events", ["life_key"])


def downgrade() -> None:
    for table in ("events", "readings", "lives"):
        op.drop_table(table)
