"""The store: whenever the power goes, a session is there as it was or as it was to be, or gone for good."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hermosis_server.errors import CorruptState, InvalidRequest
from hermosis_server.storage.disk import Disk
from hermosis_server.storage.store import DamagedSession, SessionRecord, Store, read_record

from .crash_images import CrashDisk
from .stored import content, record, snapshot

Seen = tuple[object, ...]


def _seen(root: Path, disk: Disk | None = None) -> Seen:
    """All that a store has to say of its sessions."""
    store = Store(root, Disk() if disk is None else disk)
    told = []
    for one in store.sessions():
        held = [content(store.load_snapshot(info)) for info in store.snapshots(one.session_id)]
        told.append((one, held))
    return tuple(told)


def _before(root: Path) -> Store:
    """A store with two sessions, each with a record and two snapshots."""
    (root / "sessions").mkdir(parents=True)
    store = Store(root, Disk())
    for session_id in ("ant", "bee"):
        store.save_session(record(session_id))
        for step in (1, 2):
            store.save_snapshot(snapshot(session_id, step))
    return store


CHANGES: dict[str, Callable[[Store], object]] = {
    "save_session": lambda store: store.save_session(record("ant", 2)),
    "new_session": lambda store: store.save_session(record("cat")),
    "save_snapshot": lambda store: store.save_snapshot(snapshot("ant", 3)),
    "same_snapshot_again": lambda store: store.save_snapshot(snapshot("ant", 2)),
    "remove_session": lambda store: store.remove_session("ant"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_at_any_operation_leaves_the_old_or_the_new(tmp_path: Path, change: str) -> None:
    _before(tmp_path / "data")
    old = _seen(tmp_path / "data")
    disk = CrashDisk(tmp_path / "data")
    store = Store(tmp_path / "data", disk)
    CHANGES[change](store)
    new = _seen(tmp_path / "data")
    assert old != new or change == "same_snapshot_again"
    allowed = {repr(old), repr(new)}
    if change == "save_snapshot":  # the oldest not yet cleared away
        _before(tmp_path / "more")
        Store(tmp_path / "more", _Keeps()).save_snapshot(snapshot("ant", 3))
        allowed.add(repr(_seen(tmp_path / "more")))
    rng = random.Random(change)
    for after in range(len(disk) + 1):
        for luck in range(4):
            root = tmp_path / f"{after}-{luck}"
            image = disk.power_cut(after, root, rng)
            if after == len(disk) and change != "save_snapshot":
                allowed = {repr(new)}
            assert repr(_seen(root, image)) in allowed
            # Clearing up is cut off as well, and what a killed server leaves is cut off after that.
            again = image.power_cut(rng.randint(0, len(image)), tmp_path / f"{after}-{luck}-again", rng)
            assert repr(_seen(again.root)) in allowed
            killed = disk.killed(after, tmp_path / f"{after}-{luck}-killed")
            seen = repr(_seen(killed.root, killed))
            assert seen in allowed
            for number in range(4):
                cut = killed.power_cut(len(killed), tmp_path / f"{after}-{luck}-cut-{number}", rng)
                assert repr(_seen(cut.root)) in allowed


class _Keeps(Disk):
    """Clears nothing away."""

    def unlink(self, path: Path) -> None:
        raise OSError("kept")


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    store = _before(tmp_path)
    path = tmp_path / "sessions" / "ant" / "session.json"
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CorruptState):
            read_record(path.parent)
    (bee, ant) = store.sessions()
    assert isinstance(bee, SessionRecord)
    assert isinstance(ant, DamagedSession)
    for other in (raw[:-1], raw + b"\n", b""):
        path.write_bytes(other)
        assert isinstance(store.sessions()[-1], DamagedSession)


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    store = _before(tmp_path)
    assert store.sessions() == [record("ant"), record("bee")]


def test_what_was_moved_from_another_session_is_not_believed(tmp_path: Path) -> None:
    store = _before(tmp_path)
    ant, bee = tmp_path / "sessions" / "ant", tmp_path / "sessions" / "bee"
    (bee / "session.json").write_bytes((ant / "session.json").read_bytes())
    assert isinstance(store.sessions()[-1], DamagedSession)
    info = store.snapshots("bee")[0]
    info.path.write_bytes(store.snapshots("ant")[0].path.read_bytes())
    with pytest.raises(CorruptState, match="moved"):
        store.load_snapshot(info)


def test_two_snapshots_are_kept_the_newest_generation_first(tmp_path: Path) -> None:
    store = _before(tmp_path)
    for step, generation in ((7, 1), (2, 2), (3, 2)):
        store.save_snapshot(snapshot("ant", step, generation))
    held = [(info.generation, info.step) for info in store.snapshots("ant")]
    assert held == [(2, 3), (2, 2)]


def test_leftovers_go_and_what_is_not_a_session_stays(tmp_path: Path) -> None:
    store = _before(tmp_path)
    sessions = tmp_path / "sessions"
    for leftover in (".removed-cat-1", "begun"):
        (sessions / leftover).mkdir()
    (sessions / "ant" / "session.json.partial").write_bytes(b"half")
    (sessions / ".removed-cat-1" / "session.json").write_bytes(b"{}")
    (sessions / "lost+found").mkdir()
    (sessions / "notes.txt").write_text("mine")
    assert [one.session_id for one in store.sessions()] == ["ant", "bee"]
    left = sorted(
        path.relative_to(sessions).as_posix() for path in sessions.rglob("*") if "safetensors" not in path.name
    )
    assert left == ["ant", "ant/session.json", "bee", "bee/session.json", "lost+found", "notes.txt"]


def test_a_session_whose_record_is_gone_is_damaged_not_forgotten(tmp_path: Path) -> None:
    store = _before(tmp_path)
    (tmp_path / "sessions" / "ant" / "session.json").unlink()
    assert isinstance(store.sessions()[-1], DamagedSession)


@pytest.mark.parametrize("session_id", ["", "..", "a/b", "A", "-a", "a" * 300, ".removed-x"])
def test_an_id_that_is_no_folder_s_name_is_refused(tmp_path: Path, session_id: str) -> None:
    store = _before(tmp_path)
    with pytest.raises(InvalidRequest):
        store.save_session(replace(record(), session_id=session_id))
