"""Recorder: a thread that keeps what the live stream brings, and looks after the sessions every few seconds.

The stream is never held up: what it brings lies in a bounded queue until it is written, and where the database is too
slow or away some of it is lost, counted.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from hermosis_client import TelemetryReading, errors
from hermosis_sidecar.history.differences import Happened
from hermosis_sidecar.history.ids import Ids
from hermosis_sidecar.history.lineage import Lineage
from hermosis_sidecar.history.records import Kept, KeptEvent
from hermosis_sidecar.history.store import Store

_QUEUE = 50_000
_BATCH = 1000
_BATCH_S = 0.5
_TEND_S = 60.0
# A look at very many sessions takes a while; it shall not be all that the server does.
_LOOK_SHARE = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long readings are kept, in seconds.

    Attributes:
      raw_s:  all of them; then one a minute.
      keep_s: any.
    """

    raw_s: float
    keep_s: float


@dataclass(frozen=True, slots=True)
class _Note:
    session_id: str
    happened: Happened
    step: int | None


_Item = TelemetryReading | _Note | bool | threading.Event


class Recorder:
    """Works from `start` to `close`. `take`, `note`, `followed` and `settling` may be called from any thread.

    Args:
      tell:    is given each event when it was kept, on the recorder's thread.
      look_s:  between two looks at the sessions.
      queue:   readings that may wait to be written.
      clock:   seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        lineage: Lineage,
        ids: Ids,
        *,
        retention: Retention,
        tell: Callable[[KeptEvent], None],
        look_s: float,
        queue: int = _QUEUE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._lineage = lineage
        self._ids = ids
        self._retention = retention
        self._tell = tell
        self._look_s = look_s
        self._queue_limit = queue
        self._clock = clock
        self._queue: deque[_Item] = deque()
        self._written: deque[Kept] = deque(maxlen=queue)  # in its life, not yet in the store
        self._untold: deque[KeptEvent] = deque(maxlen=_QUEUE)
        self._followed = False
        self._caught_up = threading.Event()
        self._wake = threading.Event()
        self._stopping = False
        self._next_look = self._next_tending = 0.0
        self._dropped = 0
        self._complained = False
        self._thread = threading.Thread(target=self._work, name="hermosis-history", daemon=True)

    @property
    def dropped(self) -> int:
        """Readings that were lost because the database was too slow or away."""
        return self._dropped

    @property
    def caught_up(self) -> bool:
        """Whether the server is followed and what was missed before is here."""
        return self._caught_up.is_set()

    def take(self, reading: TelemetryReading) -> int:
        """Keeps a reading of the live stream. Returns its id."""
        if len(self._queue) >= self._queue_limit:
            self._dropped += 1
        else:
            self._queue.append(reading)
            if len(self._queue) >= _BATCH:
                self._wake.set()
        return self._ids.of(reading)

    def followed(self, followed: bool) -> None:
        """The server is followed from here on, or is not any more."""
        if not followed:
            self._caught_up.clear()
        self._queue.append(followed)
        self._wake.set()

    def note(self, session_id: str, happened: Happened, step: int | None = None) -> None:
        """Keeps an event that somebody brought about."""
        self._queue.append(_Note(session_id, happened, step))
        self._wake.set()

    def settling(self) -> threading.Event:
        """Is set when all that was taken before is in the store."""
        settled = threading.Event()
        self._queue.append(settled)
        self._wake.set()
        return settled

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def close(self) -> None:
        """Writes what is there, and ends the thread."""
        self._stopping = True
        self._lineage.end()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait(_BATCH_S)
            self._wake.clear()
            self._carefully(self._write)
            now = time.monotonic()
            if self._followed and now >= self._next_look:
                self._carefully(self._look)
                took = time.monotonic() - now
                self._next_look = time.monotonic() + max(self._look_s, took / _LOOK_SHARE)
            if now >= self._next_tending:
                self._carefully(self._tend)
                self._next_tending = time.monotonic() + _TEND_S
        self._carefully(self._write)

    def _carefully(self, work: Callable[[], None]) -> None:
        """The server may be away, and so may the database: both are tried again."""
        try:
            work()
            self._complained = False
        except errors.HermosisError as error:
            if not self._complained and not self._stopping and isinstance(error, errors.StorageFailed):
                _log.warning("event=history_waits problem=%r", str(error))
                self._complained = True
        except Exception:
            _log.exception("event=history_failed")

    def _write(self) -> None:
        settled: list[threading.Event] = []
        try:
            while self._queue:
                self._place(self._queue.popleft(), settled)
                if len(self._written) >= _BATCH:
                    self._put()
            self._put()
        finally:
            for each in settled:
                each.set()

    def _place(self, item: _Item, settled: list[threading.Event]) -> None:
        match item:
            case TelemetryReading():
                try:
                    kept = self._lineage.place(item)
                except errors.HermosisError:
                    kept = None  # The server is away, and will be asked for it when it is back.
                if kept is not None:
                    if len(self._written) == self._queue_limit:
                        self._dropped += 1
                    self._written.append(kept)
            case _Note():
                self._put()
                self._lineage.note(item.session_id, item.happened, item.step)
            case threading.Event():
                settled.append(item)
            case True:
                self._put()
                self._lineage.found()
                self._followed, self._next_look = True, 0.0
            case False:
                self._followed = False
                self._lineage.lost()

    def _look(self) -> None:
        self._lineage.look()
        self._put()
        if self._followed and False not in self._queue:
            self._caught_up.set()

    def _put(self) -> None:
        """Writes what was placed; it stays where that fails."""
        self._untold += self._lineage.happened()
        if not self._written and not self._untold:
            return
        self._store.add(list(self._written), list(self._untold))
        self._written.clear()
        while self._untold:
            self._tell(self._untold.popleft())

    def _tend(self) -> None:
        now = self._clock()
        self._store.forget(now - self._retention.keep_s)
        self._store.thin(now - self._retention.raw_s)
