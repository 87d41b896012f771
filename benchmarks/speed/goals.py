"""The goals of speed as data, and the verdict on what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.speed.statistics import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A row of the table.

    Attributes:
      what:  is compared with what.
      bound: that every judged figure keeps; None where there is only something to see.
      most:  whether the bound is the most allowed; else the least.
    """

    name: str
    what: str
    bound: float | None
    most: bool = False

    def keeps(self, value: float) -> bool:
        return self.bound is None or (value <= self.bound if self.most else value >= self.bound)

    def in_words(self) -> str:
        return "–" if self.bound is None else f"{'≤' if self.most else '≥'} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One comparison.

    Attributes:
      label:     what was varied, such as the number of workers.
      ratio:     that the goal speaks of.
      ours:      what it was made of, in `unit`.
      theirs:    likewise; None where there is no other side.
      judged:    False for a figure that is told beside the goal.
      disturbed: how many of the passes it counts were under other load.
    """

    label: str
    ratio: Spread
    ours: Spread
    theirs: Spread | None = None
    unit: str = ""
    judged: bool = True
    disturbed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one goal: figures, or the reason why there are none."""

    goal: Goal
    figures: Sequence[Figure] = ()
    failure: str = ""
    notes: Sequence[str] = ()
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)  # of a plot: name, points

    @property
    def judged(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.judged]

    @property
    def met(self) -> bool | None:
        """None where nothing can be said."""
        if self.goal.bound is None or not self.judged:
            return None
        return all(self.goal.keeps(figure.ratio.median) for figure in self.judged)

    @property
    def verdict(self) -> str:
        """In words; it says so where passes under other load stand behind it, which may be wrong in either way."""
        if self.failure:
            return "not measured"
        if self.met is None:
            return "shown"
        loaded = ", under other load" if any(figure.disturbed for figure in self.judged) else ""
        if self.met:
            return f"met{loaded}"
        assert self.goal.bound is not None
        apart = [abs(figure.ratio.median / self.goal.bound - 1) for figure in self.judged if not self._keeps(figure)]
        return f"missed by {max(apart):.0%}{loaded}"

    def _keeps(self, figure: Figure) -> bool:
        return self.goal.keeps(figure.ratio.median)


def _goal(name: str, what: str, bound: float | None, *, most: bool = False) -> Goal:
    return Goal(name=name, what=what, bound=bound, most=most)


GOALS: dict[str, Goal] = {
    goal.name: goal
    for goal in (
        _goal("ceiling", "25M float32 over a stream: exchanges/s, of the raw gRPC byte stream's", 0.8),
        _goal("cpu", "the same: server CPU seconds a GB, of the raw byte stream's server", 1.3, most=True),
        _goal("torch-rpc", "the same against a torch.distributed.rpc parameter server, over TCP", 1.0),
        _goal("torch-rpc-bfloat16", "the same with bfloat16 on the wire", 1.3),
        _goal("naive", "the same against a plain gRPC parameter server (bytes, unary), as it comes", 6),
        _goal("flower", "the same against Flower, as it comes", 12),
        _goal("naive-allocator", "against the plain gRPC server given our allocator settings", 2),
        _goal("flower-allocator", "against Flower given our allocator settings", 5),
        _goal("ray", "same host, shared memory, 25M float32, against a Ray actor", 1.2),
        _goal("gloo", "same host, shared memory, 25M float32, against gloo send and receive", 1.2),
        _goal("medium", "40 KB gradients, 1 and 2 workers, against every peer", 1.0),
        _goal("round-trip", "1 KB session: p50 of a round trip, of an empty gRPC stream echo's", 1.3, most=True),
        _goal("streams", "64 sessions of 256 on 64 streams: steps/s, of an empty echo server's", 0.7),
        _goal("beside-bulk", "1 KB session: p50 while 100 MB gradients stream, of p50 alone", 2, most=True),
        _goal("packed", "64 sessions of 256 packed in a message: session steps/s against a unary call each", 60),
        _goal("step-norm", "step alone, CPU, one session of 25M with a session norm, of torch's fused optimizer", 0.9),
        _goal("step-plain", "step alone, CPU, one session of 25M without, of torch's fused optimizer", 1.0),
        _goal("step-tiny", "step alone, CPU, 10,000 sessions of 256, against a loop of torch.optim", 20),
        _goal("step-small", "step alone, CPU, 1,000 sessions of 10,000, against a loop of torch.optim", 4),
        _goal("memory", "server memory above the state, 8 workers of 25M: gradients a worker", 2, most=True),
        _goal("memory-flat", "the same: memory at the end, of that half-way", 1.02, most=True),
        _goal("growth-sessions", "1 to 10,000 sessions: worst point, of the best before it (session steps/s)", 0.7),
        _goal("growth-streams", "1 to 64 streams: worst point, of the best before it (goodput)", 0.7),
        _goal("journal", "journal on, of the goodput with it off", 0.85),
    )
}
