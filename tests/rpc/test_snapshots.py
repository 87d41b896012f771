"""What of a session is on disk, listed and restored, also when the session itself was set aside as damaged."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from hermosis_client import Client, Durability, errors

DAMAGE_AT = -3


def session_of(client: Client, mode: Any = "snapshot") -> Any:
    session = client.create_session(
        {"w": (3,)}, "sgd", session_id="kept", durability=Durability(mode=mode, snapshot_every_s=1e6)
    )
    session.initialise({"w": [1.0, 2.0, 3.0]})
    return session


def test_snapshots_are_listed_newest_first_and_one_of_them_is_gone_back_to(host: Any, tmp_path: Path) -> None:
    service = host(folder=tmp_path).server
    with Client(service.address, timeout_s=20) as client, session_of(client) as session:
        for _ in range(2):
            session.exchange({"w": [1.0, 1.0, 1.0]})
            session.snapshot()
        newest, older = session.snapshots()
        assert [(newest.step, newest.generation), (older.step, older.generation)] == [(2, 1), (1, 1)]
        assert newest.size_bytes == max((tmp_path / "sessions" / "kept").glob("*.safetensors")).stat().st_size
        assert abs(newest.time_s - time.time()) < 60
        assert session.restore(older.snapshot_id).step == 1
        assert (client.snapshots("kept")[0].step, client.snapshots("kept")[0].generation) == (1, 2)


def test_a_session_that_is_not_kept_has_none(host: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, None):
        service = host(folder=folder).server
        with Client(service.address, timeout_s=20) as client, session_of(client, "none") as session:
            assert session.snapshots() == []
            with pytest.raises(errors.SessionNotFound):
                client.snapshots("never-was")


def test_one_that_was_set_aside_shows_its_snapshots_and_comes_back_from_one(host: Any, tmp_path: Path) -> None:
    first = host(folder=tmp_path / "first").server
    with Client(first.address, timeout_s=20) as client:
        session = session_of(client)
        session.exchange({"w": [1.0, 1.0, 1.0]})
        session.snapshot()
        shutil.copytree(tmp_path / "first", tmp_path / "crashed")
    path = max((tmp_path / "crashed" / "sessions" / "kept").glob("*.safetensors"))
    damaged = bytearray(path.read_bytes())
    damaged[DAMAGE_AT] ^= 1
    path.write_bytes(damaged)
    second = host(folder=tmp_path / "crashed").server
    with Client(second.address, timeout_s=20) as client:
        with pytest.raises(errors.CorruptState):
            client.session("kept")
        held = client.snapshots("kept")
        assert [snapshot.step for snapshot in held] == [1, 0]
        with pytest.raises(errors.CorruptState):
            client.restore("kept", held[0].snapshot_id)
        assert client.restore("kept", held[1].snapshot_id).status.name == "READY"
        assert client.session("kept").info().step == 0
