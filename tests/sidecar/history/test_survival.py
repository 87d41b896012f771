"""Real servers and sidecars that are killed, restarted and left alone: what was measured is there again."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.forking import WarmServer
from tests.sidecar.conftest import Sidecar, eventually, push
from tests.sidecar.history.conftest import QUICK, Archive, a_session

from hermosis_client import Client, Durability


def history(sidecar: Sidecar, session_id: str, **query: int) -> list[tuple[int, float]]:
    """Step and loss of each reading."""
    answer = sidecar.http.get(f"/v1/sessions/{session_id}/telemetry/history", params=query)
    assert answer.status_code == 200, answer.text
    return [(reading["step"], reading["energies"]["loss"]) for reading in answer.json()["readings"]]


def kinds(sidecar: Sidecar, session_id: str) -> list[str]:
    answer = sidecar.http.get(f"/v1/sessions/{session_id}/events")
    assert answer.status_code == 200, answer.text
    return [event["kind"] for event in answer.json()["events"]]


@pytest.fixture
def own(tmp_path: Path) -> Archive:
    """Of sidecars that are killed."""
    return Archive(tmp_path / "kept")


@pytest.fixture
def start(own: Archive) -> Iterator[Callable[..., Sidecar]]:
    """Starts a sidecar over the folder, and ends it with the test."""
    started: list[Sidecar] = []

    def start(server: WarmServer, **settings: str) -> Sidecar:
        sidecar = Sidecar(server.address, history_folder=str(own.folder), live_interval_s="0", **QUICK, **settings)
        started.append(sidecar)
        return sidecar

    yield start
    for sidecar in started:
        sidecar.__exit__()


def test_curve_and_events_are_found_again_after_both_were_killed(
    tmp_path: Path, start: Callable[..., Sidecar], own: Archive
) -> None:
    with WarmServer(data_folder=tmp_path / "data") as server, Client(server.address) as client:
        sidecar = start(server)
        push(a_session(client, "run", durability=Durability(mode="journal")), 5.0, 4.0, 3.0)
        own.awaits("run", 1, 2, 3)
        eventually(lambda: kinds(sidecar, "run") == ["created", "ready"], "two events")
        sidecar.kill()
    with WarmServer(data_folder=tmp_path / "data") as server, Client(server.address) as client:
        sidecar = start(server)
        assert history(sidecar, "run") == [(1, 5.0), (2, 4.0), (3, 3.0)], "the server itself remembers no reading"
        push(client.session("run"), 2.0, 1.0)
        assert history(sidecar, "run") == [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.0), (5, 1.0)]
        assert history(sidecar, "run", after_step=2, before_step=5) == [(3, 3.0), (4, 2.0)]
        own.awaits("run", 1, 2, 3, 4, 5)
        eventually(
            lambda: kinds(sidecar, "run") == ["created", "ready", "server_restarted"], "the restart to be noticed"
        )


def test_steps_taken_while_no_sidecar_was_there_are_asked_for_later(
    server: WarmServer, client: Client, start: Callable[..., Sidecar], own: Archive
) -> None:
    with a_session(client, "alone") as session:
        push(session, 9.0, 8.0)
        sidecar = start(server)
        own.awaits("alone", 1, 2)
        push(session, 7.0)
        own.awaits("alone", 1, 2, 3)
        sidecar.kill()
        push(session, 6.0, 5.0)
        start(server)
        own.awaits("alone", 1, 2, 3, 4, 5)


def test_session_made_anew_has_no_old_curve_and_a_closed_one_has_its_last(
    shared: Sidecar, client: Client, archive: Archive
) -> None:
    with a_session(client, "phoenix") as session:
        push(session, 9.0, 8.0, 7.0)
        archive.awaits("phoenix", 1, 2, 3)
    with a_session(client, "phoenix") as session:
        assert history(shared, "phoenix") == []
        push(session, 1.0, 2.0, 3.0, 4.0)  # One more than before: a step that was not there before tells nothing.
        assert history(shared, "phoenix") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
        archive.awaits("phoenix", 1, 2, 3, 4)
        eventually(lambda: kinds(shared, "phoenix") == ["created", "ready"], "events of the new one alone")
    assert history(shared, "phoenix") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    eventually(lambda: kinds(shared, "phoenix")[-1] == "closed", "the end to be noticed")
    assert shared.http.get("/v1/sessions/never-there/events").status_code == 404


def test_curve_of_a_restored_session_goes_on_from_the_snapshot(
    shared: Sidecar, client: Client, archive: Archive
) -> None:
    with a_session(client, "back", durability=Durability(mode="snapshot")) as session:
        push(session, 9.0, 8.0)
        session.snapshot()
        push(session, 7.0, 6.0, 5.0)
        archive.awaits("back", 1, 2, 3, 4, 5)
        session.restore()
        push(client.session("back"), 3.0)
        archive.awaits("back", 1, 2, 3)
        assert history(shared, "back") == [(1, 9.0), (2, 8.0), (3, 3.0)]
        eventually(lambda: "restored" in kinds(shared, "back"), "the restore to be noticed")


def test_what_an_operator_does_becomes_an_event(shared: Sidecar, client: Client) -> None:
    with a_session(client, "busy") as session:
        eventually(lambda: kinds(shared, "busy") == ["created", "ready"], "the beginning")
        session.pause()
        eventually(lambda: kinds(shared, "busy")[-1] == "paused", "the pause")
        session.resume()
        session.update(lr_scale=0.5, display_name="slow")
        eventually(lambda: kinds(shared, "busy")[-2:] == ["resumed", "edited"], "the edit")
        last = shared.http.get("/v1/sessions/busy/events").json()["events"][-1]
        assert last["text"] == "lr_scale: 1.0 → 0.5; display_name:  → slow"
        assert last["session_id"] == "busy"


def test_sidecar_keeps_it_in_postgresql_where_it_is_told_to(
    server: WarmServer, client: Client, postgres_url: str
) -> None:
    settings = {"history_url": postgres_url, "live_interval_s": "0", **QUICK}
    with Sidecar(server.address, **settings) as sidecar, a_session(client, "elephant") as session:
        push(session, 3.0, 2.0)
        eventually(lambda: kinds(sidecar, "elephant") == ["created", "ready"], "the beginning")
    with Sidecar(server.address, **settings) as sidecar:
        eventually(lambda: kinds(sidecar, "elephant")[-1] == "closed", "the end to be noticed")
        assert history(sidecar, "elephant") == [(1, 3.0), (2, 2.0)]


def test_history_that_is_turned_off_leaves_what_the_server_holds(
    server: WarmServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Sidecar(server.address, history_folder="") as sidecar, a_session(client, "brief") as session:
        push(session, 2.0, 1.0)
        assert history(sidecar, "brief") == [(1, 2.0), (2, 1.0)]
        assert kinds(sidecar, "brief") == []
        assert sidecar.http.get("/v1/sessions/brief/telemetry/export").text.count("\n") == 3
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "hermosis_sidecar", "--port", "0", "--history-folder", f"{tmp_path}/file/below"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "cannot be made (Not a directory); name another one by --history-folder" in done.stderr
    assert "Traceback" not in done.stderr
