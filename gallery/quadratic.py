"""Quadratic: the paths and losses of all recipes in a steep valley that lies across the axes."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gallery import problems
from gallery.recipes import FLOOR, Run, run, runs, trace
from gallery.style import LANDSCAPE, MUTED, color_of, label_ends, sheet

START, GOAL = (-2.4, -0.6), (0.0, 0.0)
COLUMNS = 4
DASHED: Any = (0, (3, 1.5))


def full_metric(steps: int) -> dict[str, Run]:
    """Recipes with a metric that turns: for a matrix of one column a Kronecker metric is the full one."""
    return {
        "cgd": run("cgd", problems.tilted_valley, START, steps, metric="full"),
        "hermosis": run("hermosis", problems.tilted_valley, START, steps, column=True),
    }


def draw(quick: bool) -> Figure:
    steps = 12 if quick else 200
    found = runs(problems.tilted_valley, START, steps)
    full = full_metric(steps)
    rows = -(-len(found) // COLUMNS)
    figure = sheet(
        12, 2.15 * rows + 5, f"A tilted valley, a hundred times steeper across: {steps} steps of each recipe"
    )
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.15 * rows + 0.6, 4.2])
    above, below = parts
    grid = above.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    x, y, height = problems.landscape(problems.tilted_valley, (-2.8, 1.2), (-1.7, 0.9), 120)
    for axes, one in zip(grid.flat, found, strict=False):
        axes.contourf(x, y, -np.log(height + 0.2), levels=10, cmap=LANDSCAPE)
        if one.recipe in full:
            color = color_of(one.recipe)
            axes.plot(*full[one.recipe].position.T, color=color, lw=1.2, ls=DASHED)
            axes.text(0.04, 0.06, "dashed: full metric", transform=axes.transAxes, fontsize=8, color=color)
        trace(axes, one.position, color_of(one.recipe), every=10, goal=GOAL)
        axes.set_xlim(-2.8, 1.2)
        axes.set_ylim(-1.7, 0.9)
        axes.set_title(one.recipe, color=color_of(one.recipe), fontweight="bold")
        axes.text(
            0.97, 1.03, f"lr {one.learning_rate:g}", transform=axes.transAxes, ha="right", fontsize=8.5, color=MUTED
        )
        axes.tick_params(length=2)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("w₁")
    for axes in grid[:, 0]:
        axes.set_ylabel("w₂")

    curves = below.subplots(gridspec_kw={"right": 0.85})
    ends = []
    lines = [(one, one.recipe, "-") for one in found]
    lines += [(one, f"{one.recipe}, full metric", DASHED) for one in full.values()]
    for one, name, style in lines:
        loss = np.maximum(np.minimum.accumulate(one.loss), FLOOR)
        curves.semilogy(loss, color=color_of(one.recipe), ls=style, lw=1.5)
        ends.append((float(loss[-1]), name, color_of(one.recipe)))
    curves.set_xlim(0, steps)
    curves.set_ylim(FLOOR, 1e2)
    curves.grid(True, axis="y")
    curves.set(xlabel="step n", ylabel="lowest loss L so far")
    curves.set_title("the same runs: the lowest loss so far")
    label_ends(curves, ends, gap=0.068)
    return figure
