"""Messages made to hurt: headers too large, bytes that unfold, names that lead elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from hermosis.v1 import gradient_pb2, gradient_pb2_grpc, session_pb2, session_pb2_grpc
from hermosis_client.local_server import LocalServer
from hermosis_server.rpc.server import MAX_METADATA_BYTES

DEADLINE_S = 20.0
BOMB_BYTES = 192 << 20


@pytest.fixture(scope="module")
def process() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


def peak_bytes(process: LocalServer) -> int:
    """The most memory that the process has had."""
    status = Path(f"/proc/{process.process_id}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_unfolds_to_much_more_is_refused_without_memory(
    process: LocalServer, compression: grpc.Compression, stream: bool
) -> None:
    gradient = gradient_pb2.WholeGradient(payload=bytes(BOMB_BYTES))
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(process.address) as plain:
        request = session_pb2.ListSessionsRequest()
        session_pb2_grpc.SessionServiceStub(plain).ListSessions(request, timeout=DEADLINE_S)
    before = peak_bytes(process)
    with grpc.insecure_channel(process.address, options=options, compression=compression) as channel:
        stub = gradient_pb2_grpc.GradientServiceStub(channel)
        if stream:
            call = stub.Exchange(iter([gradient_pb2.ExchangeRequest(whole=gradient)]), timeout=DEADLINE_S)
        else:
            call = stub.Push.future(gradient_pb2.PushRequest(gradient=gradient), timeout=DEADLINE_S)
        error = call.exception(timeout=DEADLINE_S)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert peak_bytes(process) - before < BOMB_BYTES // 4


def test_metadata_has_a_limit_and_the_connection_goes_on(server: Any) -> None:
    def listed(size: int) -> None:
        metadata = (("x-much", "m" * size),)
        server.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=metadata, timeout=DEADLINE_S)

    listed(MAX_METADATA_BYTES // 2)
    with pytest.raises(grpc.RpcError) as refused:
        listed(MAX_METADATA_BYTES + 1)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    listed(10)


EVIL = [
    "../../etc/passwd",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a.b",
    "a\x00b",
    "a\nb",
    "A",
    "ａ",
    "-a",
    "a" * 64,
    "a ",
    "%2e%2e",
]


@pytest.mark.parametrize("name", EVIL)
def test_session_ids_that_could_lead_elsewhere_are_refused(server: Any, tools: Any, name: str) -> None:
    spec = session_pb2.SessionSpec(
        layout={"tensors": [{"name": "w", "shape": [1]}]},  # type: ignore[arg-type]
        optimizer={"recipe": {"name": "sgd"}},  # type: ignore[arg-type]
    )
    with pytest.raises(grpc.RpcError) as refused:
        server.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=name, spec=spec), timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "session_id" in refused.value.details()
    with pytest.raises(grpc.RpcError) as absent:
        server.sessions.GetSession(session_pb2.GetSessionRequest(session_id=name), timeout=DEADLINE_S)
    assert absent.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("worker_id", ["", "a\nb", "a\x00b", "a\x1b[31m", "a\u2028b", "w" * 129])
def test_worker_ids_that_could_be_taken_for_something_else_are_refused(server: Any, tools: Any, worker_id: str) -> None:
    session = server.create()
    with pytest.raises(grpc.RpcError) as refused:
        server.push(session, [1.0] * 5, 1, worker_id=worker_id)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "worker_id" in refused.value.details()
