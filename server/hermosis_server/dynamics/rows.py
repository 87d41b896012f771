"""Rows: how sessions share a batch, and sums that do not depend on who else is in it.

A batch is S sessions in rows of E elements. A session is one span of elements, or a span for each of its tensors where
those must be told apart; a span begins on a row of its own, and its last row is padded with zeros. Floating-point sums
depend on their order, so the order here is a fixed function of the session alone: first along each row, then over the
rows as one binary tree.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hermosis_server.errors import InternalError

GROUP_ROWS = 64  # rows summed by one gather; any power of two gives the same bits
# From here on torch splits one row between threads, and its sum depends on their number.
THREADED_ELEMENTS = 32_768
# Elements worked on at a time: few enough that what lies between stays in the processor's cache, and on a GPU takes
# little memory. Every operation is by element or by row, so tiles leave no trace in the result.
TILE_ELEMENTS = 1 << 18
DEVICE_TILE_ELEMENTS = 1 << 26

Spans = tuple[int, ...]  # elements of each span of a session, in order


def spans_of(sizes: Sequence[int], *, by_tensor: bool) -> Spans:
    """The spans of a session whose tensors have these sizes; an empty tensor has none."""
    if not by_tensor:
        return (sum(sizes),)
    return tuple(size for size in sizes if size) or (0,)


def row_count(span: int, row_elements: int) -> int:
    """Rows of one span; at least one."""
    return max(1, -(-span // row_elements))


def pieces(rows: Tensor, spans: Spans) -> list[Tensor]:
    """Views of one session's (R, E) rows, a flat one for each span, padding left out."""
    views, top = [], 0
    for span in spans:
        count = row_count(span, rows.shape[1])
        views.append(rows[top : top + count].reshape(-1)[:span])
        top += count
    return views


class Grouping:
    """Items in groups that lie side by side, such as rows of sessions.

    Attributes:
      group: (items,) int64 group of each item.
      size:  groups.
    """

    def __init__(self, counts: Sequence[int], device: torch.device | str) -> None:
        if not counts or min(counts) < 1:
            raise InternalError("each session of a batch has at least one row; this is a bug in hermosis")
        table = torch.tensor(counts)
        group = torch.repeat_interleave(torch.arange(len(counts)), table)
        self.size = len(counts)
        self.group = group.to(device)
        self._one_each = group.numel() == table.numel()
        self._levels = [level.to(device) for level in _summation_tree(table)]

    def spread(self, *values: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers a group, n of (groups,), as (items, n, 1) in `dtype`, rounded once; unbind(1) gives columns."""
        table = torch.stack(values, dim=1).to(dtype).unsqueeze(2)
        return table if self._one_each else table.index_select(0, self.group)

    def each(self, value: Tensor) -> Tensor:
        """A number a group, (groups,), as (items,)."""
        return value if self._one_each else value.index_select(0, self.group)

    def totals(self, *partials: Tensor) -> tuple[Tensor, ...]:
        """Sums item partials, each (items,) float64, to (groups,): a binary tree, the same in any batch."""
        table = torch.stack(partials, dim=1)
        for gather in self._levels:
            table = self._gathered(table, gather)
        return table.unbind(1)

    def _gathered(self, table: Tensor, gather: Tensor) -> Tensor:
        """One level of the tree: (groups, n) sums of the (items, n) that `gather` names."""
        padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
        group = padded[gather]
        while group.shape[1] > 1:
            group = group[:, 0::2] + group[:, 1::2]
        return group.squeeze(1)

    def largest(self, values: Tensor) -> Tensor:
        """The largest of item values that are not negative, (items,), as (groups,)."""
        for gather in self._levels:
            values = torch.cat([values, values.new_zeros(1)])[gather].amax(dim=1)
        return values


class RowMap:
    """Which rows of a batch belong to which session and to which span.

    Args:
      spans:        of each session.
      row_elements: E.
      device:       of the rows.
      grouping:     how groups are summed.

    Attributes:
      spans:            as given.
      row_counts:       rows of each session.
      sessions:         rows in sessions.
      tensors:          rows in spans.
      tensors_of:       spans in sessions.
      parameter_counts: (S,) int64 elements of each session, padding left out; 1 where there are none.
    """

    def __init__(
        self,
        spans: Sequence[Spans],
        row_elements: int,
        device: torch.device | str = "cpu",
        grouping: type[Grouping] = Grouping,
    ) -> None:
        counts = [[row_count(span, row_elements) for span in each] for each in spans]
        self.spans = tuple(spans)
        self.row_counts = [sum(each) for each in counts]
        self.sessions = grouping(self.row_counts, device)
        if all(len(each) == 1 for each in counts):
            self.tensors = self.sessions
        else:
            self.tensors = grouping([count for each in counts for count in each], device)
        self.tensors_of = grouping([len(each) for each in counts], device)
        self.parameter_counts = torch.tensor([max(1, sum(each)) for each in spans]).to(device)

    def pieces(self, rows: Tensor) -> list[list[Tensor]]:
        """For each session, a flat view of each of its spans."""
        return [pieces(part, spans) for part, spans in zip(torch.split(rows, self.row_counts), self.spans, strict=True)]


def _summation_tree(counts: Tensor) -> list[Tensor]:
    """Per level (groups, width) indices of the values to add; the index past the last value stands for zero."""
    levels = []
    while (most := int(counts.max())) > 1:
        width = min(GROUP_ROWS, 1 << (most - 1).bit_length())
        groups = (counts + width - 1) // width
        session = torch.repeat_interleave(torch.arange(len(counts)), groups)
        group_in_session = torch.arange(len(session)) - (groups.cumsum(0) - groups)[session]
        place = group_in_session[:, None] * width + torch.arange(width)
        start = (counts.cumsum(0) - counts)[session]
        levels.append(torch.where(place < counts[session][:, None], start[:, None] + place, int(counts.sum())))
        counts = groups
    return levels


def tiles(rows: Tensor) -> list[slice]:
    """Cuts the rows of a (R, E) tensor into runs of about TILE_ELEMENTS."""
    count, elements = rows.shape
    height = max(1, (DEVICE_TILE_ELEMENTS if rows.is_cuda else TILE_ELEMENTS) // max(1, elements))
    return [slice(top, top + height) for top in range(0, count, height)]


def row_squares(rows: Tensor) -> Tensor:
    """(R,) float64 sum of squares of each row; finite exactly when the row is (float32 rows)."""
    if not _threads_share_rows(rows):
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
        return norms.square()
    return row_products(rows, rows)


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """(R,) float64 scalar product of each pair of rows."""
    return row_sums(left.to(torch.float64, copy=True).mul_(right))


def row_peaks(rows: Tensor) -> Tensor:
    """(R,) float64 largest plus smallest element: finite exactly when the row is. Maxima have no order to depend on."""
    return rows.amax(dim=1).to(torch.float64) + rows.amin(dim=1)


def row_sums(values: Tensor) -> Tensor:
    """Sum of each row of float64 values, in an order that knows nothing of the other rows; may change `values`."""
    if not _threads_share_rows(values):
        return values.sum(dim=1)
    width = values.shape[1]
    while width > 1:
        half = (width + 1) // 2
        values[:, : width // 2].add_(values[:, half:width])
        width = half
    return values[:, 0].clone()


def _threads_share_rows(rows: Tensor) -> bool:
    """Whether torch's own row reduction would depend on the number of rows or threads; on a GPU it does."""
    return rows.device.type != "cpu" or rows.shape[1] >= THREADED_ELEMENTS
