"""Rounds: contributions of workers until there are enough for a step. Used from the rpc thread only."""

import asyncio
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hermosis_server.engine.assembler import Assembler
from hermosis_server.records import Commit, ReplyWish, StepResult, Vector

RECENT_SEQUENCES = 64  # a worker's answers that are remembered; more than any sensible number in flight


class Answer(NamedTuple):
    """What goes back to one worker."""

    result: StepResult
    vector: Vector | None


# Told once what became of a contribution, on the event loop. It must not raise.
Tell = Callable[[Answer | Exception], None]


def awaited() -> tuple[asyncio.Future[Answer], Tell]:
    """A future for one who waits in a coroutine, and the call that settles it. Whoever cancels it is not told."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def tell(answer: Answer | Exception) -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
            future.exception()  # whoever waited may have gone, and the loop would report an error nobody can read
        else:
            future.set_result(answer)

    return future, tell


@dataclass(slots=True)
class StepTicket:
    """The promise of one contribution's fate.

    Attributes:
      waiting: who will be told of it.
      result:  stays for repeats.
      origin:  the span that it came by; None while nobody traces.
    """

    payload_crc32: int
    waiting: list[Tell] = field(default_factory=list)
    result: StepResult | None = None
    given_up: bool = False
    origin: object = None

    def resolve(self, answer: Answer) -> None:
        self.result = answer.result
        self._tell(answer)

    def fail(self, error: Exception) -> None:
        self.given_up = True
        self._tell(error)

    def _tell(self, answer: Answer | Exception) -> None:
        waiting, self.waiting = self.waiting, []
        for tell in waiting:
            tell(answer)


class Unfinished(NamedTuple):
    """A gradient whose stream broke before all of it came; it waits a while for its worker to go on."""

    sequence: int
    generation: int
    gradient: Assembler


class Tickets(Protocol):
    """Tickets of one worker's contributions to many sessions, still in columns."""

    def ticket(self, session_id: str) -> StepTicket: ...


@dataclass(slots=True)
class WorkerRecord:
    """What the server knows of one worker of one session.

    Attributes:
      recent:     the last contributions counted, by their numbers.
      unfinished: what came of the next contribution before its stream broke.
      increments: answered since the last of them was counted; kept because nobody could compute them again.
      heard_s:    monotonic seconds when something of it came last.
      left:       whether its last stream has ended.
      clock:      contributions that were tried since it joined, of a BOUNDED session.
      influence:  of its last contribution on the gradient of its round.
      compression_error: that its last contribution stated; None where it stated none.
    """

    worker_id: str
    sequence: int = 0  # of the last contribution counted
    recent: dict[int, StepTicket | Tickets] = field(default_factory=dict)
    increments: dict[int, Vector] = field(default_factory=dict)
    base_step: int = 0
    staleness: int = 0
    received_bytes: int = 0
    last_seen_s: float = 0.0
    streams: int = 0
    unfinished: Unfinished | None = None
    heard_s: float = 0.0
    left: bool = False
    clock: int = 0
    influence: float = 0.0
    compression_error: float | None = None

    def remember(self, sequence: int, ticket: StepTicket | Tickets) -> None:
        if self.increments:
            self.increments.clear()
        self.sequence = sequence
        self.recent[sequence] = ticket
        self.recent.pop(sequence - RECENT_SEQUENCES, None)

    def give_up(self, unfinished: Unfinished) -> None:
        """Gives the memory of an unfinished gradient back, unless its worker has gone on with it."""
        if self.unfinished is unfinished:
            self.unfinished = None
            unfinished.gradient.release()

    def forget(self, sequence: int) -> None:
        """Undoes `remember` for a contribution that was counted but never tried."""
        self.recent.pop(sequence, None)
        self.sequence = min(self.sequence, sequence - 1)


class Contribution(NamedTuple):
    """One worker's whole gradient for a round."""

    worker: WorkerRecord
    commit: Commit
    wish: ReplyWish
    gradient: Assembler
    ticket: StepTicket
    counted_s: float  # monotonic seconds


@dataclass(slots=True)
class Round:
    """Contributions that make one step together.

    Attributes:
      quorum:  how many make it ready.
      began_s: monotonic seconds when the first one came.
      is_due:  whether it steps with what there is.
    """

    quorum: int
    contributions: dict[str, Contribution] = field(default_factory=dict)
    began_s: float = math.inf
    is_due: bool = False

    def add(self, contribution: Contribution) -> None:
        if not self.contributions:
            self.began_s = contribution.counted_s
        self.contributions[contribution.worker.worker_id] = contribution

    @property
    def ready(self) -> bool:
        return len(self.contributions) >= self.quorum or (self.is_due and bool(self.contributions))

    def ordered(self) -> list[Contribution]:
        """In the order of worker ids, so that the sum never depends on who came first."""
        return [self.contributions[worker_id] for worker_id in sorted(self.contributions)]


def weights(contributions: list[Contribution]) -> list[float]:
    """Each contribution's part in the mean: by samples where every one states a count, else equal."""
    if len(contributions) == 1:
        return [1.0]
    counts = [contribution.commit.sample_count for contribution in contributions]
    if not all(counts):
        return [1.0 / len(counts)] * len(counts)
    total = sum(counts)
    return [count / total for count in counts]


def mean_loss(contributions: list[Contribution]) -> float:
    """Mean loss with the same weights; NaN, which means undefined, when any worker gave none or not a finite one."""
    losses = [contribution.commit.loss for contribution in contributions]
    if not all(map(math.isfinite, losses)):
        return math.nan
    if len(losses) == 1:
        return losses[0]
    return math.fsum(map(operator.mul, weights(contributions), losses))
