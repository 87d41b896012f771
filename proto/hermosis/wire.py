"""What the bytes on the wire mean: dtypes, chunks, checksums and digests. Standard library, and isal where it is there.

Both ends import this file, so there is one answer to each of these questions; docs/protocol.md says the same in words
for other languages.
"""

import enum
import functools
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

try:  # the same numbers at nearly ten times the speed
    from isal.isal_zlib import crc32 as _crc32
    from isal.isal_zlib import crc32_combine as _crc32_combine
except ImportError:
    from zlib import crc32 as _crc32

    _crc32_combine = None  # type: ignore[assignment]

DEFAULT_CHUNK_BYTES = 1 << 20
# Two chunks and their framing stay below the 4 MiB that gRPC receives by default in every language.
MAX_CHUNK_BYTES = 2 << 20
MAX_MESSAGE_BYTES = 4 << 20

SESSION_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")


class Dtype(enum.IntEnum):
    """Element encodings; the numbers are those of hermosis.v1.Dtype."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return 4 if self is Dtype.FLOAT32 else 2


class Span(NamedTuple):
    """A run of elements of the flat parameter vector."""

    offset: int
    length: int


def spans(elements: int, itemsize: int, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[Span]:
    """Cuts a flat vector into chunks of at most `chunk_bytes`, in order of offset."""
    length = max(1, chunk_bytes // itemsize)
    for offset in range(0, elements, length):
        yield Span(offset, min(length, elements - offset))


def checksum(payload: bytes | bytearray | memoryview, before: int = 0) -> int:
    """CRC-32 (ISO-HDLC, what zlib and every language's standard library call crc32) of a payload.

    Args:
      payload: the bytes.
      before:  checksum of the bytes that come directly before, to continue from.
    """
    return _crc32(payload, before)


def joined_checksum(parts: Iterable[tuple[int, int]]) -> int:
    """Checksum of a whole from its parts' (checksum, length in bytes), in order, without reading them again.

    Source: a CRC is linear over GF(2); appending n zero bytes is a 32 x 32 bit matrix, a product of repeated squares.
    """
    total = 0
    for crc, length in parts:
        if _crc32_combine is not None:
            total = _crc32_combine(total, crc, length)
        else:
            total = _apply(_zero_bytes(length), total) ^ crc
    return total


_Matrix = tuple[int, ...]


def _apply(matrix: _Matrix, vector: int) -> int:
    total = 0
    for column in matrix:
        if vector & 1:
            total ^= column
        vector >>= 1
        if not vector:
            break
    return total


@functools.cache
def _zero_bytes_power(exponent: int) -> _Matrix:
    """The matrix that appends 2**exponent zero bytes."""
    if exponent == 0:
        one_bit: _Matrix = (0xEDB88320, *(1 << bit for bit in range(31)))
        matrix = one_bit
        for _ in range(3):
            matrix = tuple(_apply(matrix, column) for column in matrix)
        return matrix
    half = _zero_bytes_power(exponent - 1)
    return tuple(_apply(half, column) for column in half)


@functools.lru_cache(maxsize=64)
def _zero_bytes(length: int) -> _Matrix:
    """The matrix that appends `length` zero bytes."""
    matrix: _Matrix = tuple(1 << bit for bit in range(32))
    for exponent in range(length.bit_length()):
        if length >> exponent & 1:
            factor = _zero_bytes_power(exponent)
            matrix = tuple(_apply(factor, column) for column in matrix)
    return matrix


def layout_digest(tensors: Iterable[tuple[str, Sequence[int], int]]) -> bytes:
    """SHA-256 of a layout given as (name, shape, dtype number) in flat order.

    Canonical bytes of a tensor: uint32 length of the name, the name in UTF-8, uint32 dtype, uint32 rank, then each axis
    as int64; all little-endian. An unspecified dtype (0) counts as FLOAT32.
    """
    digest = hashlib.sha256()
    for name, shape, dtype in tensors:
        encoded = name.encode()
        digest.update(struct.pack(f"<I{len(encoded)}s", len(encoded), encoded))
        digest.update(struct.pack(f"<II{len(shape)}q", dtype or Dtype.FLOAT32, len(shape), *shape))
    return digest.digest()


def is_plain_name(name: str, limit_bytes: int) -> bool:
    """Whether a name is 1 to `limit_bytes` bytes of UTF-8 without control characters."""
    return 0 < len(name.encode("utf-8", "replace")) <= limit_bytes and name.isprintable()


SEGMENT_HEADER_BYTES = 4096
SEGMENT_TOKEN_BYTES = 32


class SegmentPlaces(NamedTuple):
    """Where things lie in a shared-memory segment, in bytes from its beginning; the header comes first."""

    gradient: slice
    answer: slice
    size_bytes: int


def segment_places(elements: int, gradient_itemsize: int, answer_itemsize: int) -> SegmentPlaces:
    """The places of a gradient and of its answer, each padded to whole blocks of 4096 bytes."""
    gradient = slice(SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + elements * gradient_itemsize)
    begin = _padded(gradient.stop)
    answer = slice(begin, begin + elements * answer_itemsize)
    return SegmentPlaces(gradient, answer, _padded(answer.stop))


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // 4096) * 4096
