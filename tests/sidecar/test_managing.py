"""Everything an operator does with a session, by REST against a real server."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.sidecar.conftest import Sidecar, eventually, push

from hermosis_client import Aggregation, Client, Durability, Session

LAYOUT = {"tensors": [{"name": "w", "shape": [3]}]}
SGD = {"recipe": {"name": "sgd", "parameters": {"lr": 0.1}}}


def path(session: Session) -> str:
    return f"/v1/sessions/{session.session_id}"


def refused(response: Any, status: int, reason: str, field: str) -> str:
    """The detail of a refusal that names a field."""
    assert response.status_code == status, response.text
    problem = response.json()
    assert (problem["reason"], problem["field"]) == (reason, field)
    return str(problem["detail"])


# --- making


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        (
            {"optimizer": {"recipe": {"name": "sgd", "parameters": {"lr": -1}}}},
            "InvalidHyperparameter",
            "spec.optimizer.recipe.parameters.lr",
        ),
        ({"optimizer": {"recipe": {"name": "none"}}}, "InvalidHyperparameter", "spec.optimizer.recipe.name"),
        (
            {"optimizer": {"hamiltonian": {"learning_rate": -1}}},
            "InvalidHyperparameter",
            "spec.optimizer.hamiltonian.learning_rate",
        ),
        ({"optimizer": {"hamiltonian": {"learning": 1}}}, "InvalidRequest", "spec.optimizer.hamiltonian"),
        ({"labels": {"a" * 300: "b"}}, "InvalidRequest", "spec.labels"),
        ({"display_name": "\n"}, "InvalidRequest", "spec.display_name"),
        ({"consistency": {"workers": 2**31}}, "InvalidRequest", "spec.consistency.workers"),
        ({"durability": {"mode": "TAPE"}}, "InvalidRequest", "spec.durability.mode"),
        (
            {"durability": {"mode": "JOURNAL", "snapshot_every_s": -1}},
            "InvalidRequest",
            "spec.durability.snapshot_every_s",
        ),
        ({"layout": {"tensors": []}}, "InvalidRequest", "spec.layout.tensors"),
    ],
)
def test_a_fault_of_a_new_session_is_named_where_the_caller_wrote_it(
    sidecar: Sidecar, changed: dict[str, Any], reason: str, field: str
) -> None:
    spec = {"layout": LAYOUT, "optimizer": SGD} | changed
    refused(sidecar.http.post("/v1/sessions", json={"spec": spec}), 422, reason, field)


def test_durability_is_taken_and_shown(sidecar: Sidecar) -> None:
    durability = {"mode": "JOURNAL", "snapshot_every_steps": 7, "snapshot_every_s": 60.0}
    spec = {"layout": LAYOUT, "optimizer": SGD, "durability": durability}
    made = sidecar.http.post("/v1/sessions", json={"session_id": "lasting", "spec": spec}).json()
    assert made["spec"]["durability"] == durability
    [shown] = sidecar.http.get("/v1/sessions", params={"search": "lasting"}).json()["sessions"]
    assert (shown["durability_mode"], shown["consistency_mode"]) == ("JOURNAL", "BARRIER")
    assert (shown["expected_workers"], shown["lr_scale"], shown["durable_step"]) == (1, 1.0, 0)
    assert shown["device"] == "cpu" or shown["device"].startswith("cuda")
    assert shown["device_bytes"] + shown["host_bytes"] > 0
    sidecar.http.delete("/v1/sessions/lasting")


# --- listing


@pytest.fixture(scope="module")
def herd(client: Client) -> Any:
    """Five sessions of one label, in which each order differs."""
    sessions = [
        client.create_session(
            {"w": (2,)}, "sgd", session_id=f"herd-{letter}", labels={"herd": "yes", "even": str(place % 2 == 0)}
        )
        for place, letter in enumerate("cadbe")
    ]
    for session in sessions[:3]:
        session.initialise({"w": [1.0, 2.0]})
    push(sessions[1], 1.0, 2.0)
    push(sessions[2], 1.0)
    yield sessions
    for session in sessions:
        session.close()


def listed(sidecar: Sidecar, **asked: Any) -> list[str]:
    response = sidecar.http.get("/v1/sessions", params={"label": "herd=yes"} | asked)
    assert response.status_code == 200, response.text
    return [each["session_id"].removeprefix("herd-") for each in response.json()["sessions"]]


def test_the_list_is_sorted_as_asked(sidecar: Sidecar, herd: Any) -> None:
    assert listed(sidecar) == listed(sidecar, sort="create_time") == list("cadbe")
    assert listed(sidecar, sort="-create_time") == list("ebdac")
    assert listed(sidecar, sort="session_id") == list("abcde")
    assert listed(sidecar, sort="-step")[:2] == ["a", "d"]
    assert listed(sidecar, sort="step")[-2:] == ["d", "a"]
    assert sidecar.http.get("/v1/sessions", params={"sort": "loss"}).status_code == 422


def test_the_list_is_filtered_by_labels_status_and_text(sidecar: Sidecar, herd: Any) -> None:
    assert listed(sidecar, label=["herd=yes", "even=True"]) == list("cde")
    assert listed(sidecar, status="CREATING") == list("be")
    assert listed(sidecar, search="HERD-a") == ["a"]
    assert listed(sidecar, label=["herd=no"]) == []
    for label in ("herd", "=yes"):
        refused(sidecar.http.get("/v1/sessions", params={"label": label}), 422, "InvalidRequest", "label")
    twice = sidecar.http.get("/v1/sessions", params={"label": ["herd=yes", "herd=no"]})
    refused(twice, 422, "InvalidRequest", "label")


@pytest.mark.parametrize("sort", ["create_time", "-create_time", "session_id", "step", "-step"])
def test_pages_follow_one_another(sidecar: Sidecar, herd: Any, sort: str) -> None:
    asked: dict[str, Any] = {"label": "herd=yes", "sort": sort, "limit": 2}
    seen: list[str] = []
    for size in (2, 2, 1):
        page = sidecar.http.get("/v1/sessions", params=asked).json()
        assert len(page["sessions"]) == size
        seen += [each["session_id"].removeprefix("herd-") for each in page["sessions"]]
        asked["page_token"] = page["next_page_token"]
    assert page["next_page_token"] == ""
    assert seen == listed(sidecar, sort=sort)
    foreign = sidecar.http.get("/v1/sessions", params={"page_token": "Zm9v"})
    refused(foreign, 422, "InvalidRequest", "page_token")


# --- editing


def test_an_edit_changes_what_it_names_and_nothing_else(sidecar: Sidecar, session: Session) -> None:
    before = sidecar.http.get(path(session)).json()
    after = sidecar.http.patch(path(session), json={"lr_scale": 0.25, "labels": {"a": "b"}}).json()
    assert (after["lr_scale"], after["spec"]["labels"]) == (0.25, {"a": "b"})
    assert after["spec"]["display_name"] == before["spec"]["display_name"] == "two tensors"
    assert after["etag"] != before["etag"]
    renamed = sidecar.http.patch(path(session), json={"display_name": "", "labels": {}}).json()
    assert (renamed["spec"]["display_name"], renamed["spec"]["labels"], renamed["lr_scale"]) == ("", {}, 0.25)


def test_a_thermal_profile_is_edited_in_protobufs_json(sidecar: Sidecar, client: Client) -> None:
    with client.create_session({"w": (2,)}, "hermosis", parameters_on="worker") as session:
        edit = {"thermal_profile": {"exponential": {"momentum_retention": 0.75}}}
        shown = sidecar.http.patch(path(session), json=edit).json()
        told = shown["spec"]["optimizer"]["hamiltonian"]["thermal_profile"]
        assert told["exponential"]["momentum_retention"] == 0.75


def test_the_consistency_of_a_running_session_is_edited(sidecar: Sidecar, session: Session) -> None:
    edit = {"mode": "QUORUM", "workers": 3, "quorum": 2, "deadline_s": 1.5, "late": "CARRY", "max_staleness": 4}
    after = sidecar.http.patch(path(session), json={"consistency": edit}).json()["spec"]["consistency"]
    assert after == edit | {"local_steps": 0, "staleness_weight": "AS_NOW", "lease_s": 0.0}
    back = sidecar.http.patch(path(session), json={"consistency": {}}).json()["spec"]["consistency"]
    assert (back["mode"], back["workers"], back["deadline_s"], back["late"]) == ("BARRIER", 1, 0.0, "REFUSE")


@pytest.mark.parametrize(
    ("more", "edit", "field"),
    [
        ({}, {"workers": 2, "mode": "QUORUM", "quorum": 3}, "consistency.quorum"),
        ({}, {"lease_s": -1}, "consistency.lease_s"),
        ({}, {"mode": "ASYNC", "late": "CARRY"}, "consistency.late"),
        ({}, {"mode": "SOMEHOW"}, "consistency.mode"),
        ({}, {"local_steps": 3}, "consistency.local_steps"),
        # What stays of the session does not go with it.
        ({"aggregation": Aggregation(rule="krum", byzantine=2)}, {"workers": 4}, "consistency.workers"),
        ({"parameters_on": "worker"}, {"lease_s": 3}, "consistency"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_fault_of_a_new_consistency_is_named_where_the_caller_wrote_it(
    sidecar: Sidecar, client: Client, more: dict[str, Any], edit: dict[str, Any], field: str
) -> None:
    with client.create_session({"w": (2,)}, "sgd", workers=5, **more) as session:
        refused(sidecar.http.patch(path(session), json={"consistency": edit}), 422, "InvalidRequest", field)
        assert session.info().consistency.workers == 5


def test_an_edit_based_on_an_older_session_is_refused_and_changes_nothing(sidecar: Sidecar, session: Session) -> None:
    for quoted in ("{}", '"{}"'):
        given = {"If-Match": quoted.format(sidecar.http.get(path(session)).json()["etag"])}
        assert sidecar.http.patch(path(session), json={"lr_scale": 0.5}, headers=given).status_code == 200
        second = sidecar.http.patch(path(session), json={"lr_scale": 0.125}, headers=given)
        refused(second, 409, "PayloadMismatch", "If-Match")
    assert sidecar.http.get(path(session)).json()["lr_scale"] == 0.5
    assert sidecar.http.patch(path(session), json={"lr_scale": 1}, headers={"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize(
    ("edit", "reason", "field"),
    [
        ({"lr_scale": -1}, "InvalidRequest", "lr_scale"),
        ({"lr_scale": 1e400}, "InvalidRequest", "lr_scale"),
        ({"labels": {"": "b"}}, "InvalidRequest", "labels"),
        ({"thermal_profile": {"power": {"exponent": 1}}}, "InvalidHyperparameter", "thermal_profile.power.age"),
        ({"thermal_profile": {"linear": {"rate": -1000}}}, "InvalidHyperparameter", "thermal_profile"),
        ({"thermal_profile": {"warm": {}}}, "InvalidRequest", "thermal_profile"),
        ({"step": 3}, "InvalidRequest", "step"),
    ],
)
def test_a_fault_of_an_edit_is_named_where_the_caller_wrote_it(
    sidecar: Sidecar, session: Session, edit: dict[str, Any], reason: str, field: str
) -> None:
    body = str(edit).replace("'", '"').replace("inf", "1e400")
    response = sidecar.http.patch(path(session), content=body, headers={"content-type": "application/json"})
    refused(response, 422, reason, field)


@pytest.mark.parametrize("edit", [{}, {"lr_scale": None, "labels": None}])
def test_an_edit_of_nothing_is_refused(sidecar: Sidecar, session: Session, edit: dict[str, Any]) -> None:
    response = sidecar.http.patch(path(session), json=edit)
    assert response.status_code == 422
    assert "lr_scale, thermal_profile, display_name, labels and consistency" in response.json()["detail"]


# --- snapshots, forks, workers


@pytest.fixture
def kept(client: Client) -> Any:
    """A session on disk, at step 2."""
    durability = Durability(mode="snapshot", snapshot_every_s=1e6)
    with client.create_session({"w": (3,)}, "sgd", durability=durability) as session:
        session.initialise({"w": np.ones(3, np.float32)})
        push(session, 1.0, 2.0)
        yield session


def test_a_snapshot_is_written_listed_and_gone_back_to(sidecar: Sidecar, kept: Session) -> None:
    written = sidecar.http.post(f"{path(kept)}/snapshot").json()
    assert (written["step"], bytes.fromhex(written["state_digest"])) == (2, kept.digest())
    push(kept, 3.0)
    held = sidecar.http.get(f"{path(kept)}/snapshots").json()["snapshots"]
    assert held[0]["snapshot_id"] == written["snapshot_id"]
    assert (held[0]["step"], held[0]["generation"]) == (2, 1)
    assert held[0]["size_bytes"] > 0
    assert held[0]["time"].startswith("20")
    for body in ({"json": {"snapshot_id": written["snapshot_id"]}}, {}):
        back = sidecar.http.post(f"{path(kept)}/restore", **body)
        assert (back.status_code, back.json()["step"]) == (200, 2)
    assert back.json()["generation"] == 3
    missing = sidecar.http.post(f"{path(kept)}/restore", json={"snapshot_id": "9-9"})
    refused(missing, 422, "InvalidRequest", "snapshot_id")


def test_a_session_that_is_not_kept_says_so(sidecar: Sidecar, session: Session) -> None:
    refused(sidecar.http.post(f"{path(session)}/snapshot"), 422, "InvalidRequest", "")
    assert sidecar.http.get(f"{path(session)}/snapshots").json() == {"snapshots": []}


def test_a_fork_goes_on_from_the_present_state(sidecar: Sidecar, client: Client, kept: Session) -> None:
    named = sidecar.http.post(f"{path(kept)}/fork", json={"session_id": "heir"})
    assert (named.status_code, named.json()["session_id"], named.json()["step"]) == (201, "heir", 2)
    assert sidecar.http.post(f"{path(kept)}/fork", json={"session_id": "heir"}).status_code == 409
    other = {"optimizer": {"recipe": {"name": "sgd", "parameters": {"lr": 0.5}}}}
    changed = sidecar.http.post(f"{path(kept)}/fork", json=other).json()
    assert changed["spec"]["optimizer"]["recipe"]["parameters"]["lr"] == 0.5
    plain = sidecar.http.post(f"{path(kept)}/fork").json()
    for made in (named.json(), changed, plain):
        with client.session(made["session_id"]) as fork:
            assert dict(fork.pull())["w"].tolist() == dict(kept.pull())["w"].tolist()
            fork.close()
    wrong = {"optimizer": {"recipe": {"name": "sgd", "parameters": {"lr": -1}}}}
    answer = sidecar.http.post(f"{path(kept)}/fork", json=wrong)
    refused(answer, 422, "InvalidHyperparameter", "optimizer.recipe.parameters.lr")


def test_workers_are_shown_with_where_they_stand(sidecar: Sidecar, session: Session) -> None:
    with session.worker("ann") as worker:
        worker.exchange({"weight": np.ones((2, 3)), "scale": 0.0}, loss=1.0)
        [shown] = sidecar.http.get(f"{path(session)}/workers").json()["workers"]
        assert (shown["worker_id"], shown["connected"], shown["next_sequence"]) == ("ann", True, 2)
        assert (shown["base_step"], shown["staleness"], shown["received_bytes"]) == (0, 0, 28)
        assert shown["last_seen_time"].startswith("20")


def test_workers_are_shown_with_what_they_weigh_and_whether_a_round_waits_for_them(
    sidecar: Sidecar, client: Client
) -> None:
    def shown(*names: str) -> list[tuple[Any, ...]]:
        workers = sidecar.http.get(f"{path(session)}/workers").json()["workers"]
        return [tuple(worker[name] for name in ("worker_id", *names)) for worker in workers]

    with (
        client.create_session({"w": (2,)}, "sgd", workers=2) as session,
        ThreadPoolExecutor(1) as pool,
        session.worker("ann") as ann,
        session.worker("bob") as bob,
    ):
        session.initialise({"w": [1.0, 2.0]})
        waiting = pool.submit(ann.exchange, {"w": np.ones(2)}, sample_count=3)
        bob.exchange({"w": np.ones(2)}, sample_count=1)
        waiting.result(30)
        assert shown("influence", "awaited") == [("ann", 0.75, False), ("bob", 0.25, False)]
        waiting = pool.submit(ann.exchange, {"w": np.ones(2)})
        eventually(lambda: shown("awaited") == [("ann", False), ("bob", True)], "bob to be waited for")
        bob.exchange({"w": np.ones(2)})
        waiting.result(30)
        assert shown("influence", "awaited") == [("ann", 0.5, False), ("bob", 0.5, False)]


@pytest.mark.parametrize(
    ("method", "tail"),
    [
        ("PATCH", ""),
        ("POST", "/snapshot"),
        ("GET", "/snapshots"),
        ("POST", "/restore"),
        ("POST", "/fork"),
        ("GET", "/workers"),
    ],
)
def test_a_session_that_is_not_there_is_not_found(sidecar: Sidecar, method: str, tail: str) -> None:
    body = {"json": {"lr_scale": 1}} if method == "PATCH" else {}
    response = sidecar.http.request(method, f"/v1/sessions/never-was{tail}", **body)
    refused(response, 404, "SessionNotFound", "")
