"""Live: one watch stream from the server, fanned out to any number of viewers.

A thread follows the server and comes back to it when it was away; viewers live on the event loop, each with a bounded
queue of its own, so a slow one loses the oldest readings and holds up nobody.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from hermosis_client import Client, TelemetryReading, Watch, errors
from hermosis_sidecar.newest import NewestReadings

_Item = TypeVar("_Item")

_log = logging.getLogger(__name__)


class Viewer:
    """One viewer's queue, to be used on the event loop alone.

    Args:
      session_ids: to see; empty means all.
      capacity:    readings kept while the viewer is slow.
      reachable:   whether the server is there now.
    """

    def __init__(self, session_ids: frozenset[str], capacity: int, reachable: bool) -> None:
        self._session_ids = session_ids
        self._readings: deque[TelemetryReading] = deque(maxlen=capacity)
        self._reachable = reachable
        self._ended = False
        self._wake = asyncio.Event()

    def take(self, reading: TelemetryReading) -> None:
        """Queues a reading that this viewer wants to see."""
        if not self._session_ids or reading.session_id in self._session_ids:
            self._readings.append(reading)
            self._wake.set()

    def tell(self, reachable: bool) -> None:
        """Passes on that the server has come or gone."""
        self._reachable = reachable
        self._wake.set()

    def end(self) -> None:
        """Ends the viewing."""
        self._ended = True
        self._wake.set()

    async def events(self) -> AsyncIterator[TelemetryReading | bool]:
        """Readings as they come, and whether the server is reachable: once at first, then when it changes."""
        told: bool | None = None
        while not self._ended:
            if self._reachable != told:
                told = self._reachable
                yield told
            elif self._readings:
                yield self._readings.popleft()
            else:
                self._wake.clear()
                await self._wake.wait()


class Live:
    """Follows the server from `start` to `close`. Made on the event loop that its viewers live on.

    Args:
      client:      to follow with; its timeout is how long a server may be away before viewers are told.
      newest:      where readings are noted.
      interval_s:  least time between two readings of one session.
      retry_s:     between attempts to follow a server that is away.
      capacity:    readings kept for a slow viewer.
    """

    def __init__(
        self,
        client: Client,
        newest: NewestReadings,
        *,
        interval_s: float,
        retry_s: float,
        capacity: int,
    ) -> None:
        self._client = client
        self._newest = newest
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._capacity = capacity
        self._viewers: set[Viewer] = set()
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._follow_for_ever, name="hermosis-live", daemon=True)
        self._reachable = False

    @property
    def reachable(self) -> bool:
        """Whether the server is being followed now."""
        return self._reachable

    @property
    def viewers(self) -> int:
        """How many are viewing now."""
        return len(self._viewers)

    def view(self, session_ids: frozenset[str]) -> Viewer:
        """A new viewer; `leave` ends it."""
        viewer = Viewer(session_ids, self._capacity, self._reachable)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Forgets a viewer."""
        self._viewers.discard(viewer)

    def end_viewers(self) -> None:
        """Ends every live stream and lets no new one in."""
        self._stopping.set()
        for viewer in self._viewers:
            viewer.end()

    def start(self) -> None:
        """Begins to follow the server."""
        self._thread.start()

    def end(self) -> None:
        """Ends viewers, and the thread when it can. Does not wait."""
        self.end_viewers()
        with self._lock:
            if self._watch is not None:
                self._watch.close()

    def close(self) -> None:
        """Ends viewers and thread; waits for the thread as long as one call to the server may take."""
        self.end()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread

    def _follow_for_ever(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except errors.HermosisError as error:
                if isinstance(error, errors.Unauthenticated | errors.PermissionDenied):
                    self._on_loop(self._end_present, None)  # They come again, and are told why they may not.
                if self._reachable:
                    _log.warning("event=server_away server=%s problem=%r", self._client.address, str(error))
            self._tell(False)
            self._stopping.wait(self._retry_s)

    def _follow(self) -> None:
        # A watch has nothing to say while nothing steps; this tells a quiet server from one that is away.
        self._client.capabilities()
        with self._lock:
            if self._stopping.is_set():
                return
            self._watch = self._client.watch(min_interval_s=self._interval_s)
        with self._watch as watch:
            self._tell(True)
            for reading in watch:
                self._newest.take(reading)
                if self._viewers:
                    self._on_loop(self._publish, reading)

    def _tell(self, reachable: bool) -> None:
        if reachable != self._reachable:
            self._reachable = reachable
            self._on_loop(self._publish_reachable, reachable)

    def _publish(self, reading: TelemetryReading) -> None:
        for viewer in self._viewers:
            viewer.take(reading)

    def _end_present(self, _: None) -> None:
        for viewer in self._viewers:
            viewer.end()

    def _publish_reachable(self, reachable: bool) -> None:
        for viewer in self._viewers:
            viewer.tell(reachable)

    def _on_loop(self, function: Callable[[_Item], None], item: _Item) -> None:
        if not self._stopping.is_set():
            self._loop.call_soon_threadsafe(function, item)
