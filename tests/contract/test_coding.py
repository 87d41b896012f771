"""Codecs: their bytes are fixed for ever, what they leave out is bounded, and any bytes decode or are refused."""

import contextlib
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hermosis import coding
from hermosis.coding import Codec, CodecKind, Undecodable

LOSSY = [CodecKind.INT8, CodecKind.TOP_K, CodecKind.RANDOM_K]
NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)
VECTORS = arrays.arrays(np.float32, st.integers(1, 600), elements=NUMBERS)

VALUES = np.array([1.0, -2.0, 0.5, 0.0, 3.0, -0.25, 127.0, -126.6], np.float32)
# Kind, fraction, seed; the payload of VALUES; what it stands for. Never edit, only add.
GOLDEN = [
    (
        (CodecKind.INT8, 0.01, 0),
        "0000803f" + "01fe00000300" + "7f81",
        [1.0, -2.0, 0.0, 0.0, 3.0, 0.0, 127.0, -127.0],
    ),
    (
        (CodecKind.TOP_K, 0.3, 0),
        "03000000" + "0400" + "0600" + "0700" + "00004040" + "0000fe42" + "3333fdc2",
        [0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 127.0, -126.6],
    ),
    (
        (CodecKind.RANDOM_K, 0.5, 2**64 - 1),
        "ffffffffffffffff" + "0000803f" + "00000000" + "000080be" + "0000fe42",
        [1.0, 0.0, 0.0, 0.0, 0.0, -0.25, 127.0, 0.0],
    ),
]


def roundtrip(codec: Codec, values: np.ndarray, seed: int = 0) -> np.ndarray:
    out = np.full(len(values), 7.0, np.float32)
    coding.decode(codec.kind, coding.encode(codec, values, seed=seed), out)
    return out


@pytest.mark.parametrize(("made_by", "payload", "decoded"), GOLDEN, ids=[kind.name for (kind, *_), *_ in GOLDEN])
def test_payloads_keep_their_bytes(made_by: Any, payload: str, decoded: list[float]) -> None:
    kind, fraction, seed = made_by
    assert coding.encode(Codec(kind, fraction), VALUES, seed=seed).hex() == payload
    out = np.empty(len(VALUES), np.float32)
    coding.decode(kind, bytes.fromhex(payload), out)
    assert out.tolist() == np.array(decoded, np.float32).tolist()


def test_deflate_keeps_its_bytes() -> None:
    stored = "00" + "03000000" + "010203" + "00" + "03000000" + "0a0b0c"
    assert coding.deflate(bytes.fromhex("010a020b030c"), 2).hex() == stored
    assert bytes(coding.inflate(bytes.fromhex(stored), 2, 3)).hex() == "010a020b030c"
    # Deflated bytes differ between makers of zlib; what they stand for does not.
    plane = zlib.compress(b"\x3f" * 1000, 9)
    whole = b"".join([struct.pack("<BI", 1, len(plane)) + plane] * 2)
    assert bytes(coding.inflate(whole, 2, 1000)) == b"\x3f" * 2000


def test_random_places_are_those_of_splitmix64() -> None:
    """Against arithmetic of any length."""
    seed, elements, count, mask = 2**63 + 12345, 1000, 37, 2**64 - 1
    expected = []
    for run in range(count):
        begin, end = run * elements // count, (run + 1) * elements // count
        z = (seed + (run + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        expected.append(begin + (z ^ (z >> 31)) % (end - begin))
    assert coding.random_places(seed, elements, count).tolist() == expected


@settings(deadline=None)
@given(VECTORS)
def test_int8_is_half_a_scale_off_at_most(values: np.ndarray) -> None:
    out = roundtrip(Codec(CodecKind.INT8), values)
    for begin in range(0, len(values), 256):
        block = values[begin : begin + 256].astype(np.float64)
        scale = np.abs(block).max() / 127
        assert np.abs(out[begin : begin + 256] - block).max() <= scale * 0.50001 + 1e-44


@settings(deadline=None)
@given(VECTORS, st.floats(0.001, 0.5))
def test_top_k_sends_the_largest_as_they_are(values: np.ndarray, fraction: float) -> None:
    codec = Codec(CodecKind.TOP_K, fraction)
    payload = coding.encode(codec, values)
    assert len(payload) == 4 + 6 * codec.count(len(values))
    out = roundtrip(codec, values)
    sent = out != 0
    np.testing.assert_array_equal(out[sent], values[sent])
    assert np.abs(values[~sent]).max(initial=0) <= np.abs(values[sent]).min(initial=np.inf)
    assert sent.sum() >= min(codec.count(len(values)), np.count_nonzero(values))


@settings(deadline=None)
@given(VECTORS, st.floats(0.001, 0.5), st.integers(0, 2**64 - 1))
def test_random_k_sends_one_of_each_run_as_it_is(values: np.ndarray, fraction: float, seed: int) -> None:
    codec = Codec(CodecKind.RANDOM_K, fraction)
    out = roundtrip(codec, values, seed)
    sent = out != 0
    np.testing.assert_array_equal(out[sent], values[sent])
    places = coding.random_places(seed, len(values), codec.count(len(values)))
    assert set(np.flatnonzero(sent)) <= set(places.tolist())
    assert len(set(places.tolist())) == codec.count(len(values))


def test_every_place_of_random_k_comes_in_its_turn() -> None:
    seen = set()
    for seed in range(200):
        seen |= set(coding.random_places(seed, 100, 10).tolist())
    assert seen == set(range(100))


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=3000), st.sampled_from([2, 4]), st.integers(1, 20))
def test_deflate_loses_nothing(piece: bytes, itemsize: int, times: int) -> None:
    payload = piece * itemsize * times
    assert bytes(coding.inflate(coding.deflate(payload, itemsize), itemsize, len(payload) // itemsize)) == payload


def test_deflate_is_shorter_where_there_is_something_to_save_and_never_much_longer() -> None:
    random = np.random.default_rng(0)
    gradient = random.standard_normal(100_000).astype(np.float32)
    assert len(coding.deflate(gradient.tobytes(), 4)) < 0.9 * gradient.nbytes
    gradient[random.random(100_000) < 0.95] = 0
    assert len(coding.deflate(gradient.tobytes(), 4)) < 0.2 * gradient.nbytes
    noise = random.bytes(400_000)
    assert len(coding.deflate(noise, 4)) <= len(noise) + 4 * 5


@pytest.mark.parametrize("kind", LOSSY, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 300, 69_999])
def test_what_is_not_finite_does_not_vanish(kind: CodecKind, bad: float, place: int) -> None:
    values = np.ones(70_000, np.float32)
    values[place] = bad
    assert not np.isfinite(roundtrip(Codec(kind), values, seed=5)).all()


@pytest.mark.parametrize("kind", LOSSY, ids=lambda kind: kind.name)
def test_extreme_numbers_make_no_noise(kind: CodecKind) -> None:
    """Warnings are errors here."""
    for values in ([0.0] * 300, [1e-45, -1e-44, 0.0], [3.4e38, -3.4e38, 1e-45], [1.0]):
        roundtrip(Codec(kind), np.array(values, np.float32))


@pytest.mark.parametrize("kind", LOSSY, ids=lambda kind: kind.name)
@settings(deadline=None)
@given(payload=st.binary(max_size=300), count=st.integers(1, 70_000))
def test_any_bytes_decode_or_are_refused(kind: CodecKind, payload: bytes, count: int) -> None:
    with contextlib.suppress(Undecodable):
        coding.decode(kind, payload, np.empty(count, np.float32))


@settings(deadline=None)
@given(values=VECTORS, data=st.data())
@pytest.mark.parametrize("kind", [*LOSSY, CodecKind.DEFLATE], ids=lambda kind: kind.name)
def test_nearly_right_bytes_decode_or_are_refused(kind: CodecKind, values: np.ndarray, data: Any) -> None:
    deflated = kind is CodecKind.DEFLATE
    right = coding.deflate(values.tobytes(), 4) if deflated else coding.encode(Codec(kind, 0.2), values)
    broken = bytearray(right)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place] ^= data.draw(st.integers(1, 255))
    del broken[len(broken) - data.draw(st.integers(0, 6)) :]
    try:
        if deflated:
            assert len(coding.inflate(bytes(broken), 4, len(values))) == values.nbytes
        else:
            coding.decode(kind, bytes(broken), np.empty(len(values), np.float32))
    except Undecodable:
        assert bytes(broken) != right


def test_a_bomb_takes_no_more_than_it_may() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    payload = struct.pack("<BI", 1, len(bomb)) + bomb
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable):
            coding.inflate(payload, 1, 100)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.6, float("nan"), float("inf")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        Codec(CodecKind.TOP_K, fraction)
