"""Rosenbrock: the paths of all recipes along a narrow curved valley."""

import numpy as np
from matplotlib.figure import Figure

from gallery import problems
from gallery.recipes import power_of_ten, runs, trace
from gallery.style import LANDSCAPE, MUTED, color_of, sheet

START, GOAL = (-1.2, 1.0), (1.0, 1.0)
COLUMNS = 4


def draw(quick: bool) -> Figure:
    steps = 12 if quick else 400
    found = runs(problems.rosenbrock, START, steps)
    rows = -(-len(found) // COLUMNS)
    figure = sheet(12, 2.75 * rows + 0.6, f"Rosenbrock's valley: {steps} steps of each recipe")
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    x, y, height = problems.landscape(problems.rosenbrock, (-1.75, 1.75), (-0.75, 2.25), 120)
    for axes, one in zip(grid.flat, found, strict=False):
        axes.contourf(x, y, -np.log(height + 0.03), levels=12, cmap=LANDSCAPE)
        trace(axes, one.position, color_of(one.recipe), every=20, goal=GOAL)
        axes.set_xlim(-1.75, 1.75)
        axes.set_ylim(-0.75, 2.25)
        axes.set_title(one.recipe, color=color_of(one.recipe), fontweight="bold")
        axes.text(
            0.97, 1.03, f"lr {one.learning_rate:g}, loss {power_of_ten(float(one.loss[-1]))}",
            transform=axes.transAxes, ha="right", fontsize=8.5, color=MUTED,
        )  # fmt: skip
        axes.tick_params(length=2)
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("w₁")
    for axes in grid[:, 0]:
        axes.set_ylabel("w₂")
    return figure
