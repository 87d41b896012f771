"""Coding: vectors made smaller for the wire, and what comes of them on the other side. NumPy, and isal where there is.

Both ends import this file; docs/protocol.md has the bytes in words for other languages. A chunk is coded and decoded
by itself. What decodes is safe on any bytes: it raises `Undecodable`, and takes no more memory than the elements.

INT8, TOP_K and RANDOM_K lose something, and are of float32; whoever sends keeps what was left out (error feedback) and
adds it to what comes next. An element that is not a finite number must reach the other side as one, or a gradient that
is none would be taken for one. DEFLATE loses nothing and takes any dtype.

Sources: Stich et al. 2018, "Sparsified SGD with memory"; Karimireddy et al. 2019, "Error feedback fixes SignSGD";
Dettmers 2016, "8-bit approximations for parallelism in deep learning".
"""

import enum
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

try:  # the same format, several times as fast
    from isal import isal_zlib
except ImportError:
    isal_zlib = None  # type: ignore[assignment]

Bytes = bytes | bytearray | memoryview
Float32 = NDArray[np.float32]

INT8_BLOCK: Final = 256  # elements that share a scale
TOP_BLOCK: Final = 65_536  # elements that two bytes tell apart
DEFAULT_FRACTION: Final = 0.01
MAX_FRACTION: Final = 0.5  # beyond it the places take more than the elements that are left out
EXTRA_BYTES: Final = 4096  # a payload may be so much longer than what it stands for


class CodecKind(enum.IntEnum):
    """How a vector is made smaller; the numbers are those of hermosis.v1.CodecKind."""

    PLAIN = 1
    INT8 = 2
    TOP_K = 3
    RANDOM_K = 4
    DEFLATE = 5


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to code, and what it needs to know.

    Attributes:
      fraction: of the elements that TOP_K and RANDOM_K send.

    Raises:
      ValueError: the fraction is none.
    """

    kind: CodecKind = CodecKind.PLAIN
    fraction: float = DEFAULT_FRACTION

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= MAX_FRACTION:
            raise ValueError(f"fraction is {self.fraction}; wanted a number above 0 and at most {MAX_FRACTION}")

    @property
    def is_plain(self) -> bool:
        return self.kind is CodecKind.PLAIN

    @property
    def is_lossy(self) -> bool:
        return self.kind in (CodecKind.INT8, CodecKind.TOP_K, CodecKind.RANDOM_K)

    def count(self, elements: int) -> int:
        """How many of so many elements TOP_K and RANDOM_K send; at least one."""
        return math.ceil(self.fraction * elements)


class Undecodable(ValueError):
    """Bytes that are none of the codec's."""


def encode(codec: Codec, values: Float32, *, seed: int = 0) -> bytes:
    """The payload of a chunk under a codec that loses something.

    Args:
      values: (n,) float32, contiguous; at least one element.
      seed:   of the places of RANDOM_K, 64 bits; chunks and steps should differ in it.
    """
    if codec.kind is CodecKind.INT8:
        return _encode_int8(values)
    if codec.kind is CodecKind.TOP_K:
        blocks = (values[begin : begin + TOP_BLOCK] for begin in range(0, len(values), TOP_BLOCK))
        return b"".join(part for block in blocks for part in _encode_top(block, codec.count(len(block))))
    assert codec.kind is CodecKind.RANDOM_K, "the others lose nothing"
    return _encode_random(values, codec.count(len(values)), seed)


def decode(kind: CodecKind, payload: Bytes, out: Float32) -> None:
    """Lands a chunk under a codec that loses something.

    Args:
      out: (n,) float32, contiguous, all of which is written.

    Raises:
      Undecodable: the payload is none of n elements; `out` then holds anything.
    """
    if kind is CodecKind.INT8:
        _decode_int8(payload, out)
    elif kind is CodecKind.TOP_K:
        _decode_top(payload, out)
    else:
        assert kind is CodecKind.RANDOM_K, "the others lose nothing"
        _decode_random(payload, out)


def seed_of(name: str, number: int, offset: int) -> int:
    """A seed for RANDOM_K that is the same in every run.

    Args:
      name:   of who sends.
      number: of the contribution or answer; no two should send elements of the same places.
      offset: of the chunk, in elements.
    """
    return int.from_bytes(hashlib.sha256(f"{number}/{offset}/{name}".encode()).digest()[:8], "little")


# INT8: ceil(n / 256) scales, float32; then n bytes. An element is its byte, signed, times the scale of its block.


def _encode_int8(values: Float32) -> bytes:
    blocks = -(-len(values) // INT8_BLOCK)
    padded = values
    if len(values) != blocks * INT8_BLOCK:
        padded = np.zeros(blocks * INT8_BLOCK, np.float32)
        padded[: len(values)] = values
    rows = padded.reshape(blocks, INT8_BLOCK)
    peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    with np.errstate(invalid="ignore"):
        scales = np.where(np.isfinite(peaks), peaks / np.float32(127), np.float32(np.nan)).astype("<f4")
        # A block of zeros, or of elements so small that their scale is zero, is zeros.
        coded = rows / np.where(scales > 0, scales, np.float32(np.inf))[:, None]
    np.rint(coded, out=coded)
    np.clip(coded, -127, 127, out=coded)
    coded[np.isnan(scales)] = 0
    return scales.tobytes() + coded.astype(np.int8).reshape(-1)[: len(values)].tobytes()


def _decode_int8(payload: Bytes, out: Float32) -> None:
    count = len(out)
    blocks = -(-count // INT8_BLOCK)
    if len(payload) != 4 * blocks + count:
        raise Undecodable(f"{len(payload)} bytes of INT8 came for {count} elements; wanted {4 * blocks + count}")
    scales = np.frombuffer(payload, "<f4", blocks)
    out[:] = np.frombuffer(payload, np.int8, count, 4 * blocks)
    whole = count // INT8_BLOCK
    with np.errstate(over="ignore", invalid="ignore"):
        out[: whole * INT8_BLOCK].reshape(whole, INT8_BLOCK)[:] *= scales[:whole, None]
        if whole < blocks:
            out[whole * INT8_BLOCK :] *= scales[whole]


# TOP_K: for each 65,536 elements a count, uint32; the places in the block, uint16, ascending; the elements, float32.


def _encode_top(block: Float32, count: int) -> tuple[bytes, bytes, bytes]:
    # As integers magnitudes are ordered as they are as numbers; infinity is above them, and NaN above infinity.
    magnitudes = block.view(np.uint32) & np.uint32(0x7FFFFFFF)
    least = np.partition(magnitudes, len(block) - count)[len(block) - count]
    places = np.flatnonzero(magnitudes > least)
    alike = np.flatnonzero(magnitudes == least)[: count - len(places)]  # the first ones of those
    places = np.sort(np.concatenate([places, alike]))
    return struct.pack("<I", count), places.astype("<u2").tobytes(), block[places].astype("<f4").tobytes()


def _decode_top(payload: Bytes, out: Float32) -> None:
    out[:] = 0
    at = 0
    for begin in range(0, len(out), TOP_BLOCK):
        block = out[begin : begin + TOP_BLOCK]
        if len(payload) < at + 4:
            raise Undecodable(f"{len(payload)} bytes of TOP_K came for {len(out)} elements; they end too early")
        (count,) = struct.unpack_from("<I", payload, at)
        end = at + 4 + 6 * count
        if count > len(block) or end > len(payload):
            raise Undecodable(f"a block of {len(block)} elements has {count} in {len(payload) - at} bytes of TOP_K")
        places = np.frombuffer(payload, "<u2", count, at + 4).astype(np.intp)
        if count and (places[-1] >= len(block) or not (places[1:] > places[:-1]).all()):
            raise Undecodable(f"places of a block of {len(block)} elements do not ascend within it")
        block[places] = np.frombuffer(payload, "<f4", count, at + 4 + 2 * count)
        at = end
    if at != len(payload):
        raise Undecodable(f"{len(payload)} bytes of TOP_K came for {len(out)} elements, which end after {at}")


# RANDOM_K: a seed, uint64; then k elements, float32, one of each of k runs of the chunk.


def _encode_random(values: Float32, count: int, seed: int) -> bytes:
    chosen = values[random_places(seed, len(values), count)].astype("<f4")
    if not np.isfinite(values).all():
        chosen[0] = np.nan
    return struct.pack("<Q", seed) + chosen.tobytes()


def _decode_random(payload: Bytes, out: Float32) -> None:
    count, rest = divmod(len(payload) - 8, 4)
    if rest or not 1 <= count <= len(out):
        raise Undecodable(f"{len(payload)} bytes of RANDOM_K came for {len(out)} elements; wanted 8 and 4 for each")
    (seed,) = struct.unpack_from("<Q", payload)
    out[:] = 0
    out[random_places(seed, len(out), count)] = np.frombuffer(payload, "<f4", count, 8)


def random_places(seed: int, elements: int, count: int) -> NDArray[np.intp]:
    """Places of RANDOM_K, ascending: one in each of `count` runs, run i from i n // k to (i + 1) n // k.

    The place in a run is splitmix64(seed, i) modulo its length, in unsigned arithmetic of 64 bits.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    edges = np.arange(count + 1, dtype=np.uint64) * np.uint64(elements) // np.uint64(count)
    mixed = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (edges[:-1] + mixed % (edges[1:] - edges[:-1])).astype(np.intp)


# DEFLATE: for each byte of an element, the lowest first, a plane: if it is deflated, uint8; its size, uint32; itself.

_STORED, _DEFLATED = 0, 1
_PROBE_BYTES = 8192
_WORTHWHILE = 0.95  # of its size; a plane that shrinks less is stored


def deflate(payload: Bytes, itemsize: int) -> bytes:
    """The payload of a chunk under DEFLATE.

    Args:
      payload:  elements in their wire dtype; at least one.
      itemsize: of one, in bytes.
    """
    elements = np.frombuffer(payload, np.uint8).reshape(-1, itemsize)
    parts: list[Bytes] = []
    for place in range(itemsize):
        plane = np.ascontiguousarray(elements[:, place]).data
        kind, held = _STORED, plane
        # Random bits, as the low bits of most elements are, take longest and become no shorter: a look saves that.
        probe = plane[len(plane) // 2 :][:_PROBE_BYTES]
        if len(_deflated(probe)) < _WORTHWHILE * len(probe):
            tried = memoryview(_deflated(plane))
            if len(tried) < _WORTHWHILE * len(plane):
                kind, held = _DEFLATED, tried
        parts += [struct.pack("<BI", kind, len(held)), held]
    return b"".join(parts)


def inflate(payload: Bytes, itemsize: int, elements: int) -> memoryview:
    """The elements of a chunk under DEFLATE, in their wire dtype.

    Raises:
      Undecodable: the payload is none of so many elements.
    """
    whole = np.empty((elements, itemsize), np.uint8)
    at = 0
    for place in range(itemsize):
        if len(payload) < at + 5:
            raise Undecodable(f"{len(payload)} bytes of DEFLATE came for {elements} elements; they end too early")
        kind, size = struct.unpack_from("<BI", payload, at)
        at += 5
        plane = memoryview(payload)[at : at + size]
        at += size
        if kind == _DEFLATED and len(plane) == size:
            plane = _inflated(plane, elements)
        if kind not in (_STORED, _DEFLATED) or len(plane) != elements:
            raise Undecodable(f"plane {place} of {elements} elements is {len(plane)} bytes of kind {kind}")
        whole[:, place] = np.frombuffer(plane, np.uint8)
    if at != len(payload):
        raise Undecodable(f"{len(payload)} bytes of DEFLATE came, which end after {at}")
    return whole.reshape(-1).data


_zlib: Any = zlib if isal_zlib is None else isal_zlib


def _deflated(plane: memoryview) -> bytes:
    deflated: bytes = _zlib.compress(plane, 1)
    return deflated


def _inflated(plane: memoryview, size: int) -> memoryview:
    """What was deflated; never more than a byte beyond what it should be, whatever it says."""
    stream = _zlib.decompressobj()
    try:
        whole = stream.decompress(plane, size + 1)
    except _zlib.error as error:
        raise Undecodable(f"a plane cannot be inflated: {error}") from None
    if not stream.eof or stream.unused_data:
        raise Undecodable("a plane does not end where its deflated bytes do")
    return memoryview(whole)
