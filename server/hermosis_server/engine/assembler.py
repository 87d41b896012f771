"""Assembler: chunks, in any order, become one vector in staging memory.

Every check comes before the copy, and the check that the whole fits comes before the memory is taken: a sender can
announce what it likes and gets no more than its session's size, within the server's budget for all.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.errors import CorruptChunk, InvalidRequest, LayoutMismatch, Overloaded, PayloadMismatch

RETRY_AFTER_S = 0.25


class StagingBudget:
    """Host bytes for vectors on their way, all sessions together. Used from the rpc thread only.

    Args:
      limit_bytes: the most that may be staged at a time.
      allocate:    gives that many bytes of host memory; the engine passes pinned memory where a device fetches from it.
    """

    def __init__(self, limit_bytes: int, allocate: Callable[[int], memoryview]) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._allocate = allocate

    def take(self, size_bytes: int) -> "Staging":
        """Memory for a vector.

        Raises:
          Overloaded: the budget is spent just now.
        """
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise Overloaded(
                f"{size_bytes} bytes of staging memory were asked for, {self.limit_bytes - self.used_bytes} of "
                f"{self.limit_bytes} are free; send the gradient again shortly",
                retry_after_s=RETRY_AFTER_S,
            )
        self.used_bytes += size_bytes
        return Staging(self._allocate(size_bytes), self)


@dataclass(slots=True)
class Staging:
    """Staging memory, given back exactly once."""

    memory: memoryview
    _budget: StagingBudget | None

    def release(self) -> None:
        """Gives the memory back; a second call does nothing."""
        if self._budget is not None:
            self._budget.used_bytes -= len(self.memory)
            self._budget = None
            self.memory = memoryview(b"")


@dataclass(slots=True)
class Assembler:
    """One vector on its way.

    Attributes:
      elements: P, how many elements make the whole.
      dtype:    of every chunk.
      staging:  where the chunks land; None only checks them, for a gradient that was answered before.
    """

    elements: int
    dtype: Dtype
    max_chunk_bytes: int
    staging: Staging | None
    received: int = 0  # elements
    _parts: list[tuple[int, int, int]] = field(default_factory=list)  # (offset, length, checksum), sorted

    @property
    def complete(self) -> bool:
        return self.received == self.elements

    @property
    def size_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def checksum(self) -> int:
        """CRC-32 of the whole vector's bytes."""
        return wire.joined_checksum((crc, length * self.dtype.itemsize) for _, length, crc in self._parts)

    def add(self, *, offset: int, dtype: Dtype, crc32: int, payload: bytes | memoryview) -> None:
        """Puts a chunk in its place. A chunk that comes a second time is recognised and left out.

        Raises:
          InvalidRequest:  another dtype than agreed, an empty or oversized payload, or a partial overlap.
          LayoutMismatch:  elements beyond the end of the layout.
          CorruptChunk:    the payload is not what was sent.
          PayloadMismatch: the same elements came before with other values.
        """
        if dtype is not self.dtype:
            raise InvalidRequest(
                f"chunk is {dtype.name}, the stream was opened for {self.dtype.name}; open it again for another",
                field="chunk.dtype",
            )
        size = len(payload)
        length, rest = divmod(size, dtype.itemsize)
        if rest or not 0 < size <= self.max_chunk_bytes:
            raise InvalidRequest(
                f"chunk payload is {size} bytes; wanted whole {dtype.itemsize}-byte elements, at least one, at most "
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
        if self._already_there(place, offset, length, crc32):
            return
        landed = payload
        if self.staging is not None:
            # First the copy, then its check: the payload may lie in memory that its sender can still write.
            start = offset * dtype.itemsize
            landed = self.staging.memory[start : start + size]
            landed[:] = payload
        actual = wire.checksum(landed)
        if actual != crc32:
            raise CorruptChunk(
                f"chunk at element {offset} has checksum {actual:08x}, its sender computed {crc32:08x}; send it again",
                field="chunk.crc32",
            )
        self._parts.insert(place, (offset, length, crc32))
        self.received += length

    def require_complete(self) -> None:
        """Raises LayoutMismatch when elements are missing."""
        if not self.complete:
            raise LayoutMismatch(
                f"{self.received} of {self.elements} elements came before the commit; send every element once",
                field="chunk",
            )

    def release(self) -> None:
        """Gives the staging memory back."""
        if self.staging is not None:
            self.staging.release()

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
