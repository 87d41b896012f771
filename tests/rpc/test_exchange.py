"""Exchange: large sessions in chunks, many sessions on one stream, several steps in flight, slow readers."""

import threading
from typing import Any

import grpc
import numpy as np
import pytest

from hermosis import wire
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2

Request = gradient_pb2.ExchangeRequest
ASYNC = types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_ASYNC)
CODES = {"float32": 1, "float16": 2, "bfloat16": 3}


def opening(session: Any, handle: int = 0, worker: str = "worker", **changed: Any) -> Request:
    fields = {"handle": handle, "session_id": session.session_id, "worker_id": worker}
    return Request(open=gradient_pb2.OpenSession(**fields | changed))


def encoded(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":
        return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return np.asarray(values).astype(dtype).tobytes()


def decoded(payload: bytes, dtype: int) -> np.ndarray:
    if dtype == 3:
        return (np.frombuffer(payload, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(payload, np.float16 if dtype == 2 else np.float32).astype(np.float32)


def whole_in_chunks(values: np.ndarray, sequence: int, base_step: int, handle: int = 0, **commit: Any) -> list[Request]:
    """A gradient in chunks, and its commit."""
    return [
        *chunks(values, sequence, handle),
        Request(commit=gradient_pb2.Commit(handle=handle, sequence=sequence, base_step=base_step, **commit)),
    ]


def chunks(
    values: np.ndarray, sequence: int, handle: int = 0, dtype: str = "float32", chunk_bytes: int = 1 << 20
) -> list[Request]:
    payload = encoded(values, dtype)
    size = len(payload) // len(values)
    made = []
    for offset, length in wire.spans(len(values), size, chunk_bytes):
        piece = payload[offset * size : (offset + length) * size]
        fields = {"handle": handle, "sequence": sequence, "offset": offset, "crc32": wire.checksum(piece)}
        made.append(Request(chunk=gradient_pb2.GradientChunk(**fields, payload=piece)))
    return made


def in_one(values: np.ndarray, sequence: int, base_step: int, handle: int = 0, **changed: Any) -> Request:
    """A gradient and its commit in one message."""
    payload = np.asarray(values, np.float32).tobytes()
    commit = gradient_pb2.Commit(handle=handle, sequence=sequence, base_step=base_step, loss=0.5)
    fields = {"commit": commit, "crc32": wire.checksum(payload), "payload": payload}
    return Request(whole=gradient_pb2.WholeGradient(**fields | changed))


def vector(stream: Any, size: int) -> np.ndarray:
    """The chunks that follow, put together and checked."""
    parts, have = [], 0
    while have < size:
        chunk = stream.next().chunk
        assert chunk.offset == have
        assert wire.checksum(chunk.payload) == chunk.crc32
        assert len(chunk.payload) <= wire.MAX_CHUNK_BYTES
        parts.append(decoded(chunk.payload, chunk.dtype))
        have += len(parts[-1])
    return np.concatenate(parts)


def test_a_large_session_goes_there_and_back_in_chunks_sent_in_any_order(server: Any, tools: Any) -> None:
    size = 3_000_001
    session = server.create(size, "sgd", start=1.0)
    gradient = np.random.default_rng(0).normal(size=size).astype(np.float32)
    with tools.Dialogue(server, [opening(session)]) as stream:
        opened = stream.next().opened
        assert (opened.parameter_count, opened.next_sequence, opened.step) == (size, 1, 0)
        assert opened.layout_digest == wire.layout_digest([("w", [size], 1)])
        *pieces, commit = whole_in_chunks(gradient, 1, 0, loss=0.5, want_digest=True)
        stream.send(*reversed(pieces), commit)
        result = stream.next().result
        assert (result.step, result.outcome, result.contributions) == (1, types_pb2.OUTCOME_APPLIED, 1)
        assert result.energies.loss == 0.5
        assert result.energies.gradient_norm == pytest.approx(np.linalg.norm(gradient.astype(np.float64)), rel=1e-12)
        np.testing.assert_array_equal(vector(stream, size), np.float32(1.0) - gradient)
    assert result.state_digest == server.digest(session)


def test_a_small_gradient_is_one_message_in_and_one_out(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd", start=1.0)
    values = np.array([1, -2, 3, 0.5], np.float32)
    with tools.Dialogue(server, [opening(session, handle=9)]) as stream:
        stream.next()
        stream.send(in_one(values, 1, 0, handle=9))
        whole = stream.next().whole
        assert (whole.result.handle, whole.result.sequence, whole.result.step) == (9, 1, 1)
        assert whole.result.energies.loss == 0.5
        assert (whole.chunk.handle, whole.chunk.sequence, whole.chunk.step, whole.chunk.offset) == (9, 1, 1, 0)
        assert whole.chunk.reply == gradient_pb2.REPLY_PARAMETERS
        assert wire.checksum(whole.chunk.payload) == whole.chunk.crc32
        np.testing.assert_array_equal(decoded(whole.chunk.payload, whole.chunk.dtype), 1 - values)
        stream.send(in_one(values, 1, 0, handle=9))
        again = stream.next().whole
        assert again.result.duplicate
        assert again.chunk == whole.chunk
        stream.send(*whole_in_chunks(values, 2, 1, handle=9))
        assert stream.next().result.step == 2, "what came in chunks is answered in chunks"
        vector(stream, 4)


def test_a_whole_gradient_without_a_vector_to_answer_gets_its_result(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd")
    with tools.Dialogue(server, [opening(session, reply=gradient_pb2.REPLY_NONE)]) as stream:
        stream.next()
        stream.send(in_one(np.ones(4), 1, 0))
        assert stream.next().result.step == 1


def test_an_answer_longer_than_a_chunk_comes_in_chunks_whatever_was_asked(server: Any, tools: Any) -> None:
    size = 400_000  # 0.8 MB as bfloat16, 1.6 MB as float32
    session = server.create(size, "sgd")
    payload = encoded(np.ones(size, np.float32), "bfloat16")
    request = in_one(np.ones(1), 1, 0, payload=payload, crc32=wire.checksum(payload))
    with tools.Dialogue(server, [opening(session, gradient_dtype=CODES["bfloat16"])]) as stream:
        stream.next()
        stream.send(request)
        assert stream.next().result.step == 1
        np.testing.assert_array_equal(vector(stream, size), -np.ones(size))


def test_a_refused_whole_gradient_is_refused_once_and_may_come_again(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd")
    ones = np.ones(4, np.float32)
    bad = {
        "CorruptChunk": in_one(ones, 1, 0, crc32=1),
        "LayoutMismatch": in_one(np.ones(3), 1, 0),
        "InvalidRequest": in_one(ones, 2, 0),
    }
    with tools.Dialogue(server, [opening(session)]) as stream:
        stream.next()
        for reason, request in bad.items():
            stream.send(request)
            assert stream.next().refused.refusal.reason == reason
        tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
        stream.send(in_one(ones, 1, 0))
        assert stream.next().whole.result.step == 1


@pytest.mark.parametrize("sent", list(CODES))
@pytest.mark.parametrize("back", list(CODES))
def test_each_dtype_in_and_out(server: Any, tools: Any, sent: str, back: str) -> None:
    session = server.create(1000, "sgd", start=0.0)
    exact = (np.arange(1000) % 128 / 64).astype(np.float32)  # seven bits: exact in every dtype
    with tools.Dialogue(server, [opening(session, gradient_dtype=CODES[sent], reply_dtype=CODES[back])]) as stream:
        stream.next()
        stream.send(*chunks(exact, 1, dtype=sent), Request(commit=gradient_pb2.Commit(sequence=1)))
        assert stream.next().result.step == 1
        np.testing.assert_array_equal(vector(stream, 1000), -exact)


def test_narrow_replies_leave_the_master_copy_whole(server: Any, tools: Any) -> None:
    session = server.create(1, "sgd", start=1.0)
    tiny = np.array([1e-4], np.float32)  # below bfloat16's resolution at 1
    with tools.Dialogue(server, [opening(session, reply_dtype=CODES["bfloat16"])]) as stream:
        stream.next()
        for step in range(100):
            stream.send(*whole_in_chunks(tiny, step + 1, step))
            stream.next()
            narrow = vector(stream, 1)
    pulled = server.gradients.Pull(gradient_pb2.PullRequest(session_id=session.session_id), timeout=10)
    expected = np.float32(1.0)
    for _ in range(100):
        expected -= tiny[0]
    assert decoded(pulled.payload, 1)[0] == expected
    assert narrow[0] == pytest.approx(expected, abs=1 / 256)


def test_two_workers_on_two_streams_step_together(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd", consistency=types_pb2.Consistency(workers=2))
    one, two = np.full(4, 1.0, np.float32), np.full(4, 3.0, np.float32)
    with (
        tools.Dialogue(server, [opening(session, worker="a")]) as first,
        tools.Dialogue(server, [opening(session, worker="b")]) as second,
    ):
        first.next(), second.next()
        for step in range(3):
            first.send(*whole_in_chunks(one, step + 1, step, loss=1.0))
            second.send(*whole_in_chunks(two, step + 1, step, loss=2.0))
            results = [first.next().result, second.next().result]
            assert [r.step for r in results] == [step + 1] * 2
            assert [r.contributions for r in results] == [2, 2]
            assert results[0].energies.loss == 1.5
            np.testing.assert_array_equal(vector(first, 4), vector(second, 4))
        workers = server.sessions.ListWorkers(
            session_pb2.ListWorkersRequest(session_id=session.session_id), timeout=10
        ).workers
        assert [(w.worker_id, w.connected, w.next_sequence) for w in workers] == [("a", True, 4), ("b", True, 4)]


def test_several_steps_in_flight_keep_their_order_in_async_mode(server: Any, tools: Any) -> None:
    session = server.create(100, "sgd", consistency=ASYNC)
    ones = np.ones(100, np.float32)
    with tools.Dialogue(server, [opening(session)]) as stream:
        stream.next()
        stream.send(*(request for n in range(1, 9) for request in whole_in_chunks(ones, n, 0)))
        for number in range(1, 9):
            result = stream.next().result
            assert (result.sequence, result.step, result.staleness) == (number, number, number - 1)
            np.testing.assert_array_equal(vector(stream, 100), -number * ones)


def test_after_a_broken_stream_the_same_number_is_a_duplicate_with_the_weights(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd")
    ones = np.ones(4, np.float32)
    with tools.Dialogue(server, [opening(session)]) as stream:
        stream.next()
        stream.send(*whole_in_chunks(ones, 1, 0))
        stream.next()
    with tools.Dialogue(server, [opening(session)]) as stream:
        assert stream.next().opened.next_sequence == 2
        stream.send(*whole_in_chunks(ones, 1, 0))
        assert stream.next().result.duplicate
        np.testing.assert_array_equal(vector(stream, 4), -ones)
        stream.send(*whole_in_chunks(2 * ones, 1, 0))
        assert stream.next().refused.refusal.reason == "PayloadMismatch"


def test_a_worker_may_ask_for_no_vector_and_pull_later(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd")
    ones = np.ones(4, np.float32)
    with tools.Dialogue(server, [opening(session, reply=gradient_pb2.REPLY_NONE)]) as stream:
        stream.next()
        stream.send(*whole_in_chunks(ones, 1, 0))
        assert stream.next().result.step == 1
        stream.send(Request(pull=gradient_pb2.PullParameters()))
        np.testing.assert_array_equal(vector(stream, 4), -ones)


def test_a_handle_can_be_closed_and_used_again(server: Any, tools: Any) -> None:
    first, second = server.create(4), server.create(6)
    close = Request(close=gradient_pb2.CloseHandle(handle=3))
    with tools.Dialogue(server, [opening(first, 3), close, opening(second, 3)]) as stream:
        assert stream.next().opened.parameter_count == 4
        assert stream.next().opened.parameter_count == 6


def test_the_end_of_the_requests_waits_for_the_answers(server: Any) -> None:
    session = server.create(4, "sgd")
    requests = [opening(session), *whole_in_chunks(np.ones(4, np.float32), 1, 0)]
    kinds = [r.WhichOneof("message") for r in server.gradients.Exchange(iter(requests), timeout=10)]
    assert kinds == ["opened", "result", "chunk"]


def test_a_worker_that_sends_and_never_reads_does_not_grow_the_server(host: Any, tools: Any) -> None:
    size = 1 << 18  # 1 MiB
    service = host(window_bytes=4 << 20, staging_bytes=64 << 20).server
    session = service.create(size, "sgd", consistency=ASYNC)
    ones = np.ones(size, np.float32)
    sent = 0
    enough = threading.Event()

    def requests() -> Any:
        nonlocal sent
        yield opening(session)
        for number in range(1, 400):
            yield from whole_in_chunks(ones, number, 0)
            sent = number
        enough.set()

    call = service.gradients.Exchange(requests(), timeout=60)
    # Two readings alike in a row: the server has stopped reading, and HTTP/2 has stopped the worker.
    before = -1
    while sent != before or sent == 0:
        before = sent
        enough.wait(0.5)
    assert sent < 200, "nothing held the worker back"
    assert service.inside(lambda engine: engine.budget.used_bytes) <= 8 << 20
    steps = sum(1 for response in call if response.WhichOneof("message") == "result")
    assert steps == 399, "and when it reads again, nothing was lost"
    assert service.inside(lambda engine: engine.session(session.session_id).step) == 399


def test_a_stopping_server_ends_idle_streams_with_a_reason_and_a_time(host: Any, tools: Any) -> None:
    hosted = host()
    session = hosted.server.create(4)
    with tools.Dialogue(hosted.server, [opening(session)]) as stream:
        stream.next()
        stopping = threading.Thread(target=hosted.stop)
        stopping.start()
        with pytest.raises(grpc.RpcError) as caught:
            stream.next()
        stopping.join()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert tools.reason_of(caught.value) == "ServerStopping"


def test_an_import_fences_off_the_streams_that_knew_the_old_state(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd")
    ones = np.ones(4, np.float32)
    with tools.Dialogue(server, [opening(session)]) as stream:
        stream.next()
        stream.send(*whole_in_chunks(ones, 1, 0))
        stream.next(), stream.next()
        request = session_pb2.ExportSessionRequest(session_id=session.session_id)
        state, *rest = server.sessions.ExportSession(request, timeout=10)
        parts = [session_pb2.ImportSessionRequest(session_id=session.session_id, state=state.state)]
        parts += [session_pb2.ImportSessionRequest(chunk=part.chunk) for part in rest]
        server.sessions.ImportSession(iter(parts), timeout=10)
        stream.send(*chunks(ones, 2))  # refused at the first chunk: no memory is taken for what cannot count
        refused = stream.next().refused.refusal
        assert (refused.reason, refused.metadata["generation"]) == ("StaleGeneration", "2")
        stream.send(Request(commit=gradient_pb2.Commit(sequence=2, base_step=1)))
        stream.send(
            Request(close=gradient_pb2.CloseHandle()), opening(session, generation=2), *whole_in_chunks(ones, 2, 1)
        )
        assert stream.next().opened.next_sequence == 2
        assert stream.next().result.step == 2


def test_whoever_only_looked_is_no_worker_of_the_session(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd")

    def workers() -> list[str]:
        request = session_pb2.ListWorkersRequest(session_id=session.session_id)
        return [worker.worker_id for worker in server.sessions.ListWorkers(request, timeout=10).workers]

    with tools.Dialogue(server, [opening(session, worker="looks"), Request(pull=gradient_pb2.PullParameters())]) as s:
        s.next(), s.next()
        assert workers() == ["looks"]
    tools.poll(lambda: workers() == [])
    with pytest.raises(grpc.RpcError):
        server.push(session, np.ones(3), 1, worker_id="refused")
    server.push(session, np.ones(4), 1, worker_id="works")
    assert workers() == ["works"]
