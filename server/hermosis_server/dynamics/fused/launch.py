"""Launch: steps a batch of sessions of one family, alone or with threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.fused import kernel as acts
from hermosis_server.dynamics.fused.kernel import Integers, Numbers, kernel
from hermosis_server.dynamics.fused.tables import Fate, Number, Row, Whole
from hermosis_server.dynamics.fused.traits import traits_of
from hermosis_server.records import EnergySample

SHARED_ELEMENTS = 1 << 18  # below this a batch is stepped before another thread has woken up
_NONE = np.empty((0, 0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Stepped:
    """What became of a batch.

    Attributes:
      outcome: (S,) int8, a `Fate` of each session.
      samples: (S, len(EnergySample._fields)) float64; of no meaning where the step was not applied.
    """

    outcome: NDArray[np.int8]
    samples: NDArray[np.float64]


class Pool:
    """Threads that share large batches; the caller's own thread is one of them.

    Args:
      threads: in all, at least one.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(threads - 1, "hermosis-step") if threads > 1 else None

    def run(self, shares: list[Callable[[], None]]) -> None:
        """Runs all shares, the last one on this thread, and comes back when all are done."""
        if self._others is None:
            for share in shares:
                share()
            return
        waiting = [self._others.submit(share) for share in shares[:-1]]
        try:
            if shares:
                shares[-1]()
        finally:
            # Also on an error: nobody may still be writing to rows that the caller takes for idle.
            errors = [each.exception() for each in waiting]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """Ends the threads."""
        if self._others is not None:
            self._others.shutdown()


def warm_up() -> None:
    """Compiles the step, or reads it from Numba's cache, so that no first step has to wait for it."""
    kernel()


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
      sessions:     (S, 8).
      spans:        (G,) rows of each span, session after session.
      numbers:      (S, 4); LARGEST is renewed for those applied.
      coefficients: (S, n) what `Hamiltonian.numbers` gives.
      scalars:      (S, len(SCALARS)) changed in place for those applied.
      pool:         None is this thread alone.
      All are C-contiguous and writable.

    Raises:
      TypeError: a table of another type or layout.
    """
    count = len(sessions)
    outcome = np.zeros(count, dtype=np.int8)
    samples = np.empty((count, len(EnergySample._fields)), dtype=np.float64)
    traits, compiled = traits_of(family), kernel()

    def call(act: int, which: Integers, first: int, last: int, sums: Numbers, pulls: Numbers) -> None:
        compiled(
            act, which, first, last, rows, sessions, spans, numbers, coefficients, scalars, traits, sums, pulls,
            outcome, samples,
        )  # fmt: skip

    everyone = np.arange(count)
    if pool is None or pool.threads == 1:
        call(acts.SESSIONS, everyone, 0, 0, _NONE, _NONE)
        return Stepped(outcome, samples)
    row_elements = rows[:, Row.LENGTH]
    total = int(row_elements.sum())
    if total < SHARED_ELEMENTS:
        call(acts.SESSIONS, everyone, 0, 0, _NONE, _NONE)
        return Stepped(outcome, samples)
    share = -(-total // pool.threads)
    ends = np.cumsum(row_elements)
    firsts = sessions[:, Whole.FIRST_ROW]
    elements = ends[firsts + sessions[:, Whole.ROWS] - 1] - ends[firsts] + row_elements[firsts]
    large = elements > share // 2
    for session in np.flatnonzero(large):
        which, row_count = np.array([session]), int(sessions[session, Whole.ROWS])
        sums, pulls = np.empty((row_count, acts.SUMS)), np.empty((row_count, acts.PULLS))
        cuts = [row_count * k // pool.threads for k in range(pool.threads + 1)]
        raise NotImplementedError
    return Stepped(outcome, samples)
