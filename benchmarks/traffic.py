"""Traffic: workers over bare gRPC on one event loop, as many as it takes, polite and otherwise.

They know nothing of waiting, retrying or keeping parameters: what they do to the server is what they were told to.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from hermosis import wire
from hermosis.v1 import dynamics_pb2, gradient_pb2, gradient_pb2_grpc, session_pb2, session_pb2_grpc, types_pb2

Request = gradient_pb2.ExchangeRequest
WHOLE_BYTES = 1 << 20  # a gradient of at most this goes in one message
BARRIER, ASYNC = types_pb2.CONSISTENCY_MODE_BARRIER, types_pb2.CONSISTENCY_MODE_ASYNC


@dataclass(frozen=True, slots=True)
class Gradient:
    """The same for every step: its payload, and its chunks as (offset, checksum, bytes)."""

    payload: bytes
    chunks: list[tuple[int, int, bytes]]

    @classmethod
    def of(cls, parameters: int) -> "Gradient":
        payload = np.full(parameters, 1e-3, np.float32).tobytes()
        pieces = [(o, payload[4 * o : 4 * (o + n)]) for o, n in wire.spans(parameters, 4)]
        return cls(payload, [(offset, wire.checksum(piece), piece) for offset, piece in pieces])

    def messages(self, sequence: int, base_step: int) -> list[Request]:
        """What one contribution sends."""
        commit = gradient_pb2.Commit(sequence=sequence, base_step=base_step)
        if len(self.payload) <= WHOLE_BYTES:
            _, crc32, piece = self.chunks[0]
            return [Request(whole=gradient_pb2.WholeGradient(commit=commit, crc32=crc32, payload=piece))]
        chunks = [
            gradient_pb2.GradientChunk(sequence=sequence, offset=offset, crc32=crc32, payload=piece)
            for offset, crc32, piece in self.chunks
        ]
        return [*(Request(chunk=chunk) for chunk in chunks), Request(commit=commit)]


async def create(channel: grpc.aio.Channel, gradient: Gradient, *, workers: int = 1, mode: int = BARRIER) -> str:
    """A READY session of as many parameters; its id."""
    stub = session_pb2_grpc.SessionServiceStub(channel)
    spec = session_pb2.SessionSpec(
        layout=types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[len(gradient.payload) // 4])]),
        optimizer=dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name="adamw")),
        consistency=types_pb2.Consistency(mode=mode, workers=workers),  # type: ignore[arg-type]
    )
    made: Any = await stub.CreateSession(session_pb2.CreateSessionRequest(spec=spec))
    session_id: str = made.session.session_id

    async def upload() -> AsyncIterator[session_pb2.InitialiseParametersRequest]:
        for offset, crc32, piece in gradient.chunks:
            yield session_pb2.InitialiseParametersRequest(
                session_id=session_id, offset=offset, crc32=crc32, payload=piece
            )

    await stub.InitialiseParameters(upload())
    return session_id


async def close(channel: grpc.aio.Channel, session_id: str) -> None:
    """Closes a session."""
    stub = session_pb2_grpc.SessionServiceStub(channel)
    await stub.CloseSession(session_pb2.CloseSessionRequest(session_id=session_id))


async def open_stream(channel: grpc.aio.Channel, session_id: str, worker_id: str = "w", *, reply: int = 0) -> Any:
    """A stream with the session open under handle 0."""
    call: Any = gradient_pb2_grpc.GradientServiceStub(channel).Exchange()
    opening = gradient_pb2.OpenSession(session_id=session_id, worker_id=worker_id, reply=reply)  # type: ignore[arg-type]
    await call.write(Request(open=opening))
    opened = await call.read()
    if not (opened and opened.HasField("opened")):
        raise RuntimeError(f"the session was not opened: {opened}")
    return call


async def answer(call: Any, gradient: Gradient) -> int:
    """Reads one whole answer with its parameters; the step, or -1 where the contribution was refused."""
    message = await call.read()
    kind = message.WhichOneof("message")
    if kind == "whole":
        return int(message.whole.result.step)
    if kind == "refused":
        return -1
    have = 0
    while have < len(gradient.payload):
        have += len((await call.read()).chunk.payload)
    return int(message.result.step)


async def exchange_for_ever(
    call: Any, gradient: Gradient, *, ahead: int = 1, told: Callable[[float], Awaitable[None] | None] = lambda _: None
) -> None:
    """Sends gradients, up to `ahead` before the answer to the first has come; `told` hears how long each took, in s."""
    sent: dict[int, float] = {}
    number = answered = step = 0
    while True:
        while len(sent) < ahead:
            number += 1
            sent[number] = time.perf_counter()
            for message in gradient.messages(number, step):
                await call.write(message)
        step = max(step, await answer(call, gradient))
        answered += 1
        told(time.perf_counter() - sent.pop(answered))
