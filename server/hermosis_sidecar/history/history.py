"""History: the store and the recorder of one sidecar, or neither where it is turned off."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import numpy as np
from starlette.concurrency import run_in_threadpool

from hermosis_client import Client, TelemetryReading
from hermosis_sidecar.history.differences import Happened
from hermosis_sidecar.history.ids import Ids
from hermosis_sidecar.history.lineage import Lineage
from hermosis_sidecar.history.recorder import Recorder, Retention
from hermosis_sidecar.history.records import Event, EventKind, Kept, KeptEvent, Life, Steps
from hermosis_sidecar.history.store import Store
from hermosis_sidecar.history.thinning import candidates, chosen

_PAGE = 1000
# Somebody who comes back waits this long for a server that is away as well, before they are told what is there.
_PATIENCE_S = 10.0
_BEAT_S = 0.05

Missed = tuple[int, TelemetryReading | Event]


class History:
    """What was measured, for as long as it is kept.

    Args:
      url:        of the database; empty keeps nothing.
      client:     to ask about sessions with, under the sidecar's own token.
      interval_s: least time between two readings of a session that are kept.
      look_s:     between two looks at the sessions.

    Raises:
      StorageFailed: the database cannot be opened.
    """

    def __init__(self, url: str, client: Client, *, interval_s: float, look_s: float, retention: Retention) -> None:
        self._store = Store(url) if url else None
        self.ids = Ids(self._store.newest_id() if self._store is not None else 0)
        self._recorder: Recorder | None = None
        self._listeners: list[Callable[[Life, Event], None]] = []
        if self._store is not None:
            lineage = Lineage(self._store, client, self.ids, interval_s=interval_s)
            self._recorder = Recorder(
                self._store, lineage, self.ids, retention=retention, tell=self._tell, look_s=look_s
            )

    def start(self, listener: Callable[[Life, Event], None]) -> None:
        """Begins to record; the listener is given each event on another thread."""
        self._listeners.append(listener)
        if self._recorder is not None:
            self._recorder.start()

    def close(self) -> None:
        """Writes what is there and closes the store."""
        if self._recorder is not None:
            self._recorder.close()
        if self._store is not None:
            self._store.close()

    # --- what comes in

    def hear(self, reading: TelemetryReading) -> int:
        """Keeps a reading. Returns its id, which it has whether or not anything is kept."""
        return self.ids.of(reading) if self._recorder is None else self._recorder.take(reading)

    def followed(self, followed: bool) -> None:
        """The server is followed from here on, or is not any more."""
        if self._recorder is not None:
            self._recorder.followed(followed)

    def note(self, session_id: str, kind: EventKind, text: str, *, step: int | None = None) -> None:
        """Keeps an event and tells the viewers; does not wait. None means at the step that the session is at.

        What the recorder would notice by itself within seconds may be noted too: it is told once.
        """
        if self._recorder is not None:
            self._recorder.note(session_id, Happened(kind, text), step)

    @property
    def dropped(self) -> int:
        """Readings that were lost because the database was too slow or away."""
        return 0 if self._recorder is None else self._recorder.dropped

    # --- what is asked for

    def lives(self, session_id: str, create_time_s: float | None = None) -> list[Life]:
        """Generations of one session: of that creation time, or of the newest of the id."""
        known = self._known(session_id)
        if create_time_s is None and known:
            create_time_s = known[-1].create_time_s
        return [life for life in known if life.create_time_s == create_time_s]

    def events(self, of: Sequence[Life], limit: int = _PAGE) -> list[Event]:
        """The newest events, in order."""
        return [] if self._store is None else [kept.event for kept in self._store.events(of, limit)]

    def readings(
        self, of: Sequence[Life], held: Sequence[TelemetryReading], steps: Steps
    ) -> Iterator[Kept | TelemetryReading]:
        """Those of the store, then those that the server still holds, by step."""
        if self._store is not None:
            yield from self._store.readings(of, _before(held, steps))
        yield from [reading for reading in held if reading.step in steps]

    def thinned(
        self, of: Sequence[Life], held: Sequence[TelemetryReading], steps: Steps, at_most: int
    ) -> tuple[list[TelemetryReading], bool]:
        """The same, at most that many, and whether any were left out, here or before."""
        held = [reading for reading in held if reading.step in steps]
        pages = iter(()) if self._store is None else self._store.losses(of, _before(held, steps))
        ids, old_steps, old_losses = candidates(pages, at_most)
        places = chosen(
            np.concatenate((old_steps, np.array([each.step for each in held], np.int64))),
            np.concatenate((old_losses, np.array([each.energies.loss for each in held], np.float64))),
            at_most,
        )
        old = ids[places[places < len(ids)]].tolist()
        kept = [] if self._store is None else self._store.of_ids(old)
        newer = [held[place - len(ids)] for place in places[places >= len(ids)].tolist()]
        left_out = len(places) < len(ids) + len(held) or any(each.minute is not None for each in kept)
        return [*(each.reading for each in kept), *newer], left_out

    async def missed(
        self, after_id: int, sees: Callable[[Life], bool], told: set[int], pause: Callable[[], None]
    ) -> AsyncIterator[Missed]:
        """Readings and events after an id, in order, for somebody who comes back.

        Args:
          sees:  whether they may see a life.
          told:  ids are added that were given since `pause`.
          pause: called when all but the newest were given; what comes live from then on is to be kept for them.
        """
        store, recorder = self._store, self._recorder
        if store is None or recorder is None:
            return
        wanted: dict[int, bool] = {}
        patience = time.monotonic() + _PATIENCE_S
        while not recorder.caught_up and time.monotonic() < patience:
            await asyncio.sleep(_BEAT_S)
        paused = False
        while True:
            page = await run_in_threadpool(_page, store, after_id)
            if any(life_key not in wanted for life_key, _, _ in page):
                wanted = {life.life_key: sees(life) for life in await run_in_threadpool(store.lives)}
            for life_key, identifier, said in page:
                after_id = identifier
                if paused:
                    told.add(identifier)
                if wanted.get(life_key):
                    yield identifier, said
            if len(page) >= _PAGE:
                continue
            if paused:
                return
            pause()
            settled = recorder.settling()
            while not settled.is_set() and time.monotonic() < patience + _PATIENCE_S:
                await asyncio.sleep(_BEAT_S)
            paused = True

    def _tell(self, kept: KeptEvent) -> None:
        life = next((life for life in self._known(kept.event.session_id) if life.life_key == kept.life_key), None)
        if life is not None:
            for listener in self._listeners:
                listener(life, kept.event)

    def _known(self, session_id: str) -> list[Life]:
        return [] if self._store is None else self._store.lives(session_id)


def _before(held: Sequence[TelemetryReading], steps: Steps) -> Steps:
    """The part of a range that the server holds nothing of."""
    return Steps(after_step=steps.after_step, before_step=held[0].step) if held else steps


def _page(store: Store, after_id: int) -> list[tuple[int, int, TelemetryReading | Event]]:
    """Life, id, and what it is."""
    readings = store.readings_since(after_id, _PAGE)
    end = readings[-1].reading_id if len(readings) == _PAGE else None
    found: list[tuple[int, int, TelemetryReading | Event]] = [
        (kept.life_key, kept.reading_id, kept.reading) for kept in readings
    ]
    found += [(kept.life_key, kept.event.event_id, kept.event) for kept in store.events_since(after_id, end)]
    return sorted(found, key=lambda each: each[1])
