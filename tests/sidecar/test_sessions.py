"""Sessions by REST, against a real server."""

import math
from typing import Any

import httpx2
import pytest
from tests.sidecar.conftest import Sidecar, push

from hermosis_client import Client, Recipe, Session

SPEC: dict[str, Any] = {
    "layout": {"tensors": [{"name": "weight", "shape": [4, 3]}, {"name": "scale", "shape": [], "dtype": "FLOAT16"}]},
    "optimizer": {"recipe": {"name": "sgd", "parameters": {"lr": 0.5, "nesterov": False}}},
    "consistency": {"mode": "ASYNC", "workers": 3},
    "display_name": "by REST",
    "labels": {"team": "blue"},
}


def make(sidecar: Sidecar, spec: dict[str, Any], session_id: str = "") -> dict[str, Any]:
    response = sidecar.http.post("/v1/sessions", json={"session_id": session_id, "spec": spec})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def test_session_made_by_rest_is_what_was_asked_for_and_waits_for_a_worker(sidecar: Sidecar, client: Client) -> None:
    made = make(sidecar, SPEC)
    assert made["status"] == "CREATING"
    assert made["parameter_count"] == 13
    spec = made["spec"]
    assert spec["layout"]["tensors"][0] == {"name": "weight", "shape": [4, 3], "dtype": "FLOAT32"}
    assert spec["layout"]["tensors"][1] == {"name": "scale", "shape": [], "dtype": "FLOAT16"}
    assert (spec["consistency"]["mode"], spec["consistency"]["workers"]) == ("ASYNC", 3)
    assert spec["parameters_on"] == "SERVER"
    assert spec["display_name"] == "by REST"
    assert spec["labels"] == {"team": "blue"}
    with client.session(made["session_id"]) as session:
        info = session.info()
        assert isinstance(info.optimizer, Recipe)
        assert info.optimizer.parameters["lr"] == 0.5
        assert made["layout_digest"] == session.layout.digest.hex()
        session.initialise({"weight": [[1.0] * 3] * 4, "scale": 2.0})
    assert sidecar.http.get(f"/v1/sessions/{made['session_id']}").json()["status"] == "READY"
    sidecar.http.delete(f"/v1/sessions/{made['session_id']}")


def test_session_made_from_a_whole_hamiltonian_tells_it_back(sidecar: Sidecar) -> None:
    hamiltonian = {"learning_rate": 0.1, "thermal_profile": {"exponential": {"momentum_retention": 0.8}}}
    made = make(sidecar, {**SPEC, "optimizer": {"hamiltonian": hamiltonian}})
    assert made["spec"]["optimizer"]["recipe"] is None
    told = made["spec"]["optimizer"]["hamiltonian"]  # with the defaults filled in
    assert {name: told[name] for name in hamiltonian} == hamiltonian
    sidecar.http.delete(f"/v1/sessions/{made['session_id']}")


def test_repeating_the_making_of_a_named_session_makes_no_second_one(sidecar: Sidecar) -> None:
    for _ in range(2):
        sidecar.http.post("/v1/sessions", json={"session_id": "made-twice", "spec": SPEC})
    listed = sidecar.http.get("/v1/sessions").json()["sessions"]
    assert [each["session_id"] for each in listed].count("made-twice") == 1
    sidecar.http.delete("/v1/sessions/made-twice")


def test_list_shows_sessions_in_order_with_their_newest_reading(
    sidecar: Sidecar, client: Client, session: Session
) -> None:
    push(session, 4.0, 2.0)
    with client.create_session({"w": (5,)}, "sgd") as later:
        listed = sidecar.http.get("/v1/sessions").json()["sessions"]
        places = {each["session_id"]: place for place, each in enumerate(listed)}
        assert places[session.session_id] < places[later.session_id]
        shown = listed[places[session.session_id]]
        assert shown["display_name"] == "two tensors"
        assert shown["optimizer"]["recipe"]["name"] == "adamw"
        assert shown["step"] == 2
        assert shown["reading"]["session_id"] == session.session_id
        assert listed[places[later.session_id]]["reading"] is None
        newest = sidecar.http.get("/v1/sessions", params={"limit": 1, "sort": "-create_time"}).json()["sessions"]
        assert [each["session_id"] for each in newest] == [later.session_id]
        creating = sidecar.http.get("/v1/sessions", params={"status": "CREATING"}).json()["sessions"]
        assert later.session_id in {each["session_id"] for each in creating}
        assert session.session_id not in {each["session_id"] for each in creating}


def test_list_tells_the_last_step_of_a_session_that_has_come_to_rest(server: Any, session: Session) -> None:
    push(session, 4.0, 2.0, 1.0)
    with Sidecar(server.address) as late:  # It was not there to see the steps.
        listed = late.http.get("/v1/sessions").json()["sessions"]
        shown = next(each for each in listed if each["session_id"] == session.session_id)
        assert shown["reading"]["step"] == 3
        assert shown["reading"]["energies"]["loss"] == 1.0


def test_pause_resume_and_close_reach_the_server(sidecar: Sidecar, client: Client) -> None:
    session = client.create_session({"w": (2,)}, "sgd")
    session.initialise({"w": [1.0, 2.0]})
    path = f"/v1/sessions/{session.session_id}"
    assert sidecar.http.post(f"{path}/pause").json()["status"] == "PAUSED"
    assert session.info().status.name == "PAUSED"
    assert sidecar.http.post(f"{path}/pause").json()["status"] == "PAUSED"
    assert sidecar.http.post(f"{path}/resume").json()["status"] == "READY"
    push(session, 1.0)
    shown = sidecar.http.get(path).json()
    assert shown["step"] == 1
    assert shown["workers"] == 1
    assert sidecar.http.delete(path).json()["status"] == "CLOSED"
    assert sidecar.http.get(path).status_code == 404


def test_capabilities_and_recipes_are_the_servers(sidecar: Sidecar, client: Client) -> None:
    capabilities = client.capabilities()
    shown = sidecar.http.get("/v1/capabilities").json()
    assert shown["device"] == capabilities.device
    assert shown["limits"]["max_sessions"] == capabilities.limits.max_sessions
    assert set(shown["dtypes"]) == {"FLOAT32", "FLOAT16", "BFLOAT16"}
    assert "BARRIER" in shown["consistency_modes"]
    recipes = {each["name"]: each for each in sidecar.http.get("/v1/recipes").json()["recipes"]}
    assert set(recipes) == {recipe.name for recipe in client.recipes()}
    for recipe in client.recipes():
        for told, shown in zip(recipe.parameters, recipes[recipe.name]["parameters"], strict=True):
            assert shown["name"] == told.name
            assert shown["kind"] == told.kind.name
            assert shown["default_value"] == told.default or not math.isfinite(float(told.default or "nan"))
            assert shown["minimum"] == (told.minimum if math.isfinite(told.minimum) else None)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_that_fetch_from_other_hosts_are_not_there(sidecar: Sidecar, page: str) -> None:
    response: httpx2.Response = sidecar.http.get(page)
    assert response.status_code == 404
