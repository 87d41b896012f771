"""Scheduler: ready rounds of different sessions become one StepBatch; where all cannot go at once, each has its share.

The queue is the only way to the device thread. What is of one session goes first come, first served: a read that was
asked for after a step sees that step. Between sessions the pick is fair (start-time fair queueing, Goyal, Vin and Cheng
1996): an item's start tag is when its session's last one would have ended if every session had an equal part, and
the lowest goes next. A session that floods the queue waits for itself.
"""

import heapq
import queue
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hermosis_server.engine.rounds import Contribution
from hermosis_server.records import Aggregation, ReplyWish

# Steps of more than this take a millisecond or more: they do not share a batch with lighter ones, which would wait.
LIGHT_BYTES = 2 << 20
ITEM_BYTES = 64 << 10  # what an item costs beside its bytes
MOST_LOOKED_AT = 64  # for light rounds, between two slices of a heavy one


class ReadyRound(NamedTuple):
    """Contributions of one session on their way to its next step, in the order of worker ids.

    Attributes:
      aggregation:  by which they become one gradient; None means their mean.
      as_then:      whether late ones count as in their own time.
      late_weights: of each, where they are known from an earlier time.
      dropped:      they change nothing, and are told so in their place between the steps.
    """

    resident: Any  # the executor's Resident; the scheduler only tells one from another
    contributions: list[Contribution]
    lr_scale: float
    loss: float
    size_bytes: int
    done: Callable[[Any], None]
    aggregation: Aggregation | None = None
    as_then: bool = False
    late_weights: Sequence[float] | None = None
    dropped: bool = False

    @property
    def residents(self) -> Sequence[Any]:
        """Who steps."""
        return (self.resident,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyFleet:
    """Rounds of many sessions, each of one contribution of the same worker, as columns.

    Attributes:
      residents:  who step; nobody twice.
      parts:      of each, its gradient (step.Part).
      losses:     NaN where not known.
      lr_scales:  of this step.
      wish:       what is sent back for each.
      worker_id:  who sent them.
      sequences:  the number of each contribution.
      checksums:  CRC-32 of each gradient.
      size_bytes: of all gradients.
      done:       called on the event loop with a FleetDone, or with the exception.
    """

    residents: Sequence[Any]
    parts: Sequence[Any]
    losses: Sequence[float]
    lr_scales: Sequence[float]
    wish: ReplyWish
    worker_id: str
    sequences: Sequence[int]
    checksums: Sequence[int]
    size_bytes: int
    done: Callable[[Any], None]


Ready = ReadyRound | ReadyFleet


@dataclass(frozen=True, slots=True)
class Job:
    """Anything else that touches device memory.

    Attributes:
      residents: of the sessions that it is about, whose steps it keeps its place among. None keeps its place among all
                 that there is; of nobody, it goes as soon as it may.
    """

    run: Callable[[], None]
    residents: Sequence[Any] | None = None
    size_bytes: int = 0


Item = Ready | Job
_Tagged = tuple[float, int, Item]  # start tag, number of arrival


class StepQueue:
    """Hands work to the device thread.

    Args:
      batch_bytes: the most gradient bytes in one batch; a single larger round still goes, alone.
      linger_s:    how long the first round of a batch waits for others. Zero batches what is there already, which is
                   what gathers by itself while the device is busy.
    """

    def __init__(self, *, batch_bytes: int, linger_s: float) -> None:
        self._arrived: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._batch_bytes = batch_bytes
        self._linger_s = linger_s
        self._stopped = False
        # The device thread's own; empty, without tags, as long as all that waits goes at once.
        self._waiting: list[_Tagged] = []
        self._barrier: Job | None = None  # of all: what came after it has not been looked at
        self._ends: dict[int, float] = {}  # of each session's last item, by the id of its resident
        self._now = 0.0  # start tag of what went last
        self._number = 0

    def put(self, item: Item) -> None:
        self._arrived.put(item)

    @property
    def lingers(self) -> bool:
        """Whether a batch waits for others."""
        return self._linger_s > 0

    def stop(self) -> None:
        """Lets `next` return None once everything before is done."""
        self._arrived.put(None)

    def next(self, *, wait: bool = True) -> Job | list[Ready] | None:
        """The next job, or the next batch; None at the end. Waits for it, or gives an empty batch."""
        if self._waiting:
            self._look()
            return self._fairly()
        if self._barrier is not None:
            barrier, self._barrier = self._barrier, None
            return barrier
        if self._stopped:
            return None
        try:
            first = self._arrived.get(block=wait)
        except queue.Empty:
            return []
        if first is None or isinstance(first, Job):
            return first
        return self._at_once(first)

    def light(self, may: Callable[[Ready], bool]) -> list[Ready]:
        """Light rounds that may step while a heavy batch is in the middle of its own; often none.

        Args:
          may: whether these sessions can step now; those of the heavy batch cannot.
        """
        self._look()
        batch: list[Ready] = []
        passed: list[_Tagged] = []
        blocked: set[int] = set()  # sessions with something before that does not go now
        size = 0
        while self._waiting and len(batch) + len(passed) < MOST_LOOKED_AT:
            tagged = heapq.heappop(self._waiting)
            item = tagged[2]
            members = set(map(id, item.residents or ()))
            fits = not isinstance(item, Job) and size + item.size_bytes <= LIGHT_BYTES and may(item)
            if fits and blocked.isdisjoint(members):
                assert not isinstance(item, Job), "jobs do not fit"
                batch.append(item)
                size += item.size_bytes
            else:
                passed.append(tagged)
            blocked |= members
        for tagged in passed:
            heapq.heappush(self._waiting, tagged)
        return batch

    def _at_once(self, first: Ready) -> list[Ready]:
        """A batch of what has arrived. What does not fit begins to wait, and from then on there are tags."""
        deadline = time.monotonic() + self._linger_s if self._linger_s else 0.0
        batch = _Batch(first, self._batch_bytes)
        while True:
            try:
                if deadline:
                    item = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
                else:
                    item = self._arrived.get_nowait()
            except queue.Empty:
                return batch.items
            if item is None:
                self._stopped = True
                return batch.items
            if not batch.add(item):
                self._ends.clear()
                self._now = 0.0
                for one in batch.items:
                    self._tag(one)
                self._wait(item)
                return batch.items

    def _fairly(self) -> Job | list[Ready]:
        """What has the lowest tag, with those behind it that can go along."""
        self._now, _, first = heapq.heappop(self._waiting)
        if isinstance(first, Job):
            return first
        batch = _Batch(first, self._batch_bytes)
        while self._waiting and batch.add(self._waiting[0][2]):
            heapq.heappop(self._waiting)
        return batch.items

    def _look(self) -> None:
        """Lets all that has arrived wait, up to a barrier."""
        while self._barrier is None and not self._stopped:
            try:
                item = self._arrived.get_nowait()
            except queue.Empty:
                return
            if item is None:
                self._stopped = True
            else:
                self._wait(item)

    def _wait(self, item: Item) -> None:
        if isinstance(item, Job) and item.residents is None:
            self._barrier = item
            return
        self._number += 1
        heapq.heappush(self._waiting, (self._tag(item), self._number, item))

    def _tag(self, item: Item) -> float:
        """The start tag of an item; its sessions' ends move on by their parts of what it costs."""
        residents: Iterable[Any] = item.residents or ()
        members = list(map(id, residents))
        ends = self._ends
        start = max([self._now, *(ends[member] for member in members if member in ends)])
        if members:
            end = start + (ITEM_BYTES + item.size_bytes) / len(members)
            ends.update(dict.fromkeys(members, end))
        return start


class _Batch:
    """Rounds that go together: of different sessions, within so many bytes, and all heavy or all light."""

    def __init__(self, first: Ready, limit_bytes: int) -> None:
        self.items = [first]
        self._limit_bytes = limit_bytes
        self._size = first.size_bytes
        self._heavy = first.size_bytes > LIGHT_BYTES
        self._members = set(map(id, first.residents))

    def add(self, item: Item) -> bool:
        """Takes one more; False where it has to wait."""
        if isinstance(item, Job) or self._size + item.size_bytes > self._limit_bytes:
            return False
        if (item.size_bytes > LIGHT_BYTES) is not self._heavy:
            return False
        joining = set(map(id, item.residents))
        if not self._members.isdisjoint(joining):  # its second step waits for its first
            return False
        self.items.append(item)
        self._members |= joining
        self._size += item.size_bytes
        return True
