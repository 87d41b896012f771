"""Tables: what a fused step is told of a batch, as columns of plain numbers.

Rows are named by the byte address at which they begin, so that a batch needs neither gathering nor views. Whoever fills
the tables keeps the memory alive, and sees to it that no two rows of a batch overlap.
"""

import enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]
ABSENT: Final = 0  # an address of nothing


class Row(enum.IntEnum):
    """Columns of `rows`, (R, 8) int64: where one row lies in each buffer; `ABSENT` where there is none of it.

    Rows of state are float32, begin at a multiple of 64 bytes and have room for a multiple of 16 elements; what lies
    behind their LENGTH is zero and stays so.
    Rows of gradient and reply are packed: each begins where the one before it in its span ends.
    """

    POSITION = 0
    MOMENTUM = 1
    SECOND_MOMENT = 2
    FIRST_MOMENT = 3
    LEAD = 4
    GRADIENT = 5
    REPLY = 6
    LENGTH = 7  # elements


class Whole(enum.IntEnum):
    """Columns of `sessions`, (S, len(Whole)) int64."""

    FIRST_ROW = 0  # in `rows`
    ROWS = 1
    FIRST_SPAN = 2  # in `spans`
    SPANS = 3
    GRADIENT_DTYPE = 4  # wire.Dtype
    REPLY = 5  # records.Reply; 0 is none
    REPLY_DTYPE = 6  # wire.Dtype


class Number(enum.IntEnum):
    """Columns of `numbers`, (S, 4) float64."""

    LOSS = 0  # at the published point; NaN where it is not known
    LR_SCALE = 1
    PEAK = 2  # the largest magnitude in the gradient; infinite or NaN where an element is
    LARGEST = 3  # the largest magnitude in the state's rows; infinite where unknown; a step renews it


class Fate(enum.IntEnum):
    """What became of a session in a fused step."""

    APPLIED = 0
    NON_FINITE_GRADIENT = 1  # nothing was touched
    UNPROVEN = 2  # nothing was touched: the step may leave float32, and must be taken through the flows, on copies
