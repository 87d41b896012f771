"""Scheduler: ready rounds of different sessions become one StepBatch; everything else waits its turn.

The queue is the only way to the device thread, and it is first come, first served: a read that was asked for after a
step sees that step.
"""

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hermosis_server.engine.rounds import Contribution
from hermosis_server.records import ReplyWish


class ReadyRound(NamedTuple):
    """Contributions of one session on their way to its next step, in the order of worker ids."""

    resident: Any  # the executor's Resident; the scheduler only tells one from another
    contributions: list[Contribution]
    lr_scale: float
    loss: float
    size_bytes: int
    done: Callable[[Any], None]

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
    """Anything else that touches device memory."""

    run: Callable[[], None]


class StepQueue:
    """Hands work to the device thread in order.

    Args:
      batch_bytes: the most gradient bytes in one batch; a single larger round still goes, alone.
      linger_s:    how long the first round of a batch waits for others. Zero batches what is there already, which is
                   what gathers by itself while the device is busy.
    """

    def __init__(self, *, batch_bytes: int, linger_s: float) -> None:
        self._items: queue.SimpleQueue[Ready | Job | None] = queue.SimpleQueue()
        self._batch_bytes = batch_bytes
        self._linger_s = linger_s
        self._held: Ready | Job | None = None
        self._stopped = False

    def put(self, item: Ready | Job) -> None:
        self._items.put(item)

    @property
    def lingers(self) -> bool:
        """Whether a batch waits for others."""
        return self._linger_s > 0

    def stop(self) -> None:
        """Lets `next` return None once everything before is done."""
        self._items.put(None)

    def next(self, *, wait: bool = True) -> Job | list[Ready] | None:
        """The next job, or the next batch; None at the end. Waits for it, or gives an empty batch."""
        first = self._held
        self._held = None
        if first is None:
            if self._stopped:
                return None
            try:
                first = self._items.get(block=wait)
            except queue.Empty:
                return []
        if first is None or isinstance(first, Job):
            return first
        return self._fill([first])

    def _fill(self, batch: list[Ready]) -> list[Ready]:
        deadline = time.monotonic() + self._linger_s
        size = batch[0].size_bytes
        members = set(map(id, batch[0].residents))
        while True:
            try:
                item = (
                    self._items.get(timeout=max(0.0, deadline - time.monotonic()))
                    if self._linger_s
                    else (self._items.get_nowait())
                )
            except queue.Empty:
                return batch
            if item is None:
                self._stopped = True
                return batch
            if isinstance(item, Job) or size + item.size_bytes > self._batch_bytes:
                self._held = item
                return batch
            joining = set(map(id, item.residents))
            if not members.isdisjoint(joining):  # its second step waits for its first
                self._held = item
                return batch
            batch.append(item)
            members |= joining
            size += item.size_bytes
