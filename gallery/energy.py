"""Energy: how well each scheme conserves H, and where the energy goes that cooling takes from motion."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from gallery.paths import Array, Paths, follow
from gallery.phase_portrait import newtonian
from gallery.problems import pendulum, problem_of
from gallery.style import INK, MUTED, SERIES, sheet
from hermosis_server.dynamics import Constant, Exponential, Hamiltonian, Scheme, ThermalProfile
from hermosis_server.dynamics.kinetic import classical_motion

SCHEMES = {
    Scheme.SYMPLECTIC_EULER: SERIES[1],
    Scheme.LEAPFROG: SERIES[0],
    Scheme.CONFORMAL: SERIES[2],
}
COOLING = Exponential(cooling_rate=0.1)
START = 2.0


def swing(thermal: ThermalProfile, scheme: Scheme, step: float, time: float) -> tuple[Hamiltonian, Paths]:
    """A pendulum let go at rest, recorded at the ends of steps."""
    hamiltonian = newtonian(thermal, step, scheme)
    return hamiltonian, follow(hamiltonian, problem_of(pendulum), [[START]], round(time / step), ends=True)


def energies(paths: Paths) -> tuple[Array, Array, Array]:
    """Kinetic, potential and thermal energy over β at the ends of all steps but the zeroth; c² = h = k = 1."""
    square = torch.tensor(paths.momentum[1:, 0]).square().sum(dim=-1)
    potential: Array = pendulum(torch.tensor(paths.position[1:, 0])).numpy()
    rate = paths.sample("cooling_rate")[:, 0]
    kinetic: Array = classical_motion(square).kinetic.numpy()
    return kinetic, potential, rate * paths.scalar("internal_energy")[1:, 0]


def total(hamiltonian: Hamiltonian, paths: Paths) -> Array:
    """H over the β of the start, less its first value."""
    growth = np.exp(paths.scalar("log_beta")[1:, 0] - hamiltonian.initial_log_beta)
    energy: Array = sum(energies(paths)) * growth
    moved: Array = energy - energy[0]
    return moved


def drifts(scheme: Scheme, step_sizes: Sequence[float], time: float) -> tuple[Array, Array]:
    """Largest drift of H, and largest energy defect of the telemetry, for each step size."""
    found = []
    for step in step_sizes:
        hamiltonian, paths = swing(COOLING, scheme, step, time)
        growth = np.exp(paths.scalar("log_beta")[1:, 0])
        defect = np.abs(paths.sample("energy_defect")[:, 0] * growth)
        found.append((np.abs(total(hamiltonian, paths)).max(), defect.max()))
    drift, defect = np.array(found).T
    return drift, defect


def slope(step_sizes: Sequence[float], error: Array) -> float:
    """Order of convergence."""
    return float(np.polyfit(np.log(step_sizes), np.log(error), 1)[0])


def draw(quick: bool) -> Figure:
    figure = sheet(11, 8.4, "Energy is conserved, to the order of the scheme")
    (over_time, order), (budget, defect_axes) = figure.subplots(2, 2)
    for scheme in (Scheme.SYMPLECTIC_EULER, Scheme.LEAPFROG):
        hamiltonian, paths = swing(Constant(), scheme, 0.2, 12 if quick else 60)
        energy = total(hamiltonian, paths)
        over_time.plot(np.arange(len(energy)) * 0.2, energy, color=SCHEMES[scheme], lw=1.3)
    over_time.axhline(0, color=MUTED, lw=0.6, zorder=0)
    over_time.text(0.02, 0.93, "symplectic_euler", transform=over_time.transAxes, color=SERIES[1])
    over_time.text(0.3, 0.93, "leapfrog (conformal is the same here)", transform=over_time.transAxes, color=SERIES[0])
    over_time.set_ylim(-0.13, 0.21)
    over_time.set(xlabel="time t", ylabel="H minus its first value")
    over_time.set_title("constant β, τ = 0.2: the error swings, it does not grow")

    sizes = [0.4, 0.2, 0.1] if quick else [0.4, 0.2, 0.1, 0.05, 0.025]
    for number, scheme in enumerate(SCHEMES):
        drift, defect = drifts(scheme, sizes, 3.0 if quick else 12.0)
        for at, error in ((order, drift), (defect_axes, defect)):
            at.loglog(sizes, error, "o-", color=SCHEMES[scheme], ms=4)
            text = f"{scheme}: slope {slope(sizes, error):.2f}"
            at.text(0.04, 0.93 - 0.075 * number, text, transform=at.transAxes, color=SCHEMES[scheme])
            at.set_xlabel("step duration τ")
            at.set_xticks(sizes, [f"{size:g}" for size in sizes], minor=False)
            at.set_xticks([], minor=True)
            at.grid(True)
    defect_axes.text(0.96, 0.06, "all three on one line", transform=defect_axes.transAxes, ha="right", color=MUTED)
    order.set_ylabel("largest |H − first H| / β₀")
    order.set_title("cooling, γ = 0.1: H at the ends of steps")
    defect_axes.set_ylabel("largest |energy_defect| β/β₀")
    defect_axes.set_title("the same runs: energy_defect of the telemetry")

    step, time_span = (0.2, 10.0) if quick else (0.05, 50.0)
    hamiltonian, paths = swing(COOLING, Scheme.LEAPFROG, step, time_span)
    kinetic, potential, thermal = energies(paths)
    time = np.arange(1, len(kinetic) + 1) * step
    budget.fill_between(time, 0, potential, color="#b9cbe0", lw=0)
    budget.fill_between(time, potential, potential + kinetic, color="#f6d3b1", lw=0)
    budget.fill_between(time, 0, thermal, color="#c9e2d6", lw=0)
    budget.plot(time, kinetic + potential + thermal, color=INK, lw=1.4)
    for x, y, text, color in (
        (0.3, 0.62, "potential c²L", SERIES[0]),
        (0.13, 0.9, "kinetic κ", SERIES[1]),
        (0.2, 0.2, "thermal (h/k) φU/β", SERIES[2]),
        (0.62, 0.53, "sum = k H/β, always 0", INK),
    ):
        budget.text(x, y, text, transform=budget.transAxes, color=color)
    budget.set(xlabel="time t", ylabel="energy / β")
    budget.set_xlim(0, time[-1])
    budget.set_title("cooling, γ = 0.1: the bath mirrors what motion and loss hold")
    return figure
