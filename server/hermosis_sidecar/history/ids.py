"""Ids of readings and events: the microsecond of a step by the server's clock, moved on by one where it is taken.

So a reading that comes by two ways, or again after the sidecar was killed, has the same id, and who asks for what came
after an id is told nothing twice.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from hermosis_client import TelemetryReading

# Readings that may come by a second way; beyond, the oldest are forgotten.
_REMEMBERED = 50_000


class Ids:
    """Given out to all threads.

    Args:
      newest: the largest id given before, zero for none.
    """

    def __init__(self, newest: int = 0) -> None:
        self._lock = threading.Lock()
        self._of: OrderedDict[tuple[str, int, float], int] = OrderedDict()
        self._taken: set[int] = set()
        self._newest = newest

    def of(self, reading: TelemetryReading) -> int:
        """The id of a reading, the same each time."""
        key = reading.session_id, reading.step, reading.time_s
        with self._lock:
            known = self._of.get(key)
            if known is not None:
                return known
            candidate = max(1, round(reading.time_s * 1e6))
            while candidate in self._taken:
                candidate += 1
            self._put(key, candidate)
            return candidate

    def next(self) -> int:
        """One for an event, after all that were given so far."""
        with self._lock:
            candidate = self._newest + 1 if self._newest else int(time.time() * 1e6)
            self._put(("", 0, candidate), candidate)
            return candidate

    def reserve(self, ids: Iterable[int]) -> None:
        """Takes ids out that the store holds already."""
        with self._lock:
            for each in ids:
                self._put(("", 0, each), each)

    def _put(self, key: tuple[str, int, float], candidate: int) -> None:
        self._of[key] = candidate
        self._taken.add(candidate)
        self._newest = max(self._newest, candidate)
        if len(self._of) > _REMEMBERED:
            _, oldest = self._of.popitem(last=False)
            self._taken.discard(oldest)
