"""From runs to numbers: steps to the reference's best loss, spread over seeds, and whether the goal is met.

Quantiles are values that were measured (nearest rank), so a run that never reaches the target counts as infinitely
many steps without spoiling the median of the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.quality_contestants import REFERENCE, Contestant
from benchmarks.quality_runs import Run

GOAL_RATIO = 0.8
TOLERANCE = 1e-3  # of the target: two runs that differ by rounding alone both reach it


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles; infinite where that many seeds did not get there."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        ordered = sorted(math.inf if math.isnan(value) else value for value in values)
        if not ordered:
            return cls(math.inf, math.inf, math.inf)
        return cls(*(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.25, 0.5, 0.75)))

    def over(self, reference: float) -> "Spread":
        """Ratios; infinite where either side is."""
        if not math.isfinite(reference):
            return Spread(math.inf, math.inf, math.inf)
        return Spread(*(value / max(1.0, reference) for value in (self.low, self.median, self.high)))


def steps_to(run: Run, target: float) -> float:
    """The first measured step at which the loss is within TOLERANCE of the target or below; infinite if none is."""
    enough = target * (1 + TOLERANCE)
    reached = (step for step, loss in zip(run.at_steps, run.losses, strict=True) if loss <= enough)
    return next(reached, math.inf)


def best_trial(trials: Sequence[Run]) -> Run | None:
    """The trial with the lowest loss over the end of the budget; None where every one diverged."""
    standing = [run for run in trials if not run.diverged]
    return min(standing, key=lambda run: run.settled, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one contestant did on one task."""

    contestant: str
    family: str
    settings: dict[str, float]  # of the best trial
    at_edge: bool  # whether the best learning rate is near the end of its range
    trials: int
    diverged: int  # of the trials
    diverged_seeds: int
    seeds: int
    final: Spread
    steps: Spread  # to the target
    reached: int  # of the seeds
    ratio: Spread  # of steps to the reference's median steps
    step_ms: float
    optimizer_ms: float
    errors: list[str]

    @classmethod
    def of(
        cls, contestant: Contestant, trials: Sequence[Run], seeds: Sequence[Run], *, target: float, reference: float
    ) -> "Standing":
        """Args:
        target:    the loss to reach.
        reference: the median steps in which the reference reaches it.
        """
        best = best_trial(trials)
        settings = dict(best.spec.settings) if best else {}
        steps = [steps_to(run, target) for run in seeds]
        spread = Spread.of(steps)
        return cls(
            contestant=contestant.name,
            family=contestant.family,
            settings=settings,
            at_edge=bool(settings) and contestant.at_edge(settings),
            trials=len(trials),
            diverged=sum(run.diverged for run in trials),
            diverged_seeds=sum(run.diverged for run in seeds),
            seeds=len(seeds),
            final=Spread.of([run.final for run in seeds]),
            steps=spread,
            reached=sum(math.isfinite(each) for each in steps),
            ratio=spread.over(reference),
            step_ms=Spread.of([run.step_ms for run in seeds]).median,
            optimizer_ms=Spread.of([run.optimizer_ms for run in seeds]).median,
            errors=sorted({run.error for run in (*trials, *seeds) if run.error}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One task: the target and everybody's standing, the reference first."""

    task: str
    target: float
    standings: list[Standing]

    @property
    def reference(self) -> Standing:
        return self.standings[0]

    def standing(self, contestant: str) -> Standing:
        return next(each for each in self.standings if each.contestant == contestant)


def judge(
    task: str, field: Sequence[Contestant], trials: dict[str, list[Run]], seeds: dict[str, list[Run]]
) -> TaskResult:
    """Everybody's standing on a task, from the runs of each contestant by name."""
    median = Spread.of([run.final for run in seeds[REFERENCE]]).median
    target = median if math.isfinite(median) else -math.inf  # a reference that diverged sets no target
    reference = Spread.of([steps_to(run, target) for run in seeds[REFERENCE]]).median
    ordered = sorted(field, key=lambda contestant: contestant.name != REFERENCE)
    return TaskResult(
        task=task,
        target=target,
        standings=[
            Standing.of(each, trials[each.name], seeds[each.name], target=target, reference=reference)
            for each in ordered
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether one recipe meets the goal on one task."""

    recipe: str
    task: str
    ratio: float
    diverged: int
    reference_diverged: int

    @property
    def fast_enough(self) -> bool:
        return self.ratio <= GOAL_RATIO

    @property
    def diverges_no_more(self) -> bool:
        return self.diverged <= self.reference_diverged

    @property
    def met(self) -> bool:
        return self.fast_enough and self.diverges_no_more


def goal_met(rows: Sequence[Verdict]) -> bool:
    """Both conditions on every task, and fewer diverged trials over all of them together."""
    return all(row.met for row in rows) and sum(row.diverged for row in rows) < sum(
        row.reference_diverged for row in rows
    )


def verdicts(results: Sequence[TaskResult]) -> dict[str, list[Verdict]]:
    """Every Hermosis recipe against the goal, task by task; the recipe with the most tasks met comes first."""
    by_recipe: dict[str, list[Verdict]] = {}
    for result in results:
        for standing in result.standings:
            if standing.family == "hermosis":
                by_recipe.setdefault(standing.contestant, []).append(
                    Verdict(
                        recipe=standing.contestant,
                        task=result.task,
                        ratio=standing.ratio.median,
                        diverged=standing.diverged,
                        reference_diverged=result.reference.diverged,
                    )
                )

    def worth(recipe: str) -> tuple[int, int, float]:
        rows = by_recipe[recipe]
        return -sum(row.met for row in rows), -sum(row.fast_enough for row in rows), max(row.ratio for row in rows)

    return {recipe: by_recipe[recipe] for recipe in sorted(by_recipe, key=worth)}
