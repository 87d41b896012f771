"""What was measured is shown to those who may see the session, and of closed ones to who has what the sidecar has."""

from collections.abc import Iterator

import pytest
from tests.forking import WarmServer
from tests.sidecar.conftest import Events, eventually, push
from tests.sidecar.history.conftest import QUICK, a_session
from tests.sidecar.test_forwarding import House

from hermosis_client import Client


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Two tenants that call a session alike, and one of ours that is closed."""
    with WarmServer(arguments=["--require-token"]) as server:
        house = House(server, timeout_s="2", **QUICK)
        with (
            house.sidecar,
            Client(server.address, token=house.of["operator"]) as ours,
            Client(server.address, token=house.of["stranger"]) as theirs,
        ):
            push(a_session(ours, "shared"), 1.0, 2.0)
            push(a_session(theirs, "shared"), 30.0)
            push(a_session(theirs, "secret"), 40.0)
            with a_session(ours, "gone") as gone:
                push(gone, 5.0)
                path = "/v1/sessions/gone/events"
                eventually(lambda: house.get(path, "viewer").json()["events"], "the session to be noticed")
            eventually(lambda: house.get(path, "sidecar").json()["events"][-1]["kind"] == "closed", "its end")
            yield house


def losses(house: House, session_id: str, who: str) -> list[float]:
    answer = house.get(f"/v1/sessions/{session_id}/telemetry/history", who)
    assert answer.status_code == 200, answer.text
    return [reading["energies"]["loss"] for reading in answer.json()["readings"]]


def test_sessions_of_one_name_are_not_mixed_up(house: House) -> None:
    assert losses(house, "shared", "viewer") == [1.0, 2.0]
    assert losses(house, "shared", "stranger") == [30.0]
    assert [each["kind"] for each in house.get("/v1/sessions/shared/events", "viewer").json()["events"]][:1] == [
        "created"
    ]
    assert house.get("/v1/sessions/shared/events", "stranger").json() == {"events": []}


@pytest.mark.parametrize("path", ["telemetry/history", "telemetry/export", "events"])
def test_closed_session_is_shown_to_who_has_the_sidecars_own_token_alone(house: House, path: str) -> None:
    assert house.get(f"/v1/sessions/gone/{path}", "sidecar").status_code == 200
    for who in ("operator", "viewer", "stranger"):
        refused = house.get(f"/v1/sessions/gone/{path}", who)
        assert (refused.status_code, refused.json()["reason"]) == (404, "SessionNotFound"), who
    assert house.get(f"/v1/sessions/gone/{path}").status_code == 401
    assert house.get(f"/v1/sessions/secret/{path}", "sidecar").status_code == 404


def test_who_comes_back_is_told_of_what_they_may_see_alone(house: House) -> None:
    def told(who: str) -> list[tuple[str, float]]:
        """Up to the newest step of our own session; the stranger's sessions are another's affair."""
        with Events(house.sidecar, token=house.of[who], last_event_id=0) as events:
            eventually(lambda: {"reachable": True} in events.named("server"), "the stream to begin")
            for name, loss in (("operator", 9.0), ("stranger", 90.0)):
                with Client(house.server.address, token=house.of[name]) as client:
                    push(client.session("shared"), loss)
            end = 90.0 if who == "stranger" else 9.0
            eventually(lambda: [each for each in events.named("reading") if each["energies"]["loss"] == end], "a step")
            return [(each["session_id"], each["energies"]["loss"]) for each in events.named("reading")]

    assert told("viewer") == [("shared", 1.0), ("shared", 2.0), ("shared", 9.0)]
    assert told("sidecar")[:3] == [("shared", 1.0), ("shared", 2.0), ("gone", 5.0)]
    assert told("stranger") == [("shared", 90.0)]


def test_event_is_told_to_those_who_may_see_the_session(house: House) -> None:
    with (
        Events(house.sidecar, token=house.of["viewer"]) as ours,
        Events(house.sidecar, token=house.of["stranger"]) as theirs,
        Events(house.sidecar, token=house.of["sidecar"]) as own,
        Client(house.server.address, token=house.of["operator"]) as client,
    ):
        for events in (ours, theirs, own):
            eventually(lambda events=events: {"reachable": True} in events.named("server"), "the stream")  # type: ignore[misc]
        client.session("shared").pause()
        for events in (ours, own):
            paused = eventually(lambda events=events: events.named("event"), "the event")  # type: ignore[misc]
            assert [(each["session_id"], each["kind"]) for each in paused] == [("shared", "paused")]
        client.session("shared").resume()
        eventually(lambda: len(ours.named("event")) == 2, "the other event")
        assert theirs.named("event") == []


def test_while_the_server_is_away_who_has_the_sidecars_own_token_still_sees_what_was_measured(house: House) -> None:
    """Last, since it ends the server."""
    before = losses(house, "shared", "sidecar")
    house.server.close()
    assert losses(house, "shared", "sidecar") == before
    away = house.get("/v1/sessions/shared/telemetry/history", "viewer")
    assert (away.status_code, away.json()["reason"]) == (503, "ConnectionFailed")
