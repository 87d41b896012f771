"""Engine: the facade that the rpc layer talks to. All of it runs on one event loop; the device has a thread of its own.

    rpc thread                                device thread
    sessions, workers, rounds, staging   →    arena, residents, steps
    telemetry, answers                   ←    StepDone

The hot path is intake.py; here are the sessions, from birth to close.
"""

import asyncio
import functools
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hermosis.wire import Dtype
from hermosis_server.dynamics import Hamiltonian, ThermalProfile
from hermosis_server.engine import checks
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.arena import Arena
from hermosis_server.engine.assembler import Assembler, StagingBudget
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.intake import Intake, stopping
from hermosis_server.engine.quotas import Quotas
from hermosis_server.engine.resident import ExportedState
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.engine.telemetry import TelemetryRing, Watch, Watchers
from hermosis_server.engine.volley import Volleys
from hermosis_server.errors import (
    HermosisError,
    InternalError,
    PayloadMismatch,
    QuotaExceeded,
    SessionExists,
    SessionNotFound,
    SessionNotReady,
    StaleGradient,
)
from hermosis_server.identity import DEFAULT_TENANT, full_name, shown_id
from hermosis_server.records import (
    Limits,
    ParametersOn,
    SessionStatus,
    StateBuffer,
    Vector,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)


def _everything(session_id: str) -> bool:
    return True


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
      executors: one a device of this host; a session is placed on the one with the most free memory, for good.
      limits:   checked before anything is taken.
      allocate: host memory for gradients on their way.
      quotas:   of tenants; None limits none of them.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        *,
        limits: Limits,
        allocate: Callable[[int], memoryview],
        quotas: Quotas | None = None,
    ) -> None:
        self.limits = limits
        self.quotas = quotas or Quotas()
        self._executors = tuple(executors)
        self.budget = StagingBudget(limits.staging_bytes, allocate)
        self._sessions: dict[str, Session] = {}
        self._watchers = Watchers()
        self.intake = Intake(self.budget, limits=limits, watchers=self._watchers)
        self.volleys = Volleys(self._watchers)

    # Sessions

    async def create_session(self, spec: SessionSpec, *, session_id: str = "", tenant: str = DEFAULT_TENANT) -> Session:
        """Resolves the optimizer, reserves device memory; the session waits for its parameters.

        Its name in here is made of both ids; two tenants may call theirs alike and never hear of it.

        Where workers hold the parameters there is nothing to wait for, and it is READY at once.
        """
        self.intake.require_running()
        hamiltonian = checks.checked_hamiltonian(spec, self.limits)
        session_id = checks.checked_session_id(session_id) if session_id else f"s-{uuid.uuid4().hex[:12]}"
        session_id = full_name(tenant, session_id)
        if session_id in self._sessions:
            raise SessionExists(f"session {shown_id(session_id)} exists; choose another id or close it first")
        if len(self._sessions) >= self.limits.max_sessions:
            raise QuotaExceeded(f"the server holds {len(self._sessions)} sessions, the most it may; close one first")
        self.quotas.require_sessions(tenant, 1 + sum(1 for _ in self._of(tenant)))
        session = Session(
            session_id=session_id,
            tenant=tenant,
            executor=max(self._executors, key=lambda executor: executor.free_bytes),
            spec=spec,
            telemetry=TelemetryRing(session_id, self.limits.max_readings),
            max_workers=self.limits.max_workers,
        )
        self._sessions[session_id] = session  # before the wait, so that nobody else gets the id
        on_server = spec.parameters_on is ParametersOn.SERVER
        shapes = [tensor.shape for tensor in spec.layout.tensors]
        try:
            session.resident = await session.executor.run(
                lambda arena: on_device.reserve(arena, hamiltonian, shapes=shapes, holds_parameters=on_server)
            )
            await self._require_device_bytes(session)
        except BaseException:
            del self._sessions[session_id]
            raise
        if not on_server:
            session.status = SessionStatus.READY
        _warn(session_id, hamiltonian)
        return session

    def session(self, session_id: str) -> Session:
        """Finds a session; raises SessionNotFound."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound(f"there is no session {shown_id(session_id)[:80]!r}; list the sessions or create it")
        return session

    def sessions(self) -> Iterator[Session]:
        """All sessions in order of creation."""
        return iter(self._sessions.values())

    async def update_session(self, session_id: str, edit: SessionEdit, *, etag: str = "") -> Session:
        """Edits a session between two steps."""
        checks.check_lr_scale(edit.lr_scale, field="edit.lr_scale")
        checks.check_labels(edit.display_name or "", edit.labels or {})
        session = self._resident_session(session_id)
        async with session.editing:
            if etag and etag != str(session.revision):
                raise PayloadMismatch(
                    f"session {session_id} is at etag {session.revision}, the edit is based on {etag}; read it again",
                    field="etag",
                )
            if edit.thermal is not None:
                hamiltonian = await self._on_device(session, on_device.change_profile, edit.thermal)
                session.spec = replace(session.spec, optimizer=hamiltonian)
                _warn(session_id, hamiltonian)
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
            await session.executor.run(lambda arena: None)
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
            await self._on_device(session, on_device.release)
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
        return self.intake.assembler(session.spec.layout.parameter_count, dtype)

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
        return await self._on_device(self._initialised(session_id), on_device.read_parameters, dtype)

    async def pull_many(self, wanted: Sequence[tuple[str, Dtype]]) -> list[Vector | HermosisError]:
        """The parameters now of sessions, each in its dtype; or why there are none."""
        found: list[Vector | HermosisError] = []
        readable: dict[Executor, list[tuple[int, Session, Dtype]]] = {}
        for place, (session_id, dtype) in enumerate(wanted):
            try:
                session = self._initialised(session_id)
            except HermosisError as error:
                found.append(error)
            else:
                found.append(_UNREAD)
                readable.setdefault(session.executor, []).append((place, session, dtype))

        def read(arena: Arena, rows: list[tuple[int, Session, Dtype]]) -> None:
            for place, session, dtype in rows:
                try:
                    found[place] = on_device.read_parameters(arena, session.on_device, dtype)
                except HermosisError as error:
                    found[place] = error

        for executor, rows in readable.items():
            await executor.run(functools.partial(read, rows=rows))
        return found

    async def state_digest(self, session_id: str) -> bytes:
        """Digest of the whole optimizer state now."""
        return await self._on_device(self._resident_session(session_id), on_device.digest)

    async def export_session(self, session_id: str) -> ExportedState:
        """The whole optimizer state now, in plain bytes."""
        return await self._on_device(self._initialised(session_id), on_device.export)

    def begin_import(self, session_id: str) -> dict[StateBuffer, Assembler]:
        """Assemblers for the buffers of a state to come; the caller releases them."""
        session = self._resident_session(session_id)
        assemblers: dict[StateBuffer, Assembler] = {}
        try:
            slot = session.on_device.slot
            for buffer in slot.spans:
                assemblers[buffer] = self.intake.assembler(slot.elements(buffer), Dtype.FLOAT32)
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

    # Telemetry

    def watch(
        self, session_ids: tuple[str, ...], *, min_interval_s: float, sees: Callable[[str], bool] = _everything
    ) -> Watch:
        """Readings as they come, of these sessions or of all that `sees` is true for; give it back to `unwatch`."""
        for session_id in session_ids:
            self.session(session_id)
        checks.check_interval(min_interval_s, field="min_interval_s")
        capacity = self.limits.max_readings
        return self._watchers.add(Watch(session_ids, min_interval_s=min_interval_s, capacity=capacity, sees=sees))

    def unwatch(self, watch: Watch) -> None:
        self._watchers.remove(watch)

    # Life of the server

    async def free_device_bytes(self) -> int:
        """Device memory that new sessions may still take."""
        return sum([await executor.run(lambda arena: arena.free_bytes) for executor in self._executors])

    async def stop(self) -> None:
        """Refuses new work, finishes rounds that are complete, and ends the device thread."""
        self.intake.stopping.set()
        for session in self._sessions.values():
            session.abandon_round(stopping())
        self._watchers.end()
        await asyncio.gather(*(executor.stop() for executor in self._executors))
        await asyncio.sleep(0)  # Lets the last answers of the device thread arrive.

    # Inside

    def _of(self, tenant: str) -> Iterator[Session]:
        return (session for session in self._sessions.values() if session.tenant == tenant)

    async def _require_device_bytes(self, session: Session) -> None:
        """Gives the memory of a new session back, and raises, when its tenant holds more than it may.

        Only now is it known how much that is; of several that were made at once the last one sees them all.
        """
        held = sum(other.resident.slot.size_bytes for other in self._of(session.tenant) if other.resident)
        try:
            self.quotas.require_device_bytes(session.tenant, held)
        except QuotaExceeded:
            await self._on_device(session, on_device.release)
            raise

    def _resident_session(self, session_id: str) -> Session:
        session = self.session(session_id)
        if session.resident is None or session.status is SessionStatus.CLOSED:
            raise SessionNotReady(f"session {session_id} is just being created or closed; try again")
        return session

    def _initialised(self, session_id: str) -> Session:
        session = self._resident_session(session_id)
        if session.status is SessionStatus.CREATING:
            session.require_ready()
        return session

    async def _on_device(self, session: Session, function: Callable[..., T], *arguments: object) -> T:
        return await session.executor.run(lambda arena: function(arena, session.on_device, *arguments))


_UNREAD = InternalError("parameters were not read; this is a bug in hermosis")


def _warn(session_id: str, hamiltonian: Hamiltonian) -> None:
    for caution in hamiltonian.cautions:
        logger.warning("event=caution session=%s caution=%r", session_id, caution)
