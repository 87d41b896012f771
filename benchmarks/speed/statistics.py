"""From passes to numbers: medians, the range they moved in, and passes under other load left out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

ENOUGH = 3  # passes without other load, to leave the others out


@dataclass(frozen=True, slots=True)
class Spread:
    """Median of several passes, and the least and most of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if not values:
            return cls(math.nan, math.nan, math.nan)
        return cls(median(values), min(values), max(values))

    @classmethod
    def exactly(cls, value: float) -> "Spread":
        """A value measured once."""
        return cls(value, value, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What else the machine did during a pass, in cores."""

    steal: float  # taken by the host of this virtual machine
    others: float  # used by processes that are not ours

    @property
    def disturbs(self) -> bool:
        """More than the noise of a machine that is left alone."""
        return self.steal > 0.05 or self.others > 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One pass of one case."""

    exchanges: int
    seconds: float
    load: Load
    server_cpu_s: float = math.nan
    latencies_s: Sequence[float] = ()

    @property
    def rate(self) -> float:
        """Exchanges a second, of all workers together."""
        return self.exchanges / self.seconds

    @property
    def p50_s(self) -> float:
        return median(self.latencies_s)

    @property
    def p99_s(self) -> float:
        if len(self.latencies_s) < 2:
            return max(self.latencies_s, default=math.nan)
        return quantiles(self.latencies_s, n=100, method="inclusive")[98]

    @property
    def cpu_s(self) -> float:
        """Of the server, an exchange."""
        return self.server_cpu_s / self.exchanges


Measure = Callable[[Reading], float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two cases that were run in turns.

    Attributes:
      disturbed: passes under other load among those that count: all, or none where enough others are left.
    """

    ratio: Spread
    ours: Spread
    theirs: Spread
    disturbed: int

    def in_figure(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "ours": self.ours, "theirs": self.theirs, "disturbed": self.disturbed}


def counted(passes: Sequence[Sequence[Reading]]) -> tuple[list[Sequence[Reading]], int]:
    """The passes to count, and how many of them were under other load.

    Args:
      passes: of each pass, its readings of the cases that are compared.
    """
    calm = [each for each in passes if not any(reading.load.disturbs for reading in each)]
    if len(calm) >= min(ENOUGH, len(passes)):
        return calm, 0
    return list(passes), len(passes) - len(calm)


def compare(ours: Sequence[Reading], theirs: Sequence[Reading], measure: Measure) -> Comparison:
    """Ratio of ours to theirs pass by pass, so that what slows both down for a while cancels out."""
    passes, disturbed = counted(list(zip(ours, theirs, strict=True)))
    pairs = [(measure(mine), measure(other)) for mine, other in passes]
    return Comparison(
        ratio=Spread.of([mine / other for mine, other in pairs]),
        ours=Spread.of([mine for mine, _ in pairs]),
        theirs=Spread.of([other for _, other in pairs]),
        disturbed=disturbed,
    )


def better(one: Sequence[Reading], other: Sequence[Reading], measure: Measure) -> int:
    """0 or 1: which of two has the higher median."""
    return int(median(map(measure, other)) > median(map(measure, one)))
