"""Assembler: chunks, in any order, become one vector in staging memory.

The check that the whole fits comes before the memory is taken: a sender can announce what it likes and gets no more
than its session's size, within the server's budget for all. Bytes are copied once, and looked at while they are in the
processor's cache: their checksum, and their peak.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.engine.budget import Budget
from hermosis_server.errors import CorruptChunk, InvalidRequest, LayoutMismatch, PayloadMismatch

# What is remembered of a chunk until its vector is whole, and for how many of them it is paid at a time.
PART_BYTES = 192
PAID_PARTS = 16
# Chunks that nobody has to ask for: some, and one for each of so many bytes of the vector.
FREE_PARTS = 64
FREE_PART_BYTES = 4096


class StagingBudget(Budget):
    """The server's budget, with the memory that vectors on their way lie in.

    Args:
      limit_bytes: the most that may be in use at a time.
      allocate:    gives that many bytes of host memory; the engine passes pinned memory where a device fetches from it.
    """

    __slots__ = ("_allocate",)

    def __init__(self, limit_bytes: int, allocate: Callable[[int], memoryview]) -> None:
        super().__init__(limit_bytes)
        self._allocate = allocate

    def stage(self, size_bytes: int, budget: Budget | None = None, *, awaited: bool = False) -> "Staging":
        """Memory for a vector.

        Args:
          budget:  of the session that it is for, a part of this one; None is the server's own.
          awaited: as in `Budget.take`.

        Raises:
          Overloaded: a budget is spent just now.
        """
        budget = self if budget is None else budget
        budget.take(size_bytes, awaited=awaited)
        try:
            return Staging(self._allocate(size_bytes), budget)
        except BaseException:
            budget.give(size_bytes)
            raise


@dataclass(slots=True)
class Staging:
    """Staging memory, given back exactly once."""

    memory: memoryview
    _budget: Budget | None

    @property
    def address(self) -> int:
        """Of the first byte; valid until the release, and zero afterwards."""
        where = np.frombuffer(self.memory, np.uint8).__array_interface__["data"] if self.memory else (0,)
        return int(where[0])

    def release(self) -> None:
        """Gives the memory back; a second call does nothing."""
        if self._budget is not None:
            self._budget.give(len(self.memory))
            self._budget = None
            self.memory = memoryview(b"")


@dataclass(slots=True)
class Assembler:
    """One vector on its way.

    Attributes:
      elements: P, how many elements make the whole.
      dtype:    of every chunk.
      staging:  where the chunks land; None only checks them, for a gradient that was answered before.
      budget:   pays for what is remembered of a vector that comes in pieces.
      saved_bytes: that codecs spared the wire.
    """

    elements: int
    dtype: Dtype
    max_chunk_bytes: int
    staging: Staging | None
    budget: Budget
    received: int = 0  # elements
    saved_bytes: int = 0
    _peak_bits: int = 0  # of the largest magnitude so far
    _paid_parts: int = 0
    _parts: list[tuple[int, int, int]] = field(default_factory=list)  # (offset, length, checksum), sorted

    @property
    def complete(self) -> bool:
        return self.received == self.elements

    @property
    def prefix(self) -> int:
        """Elements that came without a gap from the first on."""
        end = 0
        for offset, length, _ in self._parts:
            if offset != end:
                break
            end += length
        return end

    @property
    def size_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def received_bytes(self) -> int:
        """Payload that a complete vector came in."""
        return self.size_bytes - self.saved_bytes

    @property
    def peak(self) -> float:
        """Largest magnitude of the elements that came; infinite or NaN where one of them is. Zero without staging."""
        return _value(self._peak_bits, self.dtype)

    def checksum(self) -> int:
        """CRC-32 of the whole vector's bytes."""
        if len(self._parts) == 1:
            return self._parts[0][2]
        return wire.joined_checksum((crc, length * self.dtype.itemsize) for _, length, crc in self._parts)

    def add(
        self,
        *,
        offset: int,
        dtype: Dtype,
        crc32: int,
        payload: bytes | bytearray | memoryview,
        saved_bytes: int = 0,
    ) -> None:
        """Puts a chunk in its place. A chunk that comes a second time is recognised and left out.

        Args:
          saved_bytes: that a codec spared the wire.

        Raises:
          InvalidRequest:  another dtype than agreed, an empty or oversized payload, or a partial overlap.
          LayoutMismatch:  elements beyond the end of the layout.
          CorruptChunk:    the payload is not what was sent; its place holds it, but counts as empty.
          PayloadMismatch: the same elements came before with other values.
          Overloaded:      there is no memory to remember one more piece.
        """
        if dtype is not self.dtype:
            raise InvalidRequest(
                f"chunk is {dtype.name}, the stream was opened for {self.dtype.name}; open it again for another",
                field="chunk.dtype",
            )
        size = len(payload)
        itemsize = dtype.itemsize
        length, rest = divmod(size, itemsize)
        if rest or not 0 < size <= self.max_chunk_bytes:
            raise InvalidRequest(
                f"chunk payload is {size} bytes; wanted whole {itemsize}-byte elements, at least one, at most "
                f"{self.max_chunk_bytes} bytes",
                field="chunk.payload",
            )
        end = offset + length
        if end > self.elements:
            raise LayoutMismatch(
                f"chunk ends at element {end}, the session has {self.elements}; check the parameter order and sizes",
                field="chunk.offset",
            )
        place = bisect_left(self._parts, (offset, 0, 0))
        known = self._parts and self._already_there(place, offset, length, crc32)
        landed = payload
        if self.staging is not None and not known:
            start = offset * itemsize
            landed = self.staging.memory[start : start + size]
            landed[:] = payload
        actual = wire.checksum(landed)
        if actual != crc32:
            raise CorruptChunk(
                f"chunk at element {offset} has checksum {actual:08x}, its sender computed {crc32:08x}; send it again",
                field="chunk.crc32",
            )
        if known:
            return
        if self.staging is not None:
            self._peak_bits = max(self._peak_bits, _peak_bits(landed, dtype))
        if len(self._parts) >= self._paid_parts and self.received + length < self.elements:
            self._pay()
        self._parts.insert(place, (offset, length, crc32))
        self.received += length
        self.saved_bytes += saved_bytes

    def require_complete(self) -> None:
        """Raises LayoutMismatch when elements are missing."""
        if not self.complete:
            raise LayoutMismatch(
                f"{self.received} of {self.elements} elements came before the commit; send every element once",
                field="chunk",
            )

    def release(self) -> None:
        """Gives all memory back; a second call does nothing."""
        if self._paid_parts:
            self.budget.give(self._paid_parts * PART_BYTES)
            self._paid_parts = 0
        if self.staging is not None:
            self.staging.release()

    def _pay(self) -> None:
        """Pays for more parts: in pieces of one element a vector would take fifty times its memory."""
        few = self._paid_parts < FREE_PARTS + self.size_bytes // FREE_PART_BYTES
        (self.budget.hold if few else self.budget.take)(PAID_PARTS * PART_BYTES)
        self._paid_parts += PAID_PARTS

    def _already_there(self, place: int, offset: int, length: int, crc32: int) -> bool:
        before = self._parts[place - 1] if place else None
        after = self._parts[place] if place < len(self._parts) else None
        if after is not None and after[:2] == (offset, length):
            if after[2] == crc32:
                return True
            raise PayloadMismatch(f"elements {offset} to {offset + length} came twice with different values")
        if (before and before[0] + before[1] > offset) or (after and after[0] < offset + length):
            raise InvalidRequest(
                f"elements {offset} to {offset + length} overlap a chunk that came before; send every element once",
                field="chunk.offset",
            )
        return False


# Little-endian integers as wide as an element, by its bytes.
_SIGNED: dict[int, np.dtype[np.signedinteger]] = {4: np.dtype("<i4"), 2: np.dtype("<i2")}
_UNSIGNED: dict[int, np.dtype[np.unsignedinteger]] = {4: np.dtype("<u4"), 2: np.dtype("<u2")}


def _peak_bits(payload: bytes | bytearray | memoryview, dtype: Dtype) -> int:
    """The largest magnitude among elements, as its bits.

    Magnitudes of floating-point numbers are ordered as the integers that their bits are; infinity stands above all
    numbers and NaN above infinity. The largest signed integer is the largest positive element, the largest unsigned one
    the largest negative. Two integer passes in cache take a sixth of one that understands floating point.
    """
    itemsize = dtype.itemsize
    signed = np.frombuffer(payload, _SIGNED[itemsize])
    positive = int(np.maximum.reduce(signed))
    negative = int(np.maximum.reduce(signed.view(_UNSIGNED[itemsize])))
    return max(positive, negative & ((1 << (8 * itemsize - 1)) - 1))


def _value(bits: int, dtype: Dtype) -> float:
    """The element with these bits."""
    if dtype is Dtype.FLOAT16:
        return float(struct.unpack("<e", struct.pack("<H", bits))[0])
    return float(struct.unpack("<f", struct.pack("<I", bits << 16 if dtype is Dtype.BFLOAT16 else bits))[0])
