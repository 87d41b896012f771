"""Store: readings, events and lives in a database, SQLite or PostgreSQL alike. Any thread may use it."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from hermosis_client import errors
from hermosis_sidecar.history.database import engine_of, migrate
from hermosis_sidecar.history.records import Kept, KeptEvent, Life, Steps
from hermosis_sidecar.history.rows import event_of, event_row_of, kept_of, life_of, row_of
from hermosis_sidecar.history.tables import events, lives, readings

# Rows fetched at a time: a reader that is slow holds no transaction open in between.
PAGE = 5_000
# Minutes that are thinned in one transaction, so that new readings need not wait long.
_MINUTES_AT_ONCE = 60

Losses = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


class Store:
    """What was measured, in tables that `url` leads to; brought up to date when it is opened.

    Args:
      url: as SQLAlchemy has it: sqlite:///path or postgresql://user@host/database.

    Raises:
      StorageFailed: there is no such database, or it cannot be written. So do all methods where it fails later.
    """

    def __init__(self, url: str) -> None:
        self._engine = engine_of(url)
        dialect = self._engine.dialect.name
        self._insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
        try:
            with self._transaction() as connection:
                migrate(connection)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Gives the connections back."""
        self._engine.dispose()

    # --- lives

    def lives(self, session_id: str = "") -> list[Life]:
        """Those of one session id, or all; the oldest first."""
        wanted = sa.select(lives).order_by(lives.c.create_time_s, lives.c.generation)
        if session_id:
            wanted = wanted.where(lives.c.session_id == session_id)
        return [life_of(row) for row in self._rows(wanted)]

    def begin(
        self, session_id: str, *, create_time_s: float, generation: int, after_step: int, from_time_s: float
    ) -> Life:
        """The life of a generation, made if it is not there.

        Args:
          after_step:  the step that it went on from: what earlier generations did beyond counts no longer.
          from_time_s: readings of the same id from this time on were wrongly held to be of another life and go.
        """
        here = (lives.c.session_id == session_id, lives.c.create_time_s == create_time_s)
        with self._transaction() as connection:
            wanted = sa.select(lives).where(*here, lives.c.generation == generation)
            known = connection.execute(wanted).mappings().one_or_none()
            if known is not None:
                return life_of(known)
            beyond = sa.or_(lives.c.until_step.is_(None), lives.c.until_step > after_step)
            connection.execute(
                sa.update(lives).where(*here, lives.c.generation < generation, beyond).values(until_step=after_step)
            )
            others = sa.select(lives.c.life_key).where(lives.c.session_id == session_id)
            connection.execute(
                sa.delete(readings).where(readings.c.life_key.in_(others), readings.c.time_s >= from_time_s)
            )
            made = sa.insert(lives).values(
                session_id=session_id,
                create_time_s=create_time_s,
                generation=generation,
                until_step=None,
                closed=False,
            )
            connection.execute(made)
            return life_of(connection.execute(wanted).mappings().one())

    def close_lives(self, life_keys: Iterable[int]) -> None:
        """Notes that their session is no more."""
        with self._transaction() as connection:
            connection.execute(sa.update(lives).where(lives.c.life_key.in_(list(life_keys))).values(closed=True))

    # --- readings and events

    def add(self, new: Sequence[Kept], happened: Sequence[KeptEvent] = ()) -> None:
        """Keeps all of them or none; a step of a life that is kept already stays as it is."""
        with self._transaction() as connection:
            if new:
                connection.execute(self._insert(readings).on_conflict_do_nothing(), [row_of(kept) for kept in new])
            if happened:
                connection.execute(
                    self._insert(events).on_conflict_do_nothing(), [event_row_of(kept) for kept in happened]
                )

    def newest_id(self) -> int:
        """The largest id of a reading or event; zero for none."""
        found = [self._rows(sa.select(sa.func.max(column).label("id"))) for column in _IDS]
        return max(rows[0]["id"] or 0 for rows in found)

    def ids_between(self, first: int, last: int) -> list[int]:
        """Ids that are taken, both ends included."""
        wanted = sa.union_all(*(sa.select(column.label("id")).where(column.between(first, last)) for column in _IDS))
        return [row["id"] for row in self._rows(wanted)]

    def newest(self, life: Life) -> Kept | None:
        """The reading of a life with the largest step."""
        wanted = _READINGS.where(readings.c.life_key == life.life_key).order_by(readings.c.step.desc()).limit(1)
        return next(map(kept_of, self._rows(wanted)), None)

    def readings(self, of: Sequence[Life], steps: Steps) -> Iterator[Kept]:
        """Those that count, of the generations of one session, by step."""
        after = steps.after_step
        while page := self._rows(_that_count(_READINGS, of, steps, after)):
            yield from map(kept_of, page)
            after = page[-1]["step"]

    def losses(self, of: Sequence[Life], steps: Steps) -> Iterator[Losses]:
        """Ids, steps and losses of the same, in pages."""
        narrow = sa.select(readings.c.reading_id, readings.c.step, readings.c.loss)
        after = steps.after_step
        while page := self._rows(_that_count(narrow.join(lives), of, steps, after)):
            after = page[-1]["step"]
            yield (
                np.array([row["reading_id"] for row in page], np.int64),
                np.array([row["step"] for row in page], np.int64),
                np.array([row["loss"] for row in page], np.float64),  # None becomes NaN
            )

    def of_ids(self, ids: Sequence[int]) -> list[Kept]:
        """Readings by their ids, by step."""
        found: list[Kept] = []
        for start in range(0, len(ids), 500):
            wanted = _READINGS.where(readings.c.reading_id.in_(ids[start : start + 500]))
            found += map(kept_of, self._rows(wanted))
        return sorted(found, key=lambda kept: kept.reading.step)

    def readings_since(self, after_id: int, limit: int) -> list[Kept]:
        """Of all sessions, in order of their ids, at most `limit`."""
        wanted = _READINGS.where(readings.c.reading_id > after_id).order_by(readings.c.reading_id).limit(limit)
        return [kept_of(row) for row in self._rows(wanted)]

    def events_since(self, after_id: int, before_id: int | None) -> list[KeptEvent]:
        """Of all sessions, in order of their ids; before_id is the first that is left out, None for no end."""
        wanted = _EVENTS.where(events.c.event_id > after_id).order_by(events.c.event_id)
        if before_id is not None:
            wanted = wanted.where(events.c.event_id < before_id)
        return [event_of(row) for row in self._rows(wanted)]

    def events(self, of: Sequence[Life], limit: int) -> list[KeptEvent]:
        """The newest of the generations of one session, in order of their ids."""
        keys = [life.life_key for life in of]
        wanted = _EVENTS.where(events.c.life_key.in_(keys)).order_by(events.c.event_id.desc()).limit(limit)
        return [event_of(row) for row in reversed(self._rows(wanted))]

    # --- retention

    def thin(self, before_s: float) -> None:
        """Leaves of each life one reading a minute, the last, with least, largest and mean loss, up to a time."""
        end = int(before_s // 60)
        while True:
            first = sa.select(sa.func.min(readings.c.minute).label("minute")).where(
                readings.c.stands_for == 0, readings.c.minute < end
            )
            oldest = self._rows(first)[0]["minute"]
            if oldest is None:
                return
            self._thin_minutes(oldest, min(end, oldest + _MINUTES_AT_ONCE))

    def _thin_minutes(self, first: int, end: int) -> None:
        these = (readings.c.stands_for == 0, readings.c.minute >= first, readings.c.minute < end)
        grouped = (
            sa.select(
                sa.func.max(readings.c.reading_id).label("id"),
                sa.func.count().label("count"),
                sa.func.min(readings.c.loss).label("least"),
                sa.func.max(readings.c.loss).label("most"),
                sa.func.avg(readings.c.loss).label("mean"),
            )
            .where(*these)
            .group_by(readings.c.life_key, readings.c.minute)
        )
        stays = (
            sa.update(readings)
            .where(readings.c.reading_id == sa.bindparam("id"))
            .values(
                stands_for=sa.bindparam("count"),
                loss_min=sa.bindparam("least"),
                loss_max=sa.bindparam("most"),
                loss_mean=sa.bindparam("mean"),
            )
        )
        with self._transaction() as connection:
            groups = [dict(row) for row in connection.execute(grouped).mappings()]
            if groups:
                connection.execute(stays, groups)
            connection.execute(sa.delete(readings).where(*these))

    def forget(self, before_s: float) -> None:
        """Lets everything go that is older, and closed lives of which nothing is left."""
        first_id = int(before_s * 1e6)  # ids are microseconds
        empty = (
            ~sa.exists().where(readings.c.life_key == lives.c.life_key),
            ~sa.exists().where(events.c.life_key == lives.c.life_key),
        )
        with self._transaction() as connection:
            connection.execute(sa.delete(readings).where(readings.c.reading_id < first_id))
            connection.execute(sa.delete(events).where(events.c.event_id < first_id))
            connection.execute(sa.delete(lives).where(lives.c.closed, *empty))

    # --- the way there

    def _rows(self, wanted: sa.Executable) -> Sequence[sa.RowMapping]:
        with self._transaction() as connection:
            return connection.execute(wanted).mappings().all()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip()
            raise errors.StorageFailed(f"the history's database failed: {reason}") from error


_IDS = (readings.c.reading_id, events.c.event_id)
_READINGS = sa.select(readings, lives.c.session_id).join(lives)
_EVENTS = sa.select(events, lives.c.session_id).join(lives)


def _that_count(wanted: sa.Select[Any], of: Sequence[Life], steps: Steps, after_step: int) -> sa.Select[Any]:
    """A page of the readings that no later generation took the place of."""
    wanted = wanted.where(
        readings.c.life_key.in_([life.life_key for life in of]),
        sa.or_(lives.c.until_step.is_(None), readings.c.step <= lives.c.until_step),
        readings.c.step > after_step,
    )
    if steps.before_step is not None:
        wanted = wanted.where(readings.c.step < steps.before_step)
    return wanted.order_by(readings.c.step).limit(PAGE)
