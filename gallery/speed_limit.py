"""Speed limit: velocity against momentum, and what becomes of a limit that cools with the bath."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gallery.paths import Array, Paths, follow
from gallery.style import INK, MUTED, SERIES, label_ends, sheet
from hermosis_server.dynamics import (
    Classical,
    Exponential,
    Hamiltonian,
    KineticEnergy,
    Quartic,
    Relativistic,
    Truncated,
    VelocityRegularised,
)
from hermosis_server.dynamics.kinetic import Limits, kind_of, motion

# All with the same first correction to Newton: b = 1/(2χ²), χ = 1.
KINETICS: dict[str, KineticEnergy] = {
    "classical": Classical(),
    "relativistic": Relativistic(speed_limit=1.0),
    "quartic": Quartic(stiffness=0.5),
    "truncated": Truncated(speed_limit=1.0),
    "velocity regularised": VelocityRegularised(stiffness=0.5, cap=3.0),
}
MAX_STEP, RETENTION = 0.1, 0.98


def speeds(kinetic: KineticEnergy, momenta: Array) -> Array:
    """h·v of each momentum, with β where it started."""

    def one(name: str) -> Tensor:
        return torch.full((1,), float(getattr(kinetic, name, 0.0) or 0.0), dtype=torch.float64)

    limits = Limits(one("speed_limit"), one("rest_cooling"), one("rest_energy"), one("stiffness"), one("cap"))
    found: Array = momenta * motion(kind_of(kinetic), torch.tensor(momenta**2), limits, None).braking.numpy()
    return found


def race(rest_cooling: float, steps: int) -> Paths:
    """A session that a constant steep slope drives at its limit all the time."""
    hamiltonian = Hamiltonian(
        learning_rate=0.01,
        thermal=Exponential(momentum_retention=RETENTION),
        kinetic=Relativistic(max_step=MAX_STEP, rest_cooling=rest_cooling),
    )

    def slope(step: int, position: Tensor) -> tuple[Tensor, Tensor]:
        return -1e6 * position[:, 0], torch.full_like(position, -1e6)

    return follow(hamiltonian, slope, [[0.0]], steps)


def draw(quick: bool) -> Figure:
    figure = sheet(12.5, 4.9, "A speed limit bounds every step; one that cools with the bath bounds the whole journey")
    curves, step_axes, way = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.15, 1, 1], "wspace": 0.12})
    momenta = np.linspace(1e-3, 4, 40 if quick else 400)
    ends = []
    for (name, kinetic), color in zip(KINETICS.items(), SERIES, strict=False):
        speed = speeds(kinetic, momenta)
        curves.plot(momenta, speed, color=color)
        if name != "classical":
            ends.append((float(speed[-1]), name.replace(" ", "\n"), color))
    turn = math.sqrt(2 / 3)
    beyond = np.linspace(turn, 1.75, 60)
    truncated = SERIES[list(KINETICS).index("truncated")]
    curves.plot(beyond, beyond * (1 - beyond**2 / 2), color=truncated, ls=(0, (1, 1.4)))
    curves.annotate(
        "the series as printed:\nturns round at √⅔ χ,\nruns backwards from √2 χ", (1.62, -0.5), (1.85, -0.56),
        fontsize=8.5, color=truncated, va="center",
    )  # fmt: skip
    curves.axhline(1, color=MUTED, lw=0.8, ls=":")
    curves.text(2.55, 1.03, "limit χ", color=MUTED, fontsize=9)
    curves.text(1.45, 1.62, "classical", color=SERIES[0], ha="right")
    curves.set_xlim(0, 4)
    curves.set_ylim(-0.75, 1.75)
    curves.axhline(0, color=MUTED, lw=0.6)
    curves.set(xlabel="momentum √s / χ", ylabel="speed |v| h / χ")
    curves.set_title("kinetic energies, equal for small momenta")
    label_ends(curves, ends, gap=0.085, size=8.5)

    steps = 30 if quick else 400
    gamma = -math.log(RETENTION)
    for nu, color, name in (
        (0.0, SERIES[2], "ν = 0\nas rgd, hermosis"),
        (0.5, SERIES[4], "ν = ½"),
        (1.0, INK, "ν = 1\nas published"),
    ):
        paths = race(nu, steps)
        step_axes.semilogy(range(1, steps + 1), paths.sample("step_norm")[:, 0], color=color)
        way.plot(range(steps + 1), paths.position[:, 0, 0], color=color)
        if nu:
            end = MAX_STEP / math.expm1(nu * gamma)
            way.axhline(end, color=color, lw=0.8, ls=":")
            way.text(steps, end + 0.5, f"never beyond {end:.1f}", ha="right", color=color, fontsize=9)
        height = MAX_STEP * math.exp(-nu * gamma * steps * 0.55)
        step_axes.text(steps * 0.55, height * 1.25, name, color=color, fontsize=9, va="bottom")
    step_axes.set_ylim(1e-5, 1)
    step_axes.set_xlim(0, steps)
    step_axes.set(xlabel="step n", ylabel="length of the step |Δw|")
    step_axes.set_title(rf"pushed hard, μ = {RETENTION}: the limit falls as $\beta^{{-\nu}}$")
    way.set_xlim(0, steps)
    way.set_ylim(0, max(0.52 * MAX_STEP * steps, 11.0))
    way.text(steps * 0.36, way.get_ylim()[1] * 0.86, "ν = 0", ha="right", color=SERIES[2])
    way.set(xlabel="step n", ylabel="distance travelled")
    way.set_title("and how far it ever gets")
    return figure
