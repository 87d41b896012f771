"""States: a session's whole optimizer state, taken out and put in: digests, exports, snapshots, restores, forks."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from hermosis.wire import Dtype
from hermosis_server.dynamics import Hamiltonian
from hermosis_server.engine import checks
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.assembler import Assembler
from hermosis_server.engine.keeper import Held, Written
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.errors import CorruptState, HermosisError, InvalidRequest, StaleGradient
from hermosis_server.failpoints import reach
from hermosis_server.identity import parted
from hermosis_server.records import ExportedState, RecipeChoice, SessionStatus, StateBuffer

UNKNOWN_GENERATIONS = 1 << 20  # added where nobody can know how often a session was recovered: old workers stay out

if TYPE_CHECKING:
    from hermosis_server.engine.engine import Engine


class States:
    """What can be done with the states of an engine's sessions."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    async def digest(self, session_id: str) -> bytes:
        """Digest of the whole optimizer state now."""
        state = await self._engine.on_device(self._engine.resident_session(session_id), on_device.copy_out)
        return await asyncio.to_thread(on_device.digest_of, state)

    async def exported(self, session_id: str) -> ExportedState:
        """The whole optimizer state now, in plain bytes."""
        state = await self._engine.on_device(self._engine.initialised(session_id), on_device.copy_out)
        return replace(state, digest=await asyncio.to_thread(on_device.digest_of, state))

    @contextlib.contextmanager
    def room(self, session: Session) -> Iterator[None]:
        """Counts the host memory of a session's exported state, as long as it is there. Raises Overloaded."""
        slot = self._engine.resident_session(session.session_id).on_device.slot
        size = sum(slot.elements(buffer) for buffer in slot.spans) * Dtype.FLOAT32.itemsize
        self._engine.budget.take(size)
        try:
            yield
        finally:
            self._engine.budget.give(size)

    def begin_import(self, session_id: str) -> dict[StateBuffer, Assembler]:
        """Assemblers for the buffers of a state to come; the caller releases them."""
        session = self._engine.resident_session(session_id)
        assemblers: dict[StateBuffer, Assembler] = {}
        try:
            slot = session.on_device.slot
            for buffer in slot.spans:
                assemblers[buffer] = self._engine.intake.assembler(slot.elements(buffer), Dtype.FLOAT32)
        except HermosisError:
            for assembler in assemblers.values():
                assembler.release()
            raise
        return assemblers

    async def replaced_by(self, session_id: str, state: ExportedState) -> Session:
        """Replaces the whole optimizer state; everybody who knew the old one is fenced off by the generation.

        Raises:
          CorruptState: the state is not the one its digest speaks of; nothing changed.
        """
        session = self._engine.resident_session(session_id)
        await asyncio.to_thread(on_device.check_digest, state)
        await self._replace(session, state, session.spec)
        return session

    async def snapshot(self, session_id: str) -> Written:
        """Writes the session to disk now.

        Raises:
          InvalidRequest: it has durability NONE.
        """
        session = self._engine.initialised(session_id)
        return await self._engine.require_keeper().snapshot(session)

    async def restore(self, session_id: str, snapshot_id: str = "") -> Session:
        """Goes back to a snapshot, the newest if none is named.

        A session that was set aside as damaged comes back so, and one that this server never had, from a copy.

        Raises:
          SessionNotFound: there is neither a session nor a copy of that name.
          InvalidRequest: there is no such snapshot.
          CorruptState:   that one is damaged too.
        """
        self._engine.require_serving()
        copied = self._engine.keeper is not None and self._engine.keeper.copies is not None
        if not copied and session_id not in self._engine.quarantined:
            self._engine.session(session_id)
        keeper = self._engine.require_keeper()
        stored = await keeper.load(session_id, snapshot_id)
        await asyncio.to_thread(on_device.check_digest, stored.state)
        session = self._engine.find(session_id)
        if session is None:
            session = await self._revive(session_id, keeper.decode(stored.document), stored.generation)
        require_fit(session, stored.state)
        await self._replace(session, stored.state, keeper.decode(stored.document))
        return session

    async def snapshots(self, session_id: str) -> list[Held]:
        """The session's snapshots on disk, newest first; one that was set aside has them, too."""
        if session_id not in self._engine.quarantined:
            self._engine.session(session_id)
        keeper = self._engine.keeper
        return [] if keeper is None else await keeper.snapshots(session_id)

    async def _revive(self, session_id: str, spec: SessionSpec, generation: int) -> Session:
        """A session that was set aside or lost, with memory again; whoever calls this gives it its state.

        Args:
          generation: of the snapshot that it comes from.
        """
        engine, keeper = self._engine, self._engine.require_keeper()
        engine.require_place(parted(session_id)[0])
        session = engine.begin_session(session_id, spec)
        try:
            await engine.reserve(session)
            engine.require_device_bytes(session)
        except BaseException:
            await engine.abandon(session)
            raise
        aside = engine.quarantined.pop(session_id, None)
        if aside is not None and aside.record is not None:
            keeper.recall(session, aside.record)
        else:
            session.generation = generation + UNKNOWN_GENERATIONS
        session.status = SessionStatus.READY
        keeper.adopt_recovered(session, snapshot_step=-1)
        return session

    async def fork(
        self, session_id: str, fork_id: str, optimizer: RecipeChoice | Hamiltonian | None, *, request: tuple[str, bytes]
    ) -> Session:
        """A new session that continues from this one's present state, with workers of its own.

        Raises:
          InvalidRequest: the other optimizer keeps other vectors.
        """
        parent = self._engine.initialised(session_id)
        spec = parent.spec if optimizer is None else replace(parent.spec, optimizer=optimizer)
        state = await self._engine.on_device(parent, on_device.copy_out)
        session = await self._engine.create_session(spec, session_id=fork_id, tenant=parent.tenant, request=request)
        if set(session.on_device.slot.spans) != set(state.buffers):
            await self._engine.close_session(session.session_id)
            raise InvalidRequest(
                f"the optimizer of the fork keeps other vectors than session {session_id}; make a session of its own "
                "and start it from this one's parameters",
                field="optimizer",
            )
        await self._replace(session, replace(state, workers={}, refused={}), spec)
        return session

    async def _replace(self, session: Session, state: ExportedState, spec: SessionSpec) -> None:
        """Puts a state whose digest was checked in the place of what is there."""
        after = SessionStatus.READY if session.status is SessionStatus.CREATING else session.status
        session.status = SessionStatus.RECOVERING  # No gradient may slip in between the old state and the new.
        session.abandon_round(StaleGradient(f"session {session.session_id} was set to another state; open it again"))
        try:
            if spec.optimizer != session.spec.optimizer:  # only its thermal profile can have been edited
                profile = checks.checked_hamiltonian(spec, self._engine.limits).thermal
                await self._engine.on_device(session, on_device.change_profile, profile)
                session.spec = replace(session.spec, optimizer=spec.optimizer)
            await self._engine.on_device(session, on_device.adopt, state)
            reach("import.adopted")
            session.generation += 1
            session.replaced_generation, session.recovered_steps = session.generation, ()
            session.revision += 1
            session.step = state.scalars.step
            session.adopt_workers([*state.workers.values(), *state.refused.values()])
            session.telemetry.clear()
            if self._engine.keeper is not None:
                await self._engine.keeper.replaced(session, after)
        finally:
            session.status = after


def require_fit(session: Session, state: ExportedState) -> None:
    """Raises CorruptState unless a stored state has the vectors that the session keeps."""
    slot = session.on_device.slot
    wanted = {buffer: slot.elements(buffer) * Dtype.FLOAT32.itemsize for buffer in slot.spans}
    found = {buffer: len(payload) for buffer, payload in state.buffers.items()}
    if found != wanted:
        raise CorruptState(
            f"the snapshot holds {found} bytes by buffer, session {session.session_id} keeps {wanted}; it belongs "
            "to a session of another layout or optimizer"
        )
