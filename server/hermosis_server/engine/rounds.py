"""Rounds: contributions of workers until there are enough for a step. Used from the rpc thread only."""

import asyncio
import math
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hermosis_server.engine.assembler import Assembler
from hermosis_server.records import Commit, ReplyWish, StepResult, Vector

RECENT_SEQUENCES = 64  # a worker's answers that are remembered; more than any sensible number in flight


class Answer(NamedTuple):
    """What goes back to one worker."""

    result: StepResult
    vector: Vector | None


@dataclass(slots=True)
class StepTicket:
    """The promise of one contribution's fate; `result` stays for repeats when the future is gone."""

    payload_crc32: int
    future: asyncio.Future[Answer] | None = None
    result: StepResult | None = None

    def resolve(self, answer: Answer) -> None:
        self.result = answer.result
        if self.future is not None and not self.future.done():
            self.future.set_result(answer)
        self.future = None

    def wait(self) -> asyncio.Future[Answer]:
        """For its fate, by whoever was not there from the start."""
        if self.future is None:
            self.future = asyncio.get_running_loop().create_future()
        return self.future

    def fail(self, error: Exception) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)
            # A worker that has gone never asks; without this the loop would report an error nobody can read.
            self.future.exception()
        self.future = None


class Tickets(Protocol):
    """Tickets of one worker's contributions to many sessions, still in columns."""

    def ticket(self, session_id: str) -> StepTicket: ...


@dataclass(slots=True)
class WorkerRecord:
    """What the server knows of one worker of one session.

    Attributes:
      recent:     the last contributions counted, by their numbers.
      increments: answered since the last of them was counted; kept because nobody could compute them again.
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

    def remember(self, sequence: int, ticket: StepTicket | Tickets) -> None:
        if self.increments:
            self.increments.clear()
        self.sequence = sequence
        self.recent[sequence] = ticket
        self.recent.pop(sequence - RECENT_SEQUENCES, None)

    def forget(self, sequence: int) -> None:
        """Undoes `remember` for a contribution that was counted but never tried."""
        self.recent.pop(sequence, None)
        self.sequence = min(self.sequence, sequence - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
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
      quorum: how many make it ready.
    """

    quorum: int
    contributions: dict[str, Contribution] = field(default_factory=dict)

    def add(self, contribution: Contribution) -> None:
        self.contributions[contribution.worker.worker_id] = contribution

    @property
    def ready(self) -> bool:
        return len(self.contributions) >= self.quorum

    def ordered(self) -> list[Contribution]:
        """In the order of worker ids, so that the sum never depends on who came first."""
        return [self.contributions[worker_id] for worker_id in sorted(self.contributions)]


def weights(contributions: list[Contribution]) -> list[float]:
    """Each contribution's part in the mean: by samples where every one states a count, else equal."""
    counts = [contribution.commit.sample_count for contribution in contributions]
    if not all(counts):
        return [1.0 / len(counts)] * len(counts)
    total = sum(counts)
    return [count / total for count in counts]


def mean_loss(contributions: list[Contribution]) -> float:
    """Mean loss with the same weights; NaN, which means undefined, when any worker gave none or not a finite one."""
    if not all(math.isfinite(contribution.commit.loss) for contribution in contributions):
        return math.nan
    return math.fsum(w * c.commit.loss for w, c in zip(weights(contributions), contributions, strict=True))
