"""A snapshot file: read back as it was written, by us and by safetensors; whatever was changed is found."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hermosis_server.errors import CorruptState, StorageFull
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.disk import ASIDE, Disk

from .crash_images import CrashDisk, failing_at
from .stored import content, snapshot


@pytest.fixture
def raw() -> bytes:
    return b"".join(bytes(memoryview(part)) for part in snapshot_file.parts(snapshot()))


def test_it_reads_back_as_it_was_written(tmp_path: Path) -> None:
    size = snapshot_file.write(Disk(), tmp_path / "one.safetensors", snapshot())
    assert size == (tmp_path / "one.safetensors").stat().st_size
    assert content(snapshot_file.read(tmp_path / "one.safetensors")) == content(snapshot())


def test_plain_safetensors_opens_it(tmp_path: Path) -> None:
    snapshot_file.write(Disk(), tmp_path / "one.safetensors", snapshot(step=3))
    with safe_open(tmp_path / "one.safetensors", framework="np") as file:
        assert set(file.keys()) >= {"parameters/fc1.weight", "parameters/größe", "momentum/none", "eigenvalues"}
        np.testing.assert_array_equal(file.get_tensor("parameters/fc1.weight"), np.arange(3, 9).reshape(2, 3))
        assert file.get_tensor("parameters/größe") == 9


def test_every_flipped_bit_is_found(raw: bytes) -> None:
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptState):
            snapshot_file.from_bytes(memoryview(flipped))


def test_a_file_that_was_cut_or_grew_is_found(raw: bytes) -> None:
    for length in range(len(raw)):
        with pytest.raises(CorruptState):
            snapshot_file.from_bytes(memoryview(raw[:length]))
    for extra in (b"\0", b" " * 8, raw):
        with pytest.raises(CorruptState):
            snapshot_file.from_bytes(memoryview(raw + extra))


@pytest.mark.parametrize("header", [b"[]", b"null", b"{}", b"[" * 100_000, b'{"__metadata__":{"hermosis":1}}', b"\xff"])
def test_a_header_of_somebody_else_is_no_snapshot(header: bytes) -> None:
    with pytest.raises(CorruptState):
        snapshot_file.from_bytes(memoryview(len(header).to_bytes(8, "little") + header))


def test_a_failing_operation_leaves_no_file_and_nothing_aside(tmp_path: Path) -> None:
    for index in range(1, 5):  # create, write, sync, rename
        disk = CrashDisk(tmp_path)
        disk.fail = failing_at(index)
        with pytest.raises(OSError, match="error"):
            snapshot_file.write(disk, tmp_path / "one", snapshot())
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    disk = CrashDisk(tmp_path)
    disk.fail = failing_at(2, 28)
    with pytest.raises(StorageFull, match="write one"):
        snapshot_file.write(disk, tmp_path / "one", snapshot())
    assert not (tmp_path / ("one" + ASIDE)).exists()
