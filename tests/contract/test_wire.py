"""What the bytes mean: checksums, chunks and the layout digest, against fixed values that any language can repeat."""

import hashlib
import itertools
import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermosis import wire
from hermosis.wire import Dtype, Span

# Name, shape and dtype number of each tensor; canonical bytes; SHA-256. The first is the example of docs/protocol.md.
LAYOUTS = [
    (
        [("w", (2, 3), 1), ("b", (3,), 1)],
        "01000000 77 01000000 02000000 0200000000000000 030000000000000001000000 62 01000000 01000000 0300000000000000",
        "bc72725c9e024769c5b834d44490518a2b80a3f68c6f2a4dd41dc26d220f5e20",
    ),
    (
        [("scale", (), 0)],
        "05000000 7363616c65 01000000 00000000",
        "25ec9e6af0ab69bdfa95e59809a81ce1fa9c065b1e7dae8091a3014d43c15e9a",
    ),
    (
        [("größe", (0, 1), 3)],
        "07000000 6772c3b6c39f65 03000000 02000000 0000000000000000 0100000000000000",
        "d002361cf7d2527f61400d1ea4e2b8ceb6d035c4aa4e5683815c267a0f6a4cc1",
    ),
]


@pytest.mark.parametrize(("tensors", "canonical", "digest"), LAYOUTS, ids=["matrix", "scalar", "unicode-empty"])
def test_layout_digest_is_sha256_of_the_canonical_bytes(
    tensors: list[tuple[str, tuple[int, ...], int]], canonical: str, digest: str
) -> None:
    assert wire.layout_digest(tensors).hex() == digest
    assert hashlib.sha256(bytes.fromhex(canonical)).hexdigest() == digest


@pytest.mark.parametrize(
    "other",
    [
        [("b", (3,), 1), ("w", (2, 3), 1)],
        [("w", (3, 2), 1), ("b", (3,), 1)],
        [("w", (2, 3), 2), ("b", (3,), 1)],
        [("v", (2, 3), 1), ("b", (3,), 1)],
        [("w", (2, 3), 1)],
    ],
    ids=["order", "shape", "dtype", "name", "missing"],
)
def test_layout_digest_tells_layouts_apart(other: list[tuple[str, tuple[int, ...], int]]) -> None:
    assert wire.layout_digest(other).hex() != LAYOUTS[0][2]


def test_checksum_is_the_crc32_of_every_standard_library() -> None:
    assert wire.checksum(b"123456789") == 0xCBF43926  # the published check value of CRC-32/ISO-HDLC
    assert wire.checksum(b"") == 0
    assert wire.checksum(b"6789", before=wire.checksum(b"12345")) == 0xCBF43926


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_joined_checksum_equals_the_checksum_of_the_whole(whole: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert wire.joined_checksum((zlib.crc32(piece), len(piece)) for piece in pieces) == zlib.crc32(whole)


def test_joined_checksum_of_long_parts() -> None:
    first, second = bytes(range(256)) * 12345, b"\xff" * 1_000_003
    joined = wire.joined_checksum([(zlib.crc32(first), len(first)), (zlib.crc32(second), len(second))])
    assert joined == zlib.crc32(first + second)


@settings(deadline=None)
@given(st.integers(0, 5000), st.sampled_from(list(Dtype)), st.integers(1, 3000))
def test_spans_cover_every_element_once_in_order_within_the_limit(
    elements: int, dtype: Dtype, chunk_bytes: int
) -> None:
    found = list(wire.spans(elements, dtype.itemsize, chunk_bytes))
    assert [index for offset, length in found for index in range(offset, offset + length)] == list(range(elements))
    assert all(0 < length * dtype.itemsize <= max(chunk_bytes, dtype.itemsize) for _, length in found)


def test_default_spans_are_one_mebibyte() -> None:
    assert list(wire.spans(600_000, 4)) == [Span(0, 262_144), Span(262_144, 262_144), Span(524_288, 75_712)]


def test_two_of_the_largest_chunks_with_framing_do_not_pass_grpcs_own_limit() -> None:
    assert wire.MAX_CHUNK_BYTES + 4096 < wire.MAX_MESSAGE_BYTES == 4 << 20


@pytest.mark.parametrize("name", ["a", "0", "digits-2", "a" * 63])
def test_session_id_takes(name: str) -> None:
    assert wire.SESSION_ID.match(name)


@pytest.mark.parametrize("name", ["", "-a", "A", "a b", "a\n", "ä", "a" * 64, "a/b", "a_b"])
def test_session_id_refuses(name: str) -> None:
    assert not wire.SESSION_ID.match(name)


@pytest.mark.parametrize(
    ("name", "fits"),
    [("layer.0.weight", True), ("gewicht_ß", True), ("", False), ("a\n", False), ("a\0", False), ("ß" * 129, False)],
)
def test_plain_names(name: str, fits: bool) -> None:
    assert wire.is_plain_name(name, 256) is fits


def test_checksums_are_zlibs_whoever_computes_them() -> None:
    rng = random.Random(3)
    for length in (0, 1, 7, 64, 1000, 70_001):
        data = rng.randbytes(length)
        assert wire.checksum(data) == zlib.crc32(data)
        assert wire.checksum(memoryview(data)[1:], 99) == zlib.crc32(data[1:], 99)
