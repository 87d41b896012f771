"""What the client does when calls fail, by a gRPC server that fails on request. Only the client is under test here."""

import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from hermosis.v1 import (
    gradient_pb2,
    gradient_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
    types_pb2,
)
from hermosis.wire import Dtype
from hermosis_client import Client, ParameterLayout, Worker, codec, errors
from hermosis_client.connection import Connection
from hermosis_client.exchange import WorkerSettings
from hermosis_client.records import Reply
from hermosis_client.session import Session

LAYOUT = ParameterLayout.of({"w": (600_000,)})  # three chunks
Response = gradient_pb2.ExchangeResponse


def fail(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str = "", retry_after_s: float | None = None):
    """Ends a call as the real server does; without a reason as only gRPC would."""
    if reason:
        details = [error_details_pb2.ErrorInfo(reason=reason, domain="hermosis")]
        if retry_after_s is not None:
            delay = duration_pb2.Duration(nanos=int(retry_after_s * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        packed = [any_pb2.Any() for _ in details]
        for place, detail in zip(packed, details, strict=True):
            place.Pack(detail)
        status = status_pb2.Status(code=code.value[0], message="on request", details=packed)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, "on request")


class FailingServer(
    session_pb2_grpc.SessionServiceServicer,
    gradient_pb2_grpc.GradientServiceServicer,
    telemetry_pb2_grpc.TelemetryServiceServicer,
):
    """Answers as the script says, and remembers what came. The script's calls get (this server, message, context)."""

    def __init__(self) -> None:
        self.script: list[Callable] = []
        self.requests: list = []
        self.commits: list[tuple[int, bytes]] = []  # (sequence, payload)
        self.opened: list[gradient_pb2.OpenSession] = []
        self.next_sequence = 1
        self.streams = 0
        self.attaches = False
        self.readings = 0

    def WatchTelemetry(self, request, context):
        """One reading a stream, then whatever the script says; without a script it stays open."""
        self.readings += 1
        reading = telemetry_pb2.TelemetryReading(session_id="s", step=self.readings)
        yield telemetry_pb2.WatchTelemetryResponse(readings=[reading])
        if not self.script:
            ended = threading.Event()
            context.add_callback(ended.set)
            assert ended.wait(30)
        elif (trouble := self.script.pop(0)) is not None:
            trouble(context)

    def CreateSession(self, request, context):
        self.requests.append(request)
        if self.script:
            self.script.pop(0)(self, request, context)
        session = session_pb2.Session(session_id="made", spec=request.spec)
        return session_pb2.CreateSessionResponse(session=session)

    def Exchange(self, requests, context):
        self.streams += 1
        payload = b""
        for request in requests:
            kind = request.WhichOneof("message")
            if kind == "open":
                self.opened.append(request.open)
                yield Response(
                    opened=gradient_pb2.SessionOpened(
                        handle=request.open.handle,
                        generation=1,
                        next_sequence=self.next_sequence,
                        segment_attached=self.attaches,
                    )
                )
            elif kind == "chunk":
                payload += request.chunk.payload
            elif kind == "commit":
                self.commits.append((request.commit.sequence, payload))
                payload = b""
                yield from (self.script.pop(0) if self.script else apply)(self, request.commit, context)
            elif kind == "pull":
                yield from parameters(0, 0)


def parameters(sequence: int, step: int, damage: int = 0) -> Iterator[Response]:
    """An answer in two chunks; every element is the step."""
    half = LAYOUT.parameter_count // 2
    for offset in (0, half):
        payload = np.full(half, step, np.float32).tobytes()
        yield Response(
            chunk=gradient_pb2.ParametersChunk(
                handle=1, sequence=sequence, step=step, offset=offset, dtype=1, crc32=zlib.crc32(payload) ^ damage,
                payload=payload,
            )
        )  # fmt: skip


def apply(server: FailingServer, commit: gradient_pb2.Commit, context) -> Iterator[Response]:
    duplicate = commit.sequence < server.next_sequence
    server.next_sequence = commit.sequence + 1
    yield Response(
        result=gradient_pb2.StepResult(
            handle=1, sequence=commit.sequence, outcome=1, step=commit.sequence, generation=1, duplicate=duplicate
        )
    )
    yield from parameters(commit.sequence, commit.sequence)


def apply_and_break(server, commit, context) -> Iterator[Response]:
    server.next_sequence = commit.sequence + 1
    fail(context, grpc.StatusCode.UNAVAILABLE)
    yield Response()


def break_halfway_through_the_answer(server, commit, context) -> Iterator[Response]:
    answer = apply(server, commit, context)
    yield next(answer)
    yield next(answer)
    fail(context, grpc.StatusCode.UNAVAILABLE)


def break_before(server, commit, context) -> Iterator[Response]:
    fail(context, grpc.StatusCode.UNAVAILABLE)
    yield Response()


def damaged(server, commit, context) -> Iterator[Response]:
    yield next(apply(server, commit, context))
    yield from parameters(commit.sequence, commit.sequence, damage=1)


def lying_in_a_segment(server, commit, context) -> Iterator[Response]:
    """Where there is one, the checksum is wrong."""
    yield next(apply(server, commit, context))
    told = gradient_pb2.SegmentChunk(handle=1, sequence=commit.sequence, length=LAYOUT.parameter_count, crc32=1)
    yield Response(segment=told)


def refuse(reason: str, **details) -> Callable:
    def refusing(server, commit, context) -> Iterator[Response]:
        refusal = types_pb2.Refusal(reason=reason, message="on request", **details)
        yield Response(
            refused=gradient_pb2.StreamRefusal(handle=commit.handle, sequence=commit.sequence, refusal=refusal)
        )

    return refusing


def end_with(reason: str, retry_after_s: float) -> Callable:
    def ending(server, commit, context) -> Iterator[Response]:
        fail(context, grpc.StatusCode.UNAVAILABLE, reason, retry_after_s)
        yield Response()

    return ending


@pytest.fixture
def failing() -> Iterator[tuple[FailingServer, str]]:
    servicer = FailingServer()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    session_pb2_grpc.add_SessionServiceServicer_to_server(servicer, server)
    gradient_pb2_grpc.add_GradientServiceServicer_to_server(servicer, server)
    telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def worker(failing) -> Iterator[Worker]:
    connection = Connection(failing[1], 5.0)
    settings = WorkerSettings(
        worker_id="w", gradient_dtype=Dtype.FLOAT32, reply_dtype=Dtype.FLOAT32, reply=Reply.PARAMETERS
    )
    with Worker(connection, "s", LAYOUT, settings) as worker:
        yield worker
    connection.close()


def gradient(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=LAYOUT.parameter_count).astype(np.float32)


def test_a_management_call_is_repeated_under_one_request_id(failing) -> None:
    server, address = failing
    server.script = [lambda *call: fail(call[2], grpc.StatusCode.UNAVAILABLE)] * 2
    with Client(address) as client:
        assert client.create_session({"w": (2,)}, "sgd").session_id == "made"
    assert len(server.requests) == 3
    assert len({request.request_id for request in server.requests}) == 1
    assert server.requests[0].request_id


def test_two_calls_have_two_request_ids(failing) -> None:
    server, address = failing
    with Client(address) as client:
        client.create_session({"w": (2,)}, "sgd")
        client.create_session({"w": (2,)}, "sgd")
    assert server.requests[0].request_id != server.requests[1].request_id


def test_a_recovering_server_is_waited_for(failing) -> None:
    server, address = failing
    server.script = [lambda *call: fail(call[2], grpc.StatusCode.UNAVAILABLE, "Recovering", 0.06)]
    with Client(address) as client:
        client.create_session({"w": (2,)}, "sgd")
    assert len(server.requests) == 2


def test_a_final_error_is_not_repeated(failing) -> None:
    server, address = failing
    server.script = [lambda *call: fail(call[2], grpc.StatusCode.ALREADY_EXISTS, "SessionExists")]
    with Client(address) as client, pytest.raises(errors.SessionExists):
        client.create_session({"w": (2,)}, "sgd")
    assert len(server.requests) == 1


def test_nobody_there_is_told_with_the_address_when_the_time_is_over() -> None:
    client = Client("127.0.0.1:1", timeout_s=0.3)
    with pytest.raises(errors.ConnectionFailed, match=r"127\.0\.0\.1:1 .*hermosis serve"):
        client.capabilities()
    client.close()


@pytest.mark.parametrize("address", ["http://127.0.0.1:80", "localhost"])
def test_an_address_of_another_form_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Client(address)


def test_a_contribution_of_unknown_fate_is_sent_again_and_counted_once(failing, worker: Worker) -> None:
    server, _ = failing
    server.script = [apply_and_break]
    result, parameters = worker.exchange(gradient())
    assert (result.sequence, result.duplicate) == (1, True)
    assert server.streams == 2
    assert [sequence for sequence, _ in server.commits] == [1, 1]
    assert {payload for _, payload in server.commits} == {gradient().tobytes()}
    assert (parameters["w"] == 1).all()
    assert worker.exchange(gradient())[0].sequence == 2
    assert server.streams == 2


@pytest.mark.parametrize("attaches", [False, True])
@pytest.mark.parametrize("trouble", [break_before, break_halfway_through_the_answer, damaged, lying_in_a_segment])
def test_a_broken_stream_is_opened_again_at_the_generation_that_was_known(failing, worker, trouble, attaches) -> None:
    server, _ = failing
    server.attaches = attaches
    server.script = [trouble]
    result, parameters = worker.exchange(gradient())
    assert result.sequence == 1
    assert (parameters["w"] == 1).all()
    assert [opening.generation for opening in server.opened] == [0, 1]
    assert {opening.layout_digest for opening in server.opened} == {LAYOUT.digest}
    assert len({opening.segment.token for opening in server.opened}) == 2


def test_a_stopping_server_is_waited_for(failing, worker: Worker) -> None:
    server, _ = failing
    server.script = [end_with("ServerStopping", 0.06)]
    assert worker.exchange(gradient())[0].sequence == 1
    assert server.streams == 2


def test_a_refusal_leaves_the_stream_as_it_was(failing, worker: Worker) -> None:
    server, _ = failing
    server.script = [refuse("StaleGradient", metadata={"step": "4"})]
    with pytest.raises(errors.StaleGradient) as caught:
        worker.exchange(gradient())
    assert caught.value.metadata == {"step": "4"}
    assert worker.exchange(gradient(2))[0].sequence == 1  # the number was not used up
    assert server.streams == 1


@pytest.mark.parametrize(
    "refusal", [refuse("Overloaded", retry_after_s=0.06), refuse("CorruptChunk")], ids=["Overloaded", "CorruptChunk"]
)
def test_a_refusal_that_passes_is_answered_by_sending_again(failing, worker: Worker, refusal) -> None:
    server, _ = failing
    server.script = [refusal, refusal]
    assert worker.exchange(gradient())[0].sequence == 1
    assert [sequence for sequence, _ in server.commits] == [1, 1, 1]
    assert server.streams == 1


def test_an_overloaded_server_is_not_waited_for_beyond_the_timeout(failing, worker: Worker) -> None:
    server, _ = failing
    server.script = [refuse("Overloaded", retry_after_s=3600.0)]
    with pytest.raises(errors.Overloaded):
        worker.exchange(gradient())


def test_a_pull_is_repeated_too(failing, worker: Worker) -> None:
    server, _ = failing
    worker.exchange(gradient())
    worker._stream.cancel()
    assert (worker.pull()["w"] == 0).all()
    assert server.streams == 2


def test_closing_cuts_a_call_off_that_waits_in_another_thread(failing, worker: Worker) -> None:
    server, _ = failing
    waiting = threading.Event()

    def never_answer(server, commit, context) -> Iterator[Response]:
        waiting.set()
        ended = threading.Event()
        context.add_callback(ended.set)
        assert ended.wait(30)
        yield Response()

    server.script = [never_answer]
    outcome: queue.Queue = queue.Queue()

    def exchange() -> None:
        try:
            outcome.put(worker.exchange(gradient()))
        except RuntimeError as error:
            outcome.put(error)

    thread = threading.Thread(target=exchange, daemon=True)
    thread.start()
    assert waiting.wait(10)
    worker.close()
    assert "worker w is closed" in str(outcome.get(timeout=10))
    thread.join(10)
    assert not thread.is_alive()


def test_a_watch_goes_on_over_a_broken_stream(failing) -> None:
    server, address = failing
    server.script = [None, lambda context: fail(context, grpc.StatusCode.UNAVAILABLE), None]  # ends, breaks, ends
    with Client(address) as client, client.watch() as watch:
        assert [next(watch).step for _ in range(4)] == [1, 2, 3, 4]
        watch.close()
        assert list(watch) == []


def test_no_thread_is_left_behind(failing) -> None:
    before = set(threading.enumerate())
    with Client(failing[1]) as client:
        message = session_pb2.Session(session_id="s", spec=session_pb2.SessionSpec(layout=codec.layout_message(LAYOUT)))
        with Session(client._connection, codec.session_info(message), created=False) as session:
            session.exchange(gradient())
    ours = [thread for thread in threading.enumerate() if thread not in before and "ThreadPool" not in thread.name]
    for thread in ours:
        thread.join(10)
    assert [thread.name for thread in ours if thread.is_alive()] == []
