"""Damaged files of a server that was stopped: the damage is found, told as CorruptState, and is nobody else's."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.faults.conftest import Start, begun, stepped, until_refused
from tests.faults.plans import BARRIER, JOURNALLED, SNAPSHOTS, Plan
from tests.faults.servers import Server, Wishes
from tests.faults.twin import Twin

from hermosis.v1 import session_pb2
from hermosis_client import Client, Durability
from hermosis_client.errors import CorruptState

ALONE = replace(BARRIER, name="alone", workers=1, durability=Durability(mode="journal"))
PLANS = [JOURNALLED, SNAPSHOTS, ALONE]
STEPS = 12


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a killed server: three sessions, two of them with a journal that reaches to their end."""
    folder = tmp_path_factory.mktemp("damage")
    server = Server(folder / "data", folder / "log", Wishes())
    with Client(server.address, timeout_s=60) as client:
        for plan in PLANS:
            session = begun(client, plan)
            with session.worker("worker-0", ack_level="durable") as worker:
                stepped(worker, plan, STEPS)
    server.close()
    return folder / "data"


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    """The same in the place where `start` looks."""
    shutil.copytree(stopped, tmp_path / "data")
    return tmp_path / "data"


def flip(path: Path, bit: int) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def outcome(client: Client, plan: Plan, twin: Twin) -> str:
    """What became of a session: as it was, or set aside."""
    try:
        session = client.session(plan.name)
        assert session.info().step == STEPS
        assert session.digest() in twin.digests(plan, STEPS)
    except CorruptState:
        return "set aside"
    return "as it was"


def newest(folder: Path, plan: Plan) -> Path:
    return max((folder / "sessions" / plan.name).glob("*.safetensors"))


def draws(path: Path, count: int, seed: str) -> list[int]:
    return [random.Random(f"{seed} {index}").randrange(8 * path.stat().st_size) for index in range(count)]


@pytest.mark.parametrize("kind", ["session.json", "snapshot"])
def test_flipped_bit_in_a_session_folder_is_seen_and_changes_no_other(
    kind: str, copy: Path, start: Start, twin: Twin
) -> None:
    path = copy / "sessions" / SNAPSHOTS.name / "session.json" if kind == "session.json" else newest(copy, SNAPSHOTS)
    for bit in draws(path, 5, kind):
        good = path.read_bytes()
        flip(path, bit)
        _, client = start()
        assert [outcome(client, plan, twin) for plan in PLANS] == ["as it was", "set aside", "as it was"], f"bit {bit}"
        with pytest.raises(CorruptState):
            client.session(SNAPSHOTS.name).worker("worker-0").pull()
        path.write_bytes(good)


def test_flipped_bit_in_the_journal_is_seen_or_makes_no_difference(
    stopped: Path, copy: Path, start: Start, twin: Twin
) -> None:
    segments = sorted((stopped / "journal").glob("*.seg"))
    seen = set()
    for index in range(6):
        segment = segments[index % len(segments)]
        (bit,) = draws(segment, 1, f"journal {index}")
        shutil.rmtree(copy)
        shutil.copytree(stopped, copy)
        flip(copy / "journal" / segment.name, bit)
        _, client = start()
        outcomes = [outcome(client, plan, twin) for plan in PLANS]
        assert outcomes[1] == "as it was", "it has no part in the journal"
        seen.update(outcomes)
    assert "set aside" in seen, "no bit that mattered was flipped; draw others"


def test_damaged_newest_snapshot_of_a_journalled_session_costs_nothing(copy: Path, start: Start, twin: Twin) -> None:
    flip(newest(copy, JOURNALLED), 4000)
    assert [outcome(start()[1], plan, twin) for plan in PLANS] == ["as it was"] * 3


def test_session_that_was_set_aside_comes_back_by_restoring_an_older_snapshot(
    copy: Path, start: Start, twin: Twin
) -> None:
    flip(newest(copy, SNAPSHOTS), 4000)
    oldest = min((copy / "sessions" / SNAPSHOTS.name).glob("*.safetensors"))
    generation, step = map(int, oldest.stem.split("-"))
    _, client = start()
    assert outcome(client, SNAPSHOTS, twin) == "set aside"
    restored = restored_by_name(client, SNAPSHOTS.name, f"{step}-{generation}")
    assert restored == step
    assert client.session(SNAPSHOTS.name).digest() in twin.digests(SNAPSHOTS, step)


def restored_by_name(client: Client, session_id: str, snapshot_id: str) -> int:
    """Restores a session of which there is no object, because it is set aside; gives its step."""
    request = session_pb2.RestoreSessionRequest(request_id="again", session_id=session_id, snapshot_id=snapshot_id)
    return client._connection.call(client._connection.sessions.RestoreSession, request).session.step


@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_torn_tail_of_the_journal_is_cut_off_where_nobody_was_told_of_it(
    kept: float, tmp_path: Path, start: Start, twin: Twin
) -> None:
    """A power cut in the middle of a write: half of the last entry is there, and nobody heard of its step."""
    _, client = start("journal.written=kill@12", timeout_s=1.0)
    session = begun(client, JOURNALLED)
    worker = session.worker("worker-0", ack_level="durable")
    acknowledged, _ = until_refused(worker, JOURNALLED, STEPS)
    segment = max((tmp_path / "data" / "journal").glob("*.seg"))
    content = segment.read_bytes()
    end = len(content.rstrip(b"\0"))
    begin = content.rfind(b"HJe1", 0, end)
    torn = begin + int(kept * (end - begin))
    segment.write_bytes(content[:torn] + bytes(len(content) - torn))
    session = start()[1].session(JOURNALLED.name)
    recovered = session.info().step
    assert recovered == acknowledged > 0
    assert session.digest() in twin.digests(JOURNALLED, recovered)
