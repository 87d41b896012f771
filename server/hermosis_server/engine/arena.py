"""Arena: where sessions live in device memory.

Memory is taken in slabs of rows of E elements. A session holds, for each of its buffers (parameters, momentum, metric
moments), one run of neighbouring rows inside one slab, so that a session alone is read without an index; sessions stand
side by side in a slab, and a slab that nobody uses is given back. Only the device thread calls this, but for
`staging_buffer`, which touches no slab.
"""

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import Spans, pieces, row_count
from hermosis_server.errors import InternalError, OutOfDeviceMemory
from hermosis_server.records import StateBuffer

ELEMENT_BYTES = 4  # masters and momenta are float32
SLAB_BYTES = 16 << 20

TORCH_DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}


@dataclass(slots=True)
class _Slab:
    rows: Tensor  # (N, E)
    free: list[tuple[int, int]] = field(default_factory=list)  # (first row, rows), sorted, never touching

    def take(self, rows: int) -> int | None:
        """First row of the first gap that is long enough, or None."""
        for index, (first, length) in enumerate(self.free):
            if length >= rows:
                self.free[index : index + 1] = [(first + rows, length - rows)] if length > rows else []
                return first
        return None

    def give(self, first: int, rows: int) -> None:
        insort(self.free, (first, rows))
        merged: list[tuple[int, int]] = []
        for start, length in self.free:
            if merged and sum(merged[-1]) > start:
                raise InternalError("arena rows freed twice; this is a bug in hermosis")
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self.free = merged

    @property
    def empty(self) -> bool:
        return self.free == [(0, len(self.rows))]


@dataclass(frozen=True, slots=True)
class _Run:
    slab: _Slab
    first: int
    rows: int

    @property
    def view(self) -> Tensor:
        return self.slab.rows[self.first : self.first + self.rows]


@dataclass(frozen=True, slots=True)
class Slot:
    """One session's rows: for each of its buffers a run of rows, and the spans of elements that are laid into them."""

    size_bytes: int
    runs: Mapping[StateBuffer, _Run]
    spans: Mapping[StateBuffer, Spans]

    def view(self, buffer: StateBuffer) -> Tensor:
        """(rows, E) of the arena itself."""
        return self.runs[buffer].view

    def elements(self, buffer: StateBuffer) -> int:
        """Elements of a buffer, padding left out."""
        return sum(self.spans[buffer])

    def read(self, buffer: StateBuffer) -> Tensor:
        """The elements of a buffer as one vector; a view where they lie in one piece."""
        return unpadded(self.view(buffer), self.spans[buffer])


class Arena:
    """Rows of float32 on one device, shared by all sessions.

    Args:
      device:       where the rows live.
      row_elements: E, elements a row. Long rows cost small sessions padding, short ones cost large sessions time.
      limit_bytes:  the most that all sessions together may hold.
    """

    def __init__(self, device: torch.device, *, row_elements: int, limit_bytes: int) -> None:
        self.device = device
        self.row_elements = row_elements
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._slabs: list[_Slab] = []

    def reserve(self, layouts: Mapping[StateBuffer, Spans]) -> Slot:
        """Takes zeroed rows for a session.

        Args:
          layouts: the session's buffers, and the spans of elements in each.

        Raises:
          OutOfDeviceMemory: the session would not fit; nothing was taken.
        """
        wanted = sum(map(self._rows, layouts.values())) * self.row_elements * ELEMENT_BYTES
        free = self.limit_bytes - self.used_bytes
        if wanted > free:
            raise OutOfDeviceMemory(
                f"the session needs {wanted} bytes of device memory, {free} of {self.limit_bytes} are free; "
                "close a session or raise the server's device memory limit",
                metadata={"free_bytes": str(free), "wanted_bytes": str(wanted)},
            )
        runs: dict[StateBuffer, _Run] = {}
        try:
            for buffer, spans in layouts.items():
                runs[buffer] = self._take(self._rows(spans))
        except torch.OutOfMemoryError as error:
            self._give(runs)
            raise OutOfDeviceMemory(
                f"the device {self.device} has no room for another {wanted} bytes, although the limit of "
                f"{self.limit_bytes} is not reached; lower the limit or close a session"
            ) from error
        self.used_bytes += wanted
        return Slot(size_bytes=wanted, runs=runs, spans=dict(layouts))

    def release(self, slot: Slot) -> None:
        """Gives a session's rows back."""
        self._give(slot.runs)
        self.used_bytes -= slot.size_bytes

    def gather(self, slots: Sequence[Slot], buffer: StateBuffer) -> Tensor:
        """Copies one buffer of several sessions into (R, E), in order."""
        return torch.cat([slot.view(buffer) for slot in slots])

    def scatter(self, slots: Sequence[Slot], buffer: StateBuffer, values: Sequence[Tensor]) -> None:
        """Copies (rows, E) back to each session."""
        torch._foreach_copy_([slot.view(buffer) for slot in slots], list(values))

    def write(self, slot: Slot, buffer: StateBuffer, elements: Tensor) -> None:
        """Sets a buffer's elements from a flat tensor of any device and dtype."""
        spans = slot.spans[buffer]
        for place, part in zip(pieces(slot.view(buffer), spans), torch.split(elements, list(spans)), strict=True):
            place.copy_(part)

    def _rows(self, spans: Spans) -> int:
        return sum(row_count(span, self.row_elements) for span in spans)

    def _take(self, rows: int) -> _Run:
        for slab in self._slabs:
            first = slab.take(rows)
            if first is not None:
                run = _Run(slab, first, rows)
                run.view.zero_()
                return run
        length = max(rows, SLAB_BYTES // (self.row_elements * ELEMENT_BYTES))
        slab = _Slab(torch.zeros((length, self.row_elements), dtype=torch.float32, device=self.device))
        if length > rows:
            slab.free.append((rows, length - rows))
        self._slabs.append(slab)
        return _Run(slab, 0, rows)

    def _give(self, runs: Mapping[StateBuffer, _Run]) -> None:
        for run in runs.values():
            run.slab.give(run.first, run.rows)
            if run.slab.empty:
                # By identity: slabs hold tensors, which do not compare to a bool.
                self._slabs = [slab for slab in self._slabs if slab is not run.slab]


def unpadded(rows: Tensor, spans: Spans) -> Tensor:
    """The elements of one session's (rows, E) as one vector, without the padding at the end of each span."""
    cut = pieces(rows, spans)
    return cut[0] if len(cut) == 1 else torch.cat(cut)


def wire_bytes(vector: Tensor, dtype: Dtype) -> memoryview:
    """A flat vector as little-endian bytes of their own, unaffected by later steps."""
    host = vector.to(dtype=TORCH_DTYPES[dtype], device="cpu", copy=True)
    return host.view(torch.uint8).numpy().data


def from_wire(payload: memoryview, dtype: Dtype) -> Tensor:
    """A flat vector over the bytes themselves, without a copy."""
    return torch.frombuffer(payload, dtype=TORCH_DTYPES[dtype])


def staging_buffer(size_bytes: int, *, pinned: bool) -> memoryview:
    """Host memory for a gradient on its way; pinned where a device will fetch it from there."""
    return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned).numpy().data
