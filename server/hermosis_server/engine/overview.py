"""Overview: what the whole server does, in a few counters that cost a step next to nothing. Used from the rpc thread.

Everything is counted since the start. What is told of the last minute or the last seconds is the difference to a mark,
a copy of the counters that is set every few seconds by whoever comes by.
"""

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hermosis_server.engine.batch import Launch

MARK_S: Final = 5.0
MARKS: Final = 13  # of the last minute, and the one that it began with

# Upper ends in seconds of the buckets of a step's time, each half an octave above the one before: 16 µs to 90 s.
BOUNDS: Final = tuple(2.0 ** (half / 2) for half in range(-32, 14))

# The queue grows where it was longer in all of the later half of the last minute than in any of the earlier half.
LEAST_GROWN_ROUNDS: Final = 32


class Mark(NamedTuple):
    """The counters as they stood at a time, in monotonic seconds."""

    time_s: float
    steps: int
    launches: int
    launched_sessions: int
    received_bytes: int
    sent_bytes: int
    queue_rounds: int
    step_counts: tuple[int, ...]


class Pace(NamedTuple):
    """How fast things go; NaN where nothing went.

    Rates are of the last five to ten seconds; the others are of the last minute. `step_p50_s` and `step_p99_s` are from
    a round's last contribution to the end of its step.
    """

    steps_per_s: float
    received_bytes_per_s: float
    sent_bytes_per_s: float
    batch_sessions: float
    step_p50_s: float
    step_p99_s: float
    queue_grows: bool


class Activity:
    """Counters of one server.

    Attributes:
      steps:             applied.
      launches:          batches that the devices stepped, and the sessions in them.
      step_counts:       steps by their seconds: as many as BOUNDS, and one more for the rest.
      step_s:            seconds of all steps together.
      queue_rounds:      handed to a device whose fate is not known yet; and the bytes of their gradients.
      received_bytes:    in messages, and in memory that workers share.
      streams:           of workers that are open.

    Args:
      clock: monotonic seconds, the same as in a Launch.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.began_s = clock()
        self.steps = 0
        self.launches = 0
        self.launched_sessions = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.queue_rounds = 0
        self.queue_bytes = 0
        self.streams = 0
        self.step_s = 0.0
        self.step_counts = [0] * (len(BOUNDS) + 1)
        self._launch: Launch | None = None
        self._marks: deque[Mark] = deque([self._mark(self.began_s)], maxlen=MARKS)
        self._due_s = self.began_s + MARK_S

    def queued(self, rounds: int, size_bytes: int) -> None:
        """Rounds were handed to a device; each will be `stepped` or `dropped`."""
        self.queue_rounds += rounds
        self.queue_bytes += size_bytes

    def dropped(self, rounds: int, size_bytes: int) -> None:
        """Their step failed."""
        self.queue_rounds -= rounds
        self.queue_bytes -= size_bytes

    def stepped(self, launch: Launch, rounds: int, size_bytes: int, *, applied: int, counted_s: float) -> None:
        """Rounds of one launch were tried.

        Args:
          applied:   how many of them made a step.
          counted_s: monotonic seconds of their last contribution.
        """
        self.queue_rounds -= rounds
        self.queue_bytes -= size_bytes
        ended_s = launch.started_s + launch.device_s
        if ended_s >= self._due_s:
            self._set_marks(ended_s)
        if launch is not self._launch:  # its rounds are told of one after another
            self._launch = launch
            self.launches += 1
            self.launched_sessions += launch.sessions
        seconds = ended_s - counted_s
        self.steps += applied
        self.step_s += applied * seconds
        self.step_counts[bisect_right(BOUNDS, seconds)] += applied

    def pace(self) -> Pace:
        """How fast things go just now."""
        now_s = self._clock()
        if now_s >= self._due_s:
            self._set_marks(now_s)
        now, minute_ago, just_now = self._mark(now_s), self._marks[0], self._marks[max(-2, -len(self._marks))]
        span_s = max(now_s - just_now.time_s, MARK_S)
        launches = now.launches - minute_ago.launches
        counts = [after - before for after, before in zip(now.step_counts, minute_ago.step_counts, strict=True)]
        lengths = [mark.queue_rounds for mark in self._marks]
        earlier, later = lengths[: MARKS // 2], lengths[MARKS // 2 :]
        return Pace(
            steps_per_s=(now.steps - just_now.steps) / span_s,
            received_bytes_per_s=(now.received_bytes - just_now.received_bytes) / span_s,
            sent_bytes_per_s=(now.sent_bytes - just_now.sent_bytes) / span_s,
            batch_sessions=(
                (now.launched_sessions - minute_ago.launched_sessions) / launches if launches else math.nan
            ),
            step_p50_s=quantile(counts, 0.5),
            step_p99_s=quantile(counts, 0.99),
            queue_grows=len(lengths) == MARKS and min(later) > max(*earlier, LEAST_GROWN_ROUNDS),
        )

    def _set_marks(self, now_s: float) -> None:
        """Sets all marks that are due: since the first of them was, no step has been counted."""
        self._due_s = max(self._due_s, now_s - MARKS * MARK_S)  # after a long rest no more than are kept
        while self._due_s <= now_s:
            self._marks.append(self._mark(self._due_s))
            self._due_s += MARK_S

    def _mark(self, time_s: float) -> Mark:
        return Mark(
            time_s,
            self.steps,
            self.launches,
            self.launched_sessions,
            self.received_bytes,
            self.sent_bytes,
            self.queue_rounds,
            tuple(self.step_counts),
        )


def quantile(counts: Sequence[int], part: float) -> float:
    """The seconds that a part of all steps took at most, by counts over BOUNDS; NaN where there are none."""
    wanted = part * sum(counts)
    if not wanted:
        return math.nan
    below = 0
    for bucket, count in enumerate(counts):
        if count and below + count >= wanted:
            upper = BOUNDS[min(bucket, len(BOUNDS) - 1)]
            lower = BOUNDS[bucket - 1] if bucket else upper / 2
            return float(lower * (upper / lower) ** ((wanted - below) / count))
        below += count
    return math.nan
