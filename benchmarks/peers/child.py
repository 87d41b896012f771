"""A process of a benchmark: takes orders on standard input, answers on standard output. Nothing but NumPy is needed.

Peers may live in an environment of their own, so this file knows nothing of Hermosis and of the harness.
"""

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Exchange = Callable[[], object]
"""One push of a gradient, its step, and the pull of the weights."""

MEBIBYTE = 1 << 20
MAX_LATENCIES = 20_000  # told of one order

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> None:
    """Lets glibc keep large blocks for the next message; without it the kernel hands out zeroed pages each time."""
    mallopt = ctypes.CDLL(None).mallopt
    for name, value in (
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, (1 << 31) - 1),
        (_M_TOP_PAD, 64 << 20),
        (_M_ARENA_MAX, 1),
    ):
        mallopt(name, value)


@dataclass(frozen=True, slots=True)
class Voice:
    """The way back to the harness. Whatever libraries print goes to standard error from here on."""

    descriptor: int

    @classmethod
    def take(cls) -> "Voice":
        descriptor = os.dup(1)
        os.dup2(2, 1)
        return cls(descriptor)

    def tell(self, **fields: Any) -> None:
        line = json.dumps(fields).encode() + b"\n"
        while line:
            line = line[os.write(self.descriptor, line) :]


def obey(voice: Voice, cases: Mapping[str, Sequence[Exchange]]) -> None:
    """Runs the cases that it is told to, until standard input closes; then ends the process at once.

    An order is a line of JSON: `case`, `at` (monotonic seconds to begin at) and `rounds`, or `seconds` where rounds is
    zero. The answer tells how many exchanges there were in all, when they began and ended, and how long each took.

    Args:
      cases: by name; a case of several exchanges runs each on a thread of its own.
    """
    voice.tell(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            voice.tell(**_run(cases[order["case"]], order))
        except Exception as error:
            voice.tell(failed=f"{type(error).__name__}: {error}".splitlines()[0][:500])
    os._exit(0)


def end_with_stdin() -> None:
    """For a server: ends the process at once when the harness has gone. Returns immediately."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def _run(exchanges: Sequence[Exchange], order: Mapping[str, Any]) -> dict[str, Any]:
    latencies: list[list[float]] = [[] for _ in exchanges]
    faults: list[BaseException] = []

    def loop(exchange: Exchange, took: list[float]) -> None:
        try:
            _loop(exchange, order, took)
        except BaseException as error:
            faults.append(error)

    if len(exchanges) == 1:
        time.sleep(max(0.0, order["at"] - time.monotonic()))
        began = time.monotonic()
        _loop(exchanges[0], order, latencies[0])
    else:
        pairs = zip(exchanges, latencies, strict=True)
        threads = [threading.Thread(target=loop, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        began = max(order["at"], time.monotonic())
        for thread in threads:
            thread.join()
    ended = time.monotonic()
    if faults:
        raise faults[0]
    flat = [took for each in latencies for took in each]
    thinned = flat[:: len(flat) // MAX_LATENCIES + 1]
    return {"exchanges": len(flat), "began": began, "ended": ended, "latencies": [round(each, 7) for each in thinned]}


def _loop(exchange: Exchange, order: Mapping[str, Any], took: list[float]) -> None:
    time.sleep(max(0.0, order["at"] - time.monotonic()))
    before = time.monotonic()
    end = before + order["seconds"]
    while len(took) < order["rounds"] or (not order["rounds"] and before < end):
        exchange()
        after = time.monotonic()
        took.append(after - before)
        before = after


def gradient(parameters: int) -> NDArray[np.float32]:
    """(P,) small numbers, the same for everybody."""
    return np.resize(np.linspace(-1e-3, 1e-3, 1009, dtype=np.float32), parameters)


class MomentumServer:
    """What an afternoon's parameter server does with a gradient: one fused momentum step of torch, under a lock.

    Attributes:
      weights: (P,) that the step changes in place.
    """

    def __init__(self, parameters: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._lock = threading.Lock()
        self._parameter = torch.nn.Parameter(torch.zeros(parameters))
        self._optimizer = torch.optim.SGD([self._parameter], lr=1e-3, momentum=0.9, fused=True)
        self.weights: NDArray[np.float32] = self._parameter.detach().numpy()

    def step(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        """Args:
        gradient: (P,), only read.
        """
        with self._lock:
            self._parameter.grad = self._torch.from_numpy(gradient)
            self._optimizer.step()
        return self.weights
