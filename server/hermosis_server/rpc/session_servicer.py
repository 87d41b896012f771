"""SessionService: one method a call. Translate in, call the engine, translate out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from hermosis.v1 import session_pb2, session_pb2_grpc
from hermosis.wire import Dtype
from hermosis_server import __version__
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.keeper import name_of
from hermosis_server.errors import InvalidRequest
from hermosis_server.records import StateBuffer
from hermosis_server.rpc import listing
from hermosis_server.rpc.codec import enums, optimizer
from hermosis_server.rpc.codec import session as session_codec
from hermosis_server.rpc.codec import telemetry as telemetry_codec
from hermosis_server.rpc.gate import Call
from hermosis_server.rpc.reach import Reach
from hermosis_server.rpc.requests import AnsweredRequests
from hermosis_server.rpc.streams import stalled

T = TypeVar("T", bound=Message)


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """SessionService over an engine."""

    def __init__(self, engine: Engine, *, device_name: str) -> None:
        self._engine = engine
        self._device_name = device_name
        self._answered = AnsweredRequests()

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: Any
    ) -> session_pb2.CreateSessionResponse:
        async def create() -> session_pb2.CreateSessionResponse:
            spec = session_codec.spec(request.spec, self._engine.limits, self._engine.durability)
            made_by = request.request_id, session_codec.fingerprint(request)
            session = await self._reach(context).create(spec, request.session_id, request=made_by)
            return session_pb2.CreateSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, create)

    async def GetSession(self, request: session_pb2.GetSessionRequest, context: Any) -> session_pb2.GetSessionResponse:
        session = self._reach(context).session(request.session_id)
        digest = await self._engine.states.digest(session.session_id) if request.want_digest else b""
        return session_pb2.GetSessionResponse(session=session_codec.session(session), state_digest=digest)

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Any
    ) -> session_pb2.ListSessionsResponse:
        return listing.page(request, self._reach(context))

    async def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest, context: Any
    ) -> session_pb2.UpdateSessionResponse:
        name = self._reach(context).name(request.session_id)

        async def update() -> session_pb2.UpdateSessionResponse:
            edit = session_codec.edit(request)
            session = await self._engine.update_session(name, edit, etag=request.etag)
            return session_pb2.UpdateSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, update)

    async def PauseSession(
        self, request: session_pb2.PauseSessionRequest, context: Any
    ) -> session_pb2.PauseSessionResponse:
        name = self._reach(context).name(request.session_id)

        async def pause() -> session_pb2.PauseSessionResponse:
            session = await self._engine.pause_session(name)
            return session_pb2.PauseSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, pause)

    async def ResumeSession(
        self, request: session_pb2.ResumeSessionRequest, context: Any
    ) -> session_pb2.ResumeSessionResponse:
        name = self._reach(context).name(request.session_id)

        async def resume() -> session_pb2.ResumeSessionResponse:
            session = await self._engine.resume_session(name)
            return session_pb2.ResumeSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, resume)

    async def CloseSession(
        self, request: session_pb2.CloseSessionRequest, context: Any
    ) -> session_pb2.CloseSessionResponse:
        name = self._reach(context).name(request.session_id)

        async def close() -> session_pb2.CloseSessionResponse:
            session = await self._engine.close_session(name)
            return session_pb2.CloseSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, close)

    async def InitialiseParameters(
        self, requests: AsyncIterator[session_pb2.InitialiseParametersRequest], context: Any
    ) -> session_pb2.InitialiseParametersResponse:
        assembler = None
        session_id = ""
        try:
            async with self._progress() as progress:
                async for request in requests:
                    dtype = enums.dtype(request.dtype, field="dtype")
                    if assembler is None:
                        session_id = self._reach(context).name(request.session_id)
                        assembler = self._engine.begin_parameters(session_id, dtype)
                    payload = request.payload
                    assembler.add(offset=request.offset, dtype=dtype, crc32=request.crc32, payload=payload)
                    progress(assembler.received)
            if assembler is None:
                raise InvalidRequest("the upload ended before its first message; send session_id and the parameters")
            session = await self._engine.initialise(session_id, assembler)
            return session_pb2.InitialiseParametersResponse(session=session_codec.session(session))
        finally:
            if assembler is not None:
                assembler.release()

    async def ExportSession(
        self, request: session_pb2.ExportSessionRequest, context: Any
    ) -> AsyncIterator[session_pb2.ExportSessionResponse]:
        session = self._reach(context).session(request.session_id)
        with self._engine.states.room(session):
            state = await self._engine.states.exported(session.session_id)
            sent = 0
            async with self._progress() as progress:
                for response in session_codec.exported(session, state, self._engine.limits.chunk_bytes):
                    yield response
                    progress(sent := sent + 1)

    async def ImportSession(
        self, requests: AsyncIterator[session_pb2.ImportSessionRequest], context: Any
    ) -> session_pb2.ImportSessionResponse:
        head = await anext(requests, None)
        if head is None or not head.HasField("state"):
            raise InvalidRequest("an import begins with session_id and the state", field="state")
        session = self._reach(context).session(head.session_id)
        assemblers = self._engine.states.begin_import(session.session_id)
        try:
            async with self._progress() as progress:
                async for request in requests:
                    _receive_state(request.chunk, assemblers)
                    progress(sum(assembler.received for assembler in assemblers.values()))
            buffers = {}
            for buffer, assembler in assemblers.items():
                assembler.require_complete()
                assert assembler.staging is not None, "an import is always kept"
                buffers[buffer] = assembler.staging.memory
            state = session_codec.imported(head.state, session, buffers, self._engine.limits)
            session = await self._engine.states.replaced_by(session.session_id, state)
            return session_pb2.ImportSessionResponse(session=session_codec.session(session))
        finally:
            for assembler in assemblers.values():
                assembler.release()

    async def SnapshotSession(
        self, request: session_pb2.SnapshotSessionRequest, context: Any
    ) -> session_pb2.SnapshotSessionResponse:
        name = self._reach(context).name(request.session_id)

        async def snapshot() -> session_pb2.SnapshotSessionResponse:
            info, digest = await self._engine.states.snapshot(name)
            return session_pb2.SnapshotSessionResponse(snapshot_id=name_of(info), step=info.step, state_digest=digest)

        return await self._once(context, request, snapshot)

    async def RestoreSession(
        self, request: session_pb2.RestoreSessionRequest, context: Any
    ) -> session_pb2.RestoreSessionResponse:
        name = self._reach(context).name(request.session_id)

        async def restore() -> session_pb2.RestoreSessionResponse:
            session = await self._engine.states.restore(name, request.snapshot_id)
            return session_pb2.RestoreSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, restore)

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Any
    ) -> session_pb2.ForkSessionResponse:
        parent = self._reach(context).heir(request.session_id, request.fork_session_id)

        async def fork() -> session_pb2.ForkSessionResponse:
            other = optimizer.from_message(request.optimizer) if request.HasField("optimizer") else None
            made_by = request.request_id, session_codec.fingerprint(request)
            session = await self._engine.states.fork(parent, request.fork_session_id, other, request=made_by)
            return session_pb2.ForkSessionResponse(session=session_codec.session(session))

        return await self._once(context, request, fork)

    async def ListSnapshots(
        self, request: session_pb2.ListSnapshotsRequest, context: Any
    ) -> session_pb2.ListSnapshotsResponse:
        held = await self._engine.states.snapshots(self._reach(context).name(request.session_id))
        return session_pb2.ListSnapshotsResponse(snapshots=map(session_codec.snapshot, held))

    async def ListWorkers(
        self, request: session_pb2.ListWorkersRequest, context: Any
    ) -> session_pb2.ListWorkersResponse:
        session = self._reach(context).session(request.session_id)
        now_s, contributed = time.monotonic(), session.round.contributions
        there, to_come = session.members(now_s)
        here = {worker.worker_id for worker in there}
        if to_come:
            here.update(record.worker_id for record in session.workers.values() if record.streams)
        workers = [
            session_pb2.Worker(
                worker_id=record.worker_id,
                connected=record.streams > 0,
                next_sequence=record.sequence + 1,
                base_step=record.base_step,
                staleness=record.staleness,
                received_bytes=record.received_bytes,
                last_seen_time=telemetry_codec.timestamp(record.last_seen_s),
                awaited=bool(contributed) and record.worker_id in here and record.worker_id not in contributed,
                lost=session.is_lost(record, now_s),
                influence=record.influence,
                compression_error=record.compression_error,
            )
            for record in sorted(session.workers.values(), key=lambda record: record.worker_id)
        ]
        return session_pb2.ListWorkersResponse(workers=workers)

    async def GetCapabilities(
        self, request: session_pb2.GetCapabilitiesRequest, context: Any
    ) -> session_pb2.GetCapabilitiesResponse:
        capabilities = session_codec.capabilities(
            self._engine.limits,
            version=__version__,
            device=self._device_name,
            recipes=optimizer.recipe_names(),
            free_bytes=await self._engine.free_device_bytes(),
            default=self._engine.durability,
        )
        return session_pb2.GetCapabilitiesResponse(capabilities=capabilities)

    async def GetRecipes(self, request: session_pb2.GetRecipesRequest, context: Any) -> session_pb2.GetRecipesResponse:
        return session_pb2.GetRecipesResponse(recipes=optimizer.descriptions())

    @contextlib.asynccontextmanager
    async def _progress(self) -> AsyncIterator[Callable[[int], None]]:
        """Raises Stalled where the number that it is told does not grow for the idle limit."""
        idle_s, clock, reached = self._engine.limits.idle_s, asyncio.get_running_loop().time, -1
        try:
            async with asyncio.timeout(idle_s) as limit:

                def progress(now: int) -> None:
                    nonlocal reached
                    if now > reached:
                        reached = now
                        limit.reschedule(clock() + idle_s)

                yield progress
        except TimeoutError:
            raise stalled(idle_s) from None

    def _reach(self, call: Call) -> Reach:
        return Reach(self._engine, call.identity)

    async def _once(self, call: Call, request: Any, make: Callable[[], Awaitable[T]]) -> T:
        fingerprint = session_codec.fingerprint(request)
        owner = call.identity.tenant, call.identity.sessions
        return await self._answered.once(request.request_id, fingerprint, make, owner=owner)


def _receive_state(chunk: session_pb2.StateChunk, assemblers: dict[StateBuffer, Any]) -> None:
    assembler = assemblers.get(chunk.buffer)  # type: ignore[call-overload]
    if assembler is None:
        held = ", ".join(buffer.name for buffer in assemblers)
        raise InvalidRequest(f"a chunk of buffer {chunk.buffer} came; this session keeps {held}", field="chunk.buffer")
    assembler.add(offset=chunk.offset, dtype=Dtype.FLOAT32, crc32=chunk.crc32, payload=chunk.payload)
