"""Entries: what a launch is told of its sessions: their gradients, what is wanted back, where their rows are."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.dynamics import fused
from hermosis_server.engine.arena import Slot
from hermosis_server.engine.resident import Resident
from hermosis_server.records import ReplyWish, StateBuffer

# Vectors of a launch lie in one block of memory, each from such a boundary on.
ALIGNMENT = 64


class Part(NamedTuple):
    """One worker's whole gradient in host memory, in wire bytes.

    Attributes:
      memory:  the bytes.
      address: of the first.
      peak:    the largest magnitude among the elements; infinite or NaN where one is.
      weight:  in the mean of the round.
    """

    memory: memoryview
    address: int
    dtype: Dtype
    peak: float
    weight: float = 1.0


class Entry(NamedTuple):
    """One session's part in a launch.

    Attributes:
      resident: the session.
      parts:    gradients, in the order of worker ids.
      loss:     at the point that they belong to; NaN where it is not known.
      lr_scale: of this step.
      wish:     the reply that the launch itself makes; None where it makes none.
      skipped:  tensors that sit the step out; the gradients are zero there.
    """

    resident: Resident
    parts: Sequence[Part]
    loss: float
    lr_scale: float
    wish: ReplyWish | None
    skipped: tuple[int, ...] = ()

    @property
    def reply_bytes(self) -> int:
        """Of the reply; zero where none is wanted."""
        return self.resident.slot.elements(StateBuffer.MOMENTUM) * self.wish.dtype.itemsize if self.wish else 0


def side_by_side(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where vectors of these many bytes begin in one block, and where the last of them ends."""
    begins, end = list[int](), 0
    for size in sizes:
        begins.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return begins, end


def mean_of(parts: Sequence[Part], pool: fused.Pool | None = None) -> Part:
    """The mean of several gradients in float32, in the order of worker ids: the same bits whoever came first."""
    mean = fused.mean_of(
        [part.address for part in parts],
        [part.dtype for part in parts],
        [part.weight for part in parts],
        len(parts[0].memory) // parts[0].dtype.itemsize,
        pool,
    )
    return Part(mean.data.cast("B"), mean.ctypes.data, Dtype.FLOAT32, peak_of(parts))


def peak_of(parts: Sequence[Part]) -> float:
    """Bounds the magnitudes of the mean; not finite where an element is not."""
    return parts[0].peak if len(parts) == 1 else sum(part.peak * abs(part.weight) for part in parts) * (1 + 1e-6)


class RowTable(NamedTuple):
    """A session's rows as the fused pass takes them.

    Attributes:
      rows:     (R, len(Row)) addresses; in place of the gradient's stands the row's first element in its vector.
      spans:    (G,) rows of each span.
      elements: P.
    """

    rows: NDArray[np.int64]
    spans: NDArray[np.int64]
    elements: int


def row_table(slot: Slot) -> RowTable:
    """Made once, until the rows are moved."""
    if slot.table is None:
        slot.table = _new_table(slot)
    table: RowTable = slot.table
    return table


def _new_table(slot: Slot) -> RowTable:
    length = slot.row_elements
    elements = np.array(slot.spans[StateBuffer.MOMENTUM], np.int64)
    counts = np.maximum(1, -(-elements // length))
    rows = np.zeros((int(counts.sum()), len(fused.Row)), np.int64)
    for buffer, column in _COLUMNS.items():
        rows[:, column] = slot.addresses(buffer)
    in_span = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows[:, fused.Row.GRADIENT] = np.repeat(np.cumsum(elements) - elements, counts) + in_span * length
    rows[:, fused.Row.LENGTH] = np.minimum(length, np.repeat(elements, counts) - in_span * length)
    return RowTable(rows, counts, int(elements.sum()))


class LaunchTables:
    """Tables of the last launches, since the same sessions meet in batch after batch. Each stepper has its own."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], _Joined] = {}

    def joined(
        self, tables: tuple[RowTable, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Rows, sessions and spans of a launch as the fused pass takes them, but for gradients and replies; and each P.

        Rows and sessions are copies, to be filled in.
        """
        key = tuple(map(id, tables))
        kept = self._kept.get(key)
        if kept is None:
            while len(self._kept) >= KEPT_LAUNCHES:
                del self._kept[next(iter(self._kept))]
            kept = self._kept[key] = _Joined(tables, *join(tables))
        return kept.rows.copy(), kept.sessions.copy(), kept.spans, kept.elements.copy()


class _Joined(NamedTuple):
    tables: tuple[RowTable, ...]  # kept alive, so that their ids stay theirs
    rows: NDArray[np.int64]
    sessions: NDArray[np.int64]
    spans: NDArray[np.int64]
    elements: NDArray[np.int64]


KEPT_LAUNCHES = 64


def join(
    tables: tuple[RowTable, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    sessions = np.zeros((len(tables), len(fused.Whole)), np.int64)
    sessions[:, fused.Whole.ROWS] = [len(table.rows) for table in tables]
    sessions[:, fused.Whole.SPANS] = [len(table.spans) for table in tables]
    np.cumsum(sessions[:-1, fused.Whole.ROWS], out=sessions[1:, fused.Whole.FIRST_ROW])
    np.cumsum(sessions[:-1, fused.Whole.SPANS], out=sessions[1:, fused.Whole.FIRST_SPAN])
    rows = np.concatenate([table.rows for table in tables])
    elements = np.array([table.elements for table in tables], np.int64)
    return rows, sessions, np.concatenate([table.spans for table in tables]), elements


_COLUMNS = {
    StateBuffer.PARAMETERS: fused.Row.POSITION,
    StateBuffer.MOMENTUM: fused.Row.MOMENTUM,
    StateBuffer.SECOND_MOMENT: fused.Row.SECOND_MOMENT,
    StateBuffer.FIRST_MOMENT: fused.Row.FIRST_MOMENT,
    StateBuffer.LEAD: fused.Row.LEAD,
}
