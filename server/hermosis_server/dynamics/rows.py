"""Rows: how sessions share a batch, and sums that do not depend on who else is in it.

A batch is S sessions in R rows of E elements. The rows of a session lie side by side in flat order, the last one padded
with zeros. Floating-point sums depend on their order, so the order here is a fixed function of the session alone: first
along each row, then over the session's rows as one binary tree.
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


class RowMap:
    """Which rows of a batch belong to which session.

    Attributes:
      row_session:      (R,) int64 session of each row.
      row_counts:       (S,) int64 rows of each session.
      parameter_counts: (S,) int64 elements of each session, padding left out.
    """

    def __init__(
        self, row_counts: Sequence[int], parameter_counts: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        if len(row_counts) != len(parameter_counts) or not row_counts or min(row_counts) < 1:
            raise InternalError("each session of a batch has at least one row; this is a bug in hermosis")
        counts = torch.tensor(row_counts)
        sessions = torch.repeat_interleave(torch.arange(len(row_counts)), counts)
        self.row_counts = counts.to(device)
        self.parameter_counts = torch.tensor(parameter_counts).to(device)
        self.row_session = sessions.to(device)
        self._one_row_each = sessions.numel() == counts.numel()
        self._levels = [level.to(device) for level in _summation_tree(counts)]

    def spread(self, *values: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers a session, n of (S,), as (R, n, 1) in the rows' dtype, rounded once; unbind(1) gives columns."""
        table = torch.stack(values, dim=1).to(dtype).unsqueeze(2)
        return table if self._one_row_each else table.index_select(0, self.row_session)

    def totals(self, *partials: Tensor) -> tuple[Tensor, ...]:
        """Sums row partials, each (R,) float64, to (S,): a binary tree over neighbours, the same in any batch."""
        table = torch.stack(partials, dim=1)
        for gather in self._levels:
            padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
            group = padded[gather]
            while group.shape[1] > 1:
                group = group[:, 0::2] + group[:, 1::2]
            table = group.squeeze(1)
        return table.unbind(1)


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
    return _row_sums_(left.to(torch.float64, copy=True).mul_(right))


def row_peaks(rows: Tensor) -> Tensor:
    """(R,) float64 largest plus smallest element: finite exactly when the row is. Maxima have no order to depend on."""
    return rows.amax(dim=1).to(torch.float64) + rows.amin(dim=1)


def _row_sums_(values: Tensor) -> Tensor:
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
