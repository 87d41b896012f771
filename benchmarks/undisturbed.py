"""Undisturbed: measures a server on a machine that has too few processors, and is not always there.

What is started `first` has the processors before everything else, as it would on a machine of its own. And `watched`
tells when the machine itself stood still, as a guest does whose host runs somebody else: on each processor a process of
the highest priority sleeps for half a millisecond at a time, and where it wakes late nothing else ran either. What was
measured over such a moment says nothing about a server.

Both take Linux and the right to real-time priorities; without, everything goes as it goes, and nothing is left out.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SLEEP_S = 0.0005
LATE_S = 0.0005
FIRST, BEFORE_IT, PACKETS, WATCHER = 10, 11, 20, 50  # real-time priorities


class Stalls:
    """Times of monotonic clocks, in seconds.

    Attributes:
      watched: whether somebody looked: that takes Linux, and the right to real-time priority.
      spans:   (N, 2) begin and end of each stall.
    """

    def __init__(self) -> None:
        self.watched = False
        self.spans: NDArray[np.float64] = np.zeros((0, 2))

    def outside(self, spans: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of (M, 2) begins and ends touch no stall."""
        order = self.spans[np.argsort(self.spans[:, 0])]
        ends = np.maximum.accumulate(order[:, 1]) if len(order) else order[:, 1]
        begun = np.searchsorted(order[:, 0], spans[:, 1])  # stalls that began before the end of each
        touched = np.zeros(len(spans), bool)
        some = begun > 0
        touched[some] = ends[begun[some] - 1] > spans[some, 0]
        return ~touched


@contextlib.contextmanager
def first(priority: int = FIRST) -> Iterator[bool]:
    """Processes that are started in here come before all others; whether they do."""
    possible = _may(priority)
    try:
        yield possible
    finally:
        if possible:
            last()


def last() -> None:
    """Lets this thread, and what it starts, go like any other."""
    if hasattr(os, "SCHED_OTHER"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _may(priority: int) -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (AttributeError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def watched() -> Iterator[Stalls]:
    """Looks for stalls as long as this lasts; they are known afterwards. Packets come before what is `first`."""
    stalls = Stalls()
    command = [sys.executable, "-m", "benchmarks.undisturbed"]
    with first(WATCHER) as possible:
        watchers = [
            subprocess.Popen([*command, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for cpu in (sorted(os.sched_getaffinity(0)) if possible else ())
        ]
    carriers = _packet_carriers() if watchers else []
    try:
        for carrier in carriers:
            os.sched_setscheduler(carrier, os.SCHED_FIFO, os.sched_param(PACKETS))
        for watcher in watchers:
            assert watcher.stdout is not None
            watcher.stdout.readline()
        yield stalls
        found = [json.loads(watcher.communicate()[0]) for watcher in watchers]
    finally:
        for carrier in carriers:
            os.sched_setscheduler(carrier, os.SCHED_OTHER, os.sched_param(0))
        for watcher in watchers:
            watcher.kill()
            watcher.wait()
    stalls.watched = bool(watchers)
    stalls.spans = np.array([span for each in found for span in each], float).reshape(-1, 2)


def _packet_carriers() -> list[int]:
    """The kernel's threads that deliver what is sent here; they would starve behind those that come first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().startswith("ksoftirqd/"):
                found.append(int(folder.name))
    return found


def _watch(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    os.set_blocking(0, False)
    print("watching", flush=True)
    times = [time.monotonic()]
    found: list[tuple[float, float]] = []
    while not _closed(0):
        time.sleep(SLEEP_S)
        times = [times[-1], time.monotonic()]
        found += [(then, now) for then, now in pairwise(times) if now - then > SLEEP_S + LATE_S]
    print(json.dumps(found))


def _closed(descriptor: int) -> bool:
    try:
        return not os.read(descriptor, 1)
    except BlockingIOError:
        return False


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
