"""Launch: steps a batch of sessions of one family, alone or with threads."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.fused import mean
from hermosis_server.dynamics.fused.kernel import PULLS, SCRATCH, SUMS, Act, kernel
from hermosis_server.dynamics.fused.pool import SHARED_ELEMENTS, SLICE_ELEMENTS, Pool
from hermosis_server.dynamics.fused.tables import Fate, Integers, Numbers, Row, Whole
from hermosis_server.dynamics.fused.traits import traits_of
from hermosis_server.records import EnergySample

_SESSIONS = int(Act.SESSIONS)  # Numba takes microseconds over a member of an enumeration


@dataclass(frozen=True, slots=True)
class Stepped:
    """What became of a batch.

    Attributes:
      outcome: (S,) int8, a `Fate` of each session.
      samples: (S, len(EnergySample._fields)) float64; of no meaning where the step was not applied.
    """

    outcome: NDArray[np.int8]
    samples: NDArray[np.float64]


def warm_up() -> None:
    """Compiles the step, or reads it from Numba's cache, so that no first step has to wait for it."""
    kernel()
    mean.kernel()


def step(
    family: Family,
    *,
    rows: Integers,
    sessions: Integers,
    spans: Integers,
    numbers: Numbers,
    coefficients: Numbers,
    scalars: Numbers,
    pool: Pool | None = None,
) -> Stepped:
    """Steps sessions in place, as `integrators.advance_` defines it, and writes their replies.

    A session whose outcome is not APPLIED is as it was, bit for bit. What a session becomes depends on nothing but
    itself: not on the others, and not on the number of threads.

    Args:
      family:       of all sessions; `covers` said yes.
      rows:         (R, len(Row)) addresses; see tables.py, as for the next three.
      sessions:     (S, len(Whole)).
      spans:        (G,) rows of each span, session after session.
      numbers:      (S, 4); LARGEST is renewed for those applied.
      coefficients: (S, n) what `Hamiltonian.numbers` gives.
      scalars:      (S, len(SCALARS)) changed in place for those applied.
      pool:         None is this thread alone.
      All are C-contiguous and writable.

    Raises:
      TypeError: a table of another type or layout.
    """
    batch = _Batch(family, rows, sessions, spans, numbers, coefficients, scalars)
    if pool is None or len(rows) < 2 or _elements(rows) < _shared_from(pool):
        batch.step(np.arange(len(sessions)))
    else:
        _share(batch, pool)
    return Stepped(batch.outcome, batch.samples)


class Alone:
    """A small batch that one thread steps again and again, as `step` does; its caller refills the tables in between.

    Attributes:
      outcome, samples: of the last step, as in `Stepped`; the next one writes over them.

    Args:
      As of `step`. The arrays themselves are read and changed at each step, so they must stay where they are.
    """

    def __init__(
        self,
        family: Family,
        *,
        rows: Integers,
        sessions: Integers,
        spans: Integers,
        numbers: Numbers,
        coefficients: Numbers,
        scalars: Numbers,
    ) -> None:
        batch = _Batch(family, rows, sessions, spans, numbers, coefficients, scalars)
        self.outcome, self.samples = batch.outcome, batch.samples
        self.step: Callable[[], None] = batch.prepared(np.arange(len(sessions)))


class _Batch:
    """The tables of a batch, and what comes out."""

    def __init__(
        self,
        family: Family,
        rows: Integers,
        sessions: Integers,
        spans: Integers,
        numbers: Numbers,
        coefficients: Numbers,
        scalars: Numbers,
    ) -> None:
        self.rows, self.sessions = rows, sessions
        self._kernel, traits = kernel(), traits_of(family)
        self.outcome = np.empty(len(sessions), dtype=np.int8)
        self.samples = np.empty((len(sessions), len(EnergySample._fields)))
        self._tables = rows, sessions, spans, numbers, coefficients, scalars, traits
        self._results = self.outcome, self.samples

    def step(self, which: Integers) -> None:
        """Steps some sessions, one after another."""
        self.prepared(which)()

    def prepared(self, which: Integers) -> Callable[[], None]:
        """What `step` does, to be called as often as wanted, on one thread at a time."""
        # Enough for a session that has all rows; what is not needed is never touched.
        sums, pulls = np.empty((len(self.rows), SUMS)), np.empty((len(self.rows), PULLS))
        scratch = sums, pulls, np.empty(SCRATCH)
        return functools.partial(self._kernel, _SESSIONS, which, 0, 0, *self._tables, *scratch, *self._results)

    def step_cut(self, session: int, pool: Pool) -> None:
        """Steps one session, its rows cut among all threads."""
        which, count = np.array([session]), int(self.sessions[session, Whole.ROWS])
        sums, pulls = np.empty((count, SUMS)), np.empty((count, PULLS))
        elements = int(self.rows[self.sessions[session, Whole.FIRST_ROW] :][:count, Row.LENGTH].sum())
        rounds = max(1, elements // (SLICE_ELEMENTS * pool.threads)) if pool.between is not None else 1
        shares = rounds * pool.threads
        cuts = [count * share // shares for share in range(shares + 1)]

        def act(which_act: Act, first: int, last: int) -> None:
            self._kernel(
                int(which_act), which, first, last, *self._tables, sums, pulls, np.empty(SCRATCH), *self._results
            )

        def all_rows(which_act: Act) -> None:
            pieces = [functools.partial(act, which_act, *cut) for cut in itertools.pairwise(cuts)]
            pool.run_slices(pieces[first : first + pool.threads] for first in range(0, shares, pool.threads))

        act(Act.BEGIN, 0, count)
        if self.outcome[session] != Fate.APPLIED:
            return
        all_rows(Act.KICK)
        act(Act.BRAKE, 0, count)
        all_rows(Act.DRIFT)
        act(Act.FINISH, 0, count)


def _shared_from(pool: Pool) -> float:
    """Elements from which on a batch is not stepped in one go."""
    if pool.threads > 1:
        return SHARED_ELEMENTS
    return 2 * SLICE_ELEMENTS if pool.between is not None else math.inf


def _elements(rows: Integers) -> int:
    return int(rows[:, Row.LENGTH].sum())


def _share(batch: _Batch, pool: Pool) -> None:
    """Cuts large sessions into rows, and deals the others out, each thread about as many elements."""
    ends = np.concatenate([[0], np.cumsum(batch.rows[:, Row.LENGTH])])
    firsts = batch.sessions[:, Whole.FIRST_ROW]
    elements = ends[firsts + batch.sessions[:, Whole.ROWS]] - ends[firsts]
    share = ends[-1] / pool.threads
    large = elements > (share / 2 if pool.threads > 1 else SLICE_ELEMENTS)
    for session in np.flatnonzero(large):
        batch.step_cut(int(session), pool)
    small = np.flatnonzero(~large)
    before = np.cumsum(elements[small]) - elements[small]
    shares = np.minimum(before * pool.threads // max(1, int(elements[small].sum())), pool.threads - 1)
    parts = [small[shares == thread] for thread in range(pool.threads)]
    pool.run([functools.partial(batch.step, part) for part in parts if len(part)])
