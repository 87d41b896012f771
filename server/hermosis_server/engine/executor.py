"""Executor: the one thread that owns the device, and the step of a batch on it."""

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from hermosis.wire import Dtype
from hermosis_server.dynamics import MATRIX_BUFFERS, PhaseState, RowMap, Spans, advance_, pieces
from hermosis_server.engine.arena import Arena, Slot, from_wire, unpadded, wire_bytes
from hermosis_server.engine.resident import Resident, digest
from hermosis_server.engine.rounds import Contribution, weights
from hermosis_server.engine.scheduler import Job, ReadyRound, StepQueue
from hermosis_server.errors import InternalError, ServerStopping
from hermosis_server.records import EnergySample, Outcome, Reply, ReplyWish, StateBuffer, Vector, WorkerSequence

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """What a round led to: news from the device thread to the rpc thread."""

    outcome: Outcome
    step: int
    base_step: int  # step before; each contribution's staleness is counted from it
    energies: EnergySample
    vectors: dict[ReplyWish, Vector]
    state_digest: bytes
    device_s: float
    batch_sessions: int
    started_s: float  # monotonic seconds


class Executor:
    """Runs steps and jobs in the order they were asked for, and answers on the event loop.

    Args:
      arena: built by the caller, used by nobody else from then on.
      queue: the way in.
    """

    def __init__(self, arena: Arena, queue: StepQueue) -> None:
        self._arena = arena
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="hermosis-device", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[Arena], T]) -> T:
        """Runs a job on the device thread and gives its result, or raises what it raised, or ServerStopping."""
        if self._stopped:
            raise ServerStopping("the server is stopping; connect again shortly", retry_after_s=1.0)
        future: asyncio.Future[T] = self._loop.create_future()

        def work() -> None:
            try:
                result = job(self._arena)
            except Exception as error:
                self._tell(_settle, future, None, error)
            else:
                self._tell(_settle, future, result, None)

        self._queue.put(Job(work))
        # A caller that goes away does not undo what the device does; it only no longer hears of it.
        return await asyncio.shield(future)

    def submit(self, ready: ReadyRound) -> None:
        """Queues a round; its `done` is called on the event loop with a StepDone, or with the exception."""
        self._queue.put(ready)

    async def stop(self) -> None:
        """Finishes what is queued and ends the thread."""
        self._stopped = True
        self._queue.stop()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (work := self._queue.next()) is not None:
            if isinstance(work, Job):
                work.run()
            else:
                self._step(work)

    def _step(self, batch: list[ReadyRound]) -> None:
        families: dict[object, list[ReadyRound]] = {}
        for ready in batch:
            key = (ready.resident.family, ready.resident.holds_parameters)
            families.setdefault(key, []).append(ready)
        for rounds in families.values():
            outcome: Sequence[StepDone | Exception]
            try:
                outcome = step_rounds(self._arena, rounds)
            except Exception as error:
                logger.exception("event=step_failed sessions=%d", len(rounds))
                failure = InternalError("the step failed; the session is unchanged, see the server's log")
                failure.__cause__ = error
                outcome = [failure] * len(rounds)
            self._tell(_deliver, rounds, outcome)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has gone: nobody is left to hear.
            self._loop.call_soon_threadsafe(functools.partial(function, *arguments))


def _settle(future: asyncio.Future[T], result: T, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _deliver(rounds: list[ReadyRound], outcome: Sequence[StepDone | Exception]) -> None:
    for ready, done in zip(rounds, outcome, strict=True):
        ready.done(done)


def step_rounds(arena: Arena, rounds: list[ReadyRound]) -> list[StepDone]:
    """Steps sessions of one family in one launch. A session whose step is not finite keeps its state.

    The order of sessions does not matter to any of them: each one's rows, norms and numbers are its own.
    """
    started_s = time.monotonic()
    residents: list[Resident] = [ready.resident for ready in rounds]
    slots = [resident.slot for resident in residents]
    rows = _row_map(tuple(slot.spans[StateBuffer.MOMENTUM] for slot in slots), arena.row_elements, arena.device)
    gathered = {buffer: arena.gather(slots, buffer) for buffer in slots[0].runs}
    state = PhaseState.from_buffers(
        {buffer: _by_session(slots, buffer, values) for buffer, values in gathered.items()},
        _numbers([resident.scalars for resident in residents], arena),
    )
    gradient = torch.zeros_like(state.momentum)
    for ready, part in zip(rounds, torch.split(gradient, rows.row_counts), strict=True):
        _reduce(ready.contributions, part, ready.resident.slot.spans[StateBuffer.MOMENTUM])
    advance = advance_(
        state,
        gradient,
        _numbers([ready.loss for ready in rounds], arena),
        family=residents[0].family,
        coefficients=_numbers([resident.numbers for resident in residents], arena),
        lr_scale=_numbers([ready.lr_scale for ready in rounds], arena),
        rows=rows,
    )
    finite = torch.stack((advance.gradient_finite, advance.state_finite), dim=1).cpu()
    samples = advance.sample.cpu().tolist()
    scalars = state.scalars.cpu().tolist()
    outcomes = [_outcome(*pair) for pair in finite.tolist()]

    kept = [index for index, outcome in enumerate(outcomes) if outcome is Outcome.APPLIED]
    increments = torch.split(advance.increment, rows.row_counts)
    for buffer, values in gathered.items() if kept else ():
        new = torch.split(values, [len(slot.view(buffer)) for slot in slots])
        arena.scatter([slots[index] for index in kept], buffer, [new[index] for index in kept])

    before = [resident.step for resident in residents]
    for index in kept:
        residents[index].scalars = tuple(scalars[index])
        _record(residents[index], rounds[index].contributions)
    vectors = [_vectors(ready, increments[index], outcomes[index]) for index, ready in enumerate(rounds)]
    digests = [
        digest(arena, ready.resident) if any(c.commit.want_digest for c in ready.contributions) else b""
        for ready in rounds
    ]
    device_s = time.monotonic() - started_s
    return [
        StepDone(
            outcome=outcomes[index],
            step=residents[index].step,
            base_step=before[index],
            energies=EnergySample(*samples[index]),
            vectors=vectors[index],
            state_digest=digests[index],
            device_s=device_s,
            batch_sessions=len(rounds),
            started_s=started_s,
        )
        for index in range(len(rounds))
    ]


@functools.lru_cache(maxsize=256)
def _row_map(spans: tuple[Spans, ...], row_elements: int, device: torch.device) -> RowMap:
    """The same sessions meet in batch after batch; their map is made once."""
    return RowMap(spans, row_elements, device)


def _by_session(slots: list[Slot], buffer: StateBuffer, rows: torch.Tensor) -> torch.Tensor:
    """Gathered rows as dynamics sees them: the buffers of a matrix metric are a line a session, without padding."""
    if buffer not in MATRIX_BUFFERS:
        return rows
    return rows.view(len(slots), -1)[:, : slots[0].elements(buffer)]


def _numbers(values: Sequence[object], arena: Arena) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=arena.device)


def _reduce(contributions: list[Contribution], rows: torch.Tensor, spans: Spans) -> None:
    """Mean of the contributions into zeroed rows, in the order of worker ids: the same bits whoever came first."""
    places = pieces(rows, spans)
    for contribution, weight in zip(contributions, weights(contributions), strict=True):
        staging = contribution.gradient.staging
        if staging is None:
            raise InternalError("a repeated gradient was counted; this is a bug in hermosis")
        vector = from_wire(staging.memory, contribution.gradient.dtype).to(rows.device, rows.dtype, non_blocking=True)
        for place, part in zip(places, torch.split(vector, list(spans)), strict=True):
            place.add_(part, alpha=weight)


def _outcome(gradient_finite: bool, state_finite: bool) -> Outcome:
    if not gradient_finite:
        return Outcome.NON_FINITE_GRADIENT
    return Outcome.APPLIED if state_finite else Outcome.NON_FINITE_STATE


def _record(resident: Resident, contributions: list[Contribution]) -> None:
    for contribution in contributions:
        worker_id = contribution.worker.worker_id
        resident.workers[worker_id] = WorkerSequence(
            worker_id=worker_id,
            sequence=contribution.commit.sequence,
            payload_crc32=contribution.ticket.payload_crc32,
            outcome=Outcome.APPLIED,
            step=resident.step,
        )


def _vectors(ready: ReadyRound, increment: torch.Tensor, outcome: Outcome) -> dict[ReplyWish, Vector]:
    """What the workers asked for, each kind made once however many want it."""
    vectors: dict[ReplyWish, Vector] = {}
    resident: Resident = ready.resident
    slot: Slot = resident.slot
    for wish in {contribution.wish for contribution in ready.contributions}:
        if wish.reply is Reply.PARAMETERS:
            source = slot.read(StateBuffer.PARAMETERS)
        elif wish.reply is Reply.INCREMENT and outcome is Outcome.APPLIED:
            source = unpadded(increment, slot.spans[StateBuffer.MOMENTUM])
        else:
            continue
        payload = wire_bytes(source, Dtype(wish.dtype))
        vectors[wish] = Vector(step=resident.step, reply=wish.reply, dtype=wish.dtype, payload=payload)
    return vectors
