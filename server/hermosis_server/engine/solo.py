"""Solo: a small session that steps alone, again and again. Its launch is laid out once; a step fills in what is new."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.dynamics import fused
from hermosis_server.engine.arena import address_of
from hermosis_server.engine.entries import Entry, Part, join, row_table
from hermosis_server.engine.resident import Resident
from hermosis_server.records import Reply, ReplyWish

Whole = fused.Whole
# NumPy takes microseconds over a member of an enumeration.
_GRADIENT, _REPLY, _LARGEST = int(fused.Row.GRADIENT), int(fused.Row.REPLY), int(fused.Number.LARGEST)
_APPLIED, _UNPROVEN = int(fused.Fate.APPLIED), int(fused.Fate.UNPROVEN)


class Played(NamedTuple):
    """What became of a step.

    Attributes:
      fate:    a `fused.Fate`.
      samples: (1, len(EnergySample._fields)); meaningless where it was not applied.
      reply:   the bytes asked for; None where none were, or nothing was applied.
    """

    fate: int
    before: int
    after: int
    samples: NDArray[np.float64]
    reply: memoryview | None


class Solo:
    """The fused pass over one session on the processor, in the arena's rows and the cohort's lines themselves.

    Args:
      resident: in device memory, of a family that the pass covers.

    Attributes:
      proven: whether the last step was taken here, or left to the flows, which take a hundred times as long.
    """

    def __init__(self, resident: Resident) -> None:
        self.proven = True
        self._table, self._cohort, self._line = row_table(resident.slot), resident.cohort, resident.line
        self._numbers_of_all, line = resident.cohort.scalars, slice(resident.line, resident.line + 1)
        self._rows, self._sessions, spans, _ = join((self._table,))
        self._numbers = np.empty((1, len(fused.Number)))
        self._scalars, self._largest = resident.cohort.scalars[line], resident.cohort.largest[line]
        self._dtype: Dtype | None = None
        self._wish: ReplyWish | None = None
        self._gradient_begins = self._reply_begins = self._table.rows[:, _GRADIENT]
        self._launch = fused.Alone(
            resident.family,
            rows=self._rows,
            sessions=self._sessions,
            spans=spans,
            numbers=self._numbers,
            coefficients=resident.cohort.coefficients[line],
            scalars=self._scalars,
        )

    def knows(self, resident: Resident) -> bool:
        """Whether rows and numbers of the session still are where they were."""
        return (
            self._table is resident.slot.table
            and self._cohort is resident.cohort
            and self._line == resident.line
            and self._numbers_of_all is resident.cohort.scalars
        )

    def step(self, gradient: Part, entry: Entry) -> Played:
        """Steps with the mean of the entry's gradients."""
        wish = entry.wish
        if gradient.dtype is not self._dtype or wish is not self._wish:
            self._expect(gradient.dtype, wish)
        self._rows[:, _GRADIENT] = self._gradient_begins + gradient.address
        reply: memoryview | None = None
        if wish is not None:
            reply, address = self._room(wish)
            self._rows[:, _REPLY] = self._reply_begins + address
        self._numbers[0] = entry.loss, entry.lr_scale, gradient.peak, self._largest[0]
        before = self._scalars.item(0)
        self._launch.step()
        self._largest[0] = self._numbers.item(_LARGEST)
        fate = self._launch.outcome.item(0)
        self.proven = fate != _UNPROVEN
        samples = self._launch.samples.copy()
        return Played(fate, int(before), int(self._scalars.item(0)), samples, reply if fate == _APPLIED else None)

    def _expect(self, dtype: Dtype, wish: ReplyWish | None) -> None:
        """Notes what a gradient comes in and what is sent back; the same for step after step, as a rule."""
        session, begins = self._sessions[0], self._table.rows[:, _GRADIENT]
        self._dtype, self._wish = dtype, wish
        self._gradient_begins = begins * dtype.itemsize
        session[Whole.GRADIENT_DTYPE], session[Whole.REPLY] = dtype, wish.reply if wish else 0
        if wish:
            self._reply_begins = begins * wish.dtype.itemsize
            session[Whole.REPLY_DTYPE] = wish.dtype

    def _room(self, wish: ReplyWish) -> tuple[memoryview, int]:
        """Memory for a reply, and its address."""
        # Increments, which are kept for repeats, never lie in memory that a worker shares.
        if wish.place is not None and wish.reply is Reply.PARAMETERS:
            return wish.place, address_of(wish.place)
        memory = np.empty(self._table.elements * wish.dtype.itemsize, np.uint8)
        return memory.data, memory.__array_interface__["data"][0]
