"""All recipes on one problem, each at the best of a few learning rates."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from gallery.paths import Array, Paths, follow
from gallery.problems import Loss, problem_of
from gallery.style import INK
from hermosis_server.dynamics import RECIPES, resolve
from hermosis_server.dynamics.parameters import Value

FLOOR = 1e-12  # below it a loss is solved
HALF_DECADES = tuple(float(f"{digit}e{power}") for power in range(-4, 1) for digit in (1, 3))


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe's path at its best learning rate: (N+1, 2) positions and the loss at each."""

    recipe: str
    learning_rate: float
    position: Array
    loss: Array


def run(
    recipe: str, loss: Loss, start: tuple[float, float], steps: int, *, column: bool = False, **settings: Value
) -> Run:
    """Sweeps the learning rate as one batch, and keeps the best session.

    That is the one with the least loss over the last quarter of its way, on logarithmic average, among those whose loss
    never rises above twice the first. With `column` the weights are a matrix of one column, and not a vector.
    """
    rates = HALF_DECADES
    hamiltonians = [resolve(recipe, settings | {"lr": rate}) for rate in rates]
    # One step more than is shown: a path records the loss where its gradient is taken.
    paths: Paths = follow(hamiltonians, problem_of(loss), [start] * len(rates), steps + 1, column=column)
    score = np.log(np.maximum(paths.loss[-(steps // 4) :], FLOOR)).mean(axis=0)
    tame = (paths.loss <= 2 * paths.loss[0]).all(axis=0)  # not where the loss is NaN
    best = int(np.argmin(np.where(tame, score, np.inf)))
    return Run(recipe, rates[best], paths.position[: steps + 1, best], paths.loss[:, best])


def runs(loss: Loss, start: tuple[float, float], steps: int) -> list[Run]:
    """Every recipe of the roster, with its defaults but for the learning rate."""
    return [run(recipe, loss, start, steps) for recipe in RECIPES]


def trace(axes: Axes, position: Array, color: str, *, every: int, goal: tuple[float, float]) -> None:
    """A path with its start, a dot every few steps, its end, and where it should go."""
    x, y = position[:, 0], position[:, 1]
    axes.plot(x, y, color=color, lw=1.2, zorder=2)
    axes.plot(x[::every], y[::every], ".", color=color, ms=4, zorder=3)
    axes.plot(x[0], y[0], "o", color="white", mec=color, ms=6, mew=1.4, zorder=4)
    axes.plot(*goal, "+", color=INK, ms=9, mew=1.4, zorder=5)
    axes.plot(x[-1], y[-1], "o", color=color, mec="white", ms=7, zorder=4)


def power_of_ten(value: float) -> str:
    """A loss for a title: 3e-05 as 3·10⁻⁵, and nothing below rounding."""
    if value < 1e-20:
        return "< 10⁻²⁰"
    digit, exponent = f"{value:.0e}".split("e")
    if int(exponent) in (-1, 0, 1):
        return f"{value:.2g}"
    return f"{digit}·10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
