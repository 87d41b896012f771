"""Tables: what a fused step is told of a batch, as columns of plain numbers.

Rows are named by the byte address at which they begin, so that a batch needs neither gathering nor views. Whoever fills
the tables keeps the memory alive, and sees to it that no two rows of a batch overlap.
"""

import enum
from typing import Final

ABSENT: Final = 0  # an address of nothing


class Row(enum.IntEnum):
    """Columns of `rows`, (R, 8) int64: where one row lies in each buffer; `ABSENT` where there is none of it.

    Rows of state are float32 and begin at a multiple of 64 bytes; what lies behind their LENGTH is zero and stays so.
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
    """Columns of `sessions`, (S, 8) int64."""

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
    LARGEST = (
        3  # bounds the magnitudes of the state's elements, see bounds.py; infinite where unknown; renewed by a step
    )


class Fate(enum.IntEnum):
    """What became of a session in a fused step."""

    APPLIED = 0
    NON_FINITE_GRADIENT = 1  # nothing was touched
    UNPROVEN = 2  # nothing was touched: the step may leave float32, and must be taken through the flows, on copies
