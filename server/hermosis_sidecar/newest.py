"""The newest reading of each session, and what was counted on the way."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from hermosis_client import TelemetryReading

# Sessions come and go without notice, so those heard of longest ago are forgotten beyond this many.
_MOST_SESSIONS = 20_000


class Counts(NamedTuple):
    """Since the sidecar started."""

    readings: int
    steps: int


class NewestReadings:
    """Written by the thread that follows the server, read by all others.

    Args:
      clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._by_session: OrderedDict[str, tuple[TelemetryReading, float]] = OrderedDict()
        self._readings = 0
        self._steps = 0

    def take(self, reading: TelemetryReading) -> None:
        """Notes a reading from the live stream."""
        with self._lock:
            known = self._by_session.get(reading.session_id)
            # The stream is thinned by time, so one reading stands for all steps since the one before. A session that
            # was set back, or made anew under an old id, begins to count afresh.
            before = known[0].step if known is not None and known[0].step < reading.step else reading.step - 1
            self._readings += 1
            self._steps += reading.step - before
            self._put(reading)

    def of(self, session_id: str) -> TelemetryReading | None:
        """The newest reading known of a session."""
        with self._lock:
            known = self._by_session.get(session_id)
        return None if known is None else known[0]

    def of_step(
        self, session_id: str, step: int, ask: Callable[[], TelemetryReading | None]
    ) -> TelemetryReading | None:
        """The newest reading of a session known to be at `step`, asking for it where the live stream has not told.

        A stream that is behind by less than a second is in good order and is not overtaken by questions.
        """
        if step == 0:
            return None
        with self._lock:
            known = self._by_session.get(session_id)
        if known is not None and (known[0].step == step or self._clock() - known[1] < 1):
            return known[0]
        reading = ask()
        if reading is not None:
            with self._lock:
                self._put(reading)
        return reading

    def counts(self) -> Counts:
        """What was counted so far."""
        with self._lock:
            return Counts(self._readings, self._steps)

    def _put(self, reading: TelemetryReading) -> None:
        self._by_session[reading.session_id] = (reading, self._clock())
        self._by_session.move_to_end(reading.session_id)
        if len(self._by_session) > _MOST_SESSIONS:
            self._by_session.popitem(last=False)
