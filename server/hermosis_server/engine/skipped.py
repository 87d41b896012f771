"""Skipped: tensors of a session that sit a step out, as torch's optimizers pass those over that have no gradient.

For the step they are at rest at zero: no gradient, no momentum, no weight. So they add nothing to any norm or energy,
and their increments are zero. Afterwards everything of theirs is put back as it was. Only who skips pays for that.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from torch import Tensor

from hermosis_server.dynamics import MATRIX_BUFFERS
from hermosis_server.engine.arena import Slot
from hermosis_server.engine.resident import Resident
from hermosis_server.records import StateBuffer

# What moves. Moments of the metric stay in their place: divided by them, zero is zero.
_MOVING = (StateBuffer.PARAMETERS, StateBuffer.MOMENTUM, StateBuffer.LEAD)


class Skipped:
    """What of a session is laid aside, from the moment this is made until `restore`. No job may come in between.

    Args:
      tensors: by their place in the layout, in ascending order.
    """

    def __init__(self, resident: Resident, tensors: Sequence[int]) -> None:
        self._resident = resident
        self._runs = _runs(resident, tensors)
        places = {buffer: _places(resident.slot, buffer, runs) for buffer, runs in self._runs.items()}
        self._kept = {buffer: [place.clone() for place in found] for buffer, found in places.items()}
        largest = [float(values.abs().amax()) for kept in self._kept.values() for values in kept]
        self._largest = max(largest, default=0.0)
        for buffer in _MOVING:
            for place in places.get(buffer, ()):
                place.zero_()

    def restore(self) -> None:
        """Puts everything back, wherever the rows are by now."""
        for buffer, kept in self._kept.items():
            places = _places(self._resident.slot, buffer, self._runs[buffer])
            for place, values in zip(places, kept, strict=True):
                place.copy_(values)
        largest, line = self._resident.cohort.largest, self._resident.line
        largest[line] = max(largest[line], self._largest)


def _runs(resident: Resident, tensors: Sequence[int]) -> dict[StateBuffer, list[slice]]:
    """What of each buffer belongs to the tensors, in elements, padding left out."""
    ends = list(accumulate(math.prod(shape) for shape in resident.shapes))
    runs = [slice(ends[tensor] - math.prod(resident.shapes[tensor]), ends[tensor]) for tensor in tensors]
    found = {buffer: runs for buffer in resident.slot.spans if buffer not in MATRIX_BUFFERS}
    if resident.family.matrix:
        spans = [place for place, shape in enumerate(resident.shapes) if math.prod(shape)]
        places = {tensor: span for span, tensor in enumerate(spans)}
        found |= resident.family.matrices([places[tensor] for tensor in tensors if tensor in places])
    return found


def _places(slot: Slot, buffer: StateBuffer, runs: Sequence[slice]) -> list[Tensor]:
    """Views of runs of a buffer's elements, each of which lies in one span; one that lies in pieces is several."""
    length, spans = slot.row_elements, np.array(slot.spans[buffer], np.int64)
    ends, rows = np.cumsum(spans), np.maximum(1, -(-spans // length))
    padding = (np.cumsum(rows) - rows) * length - (ends - spans)  # before each span
    span_of = np.searchsorted(ends, [run.start for run in runs], side="right")
    places, top = list[Tensor](), 0
    for extent in slot.extents[buffer]:
        flat = extent.view.view(-1)
        for run, span in zip(runs, span_of.tolist(), strict=True):
            if run.start < run.stop:
                shift = int(padding[span]) - top
                begin, end = max(run.start + shift, 0), min(run.stop + shift, flat.numel())
                if begin < end:
                    places.append(flat[begin:end])
        top += flat.numel()
    return places
