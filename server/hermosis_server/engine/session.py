"""Session: one optimizer with its parameters, as the rpc thread sees it. Its numbers live with the device thread."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hermosis.wire import Dtype
from hermosis_server.dynamics import Hamiltonian
from hermosis_server.engine.assembler import Assembler
from hermosis_server.engine.budget import Budget
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.resident import Resident
from hermosis_server.engine.rounds import (
    Answer,
    Contribution,
    Round,
    StepTicket,
    Tell,
    Tickets,
    Unfinished,
    WorkerRecord,
)
from hermosis_server.engine.telemetry import TelemetryRing
from hermosis_server.errors import (
    HermosisError,
    InternalError,
    InvalidRequest,
    PayloadMismatch,
    QuotaExceeded,
    SessionNotReady,
    StaleGeneration,
    StaleGradient,
)
from hermosis_server.identity import DEFAULT_TENANT
from hermosis_server.records import (
    Aggregation,
    Commit,
    Consistency,
    ConsistencyMode,
    Durability,
    LatePolicy,
    Outcome,
    ParameterLayout,
    ParametersOn,
    RecipeChoice,
    ReplyWish,
    SessionStatus,
    StalenessWeight,
    StepResult,
    Vector,
    WorkerSequence,
)

MAX_KEPT_INCREMENTS = 4096


RESUME_S = 30.0  # how long an unfinished gradient waits for its worker


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What a session is made from."""

    layout: ParameterLayout
    optimizer: RecipeChoice | Hamiltonian
    consistency: Consistency = field(default_factory=Consistency)
    durability: Durability = field(default_factory=Durability)
    parameters_on: ParametersOn = ParametersOn.SERVER
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    aggregation: Aggregation = field(default_factory=Aggregation)


@dataclass(eq=False, slots=True)
class Session:
    """Life cycle, workers and the round in the making.

    Attributes:
      session_id:   its name inside the server; callers of another tenant than the default know it by the last part.
      tenant:       whose it is.
      executor:     of the device that it lives on.
      budget:       host memory of its gradients and answers on their way, over all streams.
      resident:     the device thread's part; None until memory is reserved.
      step:         steps applied, as far as the rpc thread has heard: never behind an answer it has given.
      durable_step: the last step that survives a crash.
      generation:   rises whenever the state was recovered or replaced.
      replaced_generation: the one that began when the state was last replaced on purpose; since then it only went on.
      recovered_steps:     at which each later generation began, in order: what a crash left of the one before.
      obstacle:     makes the error of why no gradient can be taken though the session is READY.
      on_change:    called when a round may have become ready by somebody's coming or going.
      timer:        for a round that waits for nobody for ever.
      began_s:      monotonic seconds of the first contribution since this server has the session.
      parked:       answers of workers that are ahead of the others, in a BOUNDED session.
      stepping:     rounds handed to the device thread whose fate is not known yet.
      most_stepping: as many as its budget has room for; asked where many sessions share staging memory.
      editing:      held from the check of an edit's etag to its end; an edit waits for the device in between.
      request_id:   of the call that made it, and the fingerprint of that request.
    """

    session_id: str
    tenant: str = field(default=DEFAULT_TENANT, kw_only=True)
    spec: SessionSpec
    executor: Executor
    budget: Budget
    telemetry: TelemetryRing
    max_workers: int
    resident: Resident | None = None
    status: SessionStatus = SessionStatus.CREATING
    step: int = 0
    durable_step: int = 0
    generation: int = 1
    replaced_generation: int = 1
    recovered_steps: tuple[int, ...] = ()
    obstacle: Callable[[], HermosisError] | None = None
    request_id: str = ""
    request_fingerprint: bytes = b""
    lr_scale: float = 1.0
    revision: int = 1  # of the edits; the etag
    created_s: float = field(default_factory=time.time)
    workers: dict[str, WorkerRecord] = field(default_factory=dict)
    on_change: Callable[["Session"], None] | None = None
    timer: asyncio.TimerHandle | None = None
    began_s: float = math.inf
    parked: list[tuple[WorkerRecord, Callable[[], None]]] = field(default_factory=list)
    stepping: int = 0
    most_stepping: int = field(init=False)
    editing: asyncio.Lock = field(default_factory=asyncio.Lock)
    round: Round = field(init=False)
    _kept: deque[tuple[WorkerRecord, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.resize(self.budget.limit_bytes)
        self.round = self._new_round()

    def resize(self, budget_bytes: int) -> None:
        """Room for what its workers have on their way."""
        self.budget.resize(budget_bytes)
        self.most_stepping = max(1, budget_bytes // self._exchange_bytes)

    @property
    def on_device(self) -> Resident:
        """The device thread's part, for a job; there is one in every session that was not just begun."""
        if self.resident is None:
            raise InternalError("a session without memory was used; this is a bug in hermosis")
        return self.resident

    @property
    def steps_at_once(self) -> bool:
        """Whether each contribution makes a step by itself, and is answered with it."""
        return self._is_simple and self.round.quorum == 1

    def join(self, worker_id: str) -> WorkerRecord:
        """The record of a worker that opened a stream or a call; give it back to `leave`.

        Raises:
          QuotaExceeded: the session has as many workers as it may.
        """
        record = self.workers.get(worker_id)
        if record is None:
            if len(self.workers) >= self.max_workers:
                raise QuotaExceeded(f"session {self.session_id} has {self.max_workers} workers, the most it may have")
            record = self.workers[worker_id] = WorkerRecord(worker_id)
        self.hear(record)
        record.streams += 1
        record.left = False
        self._recount()
        return record

    def leave(self, worker: WorkerRecord, *, ended: bool = False) -> None:
        """Forgets a worker that has gone and never contributed; one that did is remembered, for its repeats.

        Args:
          ended: it had a stream, so it will not go on by itself; a unary call says nothing of that.
        """
        worker.streams -= 1
        worker.left = ended and not worker.streams
        self._tidy(worker)
        self._recount()

    def keep(self, worker: WorkerRecord, sequence: int, gradient: Assembler, generation: int) -> None:
        """Keeps what came of a gradient whose stream broke, for a while; the assembler is the record's from now on."""
        if worker.unfinished is not None:
            worker.give_up(worker.unfinished)
        worker.unfinished = unfinished = Unfinished(sequence, generation, gradient)

        def too_late() -> None:
            worker.give_up(unfinished)
            self._tidy(worker)

        asyncio.get_running_loop().call_later(RESUME_S, too_late)

    def resumable(self, worker: WorkerRecord, dtype: Dtype) -> Unfinished | None:
        """What came of a worker's next gradient before its last stream broke, if it can go on with that."""
        unfinished = worker.unfinished
        if unfinished is None:
            return None
        fits = unfinished.sequence == worker.sequence + 1 and unfinished.gradient.dtype is dtype
        return unfinished if fits and unfinished.generation == self.generation else None

    def _tidy(self, worker: WorkerRecord) -> None:
        idle = not worker.streams and not worker.sequence and worker.unfinished is None
        if idle and self.workers.get(worker.worker_id) is worker:
            del self.workers[worker.worker_id]

    def require_ready(self) -> None:
        """Raises SessionNotReady unless gradients are taken."""
        if self.status is not SessionStatus.READY:
            hint = {
                SessionStatus.CREATING: "upload its initial parameters first",
                SessionStatus.PAUSED: "resume it first",
            }.get(self.status, "open another session")
            raise SessionNotReady(
                f"session {self.session_id} is {self.status.name}; {hint}", metadata={"status": self.status.name}
            )
        if self.obstacle is not None:
            raise self.obstacle()

    def require_generation(self, known: int) -> None:
        """Raises StaleGeneration unless the caller knows this incarnation, or asks for any with zero."""
        if known and known != self.generation:
            raise StaleGeneration(
                f"session {self.session_id} is at generation {self.generation}, the caller knows {known}; "
                "open it again and pull its parameters",
                metadata={"generation": str(self.generation), "step": str(self.step)},
            )

    def answered_before(self, worker: WorkerRecord, sequence: int) -> bool:
        """Whether a contribution of that number was counted before."""
        return 0 < sequence <= worker.sequence

    def repeat(self, worker: WorkerRecord, sequence: int, gradient: Assembler) -> StepTicket:
        """The ticket of a contribution that was counted before.

        Raises:
          PayloadMismatch: the bytes are not those that were counted.
          InvalidRequest:  it was so long ago that its outcome is no longer known.
        """
        entry = worker.recent.get(sequence)
        if entry is None:
            raise InvalidRequest(
                f"sequence {sequence} of worker {worker.worker_id} is long past, {worker.sequence + 1} is next",
                field="commit.sequence",
                metadata={"next_sequence": str(worker.sequence + 1)},
            )
        ticket = entry if isinstance(entry, StepTicket) else entry.ticket(self.session_id)
        if gradient.checksum() != ticket.payload_crc32:
            raise PayloadMismatch(
                f"sequence {sequence} of worker {worker.worker_id} was counted with other bytes; "
                f"give a new gradient the next number, {worker.sequence + 1}",
                field="commit.sequence",
                metadata={"next_sequence": str(worker.sequence + 1)},
            )
        return ticket

    def hear(self, worker: WorkerRecord) -> None:
        """Notes that something of a worker came. One that was lost, or comes late, begins where the slowest is."""
        now_s = time.monotonic()
        if self.spec.consistency.mode is ConsistencyMode.BOUNDED:
            there, to_come = self.members(now_s)
            if self.is_lost(worker, now_s) if worker.sequence else not to_come:
                worker.clock = max(worker.clock, min((each.clock for each in there), default=0))
        worker.heard_s = now_s

    def is_lost(self, worker: WorkerRecord, now_s: float) -> bool:
        """Whether nobody waits for a worker: silent for longer than the lease, or gone, and not waiting itself."""
        lease_s = self.spec.consistency.lease_s
        if not lease_s or not (worker.left or now_s - worker.heard_s > lease_s):
            return False
        held_back = any(each is worker for each, _ in self.parked)
        return not held_back and worker.worker_id not in self.round.contributions

    def members(self, now_s: float) -> tuple[list[WorkerRecord], int]:
        """Workers that take part, from their first contribution until they are lost; and how many are still to come.

        With a lease, nobody is waited for that has not come within a lease of the first contribution.
        """
        consistency = self.spec.consistency
        contributed = [worker for worker in self.workers.values() if worker.sequence]
        there = [worker for worker in contributed if not self.is_lost(worker, now_s)]
        all_came = consistency.lease_s and now_s - self.began_s > consistency.lease_s
        return there, 0 if all_came else max(0, consistency.workers - len(contributed))

    def recount(self, now_s: float) -> None:
        """Sees again how many contributions make the round, and whether it has waited long enough."""
        self.round.quorum = self._quorum(now_s)
        deadline_s = self.spec.consistency.deadline_s
        self.round.is_due = bool(deadline_s) and now_s - self.round.began_s >= deadline_s

    def is_ahead(self, worker: WorkerRecord, now_s: float) -> bool:
        """Whether a worker of a BOUNDED session is further ahead than it may be, and has to wait for the others."""
        if self.spec.consistency.mode is not ConsistencyMode.BOUNDED:
            return False
        there, to_come = self.members(now_s)
        slowest = 0 if to_come else min((each.clock for each in there), default=worker.clock)
        return worker.clock - slowest > self.spec.consistency.max_staleness

    def admit(
        self, worker: WorkerRecord, commit: Commit, wish: ReplyWish, gradient: Assembler, waiting: list[Tell]
    ) -> Contribution | None:
        """Counts a whole gradient into the round. Everything is checked before anything changes.

        Args:
          waiting: who will be told of its fate.

        Returns:
          The contribution, where it came too late and is to be dropped; None where it is part of the round.

        Raises:
          SessionNotReady, InvalidRequest, StaleGradient: see the messages; nothing was counted.
        """
        in_time = self.require_admissible(worker, commit.sequence, commit.base_step, commit.loss)
        ticket = StepTicket(gradient.checksum(), waiting)
        self.hear(worker)
        self.began_s = min(self.began_s, worker.heard_s)
        numbers = commit.sequence, commit.base_step
        self.count(worker, *numbers, ticket, gradient.received_bytes, time.time(), commit.compression_error)
        contribution = Contribution(
            worker=worker,
            commit=commit,
            wish=wish,
            gradient=gradient,
            ticket=ticket,
            counted_s=time.monotonic(),
        )
        if not in_time:
            self.stepping += 1
            return contribution
        self.round.add(contribution)
        return None

    def require_admissible(self, worker: WorkerRecord, sequence: int, base_step: int, loss: float) -> bool:
        """Raises unless a worker's contribution may be counted now; tells whether it is in time.

        Raises:
          SessionNotReady, InvalidRequest, StaleGradient: see the messages.
        """
        self.require_ready()
        require_next(sequence, worker)
        if base_step > self.step:
            raise InvalidRequest(
                f"base_step {base_step} is ahead of session {self.session_id}, which is at step {self.step}",
                field="commit.base_step",
            )
        if not math.isfinite(loss) and self.on_device.family.needs_loss:
            raise InvalidRequest(
                f"loss is {loss}, but the thermal profile of session {self.session_id} answers to it; "
                "send a finite loss with every gradient",
                field="commit.loss",
            )
        return self._is_in_time(worker, base_step)

    def count(
        self,
        worker: WorkerRecord,
        sequence: int,
        base_step: int,
        ticket: StepTicket | Tickets,
        size_bytes: int,
        now_s: float,
        compression_error: float | None = None,
    ) -> None:
        """Notes a contribution that may be counted; whoever calls this lets it become part of a step."""
        worker.remember(sequence, ticket)
        worker.base_step = base_step
        worker.staleness = self.step - base_step
        worker.compression_error = compression_error
        worker.last_seen_s = now_s
        worker.received_bytes += size_bytes

    def keep_increment(self, worker: WorkerRecord, sequence: int, increment: Vector) -> None:
        """Keeps what nobody could compute again, for a worker that asks again; lets the oldest go where they are many.

        A worker that goes on lets its own go; those that vanished are remembered as long as there is room.
        """
        worker.increments[sequence] = increment
        self._kept.append((worker, sequence))
        if len(self._kept) > max(2 * self.spec.consistency.workers, min(self.most_stepping, MAX_KEPT_INCREMENTS)):
            old, number = self._kept.popleft()
            old.increments.pop(number, None)

    def take_round(self) -> Round | None:
        """The round, if it is ready for its step; a new one then begins."""
        if not self.round.ready:
            return None
        ready, self.round = self.round, self._new_round()
        self.stepping += 1
        return ready

    def end_waiting(self) -> None:
        """Answers whoever is held back for being ahead."""
        parked, self.parked = self.parked, []
        for _, go_on in parked:
            go_on()

    def abandon_round(self, error: Exception) -> None:
        """Drops the round in the making: its contributions were never tried, and their numbers are free again."""
        for contribution in self.round.contributions.values():
            contribution.gradient.release()
            contribution.worker.forget(contribution.commit.sequence)
            contribution.ticket.fail(error)
        self.round = self._new_round()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.end_waiting()

    def adopt_workers(self, table: Iterable[WorkerSequence]) -> None:
        """Replaces what is known of the workers by the sequence table of another state; the highest number counts."""
        self.workers = {}
        for entry in sorted(table, key=lambda entry: entry.sequence):
            # Heard of now: it has the time of a lease to come back.
            record = self.workers[entry.worker_id] = WorkerRecord(entry.worker_id, heard_s=time.monotonic())
            result = StepResult(
                sequence=entry.sequence, outcome=entry.outcome, step=entry.step, generation=self.generation
            )
            record.remember(entry.sequence, StepTicket(entry.payload_crc32, result=result))

    def received(self, commit: Commit) -> Answer:
        """The answer at AckLevel RECEIVED: counted, no more."""
        return Answer(
            StepResult(
                sequence=commit.sequence,
                outcome=Outcome.RECEIVED,
                step=self.step,
                generation=self.generation,
                durable_step=self.durable_step,
            ),
            None,
        )

    @property
    def _exchange_bytes(self) -> int:
        """Of a gradient and its answer, at the most."""
        return 2 * Dtype.FLOAT32.itemsize * self.spec.layout.parameter_count

    @property
    def _is_simple(self) -> bool:
        """Whether contributions need no more than to be counted and stepped."""
        consistency = self.spec.consistency
        plain = consistency.late is LatePolicy.REFUSE and consistency.staleness_weight is StalenessWeight.AS_NOW
        waits = consistency.lease_s or consistency.mode is ConsistencyMode.BOUNDED
        return plain and not waits and self.spec.aggregation.is_plain

    def _new_round(self) -> Round:
        return Round(self._full_quorum)

    @property
    def _full_quorum(self) -> int:
        consistency = self.spec.consistency
        return (consistency.quorum or consistency.workers) if consistency.has_rounds else 1

    def _quorum(self, now_s: float) -> int:
        """How many contributions make a round now: with a lease, nobody waits for those that are lost."""
        consistency = self.spec.consistency
        if not (consistency.lease_s and consistency.has_rounds):
            return self._full_quorum
        there, to_come = self.members(now_s)
        everybody = max(1, len(there) + to_come)
        return min(consistency.quorum or everybody, everybody)

    def _recount(self) -> None:
        if self.spec.consistency.lease_s and self.on_change is not None:
            self.on_change(self)

    def _is_in_time(self, worker: WorkerRecord, base_step: int) -> bool:
        """Whether a contribution is counted; else it is dropped. Raises StaleGradient where it is neither."""
        consistency = self.spec.consistency
        behind = self.step + self.stepping - base_step
        if consistency.has_rounds:
            if worker.worker_id in self.round.contributions:
                raise StaleGradient(
                    f"worker {worker.worker_id} has contributed to the round from step {self.step} already; "
                    "wait for its result",
                    metadata={"step": str(self.step)},
                )
            if not behind:
                return True
            carried = consistency.late is LatePolicy.CARRY
            if carried and not (consistency.max_staleness and behind > consistency.max_staleness):
                return True
            if consistency.late is not LatePolicy.REFUSE:
                return False
            raise StaleGradient(
                f"gradient was computed at step {base_step}, session {self.session_id} is at step "
                f"{self.step}{' and stepping' if self.stepping else ''}; pull the parameters and compute it again",
                metadata={"step": str(self.step)},
            )
        limit = consistency.max_staleness if consistency.mode is ConsistencyMode.ASYNC else 0
        if not limit or behind <= limit:
            return True
        if consistency.late is LatePolicy.DROP:
            return False
        raise StaleGradient(
            f"gradient is {behind} steps behind session {self.session_id}, which allows {limit}; "
            "pull the parameters and compute it again",
            metadata={"step": str(self.step)},
        )


def require_next(sequence: int, worker: WorkerRecord, *, begun: int = 0) -> None:
    """Raises InvalidRequest unless a number is the next of its worker.

    Args:
      begun: the highest number whose chunks have begun to come; the one after it may begin too.
    """
    expected = max(worker.sequence, begun) + 1
    if sequence != expected:
        raise InvalidRequest(
            f"sequence {sequence} came from worker {worker.worker_id}, {expected} is next; "
            "numbers begin at 1 and leave no gap",
            field="commit.sequence",
            metadata={"next_sequence": str(expected)},
        )
