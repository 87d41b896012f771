"""Engine: the facade that the rpc layer talks to. All of it runs on one event loop; the device has a thread of its own.

    rpc thread                                device thread
    sessions, workers, rounds, staging   →    arena, residents, steps
    telemetry, answers                   ←    StepDone

The hot path is intake.py; here are the sessions, from birth to close.
"""

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
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
from hermosis_server.engine.budget import Budget
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.intake import Intake, stopping
from hermosis_server.engine.keeper import Keeper
from hermosis_server.engine.overview import Activity
from hermosis_server.engine.quotas import Quotas
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.engine.states import States
from hermosis_server.engine.telemetry import Shelf, TelemetryRing, Watch, Watchers
from hermosis_server.engine.volley import Volleys
from hermosis_server.errors import (
    CorruptState,
    HermosisError,
    InternalError,
    InvalidRequest,
    PayloadMismatch,
    QuotaExceeded,
    Recovering,
    ServerStopping,
    SessionExists,
    SessionNotFound,
    SessionNotReady,
)
from hermosis_server.failpoints import reach
from hermosis_server.identity import DEFAULT_TENANT, full_name, parted, shown_id
from hermosis_server.records import (
    Consistency,
    Durability,
    Limits,
    ParametersOn,
    SessionStatus,
    Vector,
)
from hermosis_server.storage.store import SessionRecord
from hermosis_server.tracing import Tracing

RETRY_RECOVERING_S = 0.5

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
    consistency: Consistency | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A session on disk that cannot be had as it is; restoring a snapshot brings it back.

    Attributes:
      record: of it; None where that cannot be read either.
    """

    problem: str
    record: SessionRecord | None


class Engine:
    """Sessions and what can be asked of them. Every method raises errors of hermosis_server.errors.

    Args:
      executors: one a device of this host; a session is placed on the one with the most free memory, for good.
      limits:   checked before anything is taken.
      allocate: host memory for gradients on their way.
      keeper:   puts sessions on disk; None keeps them in memory only.
      durability: of sessions that ask for none in particular; None where nothing can be kept.
      quotas:   of tenants; None limits none of them.
      tracing:  makes spans; None while nobody traces.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        *,
        limits: Limits,
        allocate: Callable[[int], memoryview],
        keeper: Keeper | None = None,
        durability: Durability | None = None,
        quotas: Quotas | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.limits = limits
        self.quotas = quotas or Quotas()
        self.durability = durability if keeper is not None else None
        self.keeper = keeper
        self.recovering = False
        self.quarantined: dict[str, Quarantined] = {}
        self._executors = tuple(executors)
        self.budget = StagingBudget(limits.staging_bytes, allocate)
        self._sessions: dict[str, Session] = {}
        self._watchers = Watchers()
        self._shelf = Shelf(limits.max_readings)
        self.activity = Activity()
        self.tracing = tracing
        self.intake = Intake(
            self.budget, limits=limits, watchers=self._watchers, activity=self.activity, keeper=keeper, tracing=tracing
        )
        self.volleys = Volleys(self._watchers, activity=self.activity, keeper=keeper, tracing=tracing)
        self.states = States(self)

    # Sessions

    async def create_session(
        self,
        spec: SessionSpec,
        *,
        session_id: str = "",
        tenant: str = DEFAULT_TENANT,
        request: tuple[str, bytes] = ("", b""),
    ) -> Session:
        """Resolves the optimizer, reserves device memory; the session waits for its parameters.

        Its name in here is made of both ids; two tenants may call theirs alike and never hear of it.

        Where workers hold the parameters there is nothing to wait for, and it is READY at once. A request that comes
        again under its id, after a restart too, gives the session that it made.

        Args:
          request: its id, and the fingerprint of what it asks.
        """
        request_id, request_fingerprint = request
        self.require_serving()
        if not session_id:
            asked = hashlib.sha256(f"{tenant} {request_id}".encode()).hexdigest()
            session_id = f"s-{(asked if request_id else uuid.uuid4().hex)[:12]}"
        session_id = full_name(tenant, checks.checked_session_id(session_id))
        known = self._sessions.get(session_id)
        if known is not None or session_id in self.quarantined:
            if known is not None and request_id and request == (known.request_id, known.request_fingerprint):
                return known
            raise SessionExists(f"session {shown_id(session_id)} exists; choose another id or close it first")
        self.require_place(tenant)
        session = self.begin_session(session_id, spec)
        session.request_id, session.request_fingerprint = request_id, request_fingerprint
        try:
            await self.reserve(session)
            self.require_device_bytes(session)
            if spec.parameters_on is ParametersOn.WORKER:
                session.status = SessionStatus.READY
            reach("create.reserved")
            if self.keeper is not None:
                await self.keeper.adopt(session)
            reach("create.recorded")
        except BaseException:
            self.forget(session_id)
            if session.resident is not None:
                await self.on_device(session, on_device.release)
            raise
        return session

    def require_place(self, tenant: str) -> None:
        """Raises QuotaExceeded where the server or the tenant has as many sessions as it may."""
        if len(self._sessions) >= self.limits.max_sessions:
            raise QuotaExceeded(f"the server holds {len(self._sessions)} sessions, the most it may; close one first")
        self.quotas.require_sessions(tenant, 1 + sum(1 for _ in self._of(tenant)))

    def begin_session(self, session_id: str, spec: SessionSpec) -> Session:
        """Takes the id, before anything is waited for, so that nobody else gets it."""
        session = self._sessions[session_id] = Session(
            session_id=session_id,
            tenant=parted(session_id)[0],
            executor=max(self._executors, key=lambda executor: executor.free_bytes),
            budget=Budget(self._session_bytes(spec), owner=f"session {shown_id(session_id)}", whole=self.budget),
            spec=spec,
            telemetry=TelemetryRing(session_id, self._shelf),
            max_workers=self.limits.max_workers,
            on_change=self.intake.changed,
        )
        return session

    async def reserve(self, session: Session) -> None:
        """Takes device memory for a session.

        Raises:
          InvalidHyperparameter, OutOfDeviceMemory: nothing was taken.
        """
        spec = session.spec
        hamiltonian = checks.checked_hamiltonian(spec, self.limits)
        on_server = spec.parameters_on is ParametersOn.SERVER
        shapes = [tensor.shape for tensor in spec.layout.tensors]
        session.resident = await session.executor.run(
            lambda arena: on_device.reserve(arena, hamiltonian, shapes=shapes, holds_parameters=on_server), of=()
        )
        self._share_shelf()
        _warn(session.session_id, hamiltonian)

    def require_serving(self) -> None:
        """Raises ServerStopping or Recovering while no work is taken."""
        self.intake.require_running()
        if self.recovering:
            raise Recovering(
                "the server is reading its sessions back from disk; ask again shortly", retry_after_s=RETRY_RECOVERING_S
            )

    def session(self, session_id: str) -> Session:
        """Finds a session.

        Raises:
          SessionNotFound: there is none.
          Recovering:      it may be among those that are being read back.
          CorruptState:    it was found damaged.
        """
        session = self._sessions.get(session_id)
        if session is not None and not self.recovering:
            return session
        if self.recovering:
            self.require_serving()
        if session_id in self.quarantined:
            raise CorruptState(f"session {shown_id(session_id)} is set aside: {self.quarantined[session_id].problem}")
        raise SessionNotFound(f"there is no session {shown_id(session_id)[:80]!r}; list the sessions or create it")

    def find(self, session_id: str) -> Session | None:
        """The session, if it is there and not set aside."""
        return self._sessions.get(session_id)

    def sessions(self) -> Iterator[Session]:
        """All sessions in order of creation."""
        self.require_serving()
        return iter(self._sessions.values())

    async def update_session(self, session_id: str, edit: SessionEdit, *, etag: str = "") -> Session:
        """Edits a session between two steps."""
        checks.check_lr_scale(edit.lr_scale, field="edit.lr_scale")
        checks.check_labels(edit.display_name or "", edit.labels or {})
        session = self.resident_session(session_id)
        if edit.consistency is not None:
            after = replace(session.spec, consistency=edit.consistency)
            checks.check_consistency(edit.consistency, self.limits, field="edit.consistency")
            checks.check_aggregation(after.aggregation, workers=edit.consistency.workers)
            checks.check_holders(after)
        async with session.editing:
            if etag and etag != str(session.revision):
                raise PayloadMismatch(
                    f"session {session_id} is at etag {session.revision}, the edit is based on {etag}; read it again",
                    field="etag",
                )
            if edit.thermal is not None:
                hamiltonian = await self.on_device(session, on_device.change_profile, edit.thermal)
                session.spec = replace(session.spec, optimizer=hamiltonian)
                _warn(session_id, hamiltonian)
                if self.keeper is not None:
                    await self.keeper.edited(session)
            if edit.lr_scale is not None:
                session.lr_scale = edit.lr_scale
            if edit.display_name is not None:
                session.spec = replace(session.spec, display_name=edit.display_name)
            if edit.labels is not None:
                session.spec = replace(session.spec, labels=dict(edit.labels))
            if edit.consistency is not None:
                session.spec = replace(session.spec, consistency=edit.consistency)
                session.resize(self._session_bytes(session.spec))  # or a round of more workers would never fit
                session.recount(time.monotonic())
                self.intake.changed(session)
            session.revision += 1
            reach("update.changed")
            await self._save(session)
        return session

    async def pause_session(self, session_id: str) -> Session:
        """Takes no more gradients; a step in progress is finished first, a round in the making goes on afterwards."""
        session = self.resident_session(session_id)
        if session.status is not SessionStatus.PAUSED:
            session.require_ready()
            session.status = SessionStatus.PAUSED
            session.revision += 1
            await session.executor.run(lambda arena: None, of=[session.on_device])
            await self._save(session)
        return session

    async def resume_session(self, session_id: str) -> Session:
        """Takes gradients again."""
        session = self.resident_session(session_id)
        if session.status is not SessionStatus.READY:
            if session.status is not SessionStatus.PAUSED:
                session.require_ready()
            session.status = SessionStatus.READY
            session.revision += 1
            await self._save(session)
        return session

    async def close_session(self, session_id: str) -> Session:
        """Finishes the step in progress and gives all memory back."""
        session = self.resident_session(session_id)
        session.status = SessionStatus.CLOSED
        session.abandon_round(SessionNotReady(f"session {session_id} was closed"))
        try:
            if self.keeper is not None:
                await self.keeper.forget(session)
            await self.on_device(session, on_device.release)
        finally:
            self.forget(session_id)
        return session

    # Parameters

    def begin_parameters(self, session_id: str, dtype: Dtype) -> Assembler:
        """An assembler for the initial parameters; the caller releases it."""
        session = self.resident_session(session_id)
        if session.status is not SessionStatus.CREATING:
            raise SessionNotReady(
                f"session {session_id} is {session.status.name}; its parameters are set once, while it is CREATING",
                metadata={"status": session.status.name},
            )
        return self.intake.assembler(session.spec.layout.parameter_count, dtype)

    async def initialise(self, session_id: str, parameters: Assembler) -> Session:
        """Sets the initial parameters; the session is READY."""
        session = self.resident_session(session_id)
        parameters.require_complete()
        staging = parameters.staging
        if staging is None:
            raise InternalError("parameters were assembled without memory; this is a bug in hermosis")
        await self.on_device(session, on_device.initialise, staging.memory, parameters.dtype)
        reach("initialise.landed")
        if self.keeper is not None:
            try:
                await self.keeper.begun(session)
            except BaseException:
                session.on_device.initialised = False  # what came is not on disk: it may come again
                raise
        session.status = SessionStatus.READY
        return session

    async def pull(self, session_id: str, dtype: Dtype) -> Vector:
        """The parameters now."""
        return await self.on_device(self.initialised(session_id), on_device.read_parameters, dtype)

    async def pull_many(self, wanted: Sequence[tuple[str, Dtype]]) -> list[Vector | HermosisError]:
        """The parameters now of sessions, each in its dtype; or why there are none."""
        found: list[Vector | HermosisError] = []
        readable: dict[Executor, list[tuple[int, Session, Dtype]]] = {}
        for place, (session_id, dtype) in enumerate(wanted):
            try:
                session = self.initialised(session_id)
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
            await executor.run(
                functools.partial(read, rows=rows), of=list({session.on_device for _, session, _ in rows})
            )
        return found

    async def abandon(self, session: Session) -> None:
        """Gives the memory of a session back that could not be recovered whole; what is on disk stays."""
        self.forget(session.session_id)
        if session.resident is not None:
            await self.on_device(session, on_device.release)

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

    @property
    def executors(self) -> Sequence[Executor]:
        """One a device."""
        return self._executors

    async def free_device_bytes(self) -> int:
        """Device memory that new sessions may still take."""
        return sum([await executor.run(lambda arena: arena.free_bytes, of=()) for executor in self._executors])

    async def stop(self) -> None:
        """Refuses new work, finishes rounds that are complete, and ends the device thread."""
        self.intake.stopping.set()
        for session in self._sessions.values():
            session.abandon_round(stopping())
        self._watchers.end()
        for executor in self._executors:
            with contextlib.suppress(ServerStopping):
                await executor.run(lambda arena: None)  # what is complete is stepped
        if self.keeper is not None and not self.recovering:
            await self.keeper.stop()
        await asyncio.gather(*(executor.stop() for executor in self._executors))
        await asyncio.sleep(0)  # Lets the last answers of the device thread arrive.

    # Inside

    def forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        self._watchers.forget(session_id)
        self._share_shelf()

    def _share_shelf(self) -> None:
        self._shelf.share(len(self._sessions), (session.telemetry for session in self._sessions.values()))

    def _session_bytes(self, spec: SessionSpec) -> int:
        """The budget of a session: what was set, and never less than its workers need to go on.

        That is two rounds with their answers, so that a whole round fits below the lower mark while the answers to
        the one before are on their way.
        """
        exchange = spec.layout.parameter_count * 2 * Dtype.FLOAT32.itemsize
        return max(self.limits.session_bytes, 2 * max(1, spec.consistency.workers) * exchange)

    def _of(self, tenant: str) -> Iterator[Session]:
        return (session for session in self._sessions.values() if session.tenant == tenant)

    def require_device_bytes(self, session: Session) -> None:
        """Raises QuotaExceeded when a tenant holds more than it may, with a session that was just made.

        Only now is it known how much that is; of several that were made at once the last one sees them all.
        """
        held = sum(other.resident.slot.size_bytes for other in self._of(session.tenant) if other.resident)
        self.quotas.require_device_bytes(session.tenant, held)

    def resident_session(self, session_id: str) -> Session:
        session = self.session(session_id)
        if session.resident is None or session.status is SessionStatus.CLOSED:
            raise SessionNotReady(f"session {session_id} is just being created or closed; try again")
        return session

    def initialised(self, session_id: str) -> Session:
        session = self.resident_session(session_id)
        if session.status is SessionStatus.CREATING:
            session.require_ready()
        return session

    async def _save(self, session: Session) -> None:
        if self.keeper is not None:
            await self.keeper.save(session)

    def require_keeper(self) -> Keeper:
        if self.keeper is None:
            raise InvalidRequest("this server keeps sessions in memory only; export the session instead")
        return self.keeper

    async def on_device(self, session: Session, function: Callable[..., T], *arguments: object) -> T:
        resident = session.on_device
        return await session.executor.run(lambda arena: function(arena, resident, *arguments), of=[resident])


_UNREAD = InternalError("parameters were not read; this is a bug in hermosis")


def _warn(session_id: str, hamiltonian: Hamiltonian) -> None:
    for caution in hamiltonian.cautions:
        logger.warning("event=caution session=%s caution=%r", session_id, caution)
