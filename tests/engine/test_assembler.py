"""The assembler: any order, every element once, and no memory before the checks."""

import contextlib
import itertools
import random
import zlib

import numpy as np
import pytest

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.engine.assembler import Assembler, StagingBudget
from hermosis_server.errors import CorruptChunk, InvalidRequest, LayoutMismatch, Overloaded, PayloadMismatch

SIZE = 1000
VALUES = np.random.default_rng(3).normal(size=SIZE).astype(np.float32)


def budget(limit_bytes: int = 1 << 20) -> StagingBudget:
    return StagingBudget(limit_bytes, lambda size: memoryview(bytearray(size)))


def new(dtype: Dtype = Dtype.FLOAT32) -> Assembler:
    return Assembler(SIZE, dtype, wire.MAX_CHUNK_BYTES, budget().stage(SIZE * dtype.itemsize), budget())


def add(assembler: Assembler, offset: int, values: np.ndarray, **changed: object) -> None:
    payload = values.tobytes()
    fields = {"offset": offset, "dtype": Dtype.FLOAT32, "crc32": wire.checksum(payload), "payload": payload}
    assembler.add(**fields | changed)  # type: ignore[arg-type]


def test_chunks_in_any_order_and_of_any_length_become_the_vector() -> None:
    order = random.Random(5)
    for _ in range(20):
        cuts = sorted({0, SIZE, *(order.randrange(SIZE) for _ in range(9))})
        pieces = list(itertools.pairwise(cuts))
        order.shuffle(pieces)
        assembler = new()
        for begin, end in pieces:
            assert not assembler.complete
            add(assembler, begin, VALUES[begin:end])
        assembler.require_complete()
        assert assembler.staging is not None
        assert bytes(assembler.staging.memory) == VALUES.tobytes()
        assert assembler.checksum() == zlib.crc32(VALUES.tobytes())


def test_a_repeated_chunk_is_recognised() -> None:
    assembler = new()
    add(assembler, 10, VALUES[10:20])
    add(assembler, 10, VALUES[10:20])
    assert assembler.received == 10


def test_the_same_elements_with_other_values_are_refused() -> None:
    assembler = new()
    add(assembler, 10, VALUES[10:20])
    with pytest.raises(PayloadMismatch):
        add(assembler, 10, VALUES[20:30])


@pytest.mark.parametrize(("offset", "length"), [(5, 10), (15, 10), (5, 30), (12, 3), (10, 9), (11, 9)])
def test_a_partial_overlap_is_refused_and_changes_nothing(offset: int, length: int) -> None:
    assembler = new()
    add(assembler, 10, VALUES[10:20])
    with pytest.raises(InvalidRequest, match="overlap"):
        add(assembler, offset, VALUES[offset : offset + length])
    assert assembler.received == 10


def test_neighbours_that_touch_do_not_overlap() -> None:
    assembler = new()
    add(assembler, 10, VALUES[10:20])
    add(assembler, 0, VALUES[0:10])
    add(assembler, 20, VALUES[20:21])
    assert assembler.received == 21


@pytest.mark.parametrize("offset", [SIZE - 9, SIZE, SIZE + 1, (1 << 64) - 1])
def test_elements_beyond_the_end_are_refused(offset: int) -> None:
    with pytest.raises(LayoutMismatch, match="1000"):
        add(new(), offset, VALUES[:10])


def test_a_changed_bit_is_noticed() -> None:
    payload = bytearray(VALUES[:10].tobytes())
    payload[13] ^= 4
    assembler = new()
    with pytest.raises(CorruptChunk):
        add(assembler, 0, VALUES[:10], payload=bytes(payload))
    assert assembler.received == 0
    assert assembler.peak == 0
    add(assembler, 0, VALUES)
    assert assembler.staging is not None
    assert bytes(assembler.staging.memory) == VALUES.tobytes()


@pytest.mark.parametrize("when", ["before it is read", "after it was read"])
def test_what_is_checked_is_the_copy_and_not_memory_that_its_sender_can_still_write(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    payload = bytearray(VALUES[:10].tobytes())
    crc32 = zlib.crc32(payload)

    def restless(read: bytes | memoryview, before: int = 0) -> int:
        """The sender changes a bit around the check, whichever bytes that is of."""
        if when.startswith("before"):
            payload[13] ^= 4
        checked = zlib.crc32(read, before)
        payload[13] ^= 4
        return checked

    if when.startswith("before"):
        payload[13] ^= 4  # Wrong while it is copied.
    monkeypatch.setattr(wire, "checksum", restless)
    assembler = new()
    with contextlib.suppress(CorruptChunk):
        assembler.add(offset=0, dtype=Dtype.FLOAT32, crc32=crc32, payload=memoryview(payload))
    assert assembler.staging is not None
    assert not assembler.received or zlib.crc32(assembler.staging.memory[:40]) == crc32


@pytest.mark.parametrize("payload", [b"", b"123", b"12345", bytes(wire.MAX_CHUNK_BYTES + 4)])
def test_payloads_that_are_no_whole_elements_or_too_long_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidRequest, match="whole 4-byte elements"):
        add(new(), 0, VALUES[:1], payload=payload)


def test_another_dtype_than_agreed_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="FLOAT16"):
        add(new(), 0, VALUES[:2], dtype=Dtype.FLOAT16)


def test_missing_elements_are_counted() -> None:
    assembler = new()
    add(assembler, 0, VALUES[:999])
    with pytest.raises(LayoutMismatch, match="999 of 1000"):
        assembler.require_complete()


def test_the_budget_is_kept_and_given_back_once() -> None:
    shared = budget(limit_bytes=100)
    first = shared.stage(60)
    with pytest.raises(Overloaded, match="40 of 100 of the server are free") as caught:
        shared.stage(41)
    assert caught.value.retry_after_s
    first.release()
    first.release()
    assert shared.used_bytes == 0
    shared.stage(100)


def test_a_repeat_is_checked_without_memory() -> None:
    assembler = Assembler(SIZE, Dtype.FLOAT32, wire.MAX_CHUNK_BYTES, None, budget())
    add(assembler, 0, VALUES)
    assert assembler.checksum() == zlib.crc32(VALUES.tobytes())


def bits_of(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    """Elements as they travel."""
    if dtype is Dtype.BFLOAT16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({Dtype.FLOAT32: np.float32, Dtype.FLOAT16: np.float16}[dtype])


@pytest.mark.parametrize("dtype", Dtype)
@pytest.mark.parametrize(
    ("values", "peak"),
    [
        ([0.0], 0.0),
        ([-0.0], 0.0),
        ([1.0, -2.0, 0.5], 2.0),
        ([3.0, -2.0], 3.0),
        ([-0.25, -4.0], 4.0),
        ([1.0, -np.inf], np.inf),
        ([np.inf, -1.0], np.inf),
        ([np.nan, 1.0], np.nan),
        ([-np.nan, np.inf, -np.inf], np.nan),
    ],
)
def test_the_peak_is_the_largest_magnitude(values: list[float], peak: float, dtype: Dtype) -> None:
    assembler = Assembler(len(values) + 1, dtype, wire.MAX_CHUNK_BYTES, budget().stage((len(values) + 1) * 4), budget())
    add(assembler, 1, bits_of(np.array(values), dtype), dtype=dtype)
    assert np.array_equal(assembler.peak, peak, equal_nan=True)
    add(assembler, 0, bits_of(np.array([-0.125]), dtype), dtype=dtype)
    assert np.array_equal(assembler.peak, peak if peak else 0.125, equal_nan=True)


@pytest.mark.parametrize("dtype", Dtype)
def test_the_peak_of_random_bits_is_what_numpy_finds(dtype: Dtype) -> None:
    bits = np.random.default_rng(5).integers(0, 1 << 8 * dtype.itemsize, 4000, dtype=f"u{dtype.itemsize}")
    if dtype is Dtype.BFLOAT16:
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        values = bits.view(f"f{dtype.itemsize}")
    for begin in range(0, 4000, 8):
        assembler = Assembler(8, dtype, wire.MAX_CHUNK_BYTES, budget().stage(8 * dtype.itemsize), budget())
        add(assembler, 0, bits[begin : begin + 8], dtype=dtype)
        assert np.array_equal(assembler.peak, float(np.abs(values[begin : begin + 8]).max()), equal_nan=True)


def test_staging_tells_where_it_lies() -> None:
    memory = np.zeros(8, np.uint8)
    staging = StagingBudget(100, lambda size: memory.data).stage(8)
    assert staging.address == memory.ctypes.data
    staging.release()
    assert staging.address == 0
