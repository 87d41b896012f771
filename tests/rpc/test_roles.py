"""Who may do what: each role at each method, each tenant at each other's sessions, against a real server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import field_mask_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from hermosis import wire
from hermosis.v1 import access_pb2, gradient_pb2, session_pb2, telemetry_pb2
from hermosis_server.access.tokens import TokenFile
from hermosis_server.identity import Role
from hermosis_server.rpc.permissions import LEAST_ROLE, MANAGEMENT
from hermosis_server.rpc.server import SERVICES

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DEADLINE_S = 20.0
ONES = np.ones(5, np.float32)

# A watch that is let in and then refused for what it asks, where another would go on.
ENDED_AT_ONCE = telemetry_pb2.WatchTelemetryRequest(min_interval_s=-1).SerializeToString()

Metadata = tuple[tuple[str, str], ...]


def methods() -> dict[str, Any]:
    """Every method of our services, by its path."""
    files = (session_pb2, gradient_pb2, telemetry_pb2, access_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    assert {service.full_name for service in services} == set(SERVICES)
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


METHODS = methods()


def test_every_method_has_a_least_role_and_no_other_is_named() -> None:
    assert set(LEAST_ROLE) == set(METHODS) | {REFLECTION}


def test_viewers_read_and_workers_bring_gradients_and_all_else_is_for_operators() -> None:
    roles: dict[Role, set[str]] = {role: set() for role in Role}
    for path in METHODS:
        roles[LEAST_ROLE[path]].add(path.rpartition("/")[2])
    assert all(name.startswith(("Get", "List", "Watch")) for name in roles[Role.VIEWER])
    assert roles[Role.WORKER] == {"InitialiseParameters", "Exchange", "Push", "Pull", "Step"}
    looks = {name for name in roles[Role.OPERATOR] if name.startswith(("Get", "List", "Watch"))}
    assert looks == {"ListTokens", "ListAudit"}


def test_what_changes_or_takes_away_a_session_is_audited() -> None:
    readings = {method for method in METHODS if method.rpartition("/")[2].startswith(("Get", "List", "Watch"))}
    gradients = {method for method in METHODS if "GradientService" in method}
    assert set(METHODS) - readings - gradients == MANAGEMENT


class Guarded:
    """A server that asks for tokens, and a token for everybody."""

    def __init__(self, service: Any, folder: Path) -> None:
        self.service = service
        self.tokens = TokenFile(folder)
        self.bearers = {
            name: bearer(self.tokens.create(name, role=role, tenant=tenant, sessions=sessions))
            for name, role, tenant, sessions in (
                ("operator", "operator", "default", "*"),
                ("worker", "worker", "default", "*"),
                ("viewer", "viewer", "default", "*"),
                ("stranger", "operator", "acme", "*"),
                ("half", "operator", "default", "mine-*"),
            )
        }

    def create(self, who: str, session_id: str, **changed: Any) -> session_pb2.Session:
        """A READY session of somebody's tenant."""
        spec = session_pb2.SessionSpec(
            layout={"tensors": [{"name": "w", "shape": [5]}]},  # type: ignore[arg-type]
            optimizer={"recipe": {"name": "sgd"}},  # type: ignore[arg-type]
        )
        request = session_pb2.CreateSessionRequest(session_id=session_id, spec=spec, **changed)
        sessions, metadata = self.service.sessions, self.bearers[who]
        sessions.CreateSession(request, metadata=metadata, timeout=DEADLINE_S)
        payload = ONES.tobytes()
        upload = session_pb2.InitialiseParametersRequest(
            session_id=session_id, crc32=wire.checksum(payload), payload=payload
        )
        return sessions.InitialiseParameters(iter([upload]), metadata=metadata, timeout=DEADLINE_S).session

    def listed(self, who: str) -> set[str]:
        request = session_pb2.ListSessionsRequest()
        answer = self.service.sessions.ListSessions(request, metadata=self.bearers[who], timeout=DEADLINE_S)
        return {session.session_id for session in answer.sessions if not session.session_id.startswith("s-")}  # forks


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module")
def guarded(hosting: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("data")
    with hosting(require_token=True, data_folder=folder) as service:
        guarded = Guarded(service, folder)
        guarded.create("operator", "theirs")
        guarded.create("operator", "mine-1")
        guarded.create("stranger", "secret")
        yield guarded


def call(guarded: Guarded, path: str, metadata: Metadata, request: Any = None) -> grpc.StatusCode:
    """Calls a method with an empty request, or this one; the status it ended with."""
    method = METHODS[path]
    kinds = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    stub = getattr(guarded.service.channel, kinds)(path)
    raw = b"" if request is None else request.SerializeToString()
    if path.endswith("WatchTelemetry"):
        raw += ENDED_AT_ONCE
    try:
        answer = stub(iter([raw]) if method.client_streaming else raw, metadata=metadata, timeout=DEADLINE_S)
        if method.server_streaming:
            list(answer)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[no-any-return, attr-defined]
    return grpc.StatusCode.OK


REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize("role", ["viewer", "worker", "operator"])
@pytest.mark.parametrize("path", METHODS)
def test_a_role_may_call_a_method_or_is_told_that_it_may_not(guarded: Guarded, path: str, role: str) -> None:
    allowed = Role[role.upper()] >= LEAST_ROLE[path]
    status = call(guarded, path, guarded.bearers[role])
    assert (status not in REFUSALS) if allowed else (status is grpc.StatusCode.PERMISSION_DENIED)


PROOFS: dict[str, Callable[[Guarded], Metadata]] = {
    "nothing": lambda guarded: (),
    "no scheme": lambda guarded: (("authorization", guarded.bearers["operator"][0][1].split()[1]),),
    "another scheme": lambda guarded: (("authorization", "Basic b3BlcmF0b3I6aHVudGVyMg=="),),
    "an unknown token": lambda guarded: bearer("hmt_" + "A" * 43),
    "a fingerprint": lambda guarded: bearer("hmt_" + guarded.tokens.records[0].fingerprint),
    "a cut token": lambda guarded: (("authorization", guarded.bearers["operator"][0][1][:-1]),),
    "two tokens": lambda guarded: guarded.bearers["viewer"] + guarded.bearers["operator"],
    "a foreign token": lambda guarded: bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."),
}


@pytest.mark.parametrize("proof", PROOFS)
@pytest.mark.parametrize("path", METHODS)
def test_nobody_calls_anything_without_proof(guarded: Guarded, path: str, proof: str) -> None:
    assert call(guarded, path, PROOFS[proof](guarded)) is grpc.StatusCode.UNAUTHENTICATED


def test_health_is_open_and_reflection_is_not(guarded: Guarded) -> None:
    health = health_pb2_grpc.HealthStub(guarded.service.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(guarded.service.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as refused:
        list(reflection.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    told = list(
        reflection.ServerReflectionInfo(iter([request]), metadata=guarded.bearers["viewer"], timeout=DEADLINE_S)
    )
    assert told[0].list_services_response.service


def named(path: str, session_id: str) -> Any:
    """A request of a method that names one session and would be carried out; None where none does."""
    payload = ONES.tobytes()
    sealed = {"crc32": wire.checksum(payload), "payload": payload}
    gradient = gradient_pb2.WholeGradient(commit=gradient_pb2.Commit(sequence=1), **sealed)
    push = gradient_pb2.PushRequest(session_id=session_id, worker_id="w", gradient=gradient)
    name = path.rpartition("/")[2]
    if "AccessService" in path or name in ("GetCapabilities", "GetRecipes", "ListSessions", "CreateSession"):
        return None
    if name == "Exchange":
        return gradient_pb2.ExchangeRequest(open=gradient_pb2.OpenSession(session_id=session_id, worker_id="w"))
    if name == "Step":
        return gradient_pb2.StepRequest(push=push)
    if name == "Push":
        return push
    if name == "GetOverview":  # it names what the caller may see
        return None
    if name == "WatchTelemetry":
        return telemetry_pb2.WatchTelemetryRequest(session_ids=[session_id])
    if name == "ImportSession":
        return session_pb2.ImportSessionRequest(session_id=session_id, state=session_pb2.SessionState())
    if name == "InitialiseParameters":
        return session_pb2.InitialiseParametersRequest(session_id=session_id, **sealed)
    if name == "UpdateSession":
        mask = field_mask_pb2.FieldMask(paths=["display_name"])
        return session_pb2.UpdateSessionRequest(session_id=session_id, update_mask=mask)
    for file in (session_pb2, gradient_pb2, telemetry_pb2):
        if hasattr(file, f"{name}Request"):
            return getattr(file, f"{name}Request")(session_id=session_id)
    raise AssertionError(f"no request for {path}")


NAMING = [path for path in METHODS if named(path, "x") is not None]


@pytest.mark.parametrize(
    ("who", "session_id"),
    [("operator", "secret"), ("operator", "acme.secret"), ("stranger", "theirs"), ("half", "theirs")],
)
@pytest.mark.parametrize("path", NAMING)
def test_a_session_out_of_reach_is_as_if_it_were_not_there(
    guarded: Guarded, tools: Any, path: str, who: str, session_id: str
) -> None:
    name = path.rpartition("/")[2]
    if name == "Exchange":
        opening = named(path, session_id)
        absent = named(path, "never-was")
        stub = guarded.service.gradients.Exchange
        answers = [
            next(stub(iter([request]), metadata=guarded.bearers[who], timeout=DEADLINE_S)).refused.refusal
            for request in (opening, absent)
        ]
        assert [answer.reason for answer in answers] == ["SessionNotFound"] * 2
        assert answers[0].message.replace(session_id, "never-was") == answers[1].message
        return
    for asked in (session_id, "never-was"):
        assert call(guarded, path, guarded.bearers[who], named(path, asked)) is grpc.StatusCode.NOT_FOUND
    mine = {"operator": "theirs", "stranger": "secret", "half": "mine-1"}[who]
    if name != "CloseSession":
        assert call(guarded, path, guarded.bearers[who], named(path, mine)) is not grpc.StatusCode.NOT_FOUND


def test_lists_show_what_is_in_reach(guarded: Guarded) -> None:
    assert guarded.listed("operator") == guarded.listed("viewer") == {"theirs", "mine-1"}
    assert guarded.listed("stranger") == {"secret"}
    assert guarded.listed("half") == {"mine-1"}


def test_an_id_that_another_tenant_has_is_free_and_shows_nothing(guarded: Guarded) -> None:
    guarded.create("operator", "shared", request_id="one-id")
    other = guarded.create("stranger", "shared", request_id="one-id")
    assert other.session_id == "shared"
    guarded.service.inside(lambda engine: engine.session("acme.shared"))
    close = session_pb2.CloseSessionRequest(session_id="shared")
    guarded.service.sessions.CloseSession(close, metadata=guarded.bearers["stranger"], timeout=DEADLINE_S)
    assert "shared" in guarded.listed("operator")
    guarded.service.sessions.CloseSession(close, metadata=guarded.bearers["operator"], timeout=DEADLINE_S)


def test_a_pattern_binds_what_is_created_too(guarded: Guarded) -> None:
    guarded.create("half", "mine-2")
    for session_id in ("other", ""):
        with pytest.raises(grpc.RpcError) as refused:
            guarded.create("half", session_id)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_watch_of_everything_hears_of_what_is_in_reach_only(guarded: Guarded, tools: Any) -> None:
    watch = guarded.service.telemetry.WatchTelemetry(
        telemetry_pb2.WatchTelemetryRequest(), metadata=guarded.bearers["viewer"], timeout=DEADLINE_S
    )
    watch.initial_metadata()
    for who, session_id in (("stranger", "watched"), ("operator", "watched")):
        guarded.create(who, session_id)
        request = tools.push_request(session_id, ONES if who == "operator" else 2 * ONES, 1)
        guarded.service.gradients.Push(request, metadata=guarded.bearers[who], timeout=DEADLINE_S)
    [reading] = next(watch).readings
    assert reading.session_id == "watched"
    assert reading.energies.gradient_norm == pytest.approx(np.sqrt(5.0))  # the operator's, which came second
    watch.cancel()
