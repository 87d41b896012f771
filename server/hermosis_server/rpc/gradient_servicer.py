"""GradientService: one method a call. Translate in, call the engine, translate out."""

from contextlib import closing
from typing import Any

from hermosis import hot
from hermosis.v1 import gradient_pb2, gradient_pb2_grpc
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.rounds import Answer, awaited
from hermosis_server.engine.session import Session
from hermosis_server.records import Reply
from hermosis_server.rpc.codec import enums
from hermosis_server.rpc.codec import gradient as gradient_codec
from hermosis_server.rpc.exchange import ExchangeStream
from hermosis_server.rpc.links import Link, link_for_call
from hermosis_server.rpc.reach import Reach
from hermosis_server.rpc.segments import Segments
from hermosis_server.rpc.streams import Streams
from hermosis_server.rpc.turns import Turns

# Room in a message for everything that is not payload.
MESSAGE_OVERHEAD_BYTES = 1024


class GradientServicer(gradient_pb2_grpc.GradientServiceServicer):
    """GradientService over an engine.

    Attributes:
      streams: those that are open.
    """

    def __init__(self, engine: Engine) -> None:
        self.streams = Streams(limit=engine.limits.max_streams, idle_s=engine.limits.idle_s)
        self._engine = engine
        self._turns = Turns()
        self._segments = Segments(engine.limits.segment_bytes)

    # Reads and writes bytes by itself, which the generated base class does not know.
    async def Exchange(self, requests: object, context: Any) -> None:  # type: ignore[override]
        reach, window_bytes = Reach(self._engine, context.identity), self._engine.limits.window_bytes
        stream = ExchangeStream(self._engine, reach, self._segments, self._turns, context, window_bytes=window_bytes)
        self.streams.enter(stream)
        self._engine.activity.streams += 1
        try:
            await stream.run()
        finally:
            self._engine.activity.streams -= 1
            self.streams.leave(stream)

    async def Push(self, request: gradient_pb2.PushRequest, context: Any) -> gradient_pb2.PushResponse:
        name = Reach(self._engine, context.identity).name(request.session_id)
        with closing(link_for_call(self._engine, name, request, reply=Reply.NONE)) as link:
            answer = await self._contribute(link, request.gradient)
        return gradient_pb2.PushResponse(result=gradient_codec.step_result(answer.result))

    async def Pull(self, request: gradient_pb2.PullRequest, context: Any) -> gradient_pb2.PullResponse:
        session = Reach(self._engine, context.identity).session(request.session_id)
        dtype = enums.dtype(request.dtype, field="dtype")
        size = session.spec.layout.parameter_count * dtype.itemsize
        gradient_codec.require_fits(size, self._limit_bytes)
        session.budget.take(size)
        _give_when_sent(context, session, size)
        vector = await self._engine.pull(session.session_id, dtype)
        fields = gradient_codec.whole_vector(vector, limit_bytes=self._limit_bytes)
        del fields["reply"]
        known = session.workers.get(request.worker_id)
        next_sequence = (known.sequence if known else 0) + 1 if request.worker_id else 0
        return gradient_pb2.PullResponse(
            step=vector.step,
            durable_step=session.durable_step,
            generation=session.generation,
            next_sequence=next_sequence,
            **fields,
        )

    async def Step(self, request: gradient_pb2.StepRequest, context: Any) -> gradient_pb2.StepResponse:
        name = Reach(self._engine, context.identity).name(request.push.session_id)
        wish = {"reply": request.reply, "reply_dtype": request.reply_dtype}
        with closing(link_for_call(self._engine, name, request.push, **wish)) as link:
            if link.wish.reply is not Reply.NONE:
                size = link.session.spec.layout.parameter_count * link.wish.dtype.itemsize
                gradient_codec.require_fits(size, self._limit_bytes)
            answer = await self._contribute(link, request.push.gradient)
        size = len(answer.vector.payload) if answer.vector else 0
        link.session.budget.hold(size)
        _give_when_sent(context, link.session, size)
        fields = gradient_codec.whole_vector(answer.vector, limit_bytes=self._limit_bytes)
        return gradient_pb2.StepResponse(result=gradient_codec.step_result(answer.result), **fields)

    async def _contribute(self, link: Link, gradient: gradient_pb2.WholeGradient) -> Answer:
        future, tell = awaited()
        message = hot.whole_gradient_of(gradient)
        chunk = gradient_codec.whole_gradient(message, link.gradient_dtype)
        link.contribute(self._engine, gradient_codec.commit(message.commit), chunk, tell)
        return await future

    @property
    def _limit_bytes(self) -> int:
        return self._engine.limits.max_message_bytes - MESSAGE_OVERHEAD_BYTES


def _give_when_sent(context: Any, session: Session, size_bytes: int) -> None:
    """A call's answer takes memory until the caller has read it, or has gone."""
    context.add_done_callback(lambda _: session.budget.give(size_bytes))
