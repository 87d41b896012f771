"""The workers of a run: real processes that are started, killed and started again.

They are forked from one process that has imported everything, so that a start takes a tenth of a second and not three.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from benchmarks.slow_links.worker import Seat, work

PRELOADED = ["benchmarks.slow_links.warm"]


def warm_up() -> None:
    """Starts the process that workers are forked from, and waits until it has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=int, daemon=True)
    process.start()
    process.join()


class WorkerFailed(Exception):
    """A worker ended by an error of its own, which it has printed."""


class Crew:
    """A process for each taken seat, after `warm_up`. As a context manager it leaves none behind."""

    def __init__(self, seats: Iterable[Seat] = ()) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._processes: dict[str, ForkServerProcess] = {}
        for seat in seats:
            self.start(seat)

    def start(self, seat: Seat) -> None:
        """Lets a worker take its seat, which nobody has just now."""
        process = self._context.Process(target=_begin, args=(seat,), name=seat.worker_id, daemon=True)
        process.start()
        self._processes[seat.worker_id] = process

    def kill(self, seat: Seat) -> None:
        """SIGKILL, and waits until it is gone. One that has ended by itself is only forgotten."""
        process = self._processes.pop(seat.worker_id)
        process.kill()
        process.join()

    def freeze(self, seat: Seat) -> None:
        """SIGSTOP: it says nothing any more, and its connection stays."""
        os.kill(self._process_id(seat), signal.SIGSTOP)

    def thaw(self, seat: Seat) -> None:
        """SIGCONT: it goes on as if nothing had happened."""
        os.kill(self._process_id(seat), signal.SIGCONT)

    def check(self) -> None:
        """Raises WorkerFailed if one ended by an error."""
        for process in self._processes.values():
            if process.exitcode:
                raise WorkerFailed(f"{process.name} ended with status {process.exitcode}; see its error above")

    def finish(self, timeout_s: float) -> bool:
        """Whether all workers end by themselves in that time. Raises WorkerFailed as soon as one fails."""
        deadline_s = time.monotonic() + timeout_s
        while running := [process for process in self._processes.values() if process.exitcode is None]:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            wait([process.sentinel for process in running], left_s)
            self.check()
        self.check()
        return True

    def close(self) -> None:
        """Kills who is left."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
        self._processes.clear()

    def _process_id(self, seat: Seat) -> int:
        process_id = self._processes[seat.worker_id].pid
        assert process_id is not None, "it was started"
        return process_id

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *trouble: object) -> None:
        self.close()


def _begin(seat: Seat) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    work(seat)
