"""Engine: the facade that the rpc layer talks to. All of it runs on one event loop; the device has a thread of its own.

rpc thread                                device thread
sessions, workers, rounds, staging   →    arena, residents, steps
telemetry, answers                   ←    StepDone
"""

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hermosis.wire import Dtype

from hermosis_server.dynamics.thermal import ThermalProfile
from hermosis_server.engine import checks
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.assembler import RETRY_AFTER_S, Assembler, StagingBudget
from hermosis_server.engine.executor import Executor, StepDone
from hermosis_server.engine.resident import ExportedState, Resident
from hermosis_server.engine.rounds import Answer, Round, StepTicket, WorkerRecord, mean_loss
from hermosis_server.engine.scheduler import ReadyRound
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.engine.telemetry import TelemetryRing, Watch, Watchers
from hermosis_server.errors import (
    HermosisError,
    InternalError,
    PayloadMismatch,
    QuotaExceeded,
    ServerStopping,
    SessionExists,
    SessionNotFound,
    SessionNotReady,
    StaleGradient,
)
from hermosis_server.records import (
    Commit,
    Limits,
    Outcome,
    ParametersOn,
    Reply,
    ReplyWish,
    SessionStatus,
    StateBuffer,
    StepResult,
    TelemetryReading,
    Vector,
)

T = TypeVar("T")


@dataclass(slots=True)
class SessionEdit:
    """What to change at a step boundary; None leaves it as it is."""

    lr_scale: float | None = None
    thermal: ThermalProfile | None = None
    display_name: str | None = None
    labels: Mapping[str, str] | None = None


class Engine:
    """Sessions and what can be asked of them. Every method raises errors of hermosis_server.errors.

    Args:
      executor: owns the device.
      limits:   checked before anything is taken.
      allocate: host memory for gradients on their way.
    """

    def __init__(self, executor: Executor, *, limits: Limits, allocate: Callable[[int], memoryview]) -> None:
        self.limits = limits
        self._executor = executor
        self._budget = StagingBudget(limits.staging_bytes, allocate)
        self._sessions: dict[str, Session] = {}
        self._watchers = Watchers()
        self.stopping = asyncio.Event()

    # Sessions

    async def create_session(self, spec: SessionSpec, *, session_id: str = "") -> Session:
        """Resolves the optimizer, reserves device memory; the session waits for its parameters.

        Where workers hold the parameters there is nothing to wait for, and it is READY at once.
        """
        self._require_running()
        hamiltonian = checks.checked_hamiltonian(spec, self.limits)
        session_id = checks.checked_session_id(session_id) if session_id else f"s-{uuid.uuid4().hex[:12]}"
        if session_id in self._sessions:
            raise SessionExists(f"session {session_id} exists; choose another id or close it first")
        if len(self._sessions) >= self.limits.max_sessions:
            raise QuotaExceeded(f"the server holds {len(self._sessions)} sessions, the most it may; close one first")
        session = Session(
            session_id=session_id,
            spec=spec,
            telemetry=TelemetryRing(self.limits.max_readings),
            max_workers=self.limits.max_workers,
        )
        self._sessions[session_id] = session  # before the wait, so that nobody else gets the id
        on_server = spec.parameters_on is ParametersOn.SERVER
        try:
            session.resident = await self._executor.run(
                lambda arena: on_device.reserve(
                    arena, hamiltonian, elements=spec.layout.parameter_count, holds_parameters=on_server
                )
            )
        except BaseException:
            del self._sessions[session_id]
            raise
        if not on_server:
            session.status = SessionStatus.READY
        return session

    def session(self, session_id: str) -> Session:
        """Finds a session; raises SessionNotFound."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound(f"there is no session {session_id[:80]!r}; list the sessions or create it")
        return session

    def sessions(self) -> Iterator[Session]:
        """All sessions in order of creation."""
        return iter(self._sessions.values())

    async def update_session(self, session_id: str, edit: SessionEdit, *, etag: str = "") -> Session:
        """Edits a session between two steps."""
        session = self._resident_session(session_id)
        if etag and etag != str(session.revision):
            raise PayloadMismatch(
                f"session {session_id} is at etag {session.revision}, the edit is based on {etag}; read it again",
                field="etag",
            )
        checks.check_lr_scale(edit.lr_scale, field="edit.lr_scale")
        checks.check_labels(edit.display_name or "", edit.labels or {})
        if edit.thermal is not None:
            hamiltonian = on_device.with_profile(_resident(session).hamiltonian, edit.thermal)
            await self._on_device(session, on_device.change_hamiltonian, hamiltonian)
            session.spec = replace(session.spec, optimizer=hamiltonian)
        if edit.lr_scale is not None:
            session.lr_scale = edit.lr_scale
        if edit.display_name is not None:
            session.spec = replace(session.spec, display_name=edit.display_name)
        if edit.labels is not None:
            session.spec = replace(session.spec, labels=dict(edit.labels))
        session.revision += 1
        return session

    async def pause_session(self, session_id: str) -> Session:
        """Takes no more gradients; a step in progress is finished first, a round in the making goes on afterwards."""
        session = self._resident_session(session_id)
        if session.status is not SessionStatus.PAUSED:
            session.require_ready()
            session.status = SessionStatus.PAUSED
            session.revision += 1
            await self._executor.run(lambda arena: None)
        return session

    async def resume_session(self, session_id: str) -> Session:
        """Takes gradients again."""
        session = self._resident_session(session_id)
        if session.status is not SessionStatus.READY:
            if session.status is not SessionStatus.PAUSED:
                session.require_ready()
            session.status = SessionStatus.READY
            session.revision += 1
        return session

    async def close_session(self, session_id: str) -> Session:
        """Finishes the step in progress and gives all memory back."""
        session = self._resident_session(session_id)
        session.status = SessionStatus.CLOSED
        session.abandon_round(SessionNotReady(f"session {session_id} was closed"))
        try:
            await self._executor.run(lambda arena: arena.release(_resident(session).slot))
        finally:
            self._sessions.pop(session_id, None)
        return session

    # Parameters and state

    def begin_parameters(self, session_id: str, dtype: Dtype) -> Assembler:
        """An assembler for the initial parameters; the caller releases it."""
        session = self._resident_session(session_id)
        if session.status is not SessionStatus.CREATING:
            raise SessionNotReady(
                f"session {session_id} is {session.status.name}; its parameters are set once, while it is CREATING",
                metadata={"status": session.status.name},
            )
        return self._assembler(session.spec.layout.parameter_count, dtype)

    async def initialise(self, session_id: str, parameters: Assembler) -> Session:
        """Sets the initial parameters; the session is READY."""
        session = self._resident_session(session_id)
        parameters.require_complete()
        staging = parameters.staging
        if staging is None:
            raise InternalError("parameters were assembled without memory; this is a bug in hermosis")
        await self._on_device(session, on_device.initialise, staging.memory, parameters.dtype)
        session.status = SessionStatus.READY
        return session

    async def pull(self, session_id: str, dtype: Dtype) -> Vector:
        """The parameters now."""
        session = self._resident_session(session_id)
        if session.status is SessionStatus.CREATING:
            session.require_ready()
        return await self._on_device(session, on_device.read_parameters, dtype)

    async def state_digest(self, session_id: str) -> bytes:
        """Digest of the whole optimizer state now."""
        return await self._on_device(self._resident_session(session_id), on_device.digest)

    async def export_session(self, session_id: str) -> ExportedState:
        """The whole optimizer state now, in plain bytes."""
        session = self._resident_session(session_id)
        if session.status is SessionStatus.CREATING:
            session.require_ready()
        return await self._on_device(session, on_device.export)

    def begin_import(self, session_id: str) -> dict[StateBuffer, Assembler]:
        """Assemblers for the buffers of a state to come; the caller releases them."""
        session = self._resident_session(session_id)
        assemblers: dict[StateBuffer, Assembler] = {}
        try:
            for buffer in _resident(session).slot.runs:
                assemblers[buffer] = self._assembler(session.spec.layout.parameter_count, Dtype.FLOAT32)
        except HermosisError:
            for assembler in assemblers.values():
                assembler.release()
            raise
        return assemblers

    async def import_session(self, session_id: str, state: ExportedState) -> Session:
        """Replaces the whole optimizer state; everybody who knew the old one is fenced off by the generation."""
        session = self._resident_session(session_id)
        before = session.status
        session.status = SessionStatus.RECOVERING  # No gradient may slip in between the old state and the new.
        session.abandon_round(StaleGradient(f"session {session_id} was set to another state; open it again"))
        try:
            await self._on_device(session, on_device.adopt, state)
        finally:
            session.status = before
        session.generation += 1
        session.revision += 1
        session.step = state.scalars.step
        session.adopt_workers(state.workers)
        session.telemetry.clear()
        if session.status is SessionStatus.CREATING:
            session.status = SessionStatus.READY
        return session

    # Contributions

    def begin_gradient(self, session: Session, worker: WorkerRecord, sequence: int, dtype: Dtype) -> Assembler:
        """An assembler for a gradient. One that was answered before is only checked, and takes no memory."""
        self._require_running()
        if session.answered_before(worker, sequence):
            return self._assembler(session.spec.layout.parameter_count, dtype, keep=False)
        session.require_ready()
        return self._assembler(session.spec.layout.parameter_count, dtype)

    def contribute(
        self,
        session: Session,
        worker: WorkerRecord,
        commit: Commit,
        wish: ReplyWish,
        gradient: Assembler,
        *,
        wait: bool = True,
    ) -> Coroutine[Any, Any, Answer]:
        """Counts a whole gradient at once, and returns the wait for the fate of its round.

        Takes over the assembler, whatever happens. Whoever drops the wait does not undo the contribution.

        Args:
          wait: False answers as soon as the contribution is counted (AckLevel RECEIVED).
        """
        try:
            self._require_running()
            if self._sessions.get(session.session_id) is not session:
                raise SessionNotFound(f"session {session.session_id} is closed")
            gradient.require_complete()
            checks.check_lr_scale(commit.lr_scale, field="commit.lr_scale")
            repeated = session.answered_before(worker, commit.sequence)
            if repeated:
                ticket = session.repeat(worker, commit.sequence, gradient)
            else:
                ticket = session.admit(worker, commit, wish, gradient)
        except BaseException:
            gradient.release()
            raise
        if repeated:
            gradient.release()
            return self._answer_again(session, ticket, wish)
        future = ticket.future
        self._advance(session)
        return _fate(future) if wait and future is not None else _known(session.received(commit))

    # Telemetry

    def watch(self, session_ids: tuple[str, ...], *, min_interval_s: float) -> Watch:
        """Readings as they come; give it back to `unwatch`."""
        for session_id in session_ids:
            self.session(session_id)
        return self._watchers.add(Watch(session_ids, min_interval_s=min_interval_s, capacity=self.limits.max_readings))

    def unwatch(self, watch: Watch) -> None:
        self._watchers.remove(watch)

    # Life of the server

    async def free_device_bytes(self) -> int:
        """Device memory that new sessions may still take."""
        return await self._executor.run(lambda arena: arena.limit_bytes - arena.used_bytes)

    async def stop(self) -> None:
        """Refuses new work, finishes rounds that are complete, and ends the device thread."""
        self.stopping.set()
        for session in self._sessions.values():
            session.abandon_round(_stopping())
        self._watchers.end()
        await self._executor.stop()
        await asyncio.sleep(0)  # Lets the last answers of the device thread arrive.

    # Inside

    def _require_running(self) -> None:
        if self.stopping.is_set():
            raise _stopping()

    def _resident_session(self, session_id: str) -> Session:
        session = self.session(session_id)
        if session.resident is None or session.status is SessionStatus.CLOSED:
            raise SessionNotReady(f"session {session_id} is just being created or closed; try again")
        return session

    async def _on_device(self, session: Session, function: Callable[..., T], *arguments: object) -> T:
        return await self._executor.run(lambda arena: function(arena, _resident(session), *arguments))

    def _assembler(self, elements: int, dtype: Dtype, *, keep: bool = True) -> Assembler:
        staging = self._budget.take(elements * dtype.itemsize) if keep else None
        return Assembler(elements, dtype, self.limits.max_chunk_bytes, staging)

    def _advance(self, session: Session) -> None:
        """Hands the round over, if it is ready."""
        ready = session.take_round()
        if ready is None:
            return
        contributions = ready.ordered()
        self._executor.submit(
            ReadyRound(
                resident=_resident(session),
                contributions=contributions,
                lr_scale=session.lr_scale * _or_one(contributions[0].commit.lr_scale),
                loss=mean_loss(contributions),
                size_bytes=sum(contribution.gradient.size_bytes for contribution in contributions),
                done=functools.partial(self._finished, session, ready),
            )
        )

    def _finished(self, session: Session, ready: Round, done: StepDone | Exception) -> None:
        """Hears of a round's fate: frees its memory, answers its workers, tells the watchers."""
        session.stepping -= 1
        contributions = ready.ordered()
        for contribution in contributions:
            contribution.gradient.release()
        if isinstance(done, Exception):
            for contribution in contributions:
                contribution.worker.forget(contribution.commit.sequence)
                contribution.ticket.fail(done)
            return
        session.step = done.step
        applied = done.outcome is Outcome.APPLIED
        sent_bytes = 0
        for contribution in contributions:
            vector = done.vectors.get(contribution.wish)
            sent_bytes += len(vector.payload) if vector else 0
            contribution.worker.staleness = done.base_step - contribution.commit.base_step
            result = StepResult(
                sequence=contribution.commit.sequence,
                outcome=done.outcome,
                step=done.step,
                generation=session.generation,
                staleness=contribution.worker.staleness,
                contributions=len(contributions),
                energies=done.energies if applied else None,
                state_digest=done.state_digest if contribution.commit.want_digest else b"",
            )
            contribution.ticket.resolve(Answer(result, vector), keep_vector=contribution.wish.reply is Reply.INCREMENT)
        if applied:
            reading = TelemetryReading(
                session_id=session.session_id,
                step=done.step,
                time_s=time.time(),
                energies=done.energies,
                contributions=len(contributions),
                staleness=max(done.base_step - contribution.commit.base_step for contribution in contributions),
                received_bytes=sum(contribution.gradient.size_bytes for contribution in contributions),
                sent_bytes=sent_bytes,
                device_s=done.device_s,
                batch_sessions=done.batch_sessions,
                wait_s=max(0.0, done.started_s - max(contribution.counted_s for contribution in contributions)),
            )
            session.telemetry.append(reading)
            self._watchers.offer(reading)

    async def _answer_again(self, session: Session, ticket: StepTicket, wish: ReplyWish) -> Answer:
        """The recorded outcome, with what the worker may have missed."""
        if ticket.result is None:
            if ticket.future is None:
                raise SessionNotReady("the contribution was given up before its step; send it again")
            await asyncio.shield(ticket.future)
        result = ticket.result
        if result is None:
            raise SessionNotReady("the contribution was given up before its step; send it again")
        result = replace(result, duplicate=True)
        if wish.reply is Reply.PARAMETERS:
            return Answer(result, await self._on_device(session, on_device.read_parameters, wish.dtype))
        if wish.reply is Reply.INCREMENT and result.outcome is Outcome.APPLIED:
            if ticket.increment is None or ticket.increment.dtype is not wish.dtype:
                raise StaleGradient(
                    f"the increment of sequence {result.sequence} is no longer held; only a worker's last one is",
                    metadata={"step": str(session.step)},
                )
            return Answer(result, ticket.increment)
        return Answer(result, None)


def _resident(session: Session) -> Resident:
    assert session.resident is not None, "the caller checked"
    return session.resident


async def _fate(future: asyncio.Future[Answer]) -> Answer:
    return await asyncio.shield(future)


async def _known(answer: Answer) -> Answer:
    return answer


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _stopping() -> ServerStopping:
    return ServerStopping("the server is stopping; connect again shortly", retry_after_s=RETRY_AFTER_S * 4)
