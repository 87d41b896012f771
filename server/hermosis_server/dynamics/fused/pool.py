"""Pool: threads that share large work, and when it is large."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

SHARED_ELEMENTS = 1 << 18  # below this a batch is stepped before another thread has woken up
SLICE_ELEMENTS = 1 << 17  # of each thread, before whoever owns the pool may do something else: a quarter millisecond


class Pool:
    """Threads that share large batches; the caller's own thread is one of them.

    Args:
      threads: in all, at least one.
      between: called between two slices of a large session, on the caller's thread; it must leave the tables and the
               rows of the batch alone. None where nothing waits for that, and nothing is cut.
      during:  entered for each slice. Whoever that lets in must leave tables and rows alone as well.
    """

    def __init__(
        self,
        threads: int,
        between: Callable[[], None] | None = None,
        during: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        self.threads = threads
        self.between = between
        self._during = during or contextlib.nullcontext()
        self._others = ThreadPoolExecutor(threads - 1, "hermosis-step") if threads > 1 else None

    def run(self, shares: Sequence[Callable[[], None]]) -> None:
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

    def run_slices(self, slices: Iterable[Sequence[Callable[[], None]]]) -> None:
        """Runs the shares of one slice after another."""
        for number, shares in enumerate(slices):
            if number and self.between is not None:
                self.between()
            with self._during:
                self.run(shares)

    def close(self) -> None:
        """Ends the threads."""
        if self._others is not None:
            self._others.shutdown()
