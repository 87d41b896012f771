"""The same-host path of Exchange, as any client may speak it: payload in shared memory, all else as on the stream."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermosis import wire
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_client.segment import Segment
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.intake import Intake
from hermosis_server.records import ReplyWish
from hermosis_server.rpc.codec import gradient as codec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="segments are known on Linux only")

Request = gradient_pb2.ExchangeRequest
SIZE = 1_000_003  # elements: two chunks of the largest size, the second one not full
ASYNC = types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_ASYNC)


class Shared:
    """One handle with a segment, as a worker uses it."""

    def __init__(self, size: int = SIZE, handle: int = 0) -> None:
        self.size = size
        self.handle = handle
        self.segment = Segment(size, Dtype.FLOAT32, Dtype.FLOAT32)
        self.gradient = np.frombuffer(self.segment.gradient, np.float32)
        self.answer = np.frombuffer(self.segment.answer, np.float32)

    def opening(self, session: Any, **changed: Any) -> Request:
        fields = {"handle": self.handle, "session_id": session.session_id, "worker_id": "worker"}
        return Request(open=gradient_pb2.OpenSession(**fields | {"segment": self.segment.offer} | changed))

    def chunk(self, offset: int, length: int, sequence: int, /, **changed: Any) -> Request:
        crc32 = wire.checksum(self.gradient[offset : offset + length].data)
        fields = {"handle": self.handle, "sequence": sequence, "offset": offset, "length": length, "crc32": crc32}
        return Request(segment=gradient_pb2.SegmentChunk(**fields | changed))

    def chunks(self, sequence: int) -> list[Request]:
        return [self.chunk(*span, sequence) for span in wire.spans(self.size, 4, wire.MAX_CHUNK_BYTES)]

    def commit(self, sequence: int, base_step: int | None = None, **changed: Any) -> Request:
        fields = {"handle": self.handle, "sequence": sequence}
        fields["base_step"] = sequence - 1 if base_step is None else base_step
        return Request(commit=gradient_pb2.Commit(**fields | changed))

    def landed(self, stream: Any, sequence: int) -> np.ndarray:
        """The answer that follows, checked and copied out."""
        have = 0
        while have < self.size:
            chunk = stream.next().segment
            assert (chunk.handle, chunk.sequence, chunk.offset) == (self.handle, sequence, have)
            piece = self.answer[have : have + chunk.length]
            assert wire.checksum(piece.data) == chunk.crc32
            have += chunk.length
        assert have == self.size
        return self.answer.copy()


def some(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SIZE, np.float32)


def maps() -> set[str]:
    """Where segments are mapped in this process, which is the server's and the worker's."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[0] for line in lines if "memfd:hermosis-segment" in line}


def refusal(stream: Any) -> tuple[int, str]:
    refused = stream.next().refused
    return refused.sequence, refused.refusal.reason


def test_a_gradient_goes_there_and_its_answer_back_in_shared_memory(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE, start=1.0), Shared()
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        assert stream.next().opened.segment_attached
        for step in range(3):
            worker.gradient[:] = some(step)
            stream.send(*reversed(worker.chunks(step + 1)), worker.commit(step + 1, loss=0.5))
            result = stream.next().result
            assert (result.step, result.outcome) == (step + 1, types_pb2.OUTCOME_APPLIED)
            landed = worker.landed(stream, step + 1)
    expected = np.float32(1) - some(0) - some(1) - some(2)
    np.testing.assert_array_equal(landed, expected)


def test_a_pull_lands_in_shared_memory(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE, start=3.0), Shared()
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        stream.send(Request(pull=gradient_pb2.PullParameters(handle=0)))
        assert set(worker.landed(stream, 0)) == {3.0}


def test_chunks_of_the_stream_and_of_the_segment_make_one_gradient(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE), Shared()
    worker.gradient[:] = some(0)
    (first,) = streamed(worker.gradient[:1000], 1)
    rest = [
        worker.chunk(1000 + offset, length, 1) for offset, length in wire.spans(SIZE - 1000, 4, wire.MAX_CHUNK_BYTES)
    ]
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        stream.send(*rest, Request(chunk=first), worker.commit(1))
        assert stream.next().result.step == 1
        np.testing.assert_array_equal(worker.landed(stream, 1), -some(0))


def test_the_server_counts_the_same_bytes_as_on_the_stream(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE), Shared()
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        stream.send(*worker.chunks(1), worker.commit(1))
        worker.landed(stream, stream.next().result.sequence)
    record = server.inside(lambda engine: engine.session(session.session_id).workers["worker"])
    assert record.received_bytes == 4 * SIZE


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"crc32": 1}, "CorruptChunk"),
        ({"offset": 10}, "CorruptChunk"),
        ({"offset": SIZE - 10}, "LayoutMismatch"),
        ({"offset": (1 << 64) - 1}, "LayoutMismatch"),
        ({"length": (1 << 64) - 1}, "LayoutMismatch"),
        ({"length": SIZE}, "InvalidRequest"),  # more than one chunk may hold
        ({"length": 0}, "InvalidRequest"),
    ],
    ids=str,
)
def test_a_wrong_piece_is_refused_and_the_worker_goes_on(
    server: Any, tools: Any, wrong: dict[str, int], reason: str
) -> None:
    session, worker = server.create(SIZE), Shared()
    worker.gradient[:] = some(0)
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        stream.send(worker.chunk(0, 1000, 1, **wrong), *worker.chunks(1), worker.commit(1))
        assert refusal(stream) == (1, reason)
        stream.send(*worker.chunks(1), worker.commit(1))
        assert stream.next().result.step == 1
        np.testing.assert_array_equal(worker.landed(stream, 1), -some(0))
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)


def test_an_incomplete_gradient_is_refused(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE), Shared()
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        stream.send(worker.chunks(1)[0], worker.commit(1))
        assert refusal(stream) == (1, "LayoutMismatch")


def test_a_piece_without_a_segment_is_refused(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE), Shared()
    with tools.Dialogue(server, [worker.opening(session, segment=None)]) as stream:
        assert not stream.next().opened.segment_attached
        stream.send(*worker.chunks(1), worker.commit(1))
        assert refusal(stream) == (1, "InvalidRequest")


def test_repeats_are_known_and_other_bytes_refused(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE), Shared()
    worker.gradient[:] = some(0)
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        for duplicate in (False, True):
            stream.send(*worker.chunks(1), worker.commit(1))
            result = stream.next().result
            assert (result.step, result.duplicate) == (1, duplicate)
            np.testing.assert_array_equal(worker.landed(stream, 1), -some(0))
        worker.gradient[SIZE // 2] += 1
        stream.send(*worker.chunks(1), worker.commit(1))
        assert refusal(stream) == (1, "PayloadMismatch")


def test_a_worker_that_scribbles_while_its_gradient_is_taken_harms_nobody(server: Any, tools: Any) -> None:
    """Each piece is refused, or taken with the bytes that its checksum speaks of."""
    session, other, worker = server.create(SIZE), server.create(4), Shared()
    stop = threading.Event()

    def scribble() -> None:
        bits = np.random.default_rng(1)
        while not stop.is_set():
            place = int(bits.integers(SIZE - 5000))
            worker.gradient[place : place + 5000] = bits.standard_normal(1, np.float32)

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    taken = 0
    try:
        with tools.Dialogue(server, [worker.opening(session)]) as stream:
            stream.next()
            for _ in range(20):
                stream.send(*worker.chunks(taken + 1), worker.commit(taken + 1, taken))
                response = stream.next()
                if response.HasField("refused"):
                    assert response.refused.refusal.reason == "CorruptChunk"
                    continue
                taken += 1
                assert response.result.step == taken
                assert np.isfinite(worker.landed(stream, taken)).all()
    finally:
        stop.set()
        scribbler.join()
    assert server.push(other, [1, 2, 3, 4], 1).step == 1
    assert server.inside(lambda engine: engine.session(session.session_id).step) == taken


def test_a_step_writes_the_answer_of_an_only_worker_where_it_lies(
    server: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place = []
    written = codec.vector_messages

    def told(vector: Any, **way: Any) -> Any:
        in_place.append(vector.payload is way["place"])
        return written(vector, **way)

    monkeypatch.setattr(codec, "vector_messages", told)
    session, worker = server.create(SIZE), Shared()
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        for sequence in (1, 1, 2):  # the second is a repeat, whose answer is read from the session
            worker.gradient[:] = some(sequence)
            stream.send(*worker.chunks(sequence), worker.commit(sequence))
            stream.next()
            worker.landed(stream, sequence)
    assert in_place == [True, False, True]


def test_answers_that_wait_for_one_another_are_told_with_their_own_checksums(
    server: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has several under way in one segment may find the place overwritten, and then sees it."""
    session, worker = server.create(SIZE, consistency=ASYNC), Shared()
    in_place = []
    contribute = Intake.contribute

    def counted(self: Intake, *given: Any, **further: Any) -> None:
        in_place.append(next(each for each in given if isinstance(each, ReplyWish)).place is not None)
        contribute(self, *given, **further)

    monkeypatch.setattr(Intake, "contribute", counted)
    ready, pull_now = threading.Event(), Engine.pull

    async def slow(self: Engine, *given: Any) -> Any:
        while not ready.is_set():
            await asyncio.sleep(0.001)
        return await pull_now(self, *given)

    monkeypatch.setattr(Engine, "pull", slow)
    worker.gradient[:] = some(0)
    again = [Request(chunk=chunk) for chunk in streamed(worker.gradient, 2)]
    pull = Request(pull=gradient_pb2.PullParameters(handle=0))
    expected = {1: -some(0), 2: -some(0) - some(0), 0: -some(0) - some(0)}
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        stream.send(pull, *worker.chunks(1), worker.commit(1), *again, worker.commit(2, 0))
        for sequence in (1, 2, 0):
            if sequence:
                assert stream.next().result.sequence == sequence
            have = 0
            while have < SIZE:
                told = stream.next().segment
                piece = expected[sequence][have : have + told.length]
                assert (told.sequence, told.crc32) == (sequence, wire.checksum(piece.data))
                have += told.length
            if sequence == 2:
                ready.set()
        np.testing.assert_array_equal(worker.answer, expected[2])  # what was put there last
    assert in_place == [False, False]


def streamed(values: np.ndarray, sequence: int) -> list[gradient_pb2.GradientChunk]:
    pieces = [(offset, values[offset : offset + length].tobytes()) for offset, length in wire.spans(len(values), 4)]
    return [
        gradient_pb2.GradientChunk(sequence=sequence, offset=offset, crc32=wire.checksum(piece), payload=piece)
        for offset, piece in pieces
    ]


def test_an_increment_that_is_repeated_is_that_which_was_told(server: Any, tools: Any) -> None:
    session, worker = server.create(SIZE, parameters_on=types_pb2.PARAMETERS_ON_WORKER), Shared()
    worker.gradient[:] = some(0)
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        stream.next()
        for duplicate in (False, True):
            stream.send(*worker.chunks(1), worker.commit(1))
            assert stream.next().result.duplicate == duplicate
            np.testing.assert_array_equal(worker.landed(stream, 1), -some(0))
            worker.answer[:] = 7  # which is its own to change


def test_a_worker_cannot_change_what_another_one_is_answered(server: Any, tools: Any) -> None:
    barrier = types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_BARRIER, workers=2)
    session, workers = server.create(SIZE, consistency=barrier), [Shared(handle=handle) for handle in range(2)]
    openings = [worker.opening(session, worker_id=f"w{worker.handle}") for worker in workers]
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            workers[0].answer[:] = 7

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        with tools.Dialogue(server, openings) as stream:
            assert all(stream.next().opened.segment_attached for _ in workers)
            for worker in workers:
                worker.gradient[:] = 1
                stream.send(*worker.chunks(1), worker.commit(1))
            told = [stream.next() for _ in range(2 * 3)]  # a result and two pieces for each
            assert [message.WhichOneof("message") for message in told] == ["result", "segment", "segment"] * 2
            assert [message.segment.crc32 for message in told[1:3]] == [message.segment.crc32 for message in told[4:]]
            assert set(workers[1].answer) == {-1.0}
    finally:
        stop.set()
        scribbler.join()


def test_the_segment_of_another_session_is_not_attached_and_the_stream_serves(server: Any, tools: Any) -> None:
    session, worker = server.create(1000), Shared(1004 * 4)
    tools.poll(lambda: len(maps()) == 1)  # the worker's own
    before = len(maps())
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        assert not stream.next().opened.segment_attached
        payload = np.ones(1000, np.float32).tobytes()
        chunk = gradient_pb2.GradientChunk(sequence=1, crc32=wire.checksum(payload), payload=payload)
        stream.send(Request(chunk=chunk), worker.commit(1))
        assert stream.next().result.step == 1
        assert len(stream.next().chunk.payload) == 4000
        assert len(maps()) == before


def test_each_handle_has_a_segment_of_its_own(server: Any, tools: Any) -> None:
    sessions = [server.create(SIZE, consistency=ASYNC) for _ in range(2)]
    tools.poll(lambda: not maps())  # of the tests before
    workers = [Shared(handle=handle) for handle in range(2)]
    for number, worker in enumerate(workers):
        worker.gradient[:] = some(number)
    before = len(maps())
    openings = [worker.opening(session) for worker, session in zip(workers, sessions, strict=True)]
    with tools.Dialogue(server, openings) as stream:
        assert all(stream.next().opened.segment_attached for _ in workers)
        assert len(maps()) == before + 2
        for number, worker in enumerate(workers):
            stream.send(*worker.chunks(1), worker.commit(1))
            assert stream.next().result.handle == number
            np.testing.assert_array_equal(worker.landed(stream, 1), -some(number))
        stream.send(Request(close=gradient_pb2.CloseHandle(handle=0)))
        stream.send(*workers[1].chunks(2), workers[1].commit(2))
        assert stream.next().result.step == 2
    tools.poll(lambda: len(maps()) == before)


def test_a_handle_that_is_opened_again_finds_its_memory_still_mapped(server: Any, tools: Any) -> None:
    tools.poll(lambda: not maps())  # of the tests before
    session, worker = server.create(SIZE), Shared()
    others = maps()
    close = Request(close=gradient_pb2.CloseHandle(handle=0))
    with tools.Dialogue(server, [worker.opening(session)]) as stream:
        assert stream.next().opened.segment_attached
        (mapped,) = maps() - others
        for sequence, reply in ((1, gradient_pb2.REPLY_NONE), (2, gradient_pb2.REPLY_PARAMETERS)):
            stream.send(close, worker.opening(session, reply=reply))
            assert stream.next().opened.segment_attached
            stream.send(*worker.chunks(sequence), worker.commit(sequence))
            assert stream.next().result.step == sequence
            assert maps() - others == {mapped}
        worker.landed(stream, 2)
        # Another offer takes the place of what nobody uses any more.
        another = Shared()
        stream.send(close, another.opening(session))
        assert stream.next().opened.segment_attached
        # The worker's own, and the server's, perhaps at the same place.
        tools.poll(lambda: len(maps()) == len(others) + 2)
    del another
    tools.poll(lambda: maps() == others)


def test_beyond_the_limit_the_stream_is_used(host: Callable[..., Any], tools: Any) -> None:
    service = host(segment_bytes=wire.segment_places(SIZE, 4, 4).size_bytes).server
    sessions, workers = [service.create(SIZE) for _ in range(2)], [Shared(handle=handle) for handle in range(2)]
    openings = [worker.opening(session) for worker, session in zip(workers, sessions, strict=True)]
    with tools.Dialogue(service, openings.copy()) as stream:
        assert [stream.next().opened.segment_attached for _ in workers] == [True, False]
        stream.send(Request(close=gradient_pb2.CloseHandle(handle=0)))
        stream.send(Request(close=gradient_pb2.CloseHandle(handle=1)), openings[1])
        assert stream.next().opened.segment_attached
        stream.send(Request(close=gradient_pb2.CloseHandle(handle=1)))

    def attached() -> bool:
        with tools.Dialogue(service, [openings[0]]) as stream:
            return bool(stream.next().opened.segment_attached)

    tools.poll(attached)  # What the first stream had kept is free again.


def test_a_killed_worker_leaves_nothing_behind(server: Any, tools: Any) -> None:
    session, other = server.create(SIZE), server.create(4)
    tools.poll(lambda: not maps())  # of the tests before
    before = len(maps())
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, server.address, session.session_id], stdout=subprocess.PIPE, text=True
    )
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "attached True\n"
        tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) >= 4 * SIZE)
        assert len(maps()) == before + 1
        worker.kill()
    tools.poll(lambda: len(maps()) == before)
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
    assert server.push(other, [1, 2, 3, 4], 1).step == 1
    assert server.inside(lambda engine: engine.session(session.session_id).step) == 0


KILLED = """
import sys, threading
import grpc
from hermosis import wire
from hermosis.v1 import gradient_pb2, gradient_pb2_grpc
from hermosis.wire import Dtype
from hermosis_client.segment import Segment
address, session_id = sys.argv[1:]
segment = Segment(1_000_003, Dtype.FLOAT32, Dtype.FLOAT32)
segment.gradient[:] = bytes([7]) * len(segment.gradient)
Request = gradient_pb2.ExchangeRequest
def requests():
    yield Request(open=gradient_pb2.OpenSession(session_id=session_id, worker_id="w", segment=segment.offer))
    crc32 = wire.checksum(segment.gradient[:4000])
    yield Request(segment=gradient_pb2.SegmentChunk(sequence=1, length=1000, crc32=crc32))
    threading.Event().wait()
stub = gradient_pb2_grpc.GradientServiceStub(grpc.insecure_channel(address))
for response in stub.Exchange(requests()):
    print("attached", response.opened.segment_attached, flush=True)
"""
