"""Whole states by the command line: real server processes, folders that they left, files and copies."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.forking import WarmServer
from typer.testing import CliRunner, Result

from hermosis_client import Client, Durability, errors
from hermosis_server.cli.root import app

SHAPES = {"w": (3, 4), "b": (4,)}
START = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
GRADIENT = {
    name: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape) for name, shape in SHAPES.items()
}


def kill(server: WarmServer) -> None:
    os.kill(server.process_id, signal.SIGKILL)


def hermosis(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(*words: object) -> object:
    result = hermosis(*words, "--json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def train(client: Client, session_id: str, *, mode: str = "journal", steps: int = 5) -> bytes:
    """A session that has stepped, every step of it durable; gives its digest."""
    durability = Durability(mode=mode, snapshot_every_s=1e6)  # type: ignore[arg-type]
    session = client.create_session(SHAPES, "adamw", session_id=session_id, durability=durability)
    session.initialise(START)
    advance(client, session_id, steps)
    return session.digest()


def advance(client: Client, session_id: str, steps: int) -> bytes:
    session = client.session(session_id)
    level = "applied" if session.info().durability.name == "NONE" else "durable"
    with session.worker("w", ack_level=level) as worker:  # type: ignore[arg-type]
        worker.pull()
        for _ in range(steps):
            worker.exchange(GRADIENT, loss=1.0)
    return session.digest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a server left that was killed: `a` is journalled, `b` has snapshots alone."""
    with WarmServer(data_folder=tmp_path / "data") as server, Client(server.address) as client:
        train(client, "a", steps=7)
        train(client, "b", mode="snapshot", steps=3)
        client.session("a").snapshot()
        advance(client, "a", 4)
        kill(server)
    return tmp_path / "data"


def damage(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 1
    path.write_bytes(content)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_verify_says_what_comes_back_and_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    a, b = said("verify", folder)  # type: ignore[misc]
    assert (a["session_id"], a["step"], a["entries"], a["problems"]) == ("a", 11, 4, [])
    assert (b["session_id"], b["step"], b["entries"], b["problems"]) == ("b", 3, 0, [])
    assert hermosis("verify", folder).exit_code == 0
    assert contents(folder) == before
    with WarmServer(data_folder=folder) as server, Client(server.address) as client:
        assert {info.session_id: info.step for info in client.sessions()} == {"a": 11, "b": 3}


@pytest.mark.parametrize("session_id", ["a", "b"])
def test_verify_says_of_a_flipped_bit_what_a_server_does_about_it(folder: Path, session_id: str) -> None:
    damage(max((folder / "sessions" / session_id).glob("*.safetensors")))
    ill = {each["session_id"]: each for each in said("verify", folder)}[session_id]  # type: ignore[attr-defined]
    assert "damaged" in ill["problems"][0]
    assert hermosis("verify", folder).exit_code == 1
    with WarmServer(data_folder=folder) as server, Client(server.address) as client:
        steps = {info.session_id: info.step for info in client.sessions() if info.status.name != "FAILED"}
        assert steps.get(session_id) == ill["step"]


def test_verify_finds_a_damaged_entry_of_the_journal(folder: Path) -> None:
    journal = max((folder / "journal").glob("*.seg"), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(journal.read_bytes())
    payload = np.concatenate([GRADIENT["w"].ravel(), GRADIENT["b"]]).tobytes()
    content[content.index(payload) + 3] ^= 1  # of an entry that others follow
    journal.write_bytes(content)
    a = said("verify", folder)[0]  # type: ignore[index]
    assert a["problems"]
    assert hermosis("verify", folder).exit_code == 1


def test_verify_leaves_a_running_server_alone(tmp_path: Path) -> None:
    with WarmServer(data_folder=tmp_path / "data"):
        refused = hermosis("verify", tmp_path / "data")
        assert refused.exit_code == 1
        assert "running server" in refused.output
    refused = hermosis("verify", tmp_path)
    assert refused.exit_code == 1
    assert "no data folder" in refused.output


def test_snapshot_and_restore_set_a_session_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WarmServer(data_folder=tmp_path / "data") as server, Client(server.address) as client:
        monkeypatch.setenv("HERMOSIS_ADDRESS", server.address)
        digest = train(client, "a", steps=3)
        written = said("snapshot", "a")
        assert (written["step"], written["state_digest"]) == (3, digest.hex())  # type: ignore[index]
        assert advance(client, "a", 2) != digest
        assert said("restore", "a", "--snapshot", written["snapshot_id"])["step"] == 3  # type: ignore[index]
        assert client.session("a").digest() == digest
        assert "no snapshot" in hermosis("restore", "a", "--snapshot", "9-9").output
        assert hermosis("restore", "nobody").exit_code == 1


def test_a_session_goes_to_another_server_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    with WarmServer() as first, WarmServer() as second:
        with Client(first.address) as client:
            digest = train(client, "a", mode="none", steps=6)
            exported = hermosis("sessions", "export", "a", path, "--address", first.address)
            assert exported.exit_code == 0, exported.output
            weights = client.session("a").pull()
            uninterrupted = advance(client, "a", 3)
        tensors = load_file(path)
        assert all(np.array_equal(tensors[f"parameters/{name}"], weights[name]) for name in SHAPES)
        monkeypatch.setenv("HERMOSIS_ADDRESS", second.address)
        assert said("sessions", "import", path)["session_id"] == "a"  # type: ignore[index]
        assert said("sessions", "import", path, "--id", "twin")["step"] == 6  # type: ignore[index]
        with Client(second.address) as client:
            assert client.session("a").digest() == client.session("twin").digest() == digest
            assert advance(client, "a", 3) == uninterrupted
        assert "SessionExists" in hermosis("sessions", "import", path).output
        assert said("verify", path)[0]["step"] == 6  # type: ignore[index]
        damage(path)
        for words in (("verify", path), ("sessions", "import", path, "--id", "third")):
            refused = hermosis(*words)
            assert refused.exit_code == 1
            assert "CorruptState" in refused.output


def test_a_snapshot_from_a_dead_servers_folder_comes_back_on_another(folder: Path) -> None:
    snapshot = max((folder / "sessions" / "a").glob("*.safetensors"))
    with WarmServer() as server, Client(server.address) as client:
        assert hermosis("sessions", "import", snapshot, "--address", server.address).exit_code == 0
        assert client.session("a").info().step == 7
        assert client.session("a").info().durability.name == "JOURNAL"


# Copies in object storage


def serve_with_copies(folder: Path, copies: Path) -> WarmServer:
    return WarmServer(data_folder=folder, arguments=("--copies", f"file://{copies}"))


def test_copies_outlive_the_machine(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    with serve_with_copies(tmp_path / "lost", copies) as server, Client(server.address) as client:
        digests = {name: train(client, name, steps=steps) for name, steps in (("a", 4), ("b", 2), ("c", 1))}
        client.session("c").close()
        # The server stops: what it has not written is written, and copied.
    shutil.rmtree(tmp_path / "lost")
    fetched = hermosis("fetch", f"file://{copies}", tmp_path / "new")
    assert fetched.exit_code == 0, fetched.output
    assert "2 sessions" in fetched.output
    with WarmServer(data_folder=tmp_path / "new") as server, Client(server.address) as client:
        assert {info.session_id: client.session(info.session_id).digest() for info in client.sessions()} == {
            name: digests[name] for name in ("a", "b")
        }
    again = hermosis("fetch", f"file://{copies}", tmp_path / "new")
    assert again.exit_code == 1
    assert "sessions already" in again.output
    nothing = hermosis("fetch", f"file://{tmp_path / 'nowhere'}", tmp_path / "third")
    assert nothing.exit_code == 1
    assert "no copies" in nothing.output


def test_a_session_that_is_only_left_as_a_copy_is_restored_by_its_name(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    with serve_with_copies(tmp_path / "first", copies) as server, Client(server.address) as client:
        digest = train(client, "a", steps=4)
    with serve_with_copies(tmp_path / "second", copies) as server, Client(server.address) as client:
        assert client.restore("a").step == 4
        assert client.session("a").digest() == digest
        with pytest.raises(errors.SessionNotFound):
            client.restore("nobody")
        advance(client, "a", 1)


def test_workers_of_the_lost_machine_are_told(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    with serve_with_copies(tmp_path / "first", copies) as server:
        client = Client(server.address)
        train(client, "a", steps=2)
        client.session("a").snapshot()
        end = time.monotonic() + 30
        while not list((copies / "a").glob("*-*2.safetensors")):
            assert time.monotonic() < end, "no copy was made"
            time.sleep(0.01)
        worker = client.session("a").worker("w", ack_level="durable")
        worker.pull()
        worker.exchange(GRADIENT, loss=1.0)
        address = server.address
        kill(server)
    port = address.rpartition(":")[2]
    assert hermosis("fetch", f"file://{copies}", tmp_path / "new").exit_code == 0
    with WarmServer(data_folder=tmp_path / "new", arguments=("--port", port)):
        with pytest.raises(errors.StaleGeneration):
            worker.exchange(GRADIENT, loss=1.0)
        worker.pull()
        result, _ = worker.exchange(GRADIENT, loss=1.0)
        assert result.step == 3
    client.close()
