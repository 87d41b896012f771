"""Exchange: one worker's bidirectional stream, with as many sessions on it as the worker likes.

One task reads, one writes, and each contribution waits for its step in a task of its own. Reading pauses while more
than the window of answers is under way, so that a worker that sends without reading meets HTTP/2's own flow control,
and the server's memory stays as it is. A piece of work that is refused is answered by a refusal; the stream goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, NamedTuple

from hermosis import packed
from hermosis.v1 import gradient_pb2
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.intake import stopping as stopped
from hermosis_server.engine.rounds import Answer
from hermosis_server.errors import InvalidRequest
from hermosis_server.records import Vector
from hermosis_server.rpc import status
from hermosis_server.rpc.codec import gradient as codec
from hermosis_server.rpc.links import Link, open_link
from hermosis_server.rpc.packed import PackedDesk

Response = gradient_pb2.ExchangeResponse

MAX_HANDLES = 65_536
MAX_OPENINGS = 1024  # in one message; as many refusals fit an answer


class _Outgoing(NamedTuple):
    """Responses that follow one another, and the bytes of the window that they free once written."""

    responses: Iterator[Response]
    window_bytes: int = 0


class ExchangeStream:
    """One stream, from its first message to its end.

    Args:
      engine:       takes the contributions.
      window_bytes: unanswered payload at which reading pauses.
    """

    def __init__(self, engine: Engine, *, window_bytes: int) -> None:
        self._engine = engine
        self._window_bytes = window_bytes
        self._unanswered_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._links: dict[int, Link] = {}
        self._refused_handles: set[int] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._outbox: asyncio.Queue[_Outgoing | None] = asyncio.Queue()
        self._desk = PackedDesk(
            engine,
            self._links,
            send=lambda response: self._send(Response.FromString(response)),
            later=self._answer_later,
        )

    async def responses(self, requests: AsyncIterator[gradient_pb2.ExchangeRequest]) -> AsyncIterator[Response]:
        """Everything the worker is answered, until it ends the stream or the server stops."""
        reading = asyncio.ensure_future(self._read(requests))
        stopping = asyncio.ensure_future(self._engine.intake.stopping.wait())
        reading.add_done_callback(lambda _: self._outbox.put_nowait(None))
        stopping.add_done_callback(lambda _: reading.cancel())
        try:
            while (outgoing := await self._outbox.get()) is not None:
                for response in outgoing.responses:
                    yield response
                self._answered(outgoing.window_bytes)
            async for response in self._last_answers():
                yield response
            if stopping.done():
                raise stopped()
            await reading
        finally:
            reading.cancel()
            stopping.cancel()
            for task in self._waiting:
                task.cancel()
            for link in self._links.values():
                link.close()

    async def _read(self, requests: AsyncIterator[gradient_pb2.ExchangeRequest]) -> None:
        async for request in requests:
            await self._room.wait()
            self._receive(request)

    async def _last_answers(self) -> AsyncIterator[Response]:
        """What is still due after the worker has said its last."""
        while self._waiting or not self._outbox.empty():
            if self._waiting:
                await asyncio.wait(self._waiting)
            while not self._outbox.empty():
                outgoing = self._outbox.get_nowait()
                for response in outgoing.responses if outgoing else ():
                    yield response

    def _receive(self, request: gradient_pb2.ExchangeRequest) -> None:
        kind = request.WhichOneof("message")
        if kind == "open":
            self._open(request.open)
        elif kind == "chunk":
            self._chunk(request.chunk)
        elif kind == "commit":
            self._commit(request.commit)
        elif kind == "packed":
            request.DiscardUnknownFields()
            message = packed.read_gradients(request.SerializeToString())
            assert message is not None, "generated code writes the usual form"
            self._desk.gradients(message)
        elif kind == "open_many":
            self._open_many(request.open_many)
        elif kind == "packed_pull":
            pull = request.packed_pull
            self._later(self._packed_pulled(pull.number, list(pull.handles)), 0)
        elif kind == "pull":
            self._pull(request.pull.handle)
        elif kind == "close":
            self._close_handle(request.close.handle)
        else:
            raise InvalidRequest("a message of no kind that this server knows came; set exactly one field of message")

    def _open(self, message: gradient_pb2.OpenSession) -> None:
        opened = self._opened(message)
        if isinstance(opened, gradient_pb2.SessionOpened):
            self._send(Response(opened=opened))
        else:
            self._send(Response(refused=opened))

    def _opened(self, message: gradient_pb2.OpenSession) -> gradient_pb2.SessionOpened | gradient_pb2.StreamRefusal:
        """Opens a handle; the answer to it. Raises InvalidRequest for what makes no sense on this stream."""
        handle = message.handle
        if handle in self._links:
            raise InvalidRequest(f"handle {handle} is open already; close it first or choose another", field="handle")
        if len(self._links) >= MAX_HANDLES:
            raise InvalidRequest(f"{MAX_HANDLES} handles are open on this stream, the most it may have")
        try:
            link = open_link(
                self._engine,
                session_id=message.session_id,
                worker_id=message.worker_id,
                generation=message.generation,
                layout_digest=message.layout_digest,
                ack_level=message.ack_level,
                reply=message.reply,
                reply_dtype=message.reply_dtype,
                gradient_dtype=message.gradient_dtype,
            )
        except Exception as error:
            # What the worker sends after an opening that it believes in is ignored, not refused again and again.
            if len(self._refused_handles) >= MAX_HANDLES:
                raise
            self._refused_handles.add(handle)
            return _refusal(handle, 0, error)
        self._refused_handles.discard(handle)
        self._links[handle] = link
        self._desk.forget()
        session = link.session
        return gradient_pb2.SessionOpened(
            handle=handle,
            step=session.step,
            generation=session.generation,
            next_sequence=link.worker.sequence + 1,
            status=int(session.status),  # type: ignore[arg-type]
            layout_digest=session.spec.layout.digest,
            parameter_count=session.spec.layout.parameter_count,
            chunk_bytes=self._engine.limits.chunk_bytes,
            window_bytes=self._window_bytes,
        )

    def _chunk(self, message: gradient_pb2.GradientChunk) -> None:
        link = self._link(message.handle)
        if link is None or message.sequence in link.refused:
            return
        try:
            link.receive(self._engine, codec.chunk(message, link.gradient_dtype))
        except Exception as error:
            link.refuse(message.sequence)
            self._refuse(message.handle, message.sequence, error)

    def _commit(self, message: gradient_pb2.Commit) -> None:
        link = self._link(message.handle)
        if link is None:
            return
        if message.sequence in link.refused:
            link.refused.discard(message.sequence)
            return
        handle, sequence = message.handle, message.sequence
        try:
            fate = link.commit(self._engine, codec.commit(message))
        except Exception as error:
            self._refuse(handle, sequence, error)
            return
        self._later(self._answers(handle, sequence, fate), self._window_of(link))

    def _open_many(self, message: gradient_pb2.OpenSessions) -> None:
        if len(message.open) > MAX_OPENINGS:
            raise InvalidRequest(f"{len(message.open)} sessions are opened in one message, {MAX_OPENINGS} at most")
        for handle in message.close:
            self._close_handle(handle)
        answer = gradient_pb2.SessionsOpened()
        for opening in message.open:
            opened = self._opened(opening)
            if isinstance(opened, gradient_pb2.SessionOpened):
                answer.opened.append(opened)
            else:
                answer.refused.append(opened)
        self._send(Response(opened_many=answer))

    def _pull(self, handle: int) -> None:
        link = self._link(handle)
        if link is not None:
            self._later(self._pulled(handle, link), self._window_of(link))

    async def _answers(self, handle: int, sequence: int, fate: Awaitable[Answer]) -> Iterator[Response]:
        try:
            answer = await fate
        except Exception as error:
            return iter([_refused(handle, sequence, error)])
        result = Response(result=codec.step_result(answer.result, handle))
        return _chained(result, self._chunks(handle, sequence, answer.vector))

    async def _packed_pulled(self, number: int, handles: list[int]) -> Iterator[Response]:
        return iter([Response.FromString(await self._desk.pull(number, handles))])

    async def _pulled(self, handle: int, link: Link) -> Iterator[Response]:
        try:
            vector = await self._engine.pull(link.session.session_id, link.wish.dtype)
        except Exception as error:
            return iter([_refused(handle, 0, error)])
        return self._chunks(handle, 0, vector)

    def _chunks(self, handle: int, sequence: int, vector: Vector | None) -> Iterator[Response]:
        if vector is None:
            return
        chunk_bytes = self._engine.limits.chunk_bytes
        for chunk in codec.vector_chunks(vector, handle=handle, sequence=sequence, chunk_bytes=chunk_bytes):
            yield Response(chunk=chunk)

    def _later(self, answers: Coroutine[Any, Any, Iterator[Response]], window_bytes: int) -> None:
        """Lets answers follow when they are known, and counts them against the window until they are written."""

        async def wait() -> None:
            self._outbox.put_nowait(_Outgoing(await answers, window_bytes))

        self._unanswered_bytes += window_bytes
        if self._unanswered_bytes > self._window_bytes:
            self._room.clear()
        task = asyncio.ensure_future(wait())
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def _answer_later(self, window_bytes: int) -> Callable[[bytes], None]:
        """The way for an answer that comes when it is known; it counts against the window until it is written."""
        due: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def answer(response: bytes) -> None:
            self._outbox.put_nowait(_Outgoing(iter([Response.FromString(response)]), window_bytes))
            self._waiting.discard(due)
            if not due.done():
                due.set_result(None)

        self._unanswered_bytes += window_bytes
        if self._unanswered_bytes > self._window_bytes:
            self._room.clear()
        self._waiting.add(due)
        return answer

    def _answered(self, window_bytes: int) -> None:
        self._unanswered_bytes -= window_bytes
        if self._unanswered_bytes <= self._window_bytes:
            self._room.set()

    def _link(self, handle: int) -> Link | None:
        """The link of a handle; None for one whose opening was refused."""
        link = self._links.get(handle)
        if link is None and handle not in self._refused_handles:
            raise InvalidRequest(f"handle {handle} was never opened on this stream; open it first", field="handle")
        return link

    def _close_handle(self, handle: int) -> None:
        self._refused_handles.discard(handle)
        link = self._links.pop(handle, None)
        if link is not None:
            self._desk.forget()
            link.close()

    def _window_of(self, link: Link) -> int:
        """Payload that one exchange of this session has under way: the gradient, and what is sent back."""
        return link.session.spec.layout.parameter_count * (link.gradient_dtype.itemsize + link.wish.dtype.itemsize)

    def _send(self, response: Response) -> None:
        self._outbox.put_nowait(_Outgoing(iter([response])))

    def _refuse(self, handle: int, sequence: int, error: Exception) -> None:
        self._send(_refused(handle, sequence, error))


def _refusal(handle: int, sequence: int, error: Exception) -> gradient_pb2.StreamRefusal:
    return gradient_pb2.StreamRefusal(handle=handle, sequence=sequence, refusal=status.to_refusal(error))


def _refused(handle: int, sequence: int, error: Exception) -> Response:
    return Response(refused=_refusal(handle, sequence, error))


def _chained(first: Response, rest: Iterator[Response]) -> Iterator[Response]:
    yield first
    yield from rest
