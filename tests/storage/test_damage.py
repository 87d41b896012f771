"""Whatever happens to a stored file, it reads as exactly what was written, or as damaged."""

from pathlib import Path

import numpy as np
import pytest

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.errors import CorruptState
from hermosis_server.records import (
    ExportedState,
    Outcome,
    ParameterLayout,
    SessionStatus,
    StateBuffer,
    StateScalars,
    TensorSpec,
    WorkerSequence,
)
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.disk import Disk
from hermosis_server.storage.snapshot_file import StoredSnapshot
from hermosis_server.storage.store import DamagedSession, SessionRecord, Store

RNG = np.random.default_rng(5)


def snapshot(step: int = 7) -> StoredSnapshot:
    tensors = (TensorSpec(name="fc/weight", shape=(3, 4)), TensorSpec(name="fc/bias", shape=(5,)))
    digest = wire.layout_digest((one.name, one.shape, Dtype.FLOAT32) for one in tensors)
    buffers = {
        kind: memoryview(RNG.standard_normal(size, np.float32).tobytes())
        for kind, size in ((StateBuffer.PARAMETERS, 17), (StateBuffer.MOMENTUM, 17), (StateBuffer.COVARIANCE, 25))
    }
    numbers = dict.fromkeys(StateScalars.__dataclass_fields__, 0.1) | {"step": step, "entropy": float("nan")}
    worker = WorkerSequence("w", step, 123, Outcome.APPLIED, step)
    refused = WorkerSequence("w", step + 1, 124, Outcome.NON_FINITE_GRADIENT, step)
    state = ExportedState(
        scalars=StateScalars(**numbers),  # type: ignore[arg-type]
        buffers=buffers,
        workers={"w": worker},
        refused={"w": refused},
        digest=bytes(range(32)),
    )
    layout = ParameterLayout(tensors=tensors, digest=digest, parameter_count=17)
    return StoredSnapshot(session_id="a", generation=2, layout=layout, state=state, document=b"\x00\xffspec")


def as_bytes(stored: StoredSnapshot) -> bytes:
    return b"".join(map(bytes, snapshot_file.parts(stored)))


def test_a_snapshot_reads_as_it_was_written() -> None:
    raw = as_bytes(snapshot())
    assert as_bytes(snapshot_file.from_bytes(memoryview(raw))) == raw


def test_any_flipped_bit_of_a_snapshot_is_found_or_makes_no_difference() -> None:
    raw = as_bytes(snapshot())
    silent = []
    for place in range(len(raw)):
        for bit in (0, 3, 5, 7):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << bit
            try:
                again = as_bytes(snapshot_file.from_bytes(memoryview(bytes(damaged))))
            except CorruptState:
                continue
            if again != raw:
                silent.append((place, bit))
    assert silent == []


@pytest.mark.parametrize("change", ["empty", "short", "long", "half", "other"])
def test_a_snapshot_of_another_length_is_damaged(change: str) -> None:
    raw = as_bytes(snapshot())
    changed = {"empty": b"", "short": raw[:-1], "long": raw + b"\0", "half": raw[: len(raw) // 2], "other": raw[8:]}
    with pytest.raises(CorruptState):
        snapshot_file.from_bytes(memoryview(changed[change]))


def record() -> SessionRecord:
    return SessionRecord(
        session_id="a", generation=3, replaced_generation=2, recovered_steps=(5,), status=SessionStatus.PAUSED,
        revision=4,
        lr_scale=0.5, created_s=1.5, document=b"\x00spec", request_id="r", request_fingerprint=b"f",
    )  # fmt: skip


def test_any_flipped_bit_of_a_record_sets_its_session_aside_and_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path, Disk())
    store.save_session(record())
    (other,) = store.sessions()
    assert other == record()
    path = tmp_path / "sessions" / "a" / "session.json"
    raw = path.read_bytes()
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        (found,) = store.sessions()
        assert isinstance(found, DamagedSession), place


def test_a_snapshot_that_was_moved_to_another_session_is_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path, Disk())
    store.save_session(record())
    info = store.save_snapshot(snapshot())
    moved = info.path.with_name(info.path.name.replace("7.safe", "8.safe"))
    info.path.rename(moved)
    (found,) = store.snapshots("a")
    with pytest.raises(CorruptState):
        store.load_snapshot(found)


def test_two_snapshots_are_kept_and_the_newest_lineage_is_first(tmp_path: Path) -> None:
    store = Store(tmp_path, Disk())
    store.save_session(record())
    for step in (3, 9, 12):
        store.save_snapshot(snapshot(step))
    assert [info.step for info in store.snapshots("a")] == [12, 9]


def test_a_removed_session_does_not_come_back_wherever_its_removal_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, Disk())
    store.save_session(record())
    store.save_snapshot(snapshot())
    monkeypatch.setattr(Disk, "remove_folder", lambda self, path: None)
    store.remove_session("a")
    monkeypatch.undo()
    assert Store(tmp_path, Disk()).sessions() == []
    assert list((tmp_path / "sessions").iterdir()) == []
