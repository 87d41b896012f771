"""The same-host path of the client: chosen by itself, equal to the stream to the bit, and gone with whoever dies."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis import hot
from hermosis.wire import Dtype
from hermosis_client import Client, Recipe, Session, errors
from hermosis_client.connection import Connection
from hermosis_client.segment import MIN_PAYLOAD_BYTES, Segment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="segments are known on Linux only")

SIZE = 700_001  # elements; in float32 two pieces of the segment, the second one not full
DTYPES = ["float32", "float16", "bfloat16"]


def vector(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def ready(client: Client, **options) -> Session:
    session = client.create_session({"w": (SIZE,)}, Recipe("sgd", lr=0.1, momentum=0.9), **options)
    if options.get("parameters_on") != "worker":
        session.initialise(vector(0))
    return session


def segments_of(process_id: int) -> int:
    """How many segments a process has mapped."""
    return Path(f"/proc/{process_id}/maps").read_text().count("memfd:hermosis-segment")


@pytest.fixture
def pair(client: Client) -> Iterator[list[Session]]:
    """Two sessions alike."""
    sessions = [ready(client), ready(client)]
    yield sessions
    for session in sessions:
        session.close()


@pytest.mark.parametrize("sent", DTYPES)
@pytest.mark.parametrize("back", DTYPES)
def test_both_paths_are_equal_to_the_bit(pair: list[Session], sent: str, back: str) -> None:
    workers = [
        session.worker("w", gradient_dtype=sent, reply_dtype=back, shared_memory=shared)
        for session, shared in zip(pair, (True, False), strict=True)
    ]
    for step in range(1, 4):
        answers = [worker.exchange(vector(step), loss=1.0, want_digest=True) for worker in workers]
        assert answers[0][0] == answers[1][0]
        assert answers[0][1].flat.tobytes() == answers[1][1].flat.tobytes()
    assert [worker.path for worker in workers] == ["segment", "stream"]
    assert [session.workers()[0].received_bytes for session in pair] == [3 * SIZE * (4 if sent == "float32" else 2)] * 2


def test_increments_come_the_same_way(client: Client) -> None:
    answers = []
    for shared in (True, False):
        with ready(client, parameters_on="worker") as session:
            worker = session.worker("w", shared_memory=shared)
            answers.append([worker.exchange(vector(step))[1].flat.tobytes() for step in range(3)])
            broken = vector(1)
            broken[SIZE // 2] = np.nan
            result, zeros = worker.exchange(broken)
            assert not result.applied
            assert not zeros.flat.any()
            assert worker.path == ("segment" if shared else "stream")
    assert answers[0] == answers[1]


def test_push_pull_and_exchange_take_turns_in_one_segment(server: WarmServer, pair: list[Session]) -> None:
    worker = pair[0].worker("w")
    out = np.empty(SIZE, np.float32)
    assert worker.path == "stream"
    for step in range(1, 4):
        assert worker.push(vector(step)).step == 2 * step - 1
        assert worker.pull(out=out).flat is out
        result, pulled = worker.exchange(vector(step))
        assert result.step == 2 * step
        np.testing.assert_array_equal(worker.pull().flat, pulled.flat)
        assert worker.path == "segment"
        assert segments_of(server.process_id) == 1
    # What was handed out is the caller's own.
    before = pulled.flat.copy()
    worker.exchange(vector(9))
    np.testing.assert_array_equal(pulled.flat, before)
    worker.close()


def test_a_refused_gradient_leaves_the_worker_usable(pair: list[Session]) -> None:
    worker = pair[0].worker("w")
    worker.exchange(vector(1))
    pair[0].pause()
    with pytest.raises(errors.SessionNotReady):
        worker.exchange(vector(2))
    pair[0].resume()
    assert worker.exchange(vector(2))[0].step == 2
    assert worker.path == "segment"


def test_several_workers_share_memory_with_the_server_each_on_its_own(client: Client) -> None:
    with client.create_session({"w": (SIZE,)}, Recipe("sgd", lr=1.0), consistency="async") as session:
        session.initialise(np.zeros(SIZE, np.float32))
        workers = [session.worker(f"w{number}") for number in range(3)]
        for worker in workers:
            worker.push(np.ones(SIZE, np.float32))
        assert {worker.path for worker in workers} == {"segment"}
        assert set(workers[0].pull().flat) == {-3.0}


@pytest.mark.parametrize("off", ["flag", "environment", "size", "system", "address"])
def test_the_stream_is_used_where_memory_cannot_or_shall_not_be_shared(
    server: WarmServer, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    size = MIN_PAYLOAD_BYTES // 4 - 1 if off == "size" else MIN_PAYLOAD_BYTES // 4
    address = server.address
    if off == "environment":
        monkeypatch.setenv("HERMOSIS_SHARED_MEMORY", "0")
    elif off == "system":
        monkeypatch.setattr(os, "memfd_create", _refused)
    elif off == "address":
        monkeypatch.setattr("hermosis_client.connection.is_loopback", lambda address: False)
    with Client(address, timeout_s=20.0) as client, client.create_session({"w": (size,)}, "sgd") as session:
        session.initialise(vector(0, size))
        worker = session.worker("w", shared_memory=off != "flag")
        assert worker.exchange(vector(1, size))[0].step == 1
        assert worker.path == "stream"
        assert segments_of(server.process_id) == 0


def _refused(*_: object) -> int:
    raise OSError("on request")


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("unix:/tmp/x", True), ("10.0.0.1:1", False)],
)
def test_memory_is_offered_to_servers_of_this_machine_only(address: str, local: bool) -> None:
    connection = Connection(address, 1.0)
    assert connection.shares_memory is local
    connection.close()


def test_a_server_that_takes_no_segments_is_served_on_the_stream() -> None:
    with WarmServer(arguments=["--segment-bytes", "0"]) as server, Client(server.address) as client:
        assert client.capabilities().limits.segment_bytes == 0
        session = ready(client)
        worker = session.worker("w")
        for step in range(1, 3):
            assert worker.exchange(vector(step))[0].step == step
            assert worker.path == "stream"
        assert worker.pull()
        assert segments_of(os.getpid()) == 0


def test_both_ends_let_the_memory_go(server: WarmServer, pair: list[Session]) -> None:
    workers = [session.worker("w") for session in pair]
    for worker in workers:
        worker.exchange(vector(1))
    assert segments_of(server.process_id) == segments_of(os.getpid()) == 2
    for worker in workers:
        worker.close()
    assert segments_of(os.getpid()) == 0
    pair[0].info()  # The server has seen the end of the streams by the time it answers.
    assert segments_of(server.process_id) == 0
    assert not [name for name in open_files() if "hermosis-segment" in name]


def test_a_closed_segment_is_left_alone_by_whoever_still_sends() -> None:
    segment = Segment(10, Dtype.FLOAT32, Dtype.FLOAT32)
    chunk = hot.GradientChunk(handle=1, sequence=2, offset=4, crc32=7, payload=bytes(24))
    while_open = segment.put(chunk)
    segment.close()
    assert segment.put(chunk) == while_open


def open_files() -> set[str]:
    listed = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.readlink(path) for path in listed if os.path.lexists(path)}


def test_a_killed_server_is_a_typed_error_and_the_next_one_is_shared_with_afresh() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with WarmServer(arguments=["--port", port]) as first, Client(first.address, timeout_s=0.5) as client:
        session = ready(client)
        worker = session.worker("w")
        worker.exchange(vector(1))
        assert worker.path == "segment"
        os.kill(first.process_id, signal.SIGKILL)
        with pytest.raises(errors.ConnectionFailed):
            worker.exchange(vector(2))
        assert worker.path == "stream"
        assert segments_of(os.getpid()) == 0
        with WarmServer(arguments=["--port", port]) as second:
            with Client(second.address, timeout_s=20.0) as other:
                ready(other, session_id=session.session_id)
            wait_for_connection(client)
            np.testing.assert_array_equal(worker.pull().flat, vector(0))
            assert worker.exchange(vector(1))[0].step == 1
            assert worker.path == "segment"
            assert segments_of(second.process_id) == 1


def wait_for_connection(client: Client) -> None:
    """gRPC looks for a restarted server every two seconds at least."""
    for _ in range(20):
        with contextlib.suppress(errors.ConnectionFailed):
            client.capabilities()
            return
    raise AssertionError("no connection")
