"""The race in one picture: the loss against steps a task, and everybody's steps against the reference's."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quality_contestants import REFERENCE
from benchmarks.quality_runs import Run
from benchmarks.quality_verdict import GOAL_RATIO, TaskResult

COLUMNS = 3
LINE_OF_FAMILY = {"torch": "-", "outside": "--", "hermosis": "-"}
GREYS = {REFERENCE: "black", "SGD": "0.55", "SOAP": "0.3", "Muon": "0.6"}


def draw(path: Path, results: Sequence[TaskResult], seeds: Mapping[str, Mapping[str, list[Run]]]) -> None:
    """Args:
    seeds: by task and contestant, the runs of the best settings.
    """
    rows = math.ceil((len(results) + 1) / COLUMNS)
    figure = Figure(figsize=(6 * COLUMNS, 4.6 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten().tolist()
    recipes = [each.contestant for each in results[0].standings if each.contestant not in GREYS]
    palette = [mpl.colormaps["tab20"](index % 20) for index in (*range(0, 20, 2), *range(1, 20, 2))]
    colors = GREYS | dict(zip(recipes, palette, strict=False))
    for panel, result in zip(panels, results, strict=False):
        draw_curves(panel, result, seeds[result.task], colors)
    draw_ratios(panels[len(results)], results, colors)
    for panel in panels[len(results) + 1 :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=110)


def draw_curves(panel: Axes, result: TaskResult, seeds: Mapping[str, list[Run]], colors: Mapping[str, object]) -> None:
    """Medians over seeds with a band between the quartiles; a run that ended early counts as infinite from there."""
    ceiling, floor = 0.0, math.inf
    for standing in reversed(result.standings):
        runs = [run for run in seeds[standing.contestant] if run.at_steps]
        if not runs:
            continue
        longest = max(runs, key=lambda run: len(run.at_steps))
        losses = np.full((len(runs), len(longest.at_steps)), np.inf)
        for row, run in zip(losses, runs, strict=True):
            row[: len(run.losses)] = run.losses
        low, median, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
        ceiling, floor = max(ceiling, float(median[0])), min(floor, float(median.min()))
        color = colors[standing.contestant]
        is_reference = standing.contestant == REFERENCE
        panel.plot(
            longest.at_steps, median, LINE_OF_FAMILY[standing.family], color=color, label=standing.contestant,
            linewidth=2.4 if is_reference else 1.3, zorder=3 if is_reference else 2,
        )  # fmt: skip
        panel.fill_between(longest.at_steps, low, high, color=color, alpha=0.12, linewidth=0)
    if math.isfinite(result.target):
        panel.axhline(result.target, color="black", linewidth=0.8, linestyle=":")
    panel.set(title=result.task, xlabel="steps", ylabel="measured loss", yscale="log")
    if ceiling:
        panel.set_ylim(0.7 * floor, 1.5 * ceiling)


def draw_ratios(panel: Axes, results: Sequence[TaskResult], colors: Mapping[str, object]) -> None:
    """A dot a task; those who did not get there stand at the right."""
    names = [each.contestant for each in results[0].standings]
    ratios = {name: [result.standing(name).ratio for result in results] for name in names}
    there = [each.median for spreads in ratios.values() for each in spreads if math.isfinite(each.median)]
    nowhere = 1.5 * max([1.0, *there])
    for place, name in enumerate(reversed(names)):
        for index, (ratio, marker) in enumerate(zip(ratios[name], "osD^vP*X", strict=False)):
            y = place + 0.1 * (index - (len(results) - 1) / 2)
            if math.isfinite(ratio.median):
                panel.plot([ratio.low, min(ratio.high, nowhere)], [y, y], color=colors[name], linewidth=1)
                panel.plot(ratio.median, y, marker, color=colors[name], markersize=5)
            else:
                panel.plot(nowhere, y, marker, color=colors[name], markersize=5, fillstyle="none")
    panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
    panel.axvline(GOAL_RATIO, color="green", linewidth=1, linestyle="--")
    panel.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, GOAL_RATIO, 1, 1.5, 2) if tick < nowhere]
    panel.set_xticks([*ticks, nowhere], labels=[*(f"{tick:g}" for tick in ticks), "not\nreached"])
    panel.minorticks_off()
    panel.set_yticks(range(len(names)), labels=names[::-1])
    marks = ", ".join(f"{mark} {result.task}" for mark, result in zip("●■◆▲▼", results, strict=False))
    panel.set_title(f"steps to the target over {REFERENCE}'s\n{marks}", fontsize=9)
