"""Live: one watch stream from the server, fanned out to any number of viewers.

A thread follows the server and comes back to it when it was away; viewers live on the event loop, each with a bounded
queue of its own, so a slow one loses the oldest readings and holds up nobody.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from hermosis_client import Client, TelemetryReading, Watch, errors
from hermosis_sidecar.history import Event, Life
from hermosis_sidecar.newest import NewestReadings

_Item = TypeVar("_Item")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """A reading or an event, with the id to come back with."""

    id: int
    said: TelemetryReading | Event


class Viewer:
    """One viewer's queue, to be used on the event loop alone.

    Args:
      session_ids: to see; empty means all.
      capacity:    readings and events kept while the viewer is slow.
      reachable:   whether the server is there now.
    """

    def __init__(self, session_ids: frozenset[str], capacity: int, reachable: bool) -> None:
        self._session_ids = session_ids
        self._heard: deque[Heard] = deque(maxlen=capacity)
        self._reachable = reachable
        self._ended = False
        self._wake = asyncio.Event()

    def take(self, heard: Heard) -> None:
        """Queues what this viewer wants to see."""
        if self.wants(heard.said.session_id):
            self._heard.append(heard)
            self._wake.set()

    def wants(self, session_id: str) -> bool:
        """Whether it is one of the viewer's sessions."""
        return not self._session_ids or session_id in self._session_ids

    def forget(self) -> None:
        """Lets go what is queued: the viewer is told of it in another way."""
        self._heard.clear()

    def tell(self, reachable: bool) -> None:
        """Passes on that the server has come or gone."""
        self._reachable = reachable
        self._wake.set()

    def end(self) -> None:
        """Ends the viewing."""
        self._ended = True
        self._wake.set()

    async def events(
        self, missed: AsyncIterator[Heard] | None = None, told: frozenset[int] | set[int] = frozenset()
    ) -> AsyncIterator[Heard | bool]:
        """What is heard as it comes, and whether the server is reachable: once at first, then when it changes.

        Args:
          missed: is given first, to somebody who comes back.
          told:   ids that are not to be told again.
        """
        reachable = self._reachable
        yield reachable
        if missed is not None:
            async for heard in missed:
                if self._ended:
                    return
                yield heard
        while not self._ended:
            if self._reachable != reachable:
                reachable = self._reachable
                yield reachable
            elif self._heard:
                heard = self._heard.popleft()
                if heard.id not in told:
                    yield heard
            else:
                self._wake.clear()
                await self._wake.wait()


class Live:
    """Follows the server from `start` to `close`. Made on the event loop that its viewers live on.

    Args:
      client:      to follow with; its timeout is how long a server may be away before viewers are told.
      newest:      where readings are noted.
      hear:        is given each reading on the thread, and gives it an id.
      followed:    is told there that the server is followed from here on, or is not any more.
      interval_s:  least time between two readings of one session.
      retry_s:     between attempts to follow a server that is away.
      capacity:    readings kept for a slow viewer.
    """

    def __init__(
        self,
        client: Client,
        newest: NewestReadings,
        *,
        hear: Callable[[TelemetryReading], int],
        followed: Callable[[bool], None],
        interval_s: float,
        retry_s: float,
        capacity: int,
    ) -> None:
        self._client = client
        self._newest = newest
        self._hear = hear
        self._followed = followed
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
        self._seen: set[tuple[str, float]] = set()

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

    # --- on whatever thread

    def say(self, event: Event) -> None:
        """Passes an event on to the viewers."""
        if self._viewers:
            self._on_loop(self._publish, Heard(event.event_id, event))

    def sees(self, life: Life) -> bool:
        """Whether the token that is followed with sees the session; asks the server where it is not known."""
        key = life.session_id, life.create_time_s
        if key not in self._seen:
            try:
                info = self._client.session(life.session_id).info()
            except errors.HermosisError:
                return False
            self._seen.add((info.session_id, info.create_time_s))
        return key in self._seen

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
                heard = Heard(self._hear(reading), reading)
                if self._viewers:
                    self._on_loop(self._publish, heard)

    def _tell(self, reachable: bool) -> None:
        if reachable != self._reachable:
            self._reachable = reachable
            self._followed(reachable)
            self._on_loop(self._publish_reachable, reachable)

    def _publish(self, heard: Heard) -> None:
        for viewer in self._viewers:
            viewer.take(heard)

    def _end_present(self, _: None) -> None:
        for viewer in self._viewers:
            viewer.end()

    def _publish_reachable(self, reachable: bool) -> None:
        for viewer in self._viewers:
            viewer.tell(reachable)

    def _on_loop(self, function: Callable[[_Item], None], item: _Item) -> None:
        if not self._stopping.is_set():
            self._loop.call_soon_threadsafe(function, item)
