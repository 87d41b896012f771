"""A broken stream costs what had not come yet: the server keeps the beginning of a large gradient for its worker."""

from typing import Any

import numpy as np
import pytest

from hermosis import wire
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis_server.engine import session as session_module

SIZE = 3_000_000  # 12 MB, 12 chunks
Request = gradient_pb2.ExchangeRequest


def opening(session: Any, **changed: Any) -> Request:
    fields = {"handle": 0, "session_id": session.session_id, "worker_id": "worker"}
    return Request(open=gradient_pb2.OpenSession(**fields | changed))


def chunks(values: np.ndarray, sequence: int) -> list[Request]:
    made = []
    for offset, length in wire.spans(len(values), 4):
        piece = values[offset : offset + length].tobytes()
        fields = {"sequence": sequence, "offset": offset, "crc32": wire.checksum(piece), "payload": piece}
        made.append(Request(chunk=gradient_pb2.GradientChunk(**fields)))
    return made


def commit(sequence: int) -> Request:
    return Request(commit=gradient_pb2.Commit(sequence=sequence, base_step=sequence - 1))


def break_off(server: Any, tools: Any, session: Any, pieces: list[Request]) -> None:
    """A stream that ends when so much of a gradient has come."""
    before = server.inside(lambda engine: engine.budget.used_bytes)
    with tools.Dialogue(server, [opening(session)]) as dialogue:
        dialogue.next()
        dialogue.send(*pieces)

        def landed(engine: Any) -> bool:
            worker = engine.session(session.session_id).workers["worker"]
            return bool(engine.budget.used_bytes > before and worker.streams)

        tools.poll(lambda: server.inside(landed))
        # What came is in order: the answer to this tells that all before it has been read.
        dialogue.send(Request(pull=gradient_pb2.PullParameters(handle=0)))
        dialogue.next()
    tools.poll(lambda: server.inside(lambda engine: not engine.session(session.session_id).workers["worker"].streams))


def reopened(server: Any, tools: Any, session: Any, rest: Any, sequence: int = 1) -> tuple[Any, Any]:
    with tools.Dialogue(server, [opening(session, reply=gradient_pb2.REPLY_NONE)]) as dialogue:
        opened = dialogue.next().opened
        dialogue.send(*rest(opened), commit(sequence))
        return opened, dialogue.next()


def test_a_worker_goes_on_where_its_stream_broke(server: Any, tools: Any) -> None:
    values = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    session, calm = server.create(SIZE), server.create(SIZE)
    pieces = chunks(values, 1)
    break_off(server, tools, session, pieces[:7])
    opened, answer = reopened(
        server, tools, session, lambda opened: [p for p in pieces if p.chunk.offset >= opened.resume_offset]
    )
    assert (opened.resume_sequence, opened.resume_offset) == (1, pieces[7].chunk.offset)
    assert answer.result.step == 1
    reopened(server, tools, calm, lambda opened: pieces)
    assert server.digest(session) == server.digest(calm)
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)


def test_a_worker_that_begins_anew_gets_what_it_sends_now(server: Any, tools: Any) -> None:
    rng = np.random.default_rng(0)
    given_up, values = (rng.standard_normal(SIZE).astype(np.float32) for _ in range(2))
    session, calm = server.create(SIZE), server.create(SIZE)
    break_off(server, tools, session, chunks(given_up, 1)[:7])
    for one in (session, calm):
        reopened(server, tools, one, lambda opened: chunks(values, 1))
    assert server.digest(session) == server.digest(calm)
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)


@pytest.mark.parametrize("change", ["dtype", "generation"])
def test_what_came_for_another_time_or_dtype_is_not_gone_on_with(server: Any, tools: Any, change: str) -> None:
    values = np.ones(SIZE, np.float32)
    session = server.create(SIZE)
    break_off(server, tools, session, chunks(values, 1)[:7])
    if change == "generation":
        server.inside(lambda engine: setattr(engine.session(session.session_id), "generation", 2))
    dtype = types_pb2.DTYPE_FLOAT16 if change == "dtype" else types_pb2.DTYPE_FLOAT32
    with tools.Dialogue(server, [opening(session, gradient_dtype=dtype)]) as dialogue:
        assert dialogue.next().opened.resume_sequence == 0


def test_nobody_who_comes_too_late_holds_memory(host: Any, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RESUME_S", 0.05)
    server = host().server
    session = server.create(SIZE)
    with tools.Dialogue(server, [opening(session)]) as dialogue:
        dialogue.next()
        dialogue.send(*chunks(np.ones(SIZE, np.float32), 1)[:7])
        tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) > 0)
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
    assert server.inside(lambda engine: engine.session(session.session_id).workers) == {}
