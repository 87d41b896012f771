"""The fused step on a batch of `batches.py`: its tables, filled from the same tensors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import PhaseState, row_count
from hermosis_server.dynamics.fused import Number, Pool, Row, Stepped, Whole, largest, step
from hermosis_server.records import Reply, StateBuffer

from .batches import Batch

TORCH = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}
COLUMNS = {
    StateBuffer.PARAMETERS: Row.POSITION,
    StateBuffer.MOMENTUM: Row.MOMENTUM,
    StateBuffer.SECOND_MOMENT: Row.SECOND_MOMENT,
    StateBuffer.FIRST_MOMENT: Row.FIRST_MOMENT,
    StateBuffer.LEAD: Row.LEAD,
}


@dataclass
class Answers:
    """What one fused step did: fates and samples, and the reply of each session, flat in its wire dtype."""

    stepped: Stepped
    replies: list[Tensor]


def ranges(state: PhaseState, row_counts: Sequence[int]) -> list[float]:
    """LARGEST of each session, from its buffers."""
    parts = {kind: torch.split(rows, list(row_counts)) for kind, rows in state.buffers().items()}
    return [largest(*(rows[session] for rows in parts.values())) for session in range(len(row_counts))]


def fused_step(
    batch: Batch,
    gradients: Sequence[Tensor],
    losses: Sequence[float],
    scales: Sequence[float],
    *,
    reply: Reply = Reply.NONE,
    reply_dtype: Dtype = Dtype.FLOAT32,
    bounds: Sequence[float] | None = None,
    pool: Pool | None = None,
) -> Answers:
    """Steps a batch in place; gradients are flat, each in a wire dtype and off every alignment but its elements'."""
    held: list[Tensor] = []
    replies: list[Tensor] = []
    rows = np.zeros((sum(batch.rows.row_counts), len(Row)), np.int64)
    sessions = np.zeros((len(gradients), len(Whole)), np.int64)
    elements = batch.state.momentum.shape[1]
    spans = [[row_count(span, elements) for span in each] for each in batch.rows.spans]
    for kind, tensor in batch.state.buffers().items():
        rows[:, COLUMNS[kind]] = tensor.data_ptr() + np.arange(len(rows)) * elements * 4
    top = first_span = 0
    for session, gradient in enumerate(gradients):
        packed = torch.cat([gradient[:0].new_zeros(1), gradient])[1:]  # one element off any alignment
        answer = torch.full((gradient.numel() + 2,), math.pi, dtype=TORCH[reply_dtype])
        held.append(packed)
        replies.append(answer)
        dtype = next(wire for wire, kind in TORCH.items() if kind == gradient.dtype)
        sessions[session, Whole.FIRST_ROW], sessions[session, Whole.ROWS] = top, batch.rows.row_counts[session]
        sessions[session, Whole.FIRST_SPAN], sessions[session, Whole.SPANS] = first_span, len(spans[session])
        sessions[session, Whole.GRADIENT_DTYPE] = dtype
        sessions[session, Whole.REPLY], sessions[session, Whole.REPLY_DTYPE] = reply, reply_dtype
        done = 0
        for span, count in zip(batch.rows.spans[session], spans[session], strict=True):
            for row in range(count):
                length = min(elements, span - row * elements)
                rows[top, Row.GRADIENT] = packed.data_ptr() + done * packed.element_size()
                rows[top, Row.REPLY] = answer[1:].data_ptr() + done * answer.element_size()
                rows[top, Row.LENGTH] = length
                top, done = top + 1, done + length
        first_span += len(spans[session])
    peaks = [float(gradient.float().abs().max()) if gradient.numel() else 0.0 for gradient in gradients]
    if bounds is None:
        bounds = ranges(batch.state, batch.rows.row_counts)
    numbers = np.array([losses, scales, peaks, bounds], np.float64).T.copy()
    stepped = step(
        batch.family,
        rows=rows,
        sessions=sessions,
        spans=np.array([count for each in spans for count in each], np.int64),
        numbers=numbers,
        coefficients=batch.coefficients.numpy(),
        scalars=batch.state.scalars.numpy(),
        pool=pool,
    )
    for answer in replies:
        assert float(answer[0]) == float(answer[-1]) == float(answer.new_tensor(math.pi))  # nothing beyond was written
    renewed = ranges(batch.state, batch.rows.row_counts)
    for session, fate in enumerate(stepped.outcome):
        expected = bounds[session] if fate else renewed[session]
        assert np.array_equal(numbers[session, Number.LARGEST], expected, equal_nan=True)
    return Answers(stepped, [answer[1:-1] for answer in replies])
