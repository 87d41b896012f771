"""The sidecar passes on who asks and adds nothing of its own, whatever it may do itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.forking import WarmServer
from tests.sidecar.conftest import Events, Sidecar, eventually, push
from typer.testing import CliRunner

from hermosis_client import Client
from hermosis_server.access.tokens import TokenFile
from hermosis_server.cli.root import app


class House:
    """A server that asks for tokens, and a sidecar with a viewer's."""

    def __init__(self, server: WarmServer, **settings: str) -> None:
        self.server = server
        tokens = TokenFile(Path(server.data_folder))
        self.tokens = tokens
        self.of = {
            name: tokens.create(name, role=role, tenant=tenant)
            for name, role, tenant in (
                ("operator", "operator", "default"),
                ("viewer", "viewer", "default"),
                ("stranger", "operator", "acme"),
                ("sidecar", "viewer", "default"),
            )
        }
        self.sidecar = Sidecar(server.address, token=self.of["sidecar"], live_interval_s="0", **settings)

    def get(self, path: str, who: str | None = None) -> Any:
        headers = {} if who is None else {"authorization": f"Bearer {self.of[who]}"}
        return self.sidecar.http.get(path, headers=headers)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with WarmServer(arguments=["--require-token"]) as server:
        house = House(server)
        with house.sidecar:
            yield house


@pytest.fixture(scope="module", autouse=True)
def sessions(house: House) -> Iterator[None]:
    with (
        Client(house.server.address, token=house.of["operator"]) as ours,
        Client(house.server.address, token=house.of["stranger"]) as theirs,
    ):
        for client, loss in ((ours, 1.0), (theirs, 2.0)):
            session = client.create_session({"w": (2,)}, "sgd", session_id="shared")
            session.initialise({"w": np.ones(2, np.float32)})
            push(session, loss)
        theirs.create_session({"w": (1,)}, "sgd", session_id="secret")
        yield


GUARDED = [
    "/v1/sessions",
    "/v1/sessions/shared",
    "/v1/capabilities",
    "/v1/recipes",
    "/v1/overview",
    "/v1/live",
    "/metrics",
]


@pytest.mark.parametrize("path", GUARDED)
def test_who_brings_nothing_gets_nothing_although_the_sidecar_has_a_token(house: House, path: str) -> None:
    refused = house.get(path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["reason"] == "Unauthenticated"


@pytest.mark.parametrize(
    "authorization", ["Basic eDp5", "Bearer hmt_wrong", "Bearer two words", "hmt_bare", "Bearer ö"]
)
@pytest.mark.parametrize("path", GUARDED)
def test_who_brings_something_else_gets_nothing(house: House, path: str, authorization: str) -> None:
    refused = house.sidecar.http.get(path, headers={"authorization": authorization.encode()})
    assert refused.status_code == 401


def test_callers_see_and_do_what_the_server_lets_them(house: House) -> None:
    def ids(who: str) -> set[str]:
        return {session["session_id"] for session in house.get("/v1/sessions", who).json()["sessions"]}

    assert ids("viewer") == {"shared"}
    assert ids("stranger") == {"shared", "secret"}
    assert house.get("/v1/sessions/secret", "viewer").status_code == 404
    paused = house.sidecar.http.post(
        "/v1/sessions/shared/pause", headers={"authorization": f"Bearer {house.of['viewer']}"}
    )
    assert paused.status_code == 403
    assert paused.json()["reason"] == "PermissionDenied"


def losses(events: Events) -> list[float]:
    return [reading["energies"]["loss"] for reading in events.named("reading")]


def test_readings_of_one_tenant_never_reach_another_by_what_the_sidecar_remembers(house: House) -> None:
    def loss(who: str) -> float | None:
        [session] = [each for each in house.get("/v1/sessions", who).json()["sessions"] if each["step"]]
        return session["reading"]["energies"]["loss"]  # type: ignore[no-any-return]

    with Events(house.sidecar, token=house.of["sidecar"]) as events:
        eventually(lambda: {"reachable": True} in events.named("server"), "the sidecar to follow the server")
        with Client(house.server.address, token=house.of["operator"]) as client:
            push(client.session("shared"), 0.5)
        eventually(lambda: losses(events), "the reading")
    assert loss("viewer") == loss("sidecar") == 0.5
    assert loss("stranger") == 2.0


def test_each_caller_lives_with_the_readings_of_their_tenant(house: House) -> None:
    with (
        Events(house.sidecar, token=house.of["viewer"]) as ours,
        Events(house.sidecar, token=house.of["stranger"]) as theirs,
    ):
        for events in (ours, theirs):
            eventually(lambda events=events: {"reachable": True} in events.named("server"), "the server")  # type: ignore[misc]
        for who, loss in (("stranger", 20.0), ("operator", 10.0)):
            with Client(house.server.address, token=house.of[who]) as client:
                push(client.session("shared"), loss)
        eventually(lambda: losses(ours) and losses(theirs), "the readings")
        assert losses(ours) == [10.0]
        assert losses(theirs) == [20.0]


def test_a_live_stream_ends_when_its_token_is_revoked(house: House) -> None:
    token = house.tokens.create("short-lived", role="viewer")
    with Events(house.sidecar, token=token) as events:
        eventually(lambda: {"reachable": True} in events.named("server"), "the server")
        house.tokens.revoke("short-lived")
        assert events.ended.wait(20)
    assert house.sidecar.http.get("/v1/live", headers={"authorization": f"Bearer {token}"}).status_code == 401


def test_metrics_are_for_who_has_the_sidecars_token(house: House) -> None:
    assert house.get("/metrics", "operator").status_code == 401
    told = house.get("/metrics", "sidecar")
    assert 'hermosis_session_step{optimizer="sgd",session_id="shared"}' in told.text
    assert "secret" not in told.text


def test_metrics_can_be_opened(house: House) -> None:
    with Sidecar(house.server.address, token=house.of["sidecar"], open_metrics="1") as opened:
        assert "hermosis_server_reachable 1.0" in opened.http.get("/metrics").text
        assert opened.http.get("/v1/sessions").status_code == 401


def test_health_is_for_everybody(house: House) -> None:
    assert house.get("/healthz/live").status_code == house.get("/healthz/ready").status_code == 200


def test_a_sidecar_with_a_certificate_does_not_lend_it(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["certificates", str(tmp_path), "--client", "sidecar", "--role", "viewer"])
    assert made.exit_code == 0
    files = {name: str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")}
    flags = ["--tls-certificate", files["server.pem"], "--tls-key", files["server.key"]]
    pair = {"certificate": files["client.pem"], "key": files["client.key"]}
    with (
        WarmServer(arguments=[*flags, "--tls-client-ca", files["ca.pem"]]) as server,
        Sidecar(server.address, **pair, ca_file=files["ca.pem"]) as hall,
    ):
        assert hall.http.get("/healthz/ready").status_code == 200
        for path in GUARDED:
            assert hall.http.get(path).status_code == 401, path
            assert hall.http.get(path, headers={"authorization": "Bearer hmt_made_up"}).status_code == 401, path
        token = TokenFile(Path(server.data_folder)).create("viewer", role="viewer")
        assert hall.http.get("/v1/sessions", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_no_token_is_in_the_log(house: House) -> None:
    with Sidecar(house.server.address, token=house.of["sidecar"]) as chatty:
        chatty.http.get("/v1/sessions", headers={"authorization": f"Bearer {house.of['operator']}"})
        chatty.http.get("/v1/sessions", headers={"authorization": "Bearer hmt_a_wrong_one"})
        log = chatty.end()
    for token in (*house.of.values(), "hmt_a_wrong_one"):
        assert token not in log


def test_the_overview_names_the_callers_sessions_alone(house: House) -> None:
    for who, named in (("viewer", {"shared"}), ("stranger", {"shared", "secret"})):
        (device,) = house.get("/v1/overview", who).json()["devices"]
        assert {held["session_id"] for held in device["sessions"]} == named
        with Events(house.sidecar, "?overview=true", token=house.of[who]) as events:
            eventually(lambda events=events: events.named("overview"), "an overview")  # type: ignore[misc]
            (device,) = events.named("overview")[0]["devices"]
            assert {held["session_id"] for held in device["sessions"]} == named
