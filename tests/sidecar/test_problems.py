"""Every error as a problem document, and every request that must not come through."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send
from tests.sidecar.conftest import Sidecar

from hermosis_client import Client, Session, errors
from hermosis_sidecar import problems
from hermosis_sidecar.guard import Guard
from hermosis_sidecar.settings import Settings

# As docs/architecture.md has it.
STATUSES = {
    errors.InvalidRequest: 422,
    errors.InvalidHyperparameter: 422,
    errors.LayoutMismatch: 422,
    errors.CorruptChunk: 422,
    errors.PayloadMismatch: 409,
    errors.SessionNotFound: 404,
    errors.SessionExists: 409,
    errors.SessionNotReady: 409,
    errors.StaleGradient: 409,
    errors.StaleGeneration: 409,
    errors.Overloaded: 429,
    errors.Stalled: 408,
    errors.QuotaExceeded: 429,
    errors.OutOfDeviceMemory: 507,
    errors.StorageFull: 507,
    errors.StorageFailed: 500,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.ServerStopping: 503,
    errors.Recovering: 503,
    errors.Unsupported: 501,
    errors.CorruptState: 500,
    errors.InternalError: 500,
    errors.UnrecognisedError: 500,
    errors.ConnectionFailed: 503,
}

SPEC: dict[str, Any] = {
    "layout": {"tensors": [{"name": "weight", "shape": [2]}]},
    "optimizer": {"recipe": {"name": "sgd"}},
}
RECIPE_OF_NAN = {"recipe": {"name": "sgd", "parameters": {"lr": float("nan")}}}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The spec with one place of it changed."""
    spec: dict[str, Any] = json.loads(json.dumps(SPEC))
    *way, last = path.split(".")
    place = spec
    for name in way:
        place = place[name]
    place[last] = value
    return spec


def check(response: httpx2.Response, status: int, reason: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["reason"] == reason
    assert problem["detail"]
    problems.Problem.model_validate(problem)
    return problem


def test_every_error_of_the_client_has_its_status() -> None:
    told = {**errors.BY_REASON, "ConnectionFailed": errors.ConnectionFailed}
    assert {*told.values(), errors.UnrecognisedError} == set(STATUSES)


@pytest.mark.parametrize("error", STATUSES, ids=lambda error: error.__name__)
def test_error_is_told_with_all_its_facts(error: type[errors.HermosisError]) -> None:
    response = problems.response_to(error("what", field="spec.x", retry_after_s=1.2, metadata={"step": "7"}))
    assert response.status_code == STATUSES[error]
    assert response.headers["retry-after"] == "2"
    told = problems.Problem.model_validate_json(bytes(response.body))
    assert (told.reason, told.detail, told.field) == (error.__name__, "what", "spec.x")
    assert told.retry_after_s == 1.2
    assert told.metadata == {"step": "7"}


def test_unknown_session_is_404_whatever_is_asked_of_it(sidecar: Sidecar) -> None:
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("GET", "/telemetry")]:
        check(sidecar.http.request(method, f"/v1/sessions/nobody{path}"), 404, "SessionNotFound")


def test_name_that_is_taken_is_409(sidecar: Sidecar, session: Session) -> None:
    response = sidecar.http.post("/v1/sessions", json={"session_id": session.session_id, "spec": SPEC})
    check(response, 409, "SessionExists")


def test_session_without_parameters_cannot_be_paused(sidecar: Sidecar, client: Client) -> None:
    with client.create_session({"w": (2,)}, "sgd") as waiting:
        check(sidecar.http.post(f"/v1/sessions/{waiting.session_id}/pause"), 409, "SessionNotReady")


@pytest.mark.parametrize(
    ("path", "value", "reason", "field"),
    [
        ("optimizer", {"recipe": {"name": "no-such"}}, "InvalidHyperparameter", None),
        ("optimizer", {"recipe": {"name": "sgd", "parameters": {"lr": -1}}}, "InvalidHyperparameter", None),
        ("optimizer", {"hamiltonian": {"learning_rate": 0.1, "no_such": 1}}, "InvalidRequest", "hamiltonian"),
        ("optimizer", {}, "InvalidRequest", "spec.optimizer"),
        ("optimizer", {"recipe": {"name": "sgd"}, "hamiltonian": {}}, "InvalidRequest", "spec.optimizer"),
        ("layout", {"tensors": []}, "InvalidRequest", None),
        ("layout", {"tensors": [{"name": "a", "shape": [2]}] * 2}, "InvalidRequest", None),
        ("layout", {"tensors": [{"name": "a", "shape": [-1]}]}, "InvalidRequest", "spec.layout.tensors[0].shape[0]"),
        ("layout", {"tensors": [{"name": "a", "shape": [2**63]}]}, "InvalidRequest", "spec.layout.tensors[0].shape[0]"),
        (
            "layout",
            {"tensors": [{"name": "a", "shape": [1], "dtype": "INT8"}]},
            "InvalidRequest",
            "spec.layout.tensors[0].dtype",
        ),
        ("consistency", {"workers": 2**40}, "InvalidRequest", "spec.consistency.workers"),
        ("consistency", {"mode": "SOMEHOW"}, "InvalidRequest", "spec.consistency.mode"),
        ("no_such_field", 1, "InvalidRequest", "spec.no_such_field"),
    ],
)
def test_spec_that_can_never_be_right_is_422_and_names_the_field(
    sidecar: Sidecar, path: str, value: Any, reason: str, field: str | None
) -> None:
    before = sidecar.http.get("/v1/sessions").json()
    problem = check(sidecar.http.post("/v1/sessions", json={"spec": changed(path, value)}), 422, reason)
    assert field is None or field in problem["field"]
    assert [each["session_id"] for each in sidecar.http.get("/v1/sessions").json()["sessions"]] == [
        each["session_id"] for each in before["sessions"]
    ]


@pytest.mark.parametrize(
    ("shape", "status", "reason"),
    [([2**40, 2**20], 429, "QuotaExceeded"), ([2**33], 507, "OutOfDeviceMemory")],
)
def test_layout_too_large_for_the_server_says_which_limit_it_meets(
    sidecar: Sidecar, shape: list[int], status: int, reason: str
) -> None:
    spec = changed("layout", {"tensors": [{"name": "a", "shape": shape}]})
    check(sidecar.http.post("/v1/sessions", json={"spec": spec}), status, reason)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff\xfe\x00", 400),
        (json.dumps({"spec": changed("optimizer", RECIPE_OF_NAN)}), 422),
        (b'{"spec": {"layout": ' + b"[" * 100_000, 400),
    ],
    ids=["empty", "broken", "list", "no text", "NaN", "deep"],
)
def test_body_that_is_no_request_is_a_problem_too(sidecar: Sidecar, body: bytes | str, status: int) -> None:
    response = sidecar.http.post("/v1/sessions", content=body, headers={"content-type": "application/json"})
    check(response, status, "InvalidRequest")


def test_body_over_the_limit_is_refused_whether_announced_or_not(sidecar: Sidecar) -> None:
    limit = Settings().max_body_bytes
    announced = b"x" * (limit + 1)
    headers = {"content-type": "application/json"}
    check(sidecar.http.post("/v1/sessions", content=announced, headers=headers), 413, "InvalidRequest")
    pieces = (b"x" * (1 << 20) for _ in range((limit >> 20) + 1))
    check(sidecar.http.post("/v1/sessions", content=pieces, headers=headers), 413, "InvalidRequest")


def test_unknown_path_and_method_are_problems(sidecar: Sidecar) -> None:
    check(sidecar.http.get("/v1/nothing"), 404, "InvalidRequest")
    response = sidecar.http.put("/v1/sessions")
    check(response, 405, "InvalidRequest")
    assert response.headers["allow"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "status=ASLEEP"])
def test_query_out_of_range_is_422(sidecar: Sidecar, query: str) -> None:
    problem = check(sidecar.http.get(f"/v1/sessions?{query}"), 422, "InvalidRequest")
    assert problem["field"] == query.partition("=")[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"host": "elsewhere.example"},
        {"host": "elsewhere.example:8080", "origin": "http://elsewhere.example:8080"},
    ],
    ids=str,
)
def test_page_of_another_site_may_not_change_anything(
    sidecar: Sidecar, session: Session, headers: dict[str, str]
) -> None:
    check(sidecar.http.post(f"/v1/sessions/{session.session_id}/pause", headers=headers), 403, "PermissionDenied")
    assert session.info().status.name == "READY"


def test_name_that_resolves_to_us_may_not_read_either(sidecar: Sidecar) -> None:
    check(sidecar.http.get("/v1/sessions", headers={"host": "elsewhere.example"}), 403, "PermissionDenied")


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "same-origin"}, {"host": "localhost:1234"}], ids=str)
def test_our_own_page_and_programs_may(sidecar: Sidecar, session: Session, headers: dict[str, str]) -> None:
    assert sidecar.http.post(f"/v1/sessions/{session.session_id}/pause", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("settings", "answered", "refused"),
    [
        (Settings(), ["127.0.0.1", "localhost", "[::1]"], ["sidecar"]),
        (Settings(host="::1"), ["[::1]"], ["sidecar"]),
        (Settings(host="127.0.0.2"), ["127.0.0.2"], ["sidecar"]),
        (Settings(host="0.0.0.0", allowed_hosts=frozenset({"sidecar"})), ["sidecar", "localhost"], ["elsewhere"]),
    ],
)
def test_names_that_are_answered(settings: Settings, answered: list[str], refused: list[str]) -> None:
    names = settings.answers_to()
    assert names is not None
    assert names.issuperset(answered)
    assert names.isdisjoint(refused)


def test_sidecar_open_to_all_answers_to_any_name() -> None:
    assert Settings(host="0.0.0.0").answers_to() is None


def test_bug_is_told_blandly_and_logged_with_its_number(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the secret of the house")

    app = Guard(broken, hosts=None, max_body_bytes=100)

    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as http:
            return await http.get("/v1/sessions")

    problem = check(asyncio.run(ask()), 500, "InternalError")
    assert "secret" not in json.dumps(problem)
    number = problem["detail"].split()[2].rstrip(";")
    assert number in caplog.text
    assert "the secret of the house" in caplog.text
