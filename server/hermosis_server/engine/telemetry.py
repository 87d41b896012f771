"""Telemetry: the last readings of a session, and whoever watches them. Used from the rpc thread only."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from hermosis_server.errors import QuotaExceeded
from hermosis_server.records import TelemetryReading

# Of all sessions, a kilobyte each at the most; and of one, however many sessions there are.
MAX_READINGS_TOGETHER = 1_000_000
LEAST_READINGS = 64
# Each may keep as many readings as a ring for a viewer that does not read.
MAX_WATCHES = 256
# How long a watcher's news gather, so that workers hear of a step before watchers do, and how many go at a time.
GATHER_S = 0.01
MOST_AT_A_TIME = 64


class Readings(Protocol):
    """Readings of many sessions that stepped together, still in columns."""

    def reading(self, session_id: str) -> TelemetryReading: ...


class Shelf:
    """Room for the readings of all sessions, alike for each.

    Args:
      most:     of one session.
      together: of all sessions; each has a part, and the rings are cut when the sessions have doubled.

    Attributes:
      capacity: of one ring at present.
    """

    def __init__(self, most: int, together: int = MAX_READINGS_TOGETHER) -> None:
        self.capacity = self._most = most
        self._together = together

    def share(self, count: int, rings: Iterable["TelemetryRing"]) -> None:
        """Makes room for as many rings: to be called whenever there is another one, or one less."""
        # A power of two, so that cutting costs each new session the same, however many there are.
        places = 1 << max(0, count - 1).bit_length()
        before, self.capacity = self.capacity, min(self._most, max(LEAST_READINGS, self._together // places))
        if self.capacity < before:
            for ring in rings:
                ring.cut()


class TelemetryRing:
    """The newest readings of one session, oldest first. What came in columns becomes a reading when it is asked for."""

    def __init__(self, session_id: str, shelf: Shelf) -> None:
        self._session_id = session_id
        self._shelf = shelf
        self._readings: deque[TelemetryReading | Readings] = deque()

    def __len__(self) -> int:
        return len(self._readings)

    def append(self, reading: TelemetryReading | Readings) -> None:
        self._readings.append(reading)
        if len(self._readings) > self._shelf.capacity:
            self._readings.popleft()

    def cut(self) -> None:
        """Lets the oldest go that there is no room for."""
        while len(self._readings) > self._shelf.capacity:
            self._readings.popleft()

    @property
    def latest(self) -> TelemetryReading | None:
        return self._read(self._readings[-1]) if self._readings else None

    @property
    def oldest_step(self) -> int:
        """Step of the oldest reading held; zero when there is none."""
        return self._read(self._readings[0]).step if self._readings else 0

    def history(self, *, after_step: int, max_readings: int) -> list[TelemetryReading]:
        """Readings after a step, thinned evenly to at most `max_readings`; the newest is always among them."""
        readings = map(self._read, self._readings)
        return thinned([reading for reading in readings if reading.step > after_step], max_readings)

    def clear(self) -> None:
        self._readings.clear()

    def _read(self, entry: TelemetryReading | Readings) -> TelemetryReading:
        return _reading(entry, self._session_id)


def _reading(entry: TelemetryReading | Readings, session_id: str) -> TelemetryReading:
    return entry if isinstance(entry, TelemetryReading) else entry.reading(session_id)


def thinned(readings: Sequence[TelemetryReading], at_most: int) -> list[TelemetryReading]:
    """At most that many readings, evenly spread, the newest included."""
    count = len(readings)
    if count <= at_most:
        return list(readings)
    return [readings[(index + 1) * count // at_most - 1] for index in range(at_most)]


class Watch:
    """One watcher's readings: a bounded queue that drops its oldest reading rather than delay a step.

    Args:
      session_ids: to watch; empty means all.
      sees:        whether the watcher may see a session.
    """

    def __init__(
        self,
        session_ids: Iterable[str],
        *,
        min_interval_s: float,
        capacity: int,
        sees: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._session_ids = frozenset(session_ids)
        self._sees = sees
        self._min_interval_s = min_interval_s
        self._last_s: dict[str, float] = {}
        self._readings: deque[tuple[TelemetryReading | Readings, str]] = deque(maxlen=capacity)
        self._news = asyncio.Event()
        self._ended = False

    def offer(self, session_id: str, time_s: float, entry: TelemetryReading | Readings) -> None:
        """Takes a step's reading, if it is wanted; what is still in columns is made when it is read."""
        if self._session_ids and session_id not in self._session_ids:
            return
        if not self._sees(session_id):
            return
        if time_s - self._last_s.get(session_id, float("-inf")) < self._min_interval_s:
            return
        self._last_s[session_id] = time_s
        self._readings.append((entry, session_id))
        self._news.set()

    def forget(self, session_id: str) -> None:
        """The session is no more."""
        self._last_s.pop(session_id, None)

    def end(self) -> None:
        """Lets `next` return nothing once all is read."""
        self._ended = True
        self._news.set()

    async def next(self) -> list[TelemetryReading]:
        """Some of what came since the last call, oldest first, or what comes next; empty when the watch has ended."""
        if not self._readings and not self._ended:
            self._news.clear()
            await self._news.wait()
            await asyncio.sleep(GATHER_S)
        some = min(len(self._readings), MOST_AT_A_TIME)
        return [_reading(*self._readings.popleft()) for _ in range(some)]


class Watchers:
    """Everybody who watches."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    def add(self, watch: Watch) -> Watch:
        """Adds one. Raises QuotaExceeded while there are as many as there may be."""
        if len(self._watches) >= MAX_WATCHES:
            raise QuotaExceeded(f"{MAX_WATCHES} watches are open, the most there may be; end one first")
        self._watches.add(watch)
        return watch

    def remove(self, watch: Watch) -> None:
        self._watches.discard(watch)

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self._watches)

    def offer(self, session_id: str, time_s: float, entry: TelemetryReading | Readings) -> None:
        for watch in self._watches:
            watch.offer(session_id, time_s, entry)

    def forget(self, session_id: str) -> None:
        """The session is no more."""
        for watch in self._watches:
            watch.forget(session_id)

    def end(self) -> None:
        for watch in self._watches:
            watch.end()
