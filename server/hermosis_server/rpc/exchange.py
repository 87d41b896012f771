"""Exchange: one worker's bidirectional stream, with as many sessions on it as the worker likes.

One task reads, one writes, and each contribution waits for its step in a task of its own. Reading pauses while more
than the window of answers is under way, so that a worker that sends without reading meets HTTP/2's own flow control,
and the server's memory stays as it is. A piece of work that is refused is answered by a refusal; the stream goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple

from hermosis.v1 import gradient_pb2
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.intake import stopping as stopped
from hermosis_server.engine.rounds import Answer
from hermosis_server.errors import InvalidRequest
from hermosis_server.records import Vector
from hermosis_server.rpc import status
from hermosis_server.rpc.codec import gradient as codec
from hermosis_server.rpc.links import Link, open_link
from hermosis_server.rpc.segments import Segments

Response = gradient_pb2.ExchangeResponse

MAX_HANDLES = 65_536
# Room in a message for everything that is not payload.
PACKED_OVERHEAD_BYTES = 1024


class _Outgoing(NamedTuple):
    """Responses that follow one another, and the bytes of the window that they free once written."""

    responses: Iterator[Response]
    window_bytes: int = 0


class ExchangeStream:
    """One stream, from its first message to its end.

    Args:
      engine:       takes the contributions.
      segments:     where workers on this machine share memory.
      window_bytes: unanswered payload at which reading pauses.
    """

    def __init__(self, engine: Engine, segments: Segments, *, window_bytes: int) -> None:
        self._engine = engine
        self._segments = segments
        self._window_bytes = window_bytes
        self._unanswered_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._links: dict[int, Link] = {}
        self._refused_handles: set[int] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[_Outgoing | None] = asyncio.Queue()

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
            self._packed(request.packed)
        elif kind == "pull":
            self._pull(request.pull.handle)
        elif kind == "segment":
            self._segment_chunk(request.segment)
        elif kind == "close":
            self._close_handle(request.close.handle)
        else:
            raise InvalidRequest("a message of no kind that this server knows came; set exactly one field of message")

    def _open(self, message: gradient_pb2.OpenSession) -> None:
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
            self._refuse(handle, 0, error)
            return
        self._refused_handles.discard(handle)
        self._links[handle] = link
        if message.HasField("segment"):
            link.attach(self._segments, codec.segment_offer(message.segment))
        session = link.session
        self._send(
            Response(
                opened=gradient_pb2.SessionOpened(
                    handle=handle,
                    step=session.step,
                    generation=session.generation,
                    next_sequence=link.worker.sequence + 1,
                    status=int(session.status),  # type: ignore[arg-type]
                    layout_digest=session.spec.layout.digest,
                    parameter_count=session.spec.layout.parameter_count,
                    chunk_bytes=self._engine.limits.chunk_bytes,
                    window_bytes=self._window_bytes,
                    segment_attached=link.segment is not None,
                )
            )
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

    def _segment_chunk(self, message: gradient_pb2.SegmentChunk) -> None:
        link = self._link(message.handle)
        if link is None or message.sequence in link.refused:
            return
        try:
            link.receive(self._engine, link.lying_in_segment(message))
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
        self._later(self._answers(link, handle, sequence, fate), self._window_of(link))

    def _packed(self, message: gradient_pb2.PackedGradients) -> None:
        fates: list[tuple[int, int, Awaitable[Answer] | Exception]] = []
        window = 0
        for gradient in message.gradients:
            handle, sequence = gradient.commit.handle, gradient.commit.sequence
            link = self._link(handle)
            if link is None:
                continue
            window += self._window_of(link)
            try:
                link.receive(self._engine, codec.whole_gradient(gradient, link.gradient_dtype))
                fates.append((handle, sequence, link.commit(self._engine, codec.commit(gradient.commit))))
            except Exception as error:
                abandoned = link.gradients.pop(sequence, None)
                if abandoned is not None:
                    abandoned.release()
                fates.append((handle, sequence, error))
        self._later(self._packed_answers(fates), window)

    def _pull(self, handle: int) -> None:
        link = self._link(handle)
        if link is not None:
            self._later(self._pulled(handle, link), self._window_of(link))

    async def _answers(self, link: Link, handle: int, sequence: int, fate: Awaitable[Answer]) -> Iterator[Response]:
        try:
            answer = await fate
        except Exception as error:
            return iter([_refused(handle, sequence, error)])
        result = Response(result=codec.step_result(answer.result, handle))
        return _chained(result, self._chunks(link, handle, sequence, answer.vector))

    async def _packed_answers(
        self, fates: Iterable[tuple[int, int, Awaitable[Answer] | Exception]]
    ) -> Iterator[Response]:
        results = []
        for handle, sequence, fate in fates:
            try:
                if isinstance(fate, Exception):
                    raise fate
                answer = await fate
                results.append(codec.packed_result(answer.result, answer.vector, handle, self._packed_limit))
            except Exception as error:
                refusal = status.to_refusal(error)
                results.append(gradient_pb2.PackedResult(refusal=refusal, handle=handle, sequence=sequence))
        return (Response(packed=message) for message in codec.packed_results(results, self._packed_limit))

    async def _pulled(self, handle: int, link: Link) -> Iterator[Response]:
        try:
            vector = await self._engine.pull(link.session.session_id, link.wish.dtype)
        except Exception as error:
            return iter([_refused(handle, 0, error)])
        return self._chunks(link, handle, 0, vector)

    def _chunks(self, link: Link, handle: int, sequence: int, vector: Vector | None) -> Iterator[Response]:
        if vector is None:
            return
        if link.segment is not None:
            for piece in codec.segment_chunks(vector, link.segment.answer, handle=handle, sequence=sequence):
                yield Response(segment=piece)
            return
        chunk_bytes = self._engine.limits.chunk_bytes
        for chunk in codec.vector_chunks(vector, handle=handle, sequence=sequence, chunk_bytes=chunk_bytes):
            yield Response(chunk=chunk)

    @property
    def _packed_limit(self) -> int:
        return self._engine.limits.max_message_bytes - PACKED_OVERHEAD_BYTES

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
            link.close()

    def _window_of(self, link: Link) -> int:
        """Payload that one exchange of this session has under way: the gradient, and what is sent back."""
        return link.session.spec.layout.parameter_count * (link.gradient_dtype.itemsize + link.wish.dtype.itemsize)

    def _send(self, response: Response) -> None:
        self._outbox.put_nowait(_Outgoing(iter([response])))

    def _refuse(self, handle: int, sequence: int, error: Exception) -> None:
        self._send(_refused(handle, sequence, error))


def _refused(handle: int, sequence: int, error: Exception) -> Response:
    refusal = status.to_refusal(error)
    return Response(refused=gradient_pb2.StreamRefusal(handle=handle, sequence=sequence, refusal=refusal))


def _chained(first: Response, rest: Iterator[Response]) -> Iterator[Response]:
    yield first
    yield from rest
