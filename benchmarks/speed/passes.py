"""Cases run in turns: a warm-up of each, then pass after pass over all of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.speed.children import Child
from benchmarks.speed.machine import LoadMeter, cpu_seconds
from benchmarks.speed.statistics import Reading

HEAD_START_S = 0.02  # between an order and the moment all begin
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process does in a case; `case` is its own name for it."""

    child: Child
    case: str
    weight: int = 1  # exchanges that one of its own stands for


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something to measure.

    Attributes:
      parts:   whose exchanges are counted; all begin at the same moment.
      beside:  what goes on meanwhile, a little longer, and is not counted.
      server:  process whose CPU time is told; zero for none.
      resting: processes that are stopped while it is not their turn.
      lockstep: whether each part does as many exchanges, which parts that wait for one another must.
    """

    name: str
    parts: Sequence[Part]
    beside: Sequence[Part] = ()
    server: int = 0
    resting: Sequence[Child] = ()
    lockstep: bool = True

    def run(self, *, rounds: int, seconds: float) -> Reading:
        """One pass: so many exchanges of each part or, where `rounds` is zero, as many as fit the time."""
        for child in self.resting:
            child.wake()
        try:
            return self._run(rounds=rounds, seconds=seconds)
        finally:
            for child in self.resting:
                child.rest()

    def _run(self, *, rounds: int, seconds: float) -> Reading:
        meter = LoadMeter.start()
        cpu_before = cpu_seconds(self.server) if self.server else 0.0
        at = time.monotonic() + HEAD_START_S
        for part in self.beside:
            part.child.order(part.case, at=at - HEAD_START_S, rounds=0, seconds=seconds + 3 * HEAD_START_S)
        for part in self.parts:
            part.child.order(part.case, at=at, rounds=rounds, seconds=seconds)
        patience_s = PATIENCE_S + 10 * seconds
        answers = [part.child.hear(patience_s) for part in self.parts]
        for part in self.beside:
            part.child.hear(patience_s)
        server_cpu_s = cpu_seconds(self.server) - cpu_before if self.server else 0.0
        return Reading(
            exchanges=sum(answer["exchanges"] * part.weight for part, answer in zip(self.parts, answers, strict=True)),
            seconds=max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers),
            load=meter.read(),
            server_cpu_s=server_cpu_s,
            latencies_s=[latency for answer in answers for latency in answer["latencies"]],
        )

    def warmed_rounds(self, *, warm_up_s: float, seconds: float) -> int:
        """Warms up and tells how many exchanges of each part make a pass of about that long; zero where time counts."""
        if not self.lockstep:
            self.run(rounds=0, seconds=warm_up_s)
            return 0
        self.run(rounds=1, seconds=0.0)  # compiles, connects, takes memory: it says nothing of the others
        began, rounds = time.monotonic(), 1
        while True:
            round_s = max(self.run(rounds=rounds, seconds=0.0).seconds, 1e-6) / rounds
            left_s = warm_up_s - (time.monotonic() - began)
            if left_s <= 0:
                return max(1, round(seconds / round_s))
            rounds = max(1, int(min(left_s, warm_up_s / 2) / round_s))


def in_turns(
    cases: Sequence[Case], *, passes: int, seconds: float, warm_up_s: float, told: Callable[[str], None]
) -> dict[str, list[Reading]]:
    """Readings of each case by name, as many as passes; the n-th of all were taken in the same round of turns.

    Args:
      seconds:   that a case runs in a pass, about.
      warm_up_s: of each case before the first pass.
      told:      hears what is being done.
    """
    rounds = {}
    for case in cases:
        told(f"warming up {case.name}")
        rounds[case.name] = case.warmed_rounds(warm_up_s=warm_up_s, seconds=seconds)
    readings: dict[str, list[Reading]] = {case.name: [] for case in cases}
    for number in range(passes):
        for case in cases:
            told(f"pass {number + 1} of {passes}: {case.name}")
            readings[case.name].append(case.run(rounds=rounds[case.name], seconds=seconds))
    return readings
