"""Thermal profiles: how β grows, what it keeps of the momentum, and what past gradients still weigh."""

import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gallery.paths import Array, Paths, follow
from gallery.style import FAINT, INK, MUTED, SERIES, label_ends, sheet
from hermosis_server.dynamics import (
    Constant,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Linear,
    Polynomial,
    Power,
    Tabulated,
    Term,
    ThermalProfile,
)

GAMMA, SIGMA = 0.02, 0.002
KICK = 1e-3  # small, so that the kinetic energy it leaves is nothing beside the loss
# E = γβU - σβU²/2: φ/β = γ - σU, and U falls below zero as long as there is loss.
FEEDBACK = Polynomial(
    terms=(
        Term(coefficient=GAMMA, internal_energy_power=1, beta_power=1),
        Term(coefficient=-SIGMA / 2, internal_energy_power=2, beta_power=1),
    )
)
PROFILES: dict[str, ThermalProfile] = {
    "constant": Constant(),
    "exponential": Exponential(momentum_retention=0.95),
    "linear": Linear(growth=0.25),
    "power, p = 1": Power(exponent=1.0, age=8.0),
    "power, p = 3": Power(exponent=3.0, age=8.0),
    "tabulated": Tabulated(knots=((0.0, 1.0), (40.0, 1.0), (60.0, 30.0), (100.0, 30.0))),
    "feedback": FEEDBACK,
}
COLORS = dict(zip(PROFILES, SERIES, strict=True))
LINES = dict.fromkeys(PROFILES, "-") | {"power, p = 1": (0, (1, 1.4))}


def made_up_loss(step: int) -> float:
    """A plateau, a fall, and a bump that the session has to get over."""
    return 0.08 + 0.92 / (1 + math.exp((step - 35) / 4)) + 0.7 * math.exp(-(((step - 75) / 6) ** 2))


def impulses(thermal: ThermalProfile, steps: int) -> Paths:
    """One session with as many parameters as steps: step j kicks parameter j alone.

    So the momentum at the end holds what each past gradient still weighs: X_j = z_j ∏ r times KICK.
    """

    def problem(step: int, position: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.zeros_like(position)
        gradient[:, step] = KICK
        return torch.tensor([made_up_loss(step)], dtype=torch.float64), gradient

    hamiltonian = Hamiltonian(learning_rate=1.0, thermal=thermal, force=Force(mode=ForceMode.PHYSICAL))
    return follow(hamiltonian, problem, np.zeros((1, steps)), steps)


def weights(paths: Paths) -> Array:
    """(N,) share of each past gradient in ⟨∇L⟩ = X/A, oldest first."""
    share: Array = paths.momentum[-1, 0] / KICK / paths.scalar("unit_momentum")[-1, 0]
    return share


def draw(quick: bool) -> Figure:
    steps = 30 if quick else 100
    figure = sheet(11.5, 8.4, "Thermal profiles: one curve β(t) decides friction and memory")
    (mass, momentum), (memory, answer) = figure.subplots(2, 2)
    paths = {name: impulses(profile, steps) for name, profile in PROFILES.items()}
    time = np.arange(steps + 1)
    for name, path in paths.items():
        log_beta = path.scalar("log_beta")[:, 0]
        mass.semilogy(time, np.exp(log_beta), color=COLORS[name], ls=LINES[name])
        momentum.plot(time[1:], path.sample("retention")[:, 0], color=COLORS[name], ls=LINES[name])
        memory.semilogy(time[1:], weights(path)[::-1], color=COLORS[name], ls=LINES[name])
    momentum.set_ylim(0.68, 1.035)
    for axes in (mass, momentum, memory):
        axes.set_xlim(0, steps)
    memory.set_ylim(2e-5, 0.2)
    for axes, ends in (
        (mass, {name: math.exp(path.scalar("log_beta")[-1, 0]) for name, path in paths.items()}),
        (momentum, {name: path.sample("retention")[-1, 0] for name, path in paths.items()}),
        (memory, {name: weights(path)[0] for name, path in paths.items()}),
    ):
        label_ends(axes, [(end, name, COLORS[name]) for name, end in ends.items()], gap=0.062)
    mass.set(xlabel="time t", ylabel="thermal mass β")
    mass.set_title("β(t): straight lines are exponential")
    momentum.set(xlabel="step n", ylabel="retention r = β before / β after")
    momentum.set_title("r: the momentum coefficient of each step")
    memory.set(xlabel="age of the gradient, in steps", ylabel="share in ⟨∇L⟩ = X/A")
    memory.set_title(f"what past gradients weigh after {steps} steps")

    losses = [made_up_loss(step) for step in range(steps)]
    answer.fill_between(range(steps), losses, color=FAINT, lw=0)
    answer.set_xlim(0, steps)
    answer.set_ylim(0, 1.25)
    answer.set(xlabel="step n", ylabel="loss L, made up")
    answer.yaxis.label.set_color(MUTED)
    rate_axes = answer.twinx()
    rate_axes.spines["right"].set_visible(True)
    rate = paths["feedback"].sample("cooling_rate")[:, 0]
    rate_axes.plot(range(steps), rate, color=COLORS["feedback"])
    rate_axes.plot(range(steps), np.sqrt(GAMMA**2 + 2 * SIGMA * np.array(losses)), color=INK, lw=0.9, ls=(0, (1, 1.5)))
    rate_axes.set_ylim(0, 0.085)
    rate_axes.set_ylabel("cooling rate φ/β")
    rate_axes.text(0.33, 0.93, "solid: φ/β = γ − σU", transform=answer.transAxes, color=COLORS["feedback"], fontsize=9)
    rate_axes.text(
        0.33, 0.86, "dotted: where it settles, √(γ² + 2σL)", transform=answer.transAxes, color=INK, fontsize=9
    )
    answer.set_title("feedback: the bath cools faster while there is loss")
    return figure
