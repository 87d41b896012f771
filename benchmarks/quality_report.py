"""The race in words: a table on the screen, a page of markdown and the same as JSON."""

import json
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.quality_contestants import LR_DECADES, REFERENCE, Contestant
from benchmarks.quality_tasks import TASKS
from benchmarks.quality_verdict import GOAL_RATIO, TOLERANCE, Spread, Standing, TaskResult, Verdict, goal_met, verdicts

COLUMNS = (
    "contestant", "steps to target", "ratio", "there", "loss at budget", "diverged", "ms a step", "best settings",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what the race was run."""

    date: str
    command: str
    trials: int
    seeds: int
    steps: int
    measure_every: int
    schedule: str
    workers: int
    codes: dict[str, str]  # contestant: the code that was raced


def hardware() -> dict[str, str]:
    """This machine and what is installed, in words."""
    packages = ("torch", "numpy", "scikit-learn", "pytorch_optimizer")
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def steps_in_words(steps: Spread) -> str:
    if not math.isfinite(steps.median):
        return "not reached"
    return f"{steps.median:.0f} ({steps.low:.0f}–{'∞' if math.isinf(steps.high) else f'{steps.high:.0f}'})"


def cells(standing: Standing) -> list[str]:
    """A row of the table of a task; see COLUMNS."""
    final = standing.final
    settings = ", ".join(f"{name} {value:.3g}" for name, value in standing.settings.items())
    return [
        standing.contestant,
        steps_in_words(standing.steps),
        f"{standing.ratio.median:.2f}" if math.isfinite(standing.ratio.median) else "–",
        f"{standing.reached}/{standing.seeds}",
        f"{number(final.median)} ({number(final.low)}–{number(final.high)})",
        f"{standing.diverged}/{standing.trials}",
        f"{standing.step_ms:.2f}, {standing.optimizer_ms:.2f}" if math.isfinite(standing.step_ms) else "–",
        (settings or "every trial diverged") + (" (edge)" if standing.at_edge else ""),
    ]


def yes(value: bool) -> str:
    return "yes" if value else "no"


def verdict_cells(verdict: Verdict) -> list[str]:
    return [
        verdict.task,
        f"{verdict.ratio:.2f}" if math.isfinite(verdict.ratio) else "not reached",
        yes(verdict.fast_enough),
        f"{verdict.diverged} against {verdict.reference_diverged}",
        yes(verdict.diverges_no_more),
        "met" if verdict.met else "not met",
    ]


def trials_in_words(rows: Sequence[Verdict]) -> str:
    ours, theirs = sum(row.diverged for row in rows), sum(row.reference_diverged for row in rows)
    return f"{ours} diverged trials against {theirs}"


def goal_in_words(results: Sequence[TaskResult]) -> str:
    """Win or lose, in one sentence."""
    rows = verdicts(results)
    if not rows:
        return "No Hermosis recipe took part, so the goal was not put to the test."
    winners = [recipe for recipe, each in rows.items() if goal_met(each)]
    if winners:
        return f"Met on every task by {', '.join(winners)}."
    nearest, each = next(iter(rows.items()))
    fast = sum(row.fast_enough for row in each)
    return (
        f"Not met by any single recipe. Nearest is {nearest}: {GOAL_RATIO:g} of the steps on {fast} of {len(each)} "
        f"tasks, {trials_in_words(each)}."
    )


def show(console: Console, results: Sequence[TaskResult]) -> None:
    """Prints a table a task, as narrow as a terminal, then the verdict."""
    for result in results:
        table = Table(title=f"{result.task}: target {number(result.target)}", box=SIMPLE_HEAD, padding=0)
        for place, column in enumerate(COLUMNS[:-1]):
            table.add_column(column, justify="left" if place == 0 else "right", no_wrap=True)
        for standing in result.standings:
            *row, _ = cells(standing)
            table.add_row(*(re.split(r" \(|, ", cell)[0] if place > 1 else cell for place, cell in enumerate(row)))
        console.print(table)
    console.print(f"Goal: {goal_in_words(results)}", style="bold", highlight=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def page(results: Sequence[TaskResult], field: Sequence[Contestant], conditions: Conditions, picture: str) -> str:
    """The page of markdown."""
    lines = [
        f"# Quality of the optimizers, {conditions.date}",
        "",
        f"Goal: one Hermosis recipe that reaches {REFERENCE}'s best loss in at most {GOAL_RATIO:g} of its steps on "
        "every task, and diverges in fewer trials. Read as: on no task in more trials, and in fewer over all tasks.",
        "",
        f"**{goal_in_words(results)}**",
        "",
        f"![Loss against steps, and steps against {REFERENCE}]({picture})",
        "",
        "## How it is measured",
        "",
        f"- Budget: {conditions.steps} steps a run, measured every {conditions.measure_every}. "
        f"{conditions.trials} trials for each contestant on each task, all from seed 0; then the settings of the trial "
        f"with the lowest median loss over the last tenth of the budget again with "
        f"{conditions.seeds} fresh seeds. Only these are reported.",
        f"- Learning rate schedule of everybody: {conditions.schedule}. No weight decay, float32, one thread a run.",
        f"- Target: the median over seeds of {REFERENCE}'s loss at the budget. Steps to it: first measured step "
        f"within {TOLERANCE:.1%} of it or below, median (quartiles) over seeds; there: how many seeds got there. "
        "Quantiles are measured values (nearest rank), ∞ where that many seeds did not get there. The ratio is of "
        f"medians, {REFERENCE}'s own counted by the same rule.",
        "- Diverged: a loss that is not finite, or higher at the end than at the start; counted over the trials.",
        "- ms a step: whole training step, then the optimizer's part; medians over seeds, "
        f"{conditions.workers} runs at once.",
        f"- (edge): the best learning rate lies in the outer tenth of its {LR_DECADES:g} decades.",
        "",
        *markdown_table(
            ["contestant", "drawn log-uniformly", "code"],
            [[each.name, "; ".join(map(str, each.ranges)), conditions.codes[each.name]] for each in field],
        ),
    ]
    for result in results:
        task = TASKS[result.task]
        lines += [f"## {task.name}", "", f"{task.title}. Measured: {task.measured}.", ""]
        lines += [f"Target: {number(result.target)}.", ""]
        lines += markdown_table(COLUMNS, [cells(standing) for standing in result.standings])
        errors = [f"- {each.contestant}: {error}" for each in result.standings for error in each.errors]
        lines += ["Errors, counted as diverged:", "", *errors, ""] if errors else []
    lines += ["## The goal, recipe by recipe", ""]
    header = ["task", "ratio", f"at most {GOAL_RATIO:g}", "diverged trials", "no more", "both"]
    for recipe, rows in verdicts(results).items():
        lines += [f"### {recipe}", "", *markdown_table(header, [verdict_cells(row) for row in rows])]
        lines += [f"All tasks together: {'met' if goal_met(rows) else 'not met'}; {trials_in_words(rows)}.", ""]
    lines += ["## Conditions", "", f"Command: `{conditions.command}`", ""]
    lines += markdown_table(["what", "which"], [[name, value] for name, value in hardware().items()])
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """The same without infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record(results: Sequence[TaskResult], conditions: Conditions) -> str:
    """The JSON beside the page; null stands for infinity."""
    values = {
        "conditions": asdict(conditions),
        "hardware": hardware(),
        "goal": {"ratio": GOAL_RATIO, "outcome": goal_in_words(results)},
        "tasks": [asdict(result) for result in results],
    }
    return json.dumps(plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
