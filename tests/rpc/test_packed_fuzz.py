"""Whatever bytes come as a packed message: an answer or a status, nothing counted by mistake, nothing kept."""

import contextlib
import random
from typing import Any

import grpc
import numpy as np

from hermosis import packed, wire
from hermosis.v1 import gradient_pb2, types_pb2

METHOD = "/hermosis.v1.GradientService/Exchange"
SIZES = (1, 8, 3)
Request, Response = gradient_pb2.ExchangeRequest, gradient_pb2.ExchangeResponse


def openings(sessions: list[Any]) -> bytes:
    openings = [
        gradient_pb2.OpenSession(handle=handle, session_id=session.session_id, worker_id="w")
        for handle, session in enumerate(sessions)
    ]
    return Request(open_many=gradient_pb2.OpenSessions(open=openings)).SerializeToString()


def message(chance: random.Random) -> dict[str, Any]:
    """Columns of a message that is nearly right."""
    payload = np.float32([chance.choice([0.0, 1.0, np.nan, -np.inf]) for _ in range(sum(SIZES))]).tobytes()

    def column(kind: str, *values: float) -> bytes:
        length = chance.choice([3, 3, 3, 3, 3, 3, 0, 2, 4])
        return np.array([chance.choice(values) for _ in range(length)], kind).tobytes()

    return {
        "number": chance.getrandbits(64),
        "handles": np.array(
            chance.choice([[0, 1, 2]] * 8 + [[0, 1], [2, 1, 0], [0, 0, 1], [0, 1, 9], []]), "<u4"
        ).tobytes(),
        "sequences": column("<u8", 1, 1, 1, 0, 2, 2**64 - 1),
        "base_steps": column("<u8", 0, 0, 0, 1, 2**63),
        "losses": column("<f8", 0.5, np.nan, np.inf),
        "sample_counts": column("<u8", 0, 1, 2**64 - 1),
        "lr_scales": column("<f8", 1.0, 1.0, 1.0, 0.0, -1.0, np.nan, 1e308),
        "want_energies": chance.random() < 0.5,
        "without_reply": chance.random() < 0.3,
        "crc32": wire.checksum(payload) ^ (chance.random() < 0.1),
        "payload": payload if chance.random() < 0.9 else payload[: chance.randrange(len(payload))],
    }


def damaged(raw: bytes, chance: random.Random) -> bytes:
    broken = bytearray(raw)
    for _ in range(chance.randrange(3)):
        place = chance.randrange(len(broken))
        broken[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(broken) or raw


def applied(answer: gradient_pb2.PackedResults) -> int:
    """Contributions that an answer tells of as new and applied."""
    told = [outcome == types_pb2.OUTCOME_APPLIED for outcome in answer.outcomes]
    return sum(told) - sum(told[index] for index in answer.duplicates)


def test_the_server_outlives_any_packed_message(server: Any, tools: Any) -> None:
    chance = random.Random(4)
    sessions = [server.create(size, "sgd") for size in SIZES]
    exchange = server.channel.stream_stream(METHOD)
    told = answers = 0
    codes = set()
    for _ in range(60):
        messages = [packed.write_gradients(packed.PackedGradients(**message(chance))) for _ in range(8)]
        if chance.random() < 0.5:
            messages = [damaged(raw, chance) for raw in messages]
        call = exchange(iter([openings(sessions), *messages]), timeout=10)
        with contextlib.suppress(grpc.RpcError):
            for raw in call:
                response = Response.FromString(raw)
                answers += 1
                told += applied(response.packed)
        codes.add(call.code())
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    assert answers > 100
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
    inside = server.inside(lambda engine: [engine.session(session.session_id) for session in sessions])
    steps = sum(session.step for session in inside)
    assert 0 < told <= steps <= sum(session.workers["w"].sequence for session in inside)
    assert [(session.stepping, session.workers["w"].streams) for session in inside] == [(0, 0)] * 3
    for session in sessions:
        pulled = server.gradients.Pull(gradient_pb2.PullRequest(session_id=session.session_id), timeout=10)
        assert np.isfinite(np.frombuffer(pulled.payload, np.float32)).all()
