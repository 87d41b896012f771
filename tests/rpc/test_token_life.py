"""Tokens while a server runs: made, revoked and expired under calls that go on."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from hermosis.v1 import gradient_pb2, session_pb2, telemetry_pb2
from hermosis_server.access.tokens import TokenFile

DEADLINE_S = 20.0
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path)


@pytest.fixture
def service(hosting: Any, tmp_path: Path, tokens: TokenFile) -> Iterator[Any]:
    with hosting(data_folder=tmp_path) as service:
        yield service


def listed(service: Any, metadata: Any = ()) -> Any:
    return service.sessions.ListSessions(session_pb2.ListSessionsRequest(), metadata=metadata, timeout=DEADLINE_S)


def refusal(service: Any, metadata: Any = ()) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        listed(service, metadata)
    return refused.value.code()  # type: ignore[no-any-return, attr-defined]


def exchange(service: Any, metadata: Any, ended: threading.Event) -> Any:
    """A stream that has been let in and has no more to say."""

    def requests() -> Iterator[gradient_pb2.ExchangeRequest]:
        yield gradient_pb2.ExchangeRequest(open=gradient_pb2.OpenSession(session_id="nothing", worker_id="w"))
        ended.wait(DEADLINE_S)

    call = service.gradients.Exchange(requests(), metadata=metadata, timeout=DEADLINE_S)
    assert next(call).refused.refusal.reason == "SessionNotFound"
    return call


def watch(service: Any, metadata: Any, ended: threading.Event) -> Any:
    request = telemetry_pb2.WatchTelemetryRequest()
    call = service.telemetry.WatchTelemetry(request, metadata=metadata, timeout=DEADLINE_S)
    call.initial_metadata()
    return call


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Set when the test is over, so that streams go."""
    event = threading.Event()
    yield event
    event.set()


STREAMS = [exchange, watch]


def test_the_first_token_closes_the_door_and_the_last_one_does_not_open_it(service: Any, tokens: TokenFile) -> None:
    listed(service)
    token = tokens.create("first", role="viewer")
    assert refusal(service) is UNAUTHENTICATED
    listed(service, bearer(token))
    tokens.revoke("first")
    assert refusal(service, bearer(token)) is UNAUTHENTICATED
    assert refusal(service) is UNAUTHENTICATED
    tokens.path.unlink()
    assert refusal(service) is UNAUTHENTICATED
    assert refusal(service, bearer(token)) is UNAUTHENTICATED


def test_a_server_that_starts_with_revoked_tokens_only_still_asks(
    hosting: Any, tmp_path: Path, tokens: TokenFile
) -> None:
    tokens.create("gone", role="operator")
    tokens.revoke("gone")
    with hosting(data_folder=tmp_path) as service:
        assert refusal(service) is UNAUTHENTICATED


def test_a_file_that_is_spoilt_while_the_server_runs_changes_nothing(service: Any, tokens: TokenFile) -> None:
    token = tokens.create("n", role="viewer")
    listed(service, bearer(token))
    tokens.path.write_text("spoilt")
    listed(service, bearer(token))
    assert refusal(service) is UNAUTHENTICATED


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_ends_when_its_token_is_revoked(
    service: Any, tokens: TokenFile, stream: Any, tools: Any, ended: threading.Event
) -> None:
    kept, lost = tokens.create("kept", role="worker"), tokens.create("lost", role="worker")
    ending, staying = stream(service, bearer(lost), ended), stream(service, bearer(kept), ended)
    tokens.revoke("lost")
    with pytest.raises(grpc.RpcError) as refused:
        next(ending)
    assert refused.value.code() is UNAUTHENTICATED
    assert "lost was revoked" in refused.value.details()
    assert tools.reason_of(refused.value) == "Unauthenticated"
    assert staying.is_active()
    staying.cancel()


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_ends_when_its_token_expires(
    service: Any, tokens: TokenFile, stream: Any, ended: threading.Event
) -> None:
    token = tokens.create("short", role="worker", lifetime_s=1.5)
    call = stream(service, bearer(token), ended)
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    assert refused.value.code() is UNAUTHENTICATED
    assert "expired" in refused.value.details()
    assert refusal(service, bearer(token)) is UNAUTHENTICATED


def test_a_stream_that_began_without_proof_ends_when_proof_is_asked_for(
    service: Any, tokens: TokenFile, ended: threading.Event
) -> None:
    call = watch(service, (), ended)
    tokens.create("first", role="viewer")
    with pytest.raises(grpc.RpcError) as refused:
        next(call)
    assert refused.value.code() is UNAUTHENTICATED


def test_a_step_that_was_under_way_when_its_token_was_revoked_is_kept(
    service: Any, tokens: TokenFile, tools: Any
) -> None:
    token, other = tokens.create("worker", role="operator"), tokens.create("other", role="operator")
    spec = session_pb2.SessionSpec(
        layout={"tensors": [{"name": "w", "shape": [2]}]},  # type: ignore[arg-type]
        optimizer={"recipe": {"name": "sgd"}},  # type: ignore[arg-type]
        consistency={"workers": 2},  # type: ignore[arg-type]
    )
    create = session_pb2.CreateSessionRequest(session_id="two", spec=spec)
    service.sessions.CreateSession(create, metadata=bearer(token), timeout=DEADLINE_S)
    ones = np.ones(2, np.float32)
    seal = tools.push_request("two", ones, 1).gradient
    upload = session_pb2.InitialiseParametersRequest(session_id="two", crc32=seal.crc32, payload=seal.payload)
    service.sessions.InitialiseParameters(iter([upload]), metadata=bearer(token), timeout=DEADLINE_S)
    waiting = service.gradients.Push.future(
        tools.push_request("two", ones, 1), metadata=bearer(token), timeout=DEADLINE_S
    )
    tools.poll(lambda: service.inside(lambda engine: bool(engine.session("two").round.contributions)))
    tokens.revoke("worker")
    assert waiting.exception(timeout=DEADLINE_S).code() is UNAUTHENTICATED
    last = tools.push_request("two", ones, 1, worker_id="second")
    answer = service.gradients.Push(last, metadata=bearer(other), timeout=DEADLINE_S)
    assert (answer.result.step, answer.result.contributions) == (1, 2)
