"""Arena: where sessions live in device memory, and in host memory while they idle.

Memory is taken in slabs of rows of E elements, E one of a few lengths. A buffer of a session (parameters, momentum,
metric moments) is a list of extents: runs of neighbouring rows of some slab, one run where a long enough gap is found.
So any free row serves anybody; and when sessions close, the emptiest slabs are moved into the gaps of the others and
given back. Only the device thread calls this, but for `staging_buffer`, which touches no slab.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import Spans, pieces, row_count
from hermosis_server.engine.cohort import Cohorts
from hermosis_server.errors import InternalError, OutOfDeviceMemory
from hermosis_server.records import StateBuffer

ELEMENT_BYTES = 4  # masters and momenta are float32
SLAB_BYTES = 16 << 20
# Long rows for speed, short ones for sessions that would leave most of a long one empty.
ROW_LENGTHS = (2048, 256)
# A session takes the longest rows that pad it by no more than this share of its elements. Sums follow the rows, so the
# choice looks at the session alone, never at what is free.
MOST_PADDING = 1 / 8

TORCH_DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}


def row_length(spans: Spans) -> int:
    """E of a session whose elements lie in these spans."""
    elements = sum(spans)
    for length in ROW_LENGTHS:
        if sum(row_count(span, length) for span in spans) * length <= elements * (1 + MOST_PADDING):
            return length
    return ROW_LENGTHS[-1]


class _Slab:
    """Rows of one length, and the gaps between those in use.

    Attributes:
      rows:      (N, E).
      free_rows: in all gaps.
      tenants:   who has rows here.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.free_rows = len(rows)
        self.tenants: set[Slot] = set()
        self._gaps = [(0, len(rows))]  # (first row, rows), sorted, never touching

    @property
    def empty(self) -> bool:
        return self.free_rows == len(self.rows)

    @property
    def size_bytes(self) -> int:
        return self.rows.numel() * ELEMENT_BYTES

    def take(self, rows: int, *, whole: bool) -> "_Extent | None":
        """The first gap that is long enough; where pieces will do, the first gap at all."""
        for index, (first, length) in enumerate(self._gaps):
            if length >= rows or not whole:
                taken = min(rows, length)
                self._gaps[index : index + 1] = [(first + taken, length - taken)] if length > taken else []
                self.free_rows -= taken
                return _Extent(self, first, taken)
        return None

    def give(self, first: int, rows: int) -> None:
        """Takes rows back, and joins the gaps that now touch."""
        gaps, end = self._gaps, first + rows
        place = bisect_left(gaps, (first, 0))
        before = gaps[place - 1] if place else (0, 0)
        after = gaps[place] if place < len(gaps) else (len(self.rows), 0)
        if sum(before) > first or after[0] < end:
            raise InternalError("arena rows freed twice; this is a bug in hermosis")
        low, high = place, place
        if place and sum(before) == first:
            low, first = place - 1, before[0]
        if place < len(gaps) and after[0] == end:
            high, end = place + 1, sum(after)
        gaps[low:high] = [(first, end - first)]
        self.free_rows += rows


@dataclass(frozen=True, slots=True)
class _Extent:
    slab: _Slab
    first: int
    rows: int

    @property
    def view(self) -> Tensor:
        return self.slab.rows[self.first : self.first + self.rows]

    @property
    def addresses(self) -> NDArray[np.int64]:
        """Of each row, in bytes."""
        length = self.slab.rows.shape[1] * ELEMENT_BYTES
        return self.slab.rows.data_ptr() + (self.first + np.arange(self.rows, dtype=np.int64)) * length


class _Tier:
    """The slabs of one kind of memory.

    Args:
      device:      where the rows live.
      limit_bytes: the most that all sessions together may hold here.
      pinned:      host memory that a device copies from by itself.
    """

    def __init__(self, device: torch.device, limit_bytes: int, *, pinned: bool = False) -> None:
        self.device = device
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._pinned = pinned
        self._slabs: dict[int, list[_Slab]] = {length: [] for length in ROW_LENGTHS}

    @property
    def free_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes

    @property
    def held_bytes(self) -> int:
        """What is taken from the system: what sessions hold, and the gaps between them."""
        return sum(slab.size_bytes for slabs in self._slabs.values() for slab in slabs)

    def take(self, slot: "Slot", counts: Mapping[StateBuffer, int]) -> dict[StateBuffer, list[_Extent]]:
        """Zeroed rows for a session's buffers. The caller has looked at the limit.

        Raises:
          OutOfDeviceMemory: the device itself has no room; nothing was taken.
        """
        taken: dict[StateBuffer, list[_Extent]] = {}
        try:
            for buffer, rows in counts.items():
                taken[buffer] = self._rows(slot, rows)
        except (torch.OutOfMemoryError, MemoryError) as error:
            self.give(slot, taken)
            raise OutOfDeviceMemory(
                f"the device {self.device} has no room for another {slot.size_bytes} bytes, although the limit of "
                f"{self.limit_bytes} is not reached; lower the limit or close a session"
            ) from error
        return taken

    def give(self, slot: "Slot", extents: Mapping[StateBuffer, Sequence[_Extent]]) -> None:
        """Takes rows back; slabs that nobody uses any more go back to the system."""
        touched = {extent.slab for run in extents.values() for extent in run}
        for run in extents.values():
            for extent in run:
                extent.slab.give(extent.first, extent.rows)
        for slab in touched:
            slab.tenants.discard(slot)
            if slab.empty:
                self._slabs[slot.row_elements].remove(slab)

    def compact(self, length: int) -> None:
        """Empties the emptiest slab into the gaps of the others, while they have room to spare for one more."""
        slabs = self._slabs[length]
        while len(slabs) > 2:
            emptiest = max(slabs, key=lambda slab: slab.free_rows / len(slab.rows))
            moving = len(emptiest.rows) - emptiest.free_rows
            elsewhere = sum(slab.free_rows for slab in slabs if slab is not emptiest)
            if elsewhere < moving + SLAB_BYTES // (length * ELEMENT_BYTES):
                return
            slabs.remove(emptiest)
            for slot in tuple(emptiest.tenants):
                self._move_out(emptiest, slot)

    def _move_out(self, slab: _Slab, slot: "Slot") -> None:
        for buffer, run in slot.extents.items():
            moved: list[_Extent] = []
            for extent in run:
                if extent.slab is not slab:
                    moved.append(extent)
                    continue
                fresh = self._rows(slot, extent.rows)
                for place, part in zip(fresh, torch.split(extent.view, [one.rows for one in fresh]), strict=True):
                    place.view.copy_(part)
                moved += fresh
            slot.extents[buffer] = moved
        slot.moved()

    def _rows(self, slot: "Slot", rows: int) -> list[_Extent]:
        slabs, taken = self._slabs[slot.row_elements], list[_Extent]()
        for slab in slabs:
            extent = slab.take(rows, whole=True) if slab.free_rows >= rows else None
            if extent is not None:
                taken = [extent]
                break
        else:
            if rows <= sum(slab.free_rows for slab in slabs):  # in pieces rather than more memory
                taken = self._pieces(slabs, rows)
            else:
                taken = [self._new_slab(slot.row_elements, rows)]
        for extent in taken:
            extent.slab.tenants.add(slot)
            extent.view.zero_()
        return taken

    def _pieces(self, slabs: Iterable[_Slab], rows: int) -> list[_Extent]:
        taken: list[_Extent] = []
        for slab in slabs:
            while rows and (extent := slab.take(rows, whole=False)) is not None:
                taken.append(extent)
                rows -= extent.rows
        return taken

    def _new_slab(self, length: int, rows: int) -> _Extent:
        count = max(rows, SLAB_BYTES // (length * ELEMENT_BYTES))
        memory = torch.empty((count, length), dtype=torch.float32, device=self.device, pin_memory=self._pinned)
        slab = _Slab(memory)
        self._slabs[length].append(slab)
        extent = slab.take(rows, whole=True)
        assert extent is not None
        return extent


@dataclass(eq=False, slots=True)
class Slot:
    """One session's rows.

    Attributes:
      device:       that the session belongs to.
      row_elements: E.
      spans:        for each of its buffers, the spans of elements that are laid into its rows.
      size_bytes:   of all rows, padding included.
      extents:      where they are; they may be moved between two jobs.
      resident:     whether that is in device memory.
      used:         when it was last asked for, in jobs of the arena.
      table:        what whoever steps the session has made of its addresses, until they change.
    """

    device: str
    row_elements: int
    spans: Mapping[StateBuffer, Spans]
    size_bytes: int
    extents: dict[StateBuffer, list[_Extent]] = field(default_factory=dict)
    resident: bool = True
    used: int = 0
    table: Any = None

    @property
    def device_bytes(self) -> int:
        """What it holds in device memory."""
        return self.size_bytes if self.resident else 0

    @property
    def host_bytes(self) -> int:
        """What it holds in host memory instead."""
        return 0 if self.resident else self.size_bytes

    def view(self, buffer: StateBuffer) -> Tensor:
        """(rows, E) of a buffer: the arena itself where it lies in one piece, else a copy."""
        run = self.extents[buffer]
        return run[0].view if len(run) == 1 else torch.cat([extent.view for extent in run])

    def rows(self, buffer: StateBuffer) -> int:
        """How many rows a buffer has."""
        return sum(extent.rows for extent in self.extents[buffer])

    def elements(self, buffer: StateBuffer) -> int:
        """Elements of a buffer, padding left out."""
        return sum(self.spans[buffer])

    def read(self, buffer: StateBuffer) -> Tensor:
        """The elements of a buffer as one vector; a view where they lie in one piece."""
        return unpadded(self.view(buffer), self.spans[buffer])

    def addresses(self, buffer: StateBuffer) -> NDArray[np.int64]:
        """(rows,) addresses in bytes; zeros for a buffer that the session does not have."""
        if buffer not in self.extents:
            return np.zeros(self.rows(StateBuffer.MOMENTUM), np.int64)
        return np.concatenate([extent.addresses for extent in self.extents[buffer]])

    def largest(self) -> float:
        """The largest magnitude in the session's buffers."""
        return max(float(extent.view.abs().amax()) for run in self.extents.values() for extent in run)

    def moved(self) -> None:
        """Forgets addresses that are no longer true."""
        self.table = None


class Arena:
    """Rows of float32 shared by all sessions of one device.

    A session that would not fit any more puts those that have idled longest into host memory, and they come back when
    they are asked for.

    Args:
      device:           where the rows live.
      limit_bytes:      the most that all sessions together may hold there.
      host_limit_bytes: the most that idle sessions may hold in host memory; zero means that nobody moves.

    Attributes:
      cohorts: the numbers that belong to the rows; they stay in host memory.
    """

    def __init__(self, device: torch.device, *, limit_bytes: int, host_limit_bytes: int = 0) -> None:
        self.device = device
        self.cohorts = Cohorts()
        self._near = _Tier(device, limit_bytes)
        self._far = _Tier(torch.device("cpu"), host_limit_bytes, pinned=device.type == "cuda")
        self._slots: set[Slot] = set()
        self._clock = 0

    @property
    def limit_bytes(self) -> int:
        return self._near.limit_bytes

    @property
    def used_bytes(self) -> int:
        """What sessions hold in device memory."""
        return self._near.used_bytes

    @property
    def held_bytes(self) -> int:
        """Device memory taken from the system."""
        return self._near.held_bytes

    @property
    def paged_bytes(self) -> int:
        """What idle sessions hold in host memory."""
        return self._far.used_bytes

    @property
    def free_bytes(self) -> int:
        """What new sessions may still take, with everybody moved to host memory who can be."""
        return self._near.free_bytes + self._far.free_bytes

    def reserve(self, layouts: Mapping[StateBuffer, Spans]) -> Slot:
        """Takes zeroed rows for a session.

        Args:
          layouts: the session's buffers, and the spans of elements in each; momentum is among them.

        Raises:
          OutOfDeviceMemory: the session would not fit; nothing was taken.
        """
        length = row_length(layouts[StateBuffer.MOMENTUM])
        counts = {buffer: sum(row_count(span, length) for span in spans) for buffer, spans in layouts.items()}
        slot = Slot(str(self.device), length, dict(layouts), sum(counts.values()) * length * ELEMENT_BYTES)
        self._admit(slot.size_bytes)
        self._make_room(slot.size_bytes, keep=())
        slot.extents = self._near.take(slot, counts)
        self._near.used_bytes += slot.size_bytes
        self._slots.add(slot)
        self._touch((slot,))
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a session's rows back."""
        if slot not in self._slots:
            raise InternalError("arena rows freed twice; this is a bug in hermosis")
        tier = self._near if slot.resident else self._far
        tier.give(slot, slot.extents)
        tier.used_bytes -= slot.size_bytes
        tier.compact(slot.row_elements)
        self._slots.discard(slot)
        slot.extents = {}  # whoever still knows the slot does not keep the memory

    def fetch(self, slots: Sequence[Slot]) -> None:
        """Sees that all these are in device memory.

        Raises:
          OutOfDeviceMemory: together they are more than the device may hold.
        """
        if not self._far.limit_bytes:
            return
        self._touch(slots)
        away = [slot for slot in slots if not slot.resident]
        if not away:
            return
        # Lifted first: where both memories are full, those who come and those who leave change places.
        lifted = [(slot, self._lift(slot)) for slot in away]
        target = self._far
        try:
            self._make_room(sum(slot.size_bytes for slot in away), keep=slots)
            target = self._near
        finally:
            for slot, rows in lifted:
                self._land(slot, rows, target)

    def fitting(self, slots: Sequence[Slot]) -> int:
        """How many of these, from the first on, can be in device memory at a time; at least one."""
        if not self._far.limit_bytes:
            return len(slots)
        room = self._near.limit_bytes
        for count, slot in enumerate(slots):
            room -= slot.size_bytes
            if room < 0:
                return max(1, count)
        return len(slots)

    def gather(self, slots: Sequence[Slot], buffer: StateBuffer) -> Tensor:
        """Copies one buffer of several sessions into (R, E), in order."""
        return torch.cat([extent.view for slot in slots for extent in slot.extents[buffer]])

    def scatter(self, slots: Sequence[Slot], buffer: StateBuffer, values: Sequence[Tensor]) -> None:
        """Copies (rows, E) back to each session."""
        places = [slot.extents[buffer] for slot in slots]
        parts = [
            part
            for run, rows in zip(places, values, strict=True)
            for part in torch.split(rows, [extent.rows for extent in run])
        ]
        torch._foreach_copy_([extent.view for run in places for extent in run], parts)

    def write(self, slot: Slot, buffer: StateBuffer, elements: Tensor) -> None:
        """Sets a buffer's elements from a flat tensor of any device and dtype."""
        spans = slot.spans[buffer]
        rows = slot.view(buffer)
        for place, part in zip(pieces(rows, spans), torch.split(elements, list(spans)), strict=True):
            place.copy_(part)
        if len(slot.extents[buffer]) > 1:
            self.scatter([slot], buffer, [rows])

    def _touch(self, slots: Iterable[Slot]) -> None:
        if self._far.limit_bytes:
            self._clock += 1
            for slot in slots:
                slot.used = self._clock

    def _admit(self, size_bytes: int) -> None:
        """Raises OutOfDeviceMemory unless there is room for another session, in device memory or for others to leave.

        With room for the largest session besides, whoever is wanted in device memory can always be brought there.
        """
        near, far = self._near, self._far
        if size_bytes <= near.free_bytes and not far.used_bytes:
            return
        largest = max([size_bytes, *(slot.size_bytes for slot in self._slots)])
        if far.limit_bytes and size_bytes <= near.limit_bytes and size_bytes + largest <= self.free_bytes:
            return
        paged = f" and {far.free_bytes} of {far.limit_bytes} in host memory" if far.limit_bytes else ""
        raise OutOfDeviceMemory(
            f"the session needs {size_bytes} bytes of device memory, {near.free_bytes} of {near.limit_bytes} are "
            f"free{paged}; close a session or raise the server's memory limits",
            metadata={"free_bytes": str(near.free_bytes), "wanted_bytes": str(size_bytes)},
        )

    def _make_room(self, wanted: int, *, keep: Sequence[Slot]) -> None:
        """Moves those who have idled longest to host memory until so many bytes are free."""
        if wanted <= self._near.free_bytes:
            return
        staying = set(keep)
        room, space, leaving = self._near.free_bytes, self._far.free_bytes, list[Slot]()
        for slot in sorted((one for one in self._slots - staying if one.resident), key=lambda one: one.used):
            if room >= wanted:
                break
            if slot.size_bytes <= space:
                room, space = room + slot.size_bytes, space - slot.size_bytes
                leaving.append(slot)
        if room < wanted:
            raise OutOfDeviceMemory(
                f"{wanted} bytes of device memory are wanted at a time, {self._near.limit_bytes} is the server's limit"
            )
        for slot in leaving:
            self._land(slot, self._lift(slot), self._far)

    def _lift(self, slot: Slot) -> dict[StateBuffer, Tensor]:
        """A session's rows, taken out of where they were."""
        tier = self._near if slot.resident else self._far
        lifted = {buffer: self.gather((slot,), buffer) for buffer in slot.extents}
        tier.give(slot, slot.extents)
        tier.used_bytes -= slot.size_bytes
        tier.compact(slot.row_elements)
        return lifted

    def _land(self, slot: Slot, rows: Mapping[StateBuffer, Tensor], tier: _Tier) -> None:
        slot.extents = tier.take(slot, {buffer: len(lifted) for buffer, lifted in rows.items()})
        slot.resident = tier is self._near
        slot.moved()
        tier.used_bytes += slot.size_bytes
        for buffer, lifted in rows.items():
            self.scatter((slot,), buffer, (lifted,))


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


def address_of(memory: memoryview) -> int:
    """Where bytes lie; whoever uses it keeps the memory."""
    address: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return address


def staging_buffer(size_bytes: int, *, pinned: bool) -> memoryview:
    """Host memory for a gradient on its way; pinned where a device will fetch it from there."""
    if pinned:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy().data
    return np.empty(size_bytes, np.uint8).data
