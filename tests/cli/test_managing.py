"""Everything an operator does with a session, on the command line against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.forking import WarmServer
from typer.testing import CliRunner, Result

from hermosis_client import Client, Durability, Session
from hermosis_server.cli.root import app


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    with WarmServer(data_folder=tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture
def session(server: WarmServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """READY at step 1, made of two numbers."""
    monkeypatch.setenv("HERMOSIS_ADDRESS", server.address)
    durability = Durability(mode="snapshot", snapshot_every_s=1e6)
    with (
        Client(server.address) as client,
        client.create_session({"w": (2,)}, "adam", session_id="managed", durability=durability) as session,
    ):
        session.initialise({"w": np.ones(2, np.float32)})
        with session.worker("ann") as worker:
            worker.exchange({"w": np.ones(2, np.float32)}, loss=1.0)
        yield session


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sessions", *arguments])


def facts(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_edit_changes_what_it_names(session: Session) -> None:
    before = facts("show", "managed")
    edited = facts("edit", "managed", "--lr-scale", "0.5", "--name", "the run", "--label", "a=b", "--label", "c=d=e")
    assert (edited["lr_scale"], edited["display_name"]) == (0.5, "the run")
    assert edited["labels"] == {"a": "b", "c": "d=e"}
    assert edited["optimizer"] == before["optimizer"]
    warmer = facts("edit", "managed", "--thermal", '{"exponential": {"momentum_retention": 0.5}}')
    profile = warmer["optimizer"]["hamiltonian"]["thermal_profile"]
    assert profile["exponential"]["momentum_retention"] == 0.5
    assert warmer["lr_scale"] == 0.5
    assert "managed" in run("edit", "managed", "--name", "").stdout
    assert session.info().display_name == ""


def test_an_edit_based_on_an_older_session_is_refused(session: Session) -> None:
    etag = session.info().etag
    assert facts("edit", "managed", "--lr-scale", "0.5", "--etag", etag)["lr_scale"] == 0.5
    late = run("edit", "managed", "--lr-scale", "0.25", "--etag", etag)
    assert late.exit_code == 1
    assert "PayloadMismatch" in late.output
    assert session.info().lr_scale == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--lr-scale"),
        (["--thermal", "warm"], "JSON"),
        (["--thermal", "[]"], "object"),
        (["--thermal", '{"warm": {}}'], "warm"),
        (["--label", "alone"], "KEY=VALUE"),
    ],
)
def test_mistakes_of_an_edit_are_explained(session: Session, arguments: list[str], said: str) -> None:
    refused = run("edit", "managed", *arguments)
    assert refused.exit_code == 2
    assert said in refused.output


def test_a_fork_goes_on_from_the_present_state(session: Session) -> None:
    made = facts("fork", "managed", "--id", "heir")
    assert (made["session_id"], made["step"]) == ("heir", 1)
    assert "heir" in run("list").stdout
    assert "SessionExists" in run("fork", "managed", "--id", "heir").output
    run("close", "heir")


def test_snapshots_are_listed(session: Session) -> None:
    written = session.snapshot()
    newest, oldest = facts("snapshots", "managed")
    assert (newest["snapshot_id"], newest["step"], oldest["step"]) == (written.snapshot_id, 1, 0)
    assert newest["size_bytes"] > 0
    lines = [line.split("\t") for line in run("snapshots", "managed").stdout.splitlines()]
    assert [line[0] for line in lines] == ["snapshot", written.snapshot_id, oldest["snapshot_id"]]


def test_workers_are_listed(session: Session) -> None:
    [ann] = facts("workers", "managed")
    assert (ann["worker_id"], ann["next_sequence"], ann["received_bytes"]) == ("ann", 2, 8)
    head, line = (line.split("\t") for line in run("workers", "managed").stdout.splitlines())
    assert dict(zip(head, line, strict=True))["worker"] == "ann"


def test_the_list_is_searched_and_sorted(session: Session) -> None:
    facts("fork", "managed", "--id", "a-fork")
    listed = facts("list", "--order-by", "session_id desc")
    assert [each["session_id"] for each in listed] == ["managed", "a-fork"]
    assert [each["session_id"] for each in facts("list", "--search", "FORK")] == ["a-fork"]
    run("close", "a-fork")


def test_a_session_that_is_not_there_is_named(session: Session, tmp_path: Path) -> None:
    for arguments in (
        ["edit", "gone", "--lr-scale", "1"],
        ["fork", "gone"],
        ["snapshots", "gone"],
        ["workers", "gone"],
    ):
        refused = run(*arguments)
        assert refused.exit_code == 1
        assert "SessionNotFound" in refused.output
