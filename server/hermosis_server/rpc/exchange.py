"""Exchange: one worker's bidirectional stream, with as many sessions on it as the worker likes.

One task reads, one writes; a contribution's answer is put into the outbox by whoever learns it. Reading pauses while
more than the window of answers is under way, so that a worker that sends without reading meets HTTP/2's own flow
control, and the server's memory stays as it is. A piece of work that is refused is answered by a refusal; the stream
goes on. Streams take turns (turns.py).
"""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from hermosis import hot, packed
from hermosis.v1 import gradient_pb2
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.intake import stopping as stopped
from hermosis_server.engine.rounds import Answer
from hermosis_server.errors import InvalidRequest, Overloaded, Stalled
from hermosis_server.rpc import status
from hermosis_server.rpc.codec import coded
from hermosis_server.rpc.codec import gradient as codec
from hermosis_server.rpc.interceptor import no_message
from hermosis_server.rpc.links import Link, open_link
from hermosis_server.rpc.outbox import Outbox
from hermosis_server.rpc.packed import PackedDesk
from hermosis_server.rpc.reach import Reach
from hermosis_server.rpc.segments import Segments, StreamSegments
from hermosis_server.rpc.turns import HEAVY_BYTES, LARGE, Turns

Request = gradient_pb2.ExchangeRequest
Response = gradient_pb2.ExchangeResponse

T = TypeVar("T")

MAX_HANDLES = 65_536
SMALL_BYTES = 16 << 10  # answers of at most this are bounded by their number, MAX_ANSWERS
COMPANY_CHUNK_BYTES = 256 << 10  # to make and write a megabyte takes the event loop half a millisecond and more
MAX_OPENINGS = 1024  # in one message; as many refusals fit an answer
MAX_RECOVERIES_TOLD = 64


class ExchangeStream:
    """One stream, from its first message to its end.

    Args:
      engine:       takes the contributions.
      reach:        sessions that the worker can name.
      segments:     of all workers that share memory with this server.
      turns:        of all streams.
      context:      of the call; serialized messages are read from it and written to it.
      window_bytes: unanswered payload at which reading pauses.
    """

    def __init__(
        self, engine: Engine, reach: Reach, segments: Segments, turns: Turns, context: Any, *, window_bytes: int
    ) -> None:
        self._engine = engine
        self._reach = reach
        self._turns = turns
        self._segments = StreamSegments(segments)
        self._context = context
        self._window_bytes = window_bytes
        self._links: dict[int, Link] = {}
        self._who: Hashable = self  # of whom a turn is: the session, or a stream that carries several
        self._refused_handles: set[int] = set()
        self._outbox = Outbox(window_bytes)
        self._desk = PackedDesk(engine, self._links, later=self._answer_later)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: asyncio.Task[Any] | None = None
        self._failure: Stalled | None = None

    async def run(self) -> None:
        """Answers the worker until it ends the stream or the server stops. Raises Stalled if nobody reads."""
        self._running = asyncio.current_task()
        reading = asyncio.ensure_future(self._read())
        stopping = asyncio.ensure_future(self._engine.intake.stopping.wait())
        reading.add_done_callback(lambda _: self._outbox.end())
        stopping.add_done_callback(lambda _: reading.cancel())
        try:
            await self._write()
            if stopping.done():
                raise stopped()
            await reading
        except grpc.aio.InternalError:
            return  # a write failed: the worker has gone
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            assert self._running is not None, "it is running"
            self._running.uncancel()
            raise self._failure from None
        finally:
            reading.cancel()
            stopping.cancel()
            for task in self._tasks:
                task.cancel()
            for link in self._links.values():
                link.close()
            # The stream and its desk know each other, so they are there until the next collection; the sessions not.
            self._links.clear()
            self._desk.forget()
            self._outbox.close()
            self._turns.end(self)
            self._segments.close()

    def half_done(self) -> Mapping[Hashable, int]:
        """Gradients on their way, by handle and sequence; and, under None, what waits to be read."""
        begun: dict[Hashable, int] = {
            (handle, sequence): gradient.received
            for handle, link in self._links.items()
            if link.gradients
            for sequence, gradient in link.gradients.items()
        }
        if self._outbox.unread:
            begun[None] = self._outbox.written_messages
        return begun

    def stalled(self, thing: Hashable, error: Stalled) -> None:
        """Gives a gradient up, or the stream where nobody reads it."""
        if isinstance(thing, tuple):
            handle, sequence = thing
            try:
                self._links[handle].refuse(sequence)
            except InvalidRequest:  # as many as may be were given up before, and nothing came since
                self._give_up(error)
            else:
                self._refuse(handle, sequence, error)
        else:
            self._give_up(error)

    def _give_up(self, error: Stalled) -> None:
        if self._running is not None:
            self._failure = error
            self._running.cancel()

    async def _write(self) -> None:
        write, outbox, turns, activity = self._context.write, self._outbox, self._turns, self._engine.activity
        while (messages := await outbox.next()) is not None:
            for message in messages:
                await write(message)
                outbox.written_messages += 1
                activity.sent_bytes += len(message)
                turns.end(self)
                if len(message) > HEAVY_BYTES and not turns.take(LARGE, self._who):  # before the next one is made
                    await turns.wait(LARGE)
            outbox.written()

    async def _read(self) -> None:
        read, outbox, turns, end = self._context.read, self._outbox, self._turns, grpc.aio.EOF
        activity, large = self._engine.activity, False
        while (raw := await read()) is not end:
            activity.received_bytes += len(raw)
            if outbox.full:
                await outbox.room()
            large_before, large = large, len(raw) > HEAVY_BYTES
            who = LARGE if large else self._who
            if not turns.take(who, self._who, ahead=outbox.owes):
                await turns.wait(who)
            elif not (large or large_before):  # what ends a gradient of many chunks is not small
                turns.begin(self, who)
            self._receive(raw)

    def _receive(self, raw: bytes) -> None:
        try:
            columns = packed.read_gradients(raw)
            message = hot.parse_request(raw, Request.FromString) if columns is None else columns
        except DecodeError:
            raise no_message() from None
        if isinstance(message, packed.PackedGradients):
            self._desk.gradients(message)
        elif isinstance(message, hot.GradientChunk):
            self._chunk(message)
        elif isinstance(message, hot.WholeGradient):
            self._whole(message)
        elif isinstance(message, hot.Commit):
            self._commit(message)
        else:
            self._receive_other(message)

    def _receive_other(self, request: Request) -> None:
        kind = request.WhichOneof("message")
        if kind == "open":
            self._open(request.open)
        elif kind == "packed":
            request.DiscardUnknownFields()
            columns = packed.read_gradients(request.SerializeToString())
            assert columns is not None, "what generated code writes is in the usual form"
            self._desk.gradients(columns)
        elif kind == "open_many":
            self._open_many(request.open_many)
        elif kind == "packed_pull":
            pull = request.packed_pull
            reading = self._desk.pull(pull.number, list(pull.handles))
            if reading is not None:
                self._run(reading)
        elif kind == "pull":
            self._pull(request.pull.handle)
        elif kind == "segment":
            self._chunk(request.segment)
        elif kind == "coded":
            self._chunk(request.coded)
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
                session_id=self._reach.name(message.session_id),
                worker_id=message.worker_id,
                generation=message.generation,
                layout_digest=message.layout_digest,
                ack_level=message.ack_level,
                reply=message.reply,
                reply_dtype=message.reply_dtype,
                gradient_dtype=message.gradient_dtype,
                gradient_codec=coded.codec(message.gradient_codec, field="gradient_codec"),
                reply_codec=coded.codec(message.reply_codec, field="reply_codec"),
            )
        except Exception as error:
            # What the worker sends after an opening that it believes in is ignored, not refused again and again.
            if len(self._refused_handles) >= MAX_HANDLES:
                raise
            self._refused_handles.add(handle)
            return _refusal(handle, 0, error)
        self._refused_handles.discard(handle)
        self._links[handle] = link
        self._who = link.session.session_id if len(self._links) == 1 else self
        self._desk.forget()
        if message.HasField("segment"):
            link.attach(self._segments, codec.segment_offer(message.segment))
        session = link.session
        unfinished = session.resumable(link.worker, link.gradient_dtype)
        return gradient_pb2.SessionOpened(
            handle=handle,
            step=session.step,
            durable_step=session.durable_step,
            generation=session.generation,
            replaced_generation=session.replaced_generation,
            recovered_steps=session.recovered_steps[-MAX_RECOVERIES_TOLD:],
            next_sequence=link.worker.sequence + 1,
            status=int(session.status),  # type: ignore[arg-type]
            layout_digest=session.spec.layout.digest,
            parameter_count=session.spec.layout.parameter_count,
            chunk_bytes=self._engine.limits.chunk_bytes,
            window_bytes=self._window_bytes,
            resume_sequence=unfinished.sequence if unfinished else 0,
            resume_offset=unfinished.gradient.prefix if unfinished else 0,
            segment_attached=link.segment is not None,
        )

    def _chunk(self, message: hot.GradientChunk | gradient_pb2.SegmentChunk | gradient_pb2.CodedChunk) -> None:
        link = self._link(message.handle)
        if link is None or message.sequence in link.refused:
            return
        try:
            if isinstance(message, hot.GradientChunk):
                chunk = codec.chunk(message, link.gradient_dtype)
            elif isinstance(message, gradient_pb2.CodedChunk):
                kind, limit_bytes = link.gradient_codec.kind, self._engine.limits.max_chunk_bytes
                chunk = coded.gradient_chunk(message, kind, link.gradient_dtype, max_chunk_bytes=limit_bytes)
            else:
                chunk = codec.segment_chunk(message, link.gradient_place, link.gradient_dtype)
                self._context.owe(len(chunk.payload))
                self._engine.activity.received_bytes += len(chunk.payload)
            link.receive(self._engine, chunk)
        except Exception as error:
            link.refuse(message.sequence)
            self._refuse(message.handle, message.sequence, error)

    def _commit(self, message: hot.Commit) -> None:
        link = self._link(message.handle)
        if link is None:
            return
        handle, sequence = message.handle, message.sequence
        if sequence in link.refused:
            link.refused.discard(sequence)
            return
        # Where other answers are to go there before, a step must not write over them.
        place = None if link.unanswered else link.answer_place
        answer = partial(self._answer, link, handle, sequence, False, *self._expect(link))
        try:
            link.commit(self._engine, codec.commit(message), answer, place=place)
        except Exception as error:
            answer(error)

    def _whole(self, message: hot.WholeGradient) -> None:
        handle, sequence = message.commit.handle, message.commit.sequence
        link = self._link(handle)
        if link is None:
            return
        answer = partial(self._answer, link, handle, sequence, True, *self._expect(link))
        try:
            chunk = codec.whole_gradient(message, link.gradient_dtype)
            link.contribute(self._engine, codec.commit(message.commit), chunk, answer)
        except Exception as error:
            answer(error)

    def _answer(
        self, link: Link, handle: int, sequence: int, whole: bool, window: int, sure: bool, answer: Answer | Exception
    ) -> None:
        """Hears what became of a contribution; also when the stream has gone, where nothing reads the outbox."""
        if isinstance(answer, Exception):
            link.unanswered -= 1
            self._outbox.put((_refused(handle, sequence, answer),), window, sure=sure)
            return
        chunk_bytes, place = self._chunk_bytes(link), link.answer_place
        messages = codec.answer_messages(
            answer, handle=handle, whole=whole, chunk_bytes=chunk_bytes, place=place, coded=link.coded
        )
        budget, held_bytes = None, 0 if answer.vector is None else len(answer.vector.payload)
        if place is not None:
            self._engine.activity.sent_bytes += held_bytes
        if held_bytes > SMALL_BYTES:
            budget = link.session.budget
            budget.hold(held_bytes)
        self._outbox.put(_written(link, messages), window, sure=sure, budget=budget, held_bytes=held_bytes)

    def _chunk_bytes(self, link: Link) -> int:
        """What is sent at a time, of a plain vector less while others wait. Codecs depend on where it is cut."""
        most = self._engine.limits.chunk_bytes
        return min(most, COMPANY_CHUNK_BYTES) if self._turns.several and link.coded is None else most

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

    def _answer_later(self, window_bytes: int, *, sure: bool) -> Callable[[bytes], None]:
        self._outbox.expect(window_bytes, sure=sure)
        budget = self._engine.budget

        def put(message: bytes) -> None:
            budget.hold(len(message))
            self._outbox.put((message,), window_bytes, sure=sure, budget=budget, held_bytes=len(message))

        return put

    def _pull(self, handle: int) -> None:
        link = self._link(handle)
        if link is None:
            return
        link.session.hear(link.worker)
        size = link.session.spec.layout.parameter_count * link.wish.dtype.itemsize
        try:
            link.session.budget.take(size)
        except Overloaded as error:
            self._refuse(handle, 0, error)
            return
        link.unanswered += 1
        self._outbox.expect(size)
        reading = self._run(self._pulled(handle, link))

        def put(done: asyncio.Task[Iterable[bytes]]) -> None:
            answer = () if done.cancelled() else done.result()
            self._outbox.put(answer, size, budget=link.session.budget, held_bytes=size)

        reading.add_done_callback(put)

    async def _pulled(self, handle: int, link: Link) -> Iterable[bytes]:
        try:
            vector = await self._engine.pull(link.session.session_id, link.wish.dtype)
        except Exception as error:
            link.unanswered -= 1
            return (_refused(handle, 0, error),)
        chunk_bytes, place = self._chunk_bytes(link), link.answer_place
        if place is not None:
            self._engine.activity.sent_bytes += len(vector.payload)
        messages = codec.vector_messages(
            vector, handle=handle, sequence=0, chunk_bytes=chunk_bytes, place=place, coded=link.coded
        )
        return _written(link, messages)

    def _run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """In a task that ends with the stream."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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

    def _expect(self, link: Link) -> tuple[int, bool]:
        """Counts an answer that is due; gives its part of the window, and whether it comes whatever others do."""
        link.unanswered += 1
        window, sure = self._window_of(link), link.session.steps_at_once
        self._outbox.expect(window, sure=sure)
        return window, sure

    def _window_of(self, link: Link) -> int:
        """Payload that one exchange of this session has under way: the gradient, and what is sent back."""
        return link.session.spec.layout.parameter_count * (link.gradient_dtype.itemsize + link.wish.dtype.itemsize)

    def _send(self, response: Response) -> None:
        self._outbox.put_now(response.SerializeToString())

    def _refuse(self, handle: int, sequence: int, error: Exception) -> None:
        self._outbox.put_now(_refused(handle, sequence, error))


def _written(link: Link, messages: Iterable[bytes]) -> Iterator[bytes]:
    """Messages of one answer; when they are written it is no longer due."""
    yield from messages
    link.unanswered -= 1


def _refusal(handle: int, sequence: int, error: Exception) -> gradient_pb2.StreamRefusal:
    return gradient_pb2.StreamRefusal(handle=handle, sequence=sequence, refusal=status.to_refusal(error))


def _refused(handle: int, sequence: int, error: Exception) -> bytes:
    return Response(refused=_refusal(handle, sequence, error)).SerializeToString()
