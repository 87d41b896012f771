"""Phase portrait: closed orbits while β stands still, spirals while it grows, and which well they end in."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from gallery.paths import Array, Paths, follow
from gallery.problems import double_well, problem_of
from gallery.style import INK, LANDSCAPE, MUTED, SERIES, sheet
from hermosis_server.dynamics import (
    Constant,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Power,
    Scheme,
    ThermalProfile,
)

STEP = 0.05
WIDTH, HEIGHT = 1.95, 1.25
LEFT, RIGHT = SERIES[0], SERIES[1]


def newtonian(thermal: ThermalProfile, step: float = STEP, scheme: Scheme = Scheme.LEAPFROG) -> Hamiltonian:
    """Unit mass, c² = h = 1: with constant β the path is w″ = -∇L, in steps of the given duration."""
    return Hamiltonian(
        learning_rate=step,
        step_duration=step,
        thermal=thermal,
        force=Force(mode=ForceMode.PHYSICAL, gradient_gain=step),
        integrator=scheme,
    )


def orbits(thermal: ThermalProfile, starts: list[tuple[float, float]], time: float) -> Paths:
    """From (w, X), both taken at the ends of steps."""
    return follow(
        newtonian(thermal),
        problem_of(double_well),
        [[w] for w, _ in starts],
        round(time / STEP),
        momentum=[[x] for _, x in starts],
        ends=True,
    )


def energy(position: Array, momentum: Array) -> Array:
    """κ + c²L of one parameter."""
    loss = double_well(torch.tensor(position)[..., None]).numpy()
    total: Array = momentum**2 / 2 + loss
    return total


def basins(columns: int, rows: int, time: float) -> Array:
    """(rows, columns) where each start (w, X) comes to rest.

    All starts are the parameters of one session: the double well and the classical kinetic energy are sums over them.
    """
    w, x = np.meshgrid(np.linspace(-WIDTH, WIDTH, columns), np.linspace(-HEIGHT, HEIGHT, rows))
    cooling = newtonian(Exponential(cooling_rate=0.15), 0.1)
    problem = problem_of(double_well)
    end = follow(cooling, problem, w.reshape(1, -1), round(time / 0.1), momentum=x.reshape(1, -1)).position[-1]
    ends: Array = end.reshape(rows, columns)
    return ends


def draw(quick: bool) -> Figure:
    figure = sheet(11, 8.2, "Cooling turns closed orbits into spirals: a double well, momentum over weight")
    (still, cooled), (fading, map_) = figure.subplots(2, 2, sharex=True, sharey=True)
    ring = [(0.55, 0.0), (-0.55, 0.0), (0.15, 0.0), (-0.15, 0.0), (1.55, 0.0), (1.75, 0.0), (-0.8, 0.0), (0.8, 0.0)]
    background(still)
    for path in curves(orbits(Constant(), ring, 2 if quick else 16)):
        still.plot(*path, color=LEFT if path[0].max() < 0 else RIGHT if path[0].min() > 0 else MUTED, lw=1.4)
    still.set_title("constant β: nothing is lost, every orbit closes")

    for axes, thermal, title in (
        (cooled, Exponential(cooling_rate=0.15), "exponential β, γ = 0.15: steady friction, spirals into a well"),
        (fading, Power(exponent=3.0, age=2.0), "power β, p = 3, t₀ = 2: friction 3/(t + t₀), strong first, then gone"),
    ):
        background(axes)
        starts = [(-1.85, 0.0), (1.85, 0.0), (-1.0, 1.1), (1.0, -1.1), (0.0, 0.9), (0.0, -0.9)]
        for path in curves(orbits(thermal, starts, 4 if quick else 40)):
            color = LEFT if path[0][-1] < 0 else RIGHT
            axes.plot(*path, color=color, lw=1.3)
            axes.plot(path[0][0], path[1][0], "o", color="white", mec=color, ms=5, zorder=3)
        axes.set_title(title)

    ends = basins(*((24, 16, 6.0) if quick else (360, 240, 50.0)))
    map_.imshow(
        ends > 0,
        extent=(-WIDTH, WIDTH, -HEIGHT, HEIGHT),
        origin="lower",
        aspect="auto",
        cmap=ListedColormap(["#b9cbe0", "#f6d3b1"]),
        interpolation="nearest",
    )
    for well, color in ((-1, LEFT), (1, RIGHT)):
        map_.plot(well, 0, "o", color=color, ms=6)
        map_.annotate(f"w = {well}", (well, 0), (0, 8), textcoords="offset points", ha="center", color=color)
    map_.set_title("exponential β again: the well that each start (w, X) ends in")
    for axes in (still, fading):
        axes.set_ylabel("momentum X")
    for axes in (fading, map_):
        axes.set_xlabel("weight w")
    return figure


def curves(paths: Paths) -> list[tuple[Array, Array]]:
    return [(paths.position[:, s, 0], paths.momentum[:, s, 0]) for s in range(paths.position.shape[1])]


def background(axes: Axes) -> None:
    """Level lines of κ + c²L, which is what an orbit keeps while β stands still."""
    w, x = np.meshgrid(np.linspace(-WIDTH, WIDTH, 160), np.linspace(-HEIGHT, HEIGHT, 120))
    axes.contourf(w, x, np.sqrt(energy(w, x)), levels=14, cmap=LANDSCAPE)
    axes.contour(w, x, energy(w, x), levels=[0.25], colors=INK, linewidths=0.7, linestyles=":")
    axes.set_xlim(-WIDTH, WIDTH)
    axes.set_ylim(-HEIGHT, HEIGHT)
