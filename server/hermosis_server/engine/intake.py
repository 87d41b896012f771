"""Intake: gradients in, answers out. Uploads, rounds, and what becomes of them."""

import asyncio
import functools
import itertools
import math
import time
from dataclasses import replace

from hermosis.wire import Dtype
from hermosis_server.engine import checks
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.assembler import Assembler, StagingBudget
from hermosis_server.engine.batch import StepDone, outcome_of
from hermosis_server.engine.keeper import Keeper
from hermosis_server.engine.overview import Activity
from hermosis_server.engine.rounds import (
    Answer,
    Round,
    StepTicket,
    Tell,
    Tickets,
    WorkerRecord,
    awaited,
    mean_loss,
    weights,
)
from hermosis_server.engine.scheduler import ReadyRound
from hermosis_server.engine.session import Session
from hermosis_server.engine.telemetry import Watchers
from hermosis_server.errors import InvalidRequest, ServerStopping, SessionNotFound, SessionNotReady, StaleGradient
from hermosis_server.failpoints import reach
from hermosis_server.identity import shown_id
from hermosis_server.records import (
    AckLevel,
    Commit,
    DurabilityMode,
    Limits,
    Outcome,
    Reply,
    ReplyWish,
    SessionStatus,
    StalenessWeight,
    StepResult,
    TelemetryReading,
)
from hermosis_server.tracing import Tracing

RETRY_AFTER_STOP_S = 1.0
LOOKS = 4  # for lost workers, in the time of a lease


class Intake:
    """Takes contributions and hands complete rounds to the device thread.

    Args:
      budget:   host memory for vectors on their way.
      limits:   checked before memory is taken.
      watchers: hear of each step.
      activity: counts them.
      keeper:   puts steps on disk; None where nothing is kept.
      tracing:  makes spans of launches; None while nobody traces.
    """

    def __init__(
        self,
        budget: StagingBudget,
        *,
        limits: Limits,
        watchers: Watchers,
        activity: Activity,
        keeper: Keeper | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.stopping = asyncio.Event()
        self._keeper = keeper
        self._budget = budget
        self._limits = limits
        self._watchers = watchers
        self._activity = activity
        self._tracing = tracing
        self._repeats: set[asyncio.Task[None]] = set()

    def require_running(self) -> None:
        """Raises ServerStopping once the server refuses new work."""
        if self.stopping.is_set():
            raise stopping()

    def assembler(self, elements: int, dtype: Dtype) -> Assembler:
        """An assembler for a vector; the caller releases it."""
        staging = self._budget.stage(elements * dtype.itemsize)
        return Assembler(elements, dtype, self._limits.max_chunk_bytes, staging, self._budget)

    def begin_gradient(self, session: Session, worker: WorkerRecord, sequence: int, dtype: Dtype) -> Assembler:
        """An assembler for a gradient. One that was answered before is only checked, and takes no memory."""
        self.require_running()
        elements, staging = session.spec.layout.parameter_count, None
        if not session.answered_before(worker, sequence):
            session.require_ready()
            awaited = bool(session.round.contributions)
            staging = self._budget.stage(elements * dtype.itemsize, session.budget, awaited=awaited)
        return Assembler(elements, dtype, self._limits.max_chunk_bytes, staging, session.budget)

    def contribute(
        self,
        session: Session,
        worker: WorkerRecord,
        commit: Commit,
        wish: ReplyWish,
        gradient: Assembler,
        answer: Tell,
        *,
        level: AckLevel = AckLevel.APPLIED,
    ) -> None:
        """Counts a whole gradient at once; `answer` is called with the fate of its round.

        Takes over the assembler, whatever happens. Whoever stops listening does not undo the contribution.

        Args:
          level: RECEIVED answers as soon as the contribution is counted, DURABLE when the disk has its step.

        Raises:
          HermosisError: the contribution was refused; nothing changed and `answer` is never called.
        """
        try:
            self.require_running()
            if session.status is SessionStatus.CLOSED:
                raise SessionNotFound(f"session {session.session_id} is closed")
            gradient.require_complete()
            if level is AckLevel.DURABLE and self._keeper is not None:
                answer = self._keeper.durably(session, answer)
            checks.check_lr_scale(commit.lr_scale, field="commit.lr_scale")
            checks.check_loss_scale(commit.loss_scale, field="commit.loss_scale")
            checks.check_compression_error(commit.compression_error)
            repeated = session.answered_before(worker, commit.sequence)
            if repeated:
                ticket = session.repeat(worker, commit.sequence, gradient)
            else:
                if commit.skipped:
                    checks.check_skipped(session, commit.skipped, gradient)
                reach("intake.admitted")
                waiting = [answer] if level is not AckLevel.RECEIVED else []
                late = session.admit(worker, commit, wish, gradient, waiting)
        except BaseException:
            gradient.release()
            raise
        if repeated:
            gradient.release()
            self._repeat(session, worker, ticket, wish, answer)
            return
        if self._tracing is not None:
            _trace(worker.recent[commit.sequence], self._tracing)
        if late is not None:
            self._submit(session, Round(1, {worker.worker_id: late}), dropped=True)
        else:
            self.advance(session)
        if level is AckLevel.RECEIVED:
            answer(session.received(commit))

    def require_durability(self, session: Session) -> None:
        """Raises InvalidRequest unless steps of the session become durable."""
        if self._keeper is None or session.spec.durability.mode is DurabilityMode.NONE:
            raise InvalidRequest(
                f"session {session.session_id} has durability NONE, so nothing it says can be DURABLE; ask for APPLIED",
                field="ack_level",
            )

    def advance(self, session: Session) -> None:
        """Hands the round over, if it is ready; else sees to it that nobody waits for ever where that is not wanted."""
        consistency = session.spec.consistency
        waits = consistency.lease_s or consistency.deadline_s
        if waits:
            session.recount(time.monotonic())
        ready = session.take_round()
        if ready is not None:
            self._submit(session, ready)
        elif waits and session.round.contributions and session.timer is None:
            left_s = consistency.lease_s / LOOKS or math.inf
            if consistency.deadline_s:
                left_s = min(left_s, session.round.began_s + consistency.deadline_s - time.monotonic())
            session.timer = asyncio.get_running_loop().call_later(max(0.001, left_s), self._look_again, session)

    def changed(self, session: Session) -> None:
        """Somebody has come or gone, or the rule has changed."""
        if session.status is SessionStatus.READY and session.round.contributions:
            self.advance(session)
        self._let_go_on(session)

    def _look_again(self, session: Session) -> None:
        session.timer = None
        self.changed(session)

    def _submit(self, session: Session, ready: Round, *, dropped: bool = False) -> None:
        contributions, spec = ready.ordered(), session.spec
        lr_scale = session.lr_scale * _or_one(contributions[0].commit.lr_scale)
        size_bytes = sum(contribution.gradient.size_bytes for contribution in contributions)
        self._activity.queued(1, size_bytes)
        session.executor.submit(
            ReadyRound(
                resident=session.on_device,
                contributions=contributions,
                lr_scale=lr_scale,
                loss=mean_loss(contributions),
                size_bytes=size_bytes,
                done=functools.partial(self._finished, session, ready, lr_scale),
                aggregation=None if spec.aggregation.is_plain else spec.aggregation,
                as_then=spec.consistency.staleness_weight is StalenessWeight.AS_THEN,
                dropped=dropped,
            )
        )

    def _finished(self, session: Session, ready: Round, lr_scale: float, done: StepDone | Exception) -> None:
        """Hears of a round's fate: frees its memory, answers its workers, tells the watchers."""
        session.stepping -= 1
        contributions = ready.ordered()
        size_bytes = sum(contribution.gradient.size_bytes for contribution in contributions)
        if isinstance(done, Exception):
            self._activity.dropped(1, size_bytes)
            for contribution in contributions:
                contribution.gradient.release()
                contribution.worker.forget(contribution.commit.sequence)
                contribution.ticket.fail(done)
            return
        session.step = done.step
        reach("intake.stepped")
        applied = done.outcome is Outcome.APPLIED
        counted_s = max(contribution.counted_s for contribution in contributions)
        self._activity.stepped(done.launch, 1, size_bytes, applied=int(applied), counted_s=counted_s)
        sent_bytes = 0
        if self._keeper is not None:
            self._keeper.stepped(session, contributions, lr_scale, done)
        else:
            for contribution in contributions:
                contribution.gradient.release()
        mixture, now_s = done.mixture, time.monotonic()
        influences = mixture.influences or weights(contributions)
        for place, (contribution, vector) in enumerate(zip(contributions, done.vectors, strict=True)):
            worker, outcome = contribution.worker, outcome_of(done.outcome, mixture, place)
            worker.influence = influences[place]
            worker.clock += 1
            worker.heard_s = now_s  # it has waited for this, however long that was
            sent_bytes += len(vector.payload) if vector else 0
            contribution.worker.staleness = done.base_step - contribution.commit.base_step
            result = StepResult(
                sequence=contribution.commit.sequence,
                outcome=outcome,
                step=done.step,
                generation=session.generation,
                durable_step=session.durable_step,
                staleness=contribution.worker.staleness,
                contributions=len(contributions),
                energies=done.energies if outcome is Outcome.APPLIED else None,
                state_digest=done.state_digest if contribution.commit.want_digest else b"",
            )
            if vector is not None and vector.reply is Reply.INCREMENT:
                session.keep_increment(contribution.worker, result.sequence, vector)
            answer = Answer(result, vector)
            if session.is_ahead(worker, now_s):
                go_on = functools.partial(self._answer_late, session, contribution.ticket, contribution.wish, answer)
                session.parked.append((worker, go_on))
            else:
                contribution.ticket.resolve(answer)
        self._let_go_on(session)
        reach("intake.answered")
        if applied:
            stated = [each.commit.compression_error for each in contributions]
            reading = TelemetryReading(
                session_id=session.session_id,
                step=done.step,
                time_s=time.time(),
                energies=done.energies,
                contributions=len(contributions),
                staleness=max(done.base_step - contribution.commit.base_step for contribution in contributions),
                received_bytes=sum(contribution.gradient.received_bytes for contribution in contributions),
                sent_bytes=sent_bytes,
                device_s=done.launch.device_s,
                batch_sessions=done.launch.sessions,
                wait_s=max(0.0, done.launch.started_s - counted_s),
                compression_error=max((error for error in stated if error is not None), default=math.nan),
            )
            if self._tracing is not None:
                origins = (contribution.ticket.origin for contribution in contributions)
                self._tracing.stepped(done.launch, (shown_id(session.session_id),), origins)
            session.telemetry.append(reading)
            self._watchers.offer(session.session_id, reading.time_s, reading)

    def _let_go_on(self, session: Session) -> None:
        """Answers those that are no longer too far ahead of the others."""
        if not session.parked:
            return
        now_s = time.monotonic()
        ahead = [session.is_ahead(worker, now_s) for worker, _ in session.parked]  # seen with all of them held back
        parked, session.parked = session.parked, list(itertools.compress(session.parked, ahead))
        for (worker, go_on), waits in zip(parked, ahead, strict=True):
            if not waits:
                worker.heard_s = now_s
                go_on()
        if session.parked and session.spec.consistency.lease_s and session.timer is None:
            delay_s = session.spec.consistency.lease_s / LOOKS
            session.timer = asyncio.get_running_loop().call_later(delay_s, self._look_again, session)

    def _answer_late(self, session: Session, ticket: StepTicket, wish: ReplyWish, answer: Answer) -> None:
        """Answers somebody who was held back, with the parameters of now: that is what it waited for."""
        if wish.reply is not Reply.PARAMETERS or session.status is SessionStatus.CLOSED:
            ticket.resolve(answer)
            return

        async def read() -> None:
            try:
                vector = await session.executor.run(
                    lambda arena: on_device.read_parameters(arena, session.on_device, wish.dtype),
                    of=[session.on_device],
                )
            except Exception:  # the step was taken, whatever became of the session since
                ticket.resolve(answer)
            else:
                ticket.resolve(Answer(replace(answer.result, step=vector.step), vector))

        task = asyncio.ensure_future(read())
        self._repeats.add(task)
        task.add_done_callback(self._repeats.discard)

    def _repeat(
        self, session: Session, worker: WorkerRecord, ticket: StepTicket, wish: ReplyWish, answer: Tell
    ) -> None:
        """Answers as before, in a task of its own: repeats are rare."""

        async def again() -> None:
            try:
                answer(await self._answer_again(session, worker, ticket, wish))
            except Exception as error:
                answer(error)

        task = asyncio.ensure_future(again())
        self._repeats.add(task)
        task.add_done_callback(self._repeats.discard)

    async def _answer_again(
        self, session: Session, worker: WorkerRecord, ticket: StepTicket, wish: ReplyWish
    ) -> Answer:
        """The recorded outcome, with what the worker may have missed."""
        if ticket.result is None and not ticket.given_up:
            future, tell = awaited()
            ticket.waiting.append(tell)
            await future
        result = ticket.result
        if result is None:
            raise SessionNotReady("the contribution was given up before its step; send it again")
        result = replace(result, duplicate=True, durable_step=session.durable_step)
        if wish.reply is Reply.PARAMETERS:
            vector = await session.executor.run(
                lambda arena: on_device.read_parameters(arena, session.on_device, wish.dtype), of=[session.on_device]
            )
            return Answer(result, vector)
        if wish.reply is Reply.INCREMENT and result.outcome is Outcome.APPLIED:
            increment = worker.increments.get(result.sequence)
            if increment is None or increment.dtype is not wish.dtype:
                raise StaleGradient(
                    f"the increment of sequence {result.sequence} is no longer held; only a worker's last one is",
                    metadata={"step": str(session.step)},
                )
            return Answer(result, increment)
        return Answer(result, None)


def _trace(ticket: StepTicket | Tickets, tracing: Tracing) -> None:
    assert isinstance(ticket, StepTicket), "it was just counted by itself"
    ticket.origin = tracing.here()


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def stopping() -> ServerStopping:
    """The refusal of a server on its way out."""
    return ServerStopping("the server is stopping; connect again shortly", retry_after_s=RETRY_AFTER_STOP_S)
