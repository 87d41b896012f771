"""The lab: settings that all rows share, and what a row needs to run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.children import ChildFailed
from benchmarks.speed.goals import GOALS, Figure, Result
from benchmarks.speed.passes import Case, in_turns
from benchmarks.speed.rigs import Missing, Peer, Workshop
from benchmarks.speed.statistics import Load, Measure, Reading, compare


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured.

    Attributes:
      passes:       of each case, in turns.
      seconds:      of a case in a pass.
      warm_up_s:    of each case.
      bulk:         parameters of the large session.
      medium:       parameters of the session of 40 KB.
      memory_steps: over which the server's memory is watched.
      most_sessions: to which the number of sessions grows.
      threads:      of the server's step.
    """

    passes: int = 5
    seconds: float = 1.0
    warm_up_s: float = 3.0
    bulk: int = 25_000_000
    medium: int = 10_000
    memory_steps: int = 12
    most_sessions: int = 10_000
    threads: int = 2


QUICK = Settings(
    passes=3, seconds=0.1, warm_up_s=0.1, bulk=100_000, medium=1_000, memory_steps=4, most_sessions=100, threads=1
)

Readings = Mapping[str, Sequence[Reading]]


@dataclass(frozen=True, slots=True)
class Lab:
    """What a row is given.

    Attributes:
      workshop: starts processes and ends them after the row.
      told:     hears what is being done.
      loads:    what else the machine did in each pass of every row; grows.
    """

    settings: Settings
    workshop: Workshop
    told: Callable[[str], None]
    loads: list[Load]

    def run(self, cases: Sequence[Case], *, slower: float = 1.0) -> dict[str, list[Reading]]:
        """Runs cases in turns; `slower` scales the time of a pass."""
        chosen = self.settings
        readings = in_turns(
            cases,
            passes=chosen.passes,
            seconds=chosen.seconds * slower,
            warm_up_s=chosen.warm_up_s * min(1.0, slower),
            told=self.told,
        )
        self.loads.extend(reading.load for several in readings.values() for reading in several)
        return readings

    def peers(self, peers: Sequence[Peer], *, parameters: int) -> tuple[list[Case], dict[str, str]]:
        """Cases with one and two workers of each peer that can be started, and why the others cannot, by name."""
        cases: list[Case] = []
        missing: dict[str, str] = {}
        for peer in peers:
            self.told(f"starting {peer.name}")
            try:
                cases += self.workshop.peer(peer, parameters=parameters)
            except (Missing, ChildFailed) as error:
                missing[peer.name] = str(error)
        return cases, missing


def figure(
    label: str,
    ours: Sequence[Reading],
    theirs: Sequence[Reading],
    measure: Measure = lambda reading: reading.rate,
    *,
    unit: str = "exchanges/s",
    judged: bool = True,
) -> Figure:
    """A comparison as a row's figure."""
    return Figure(label=label, unit=unit, judged=judged, **compare(ours, theirs, measure).in_figure())


def result(name: str, figures: Sequence[Figure] = (), **more: Any) -> Result:
    """A result of the goal with that name."""
    return Result(goal=GOALS[name], figures=figures, **more)


def against(
    name: str, peer: Peer, ours: Mapping[str, str], readings: Readings, missing: Mapping[str, str], *, notes: Any = ()
) -> Result:
    """A peer's row, with one and with two workers.

    Args:
      ours: our case by label; a label begins with the number of workers.
    """
    if peer.name in missing:
        return result(name, failure=missing[peer.name])
    figures = [
        figure(label, readings[case], readings[f"{peer.name}, {label.split()[0]}"]) for label, case in ours.items()
    ]
    return result(name, figures, notes=notes)


def default_peer_python(path: Path) -> Path | None:
    """The peers' own environment, where somebody made it."""
    return path if path.exists() else None
