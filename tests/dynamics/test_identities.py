"""What must hold at every discrete step, whatever the loss: docs/theory.md, section 9."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hermosis_server.dynamics import (
    COEFFICIENTS,
    Coefficients,
    Constant,
    Diagonal,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Linear,
    Power,
    Relativistic,
    Scalars,
    Tabulated,
    ThermalProfile,
    WeightDecay,
    initial_scalars,
    resolve,
)
from hermosis_server.dynamics.cooling import Cooling, cool, decay_average

from .batches import batch_of, draw, roster, sample_of

CPU = torch.device("cpu")
SIZE = 37
PROFILES: dict[str, ThermalProfile] = {
    "constant": Constant(),
    "retention": Exponential(momentum_retention=0.8),
    "rate": Exponential(cooling_rate=0.3),
    "default": Exponential(),
    "linear": Linear(growth=0.7),
    "linear, heating": Linear(growth=-0.05),
    "power": Power(exponent=3.0, age=0.25),
    "power, heating": Power(exponent=-1.0, age=2.0),
    "fractional power": Power(exponent=0.5, age=1.0),
    "table": Tabulated(knots=((0.0, 1.5), (0.7, 2.0), (0.9, 2.5), (3.0, 2.5), (4.1, 40.0))),
}


def log_beta_at(profile: ThermalProfile, beta: float, time: float) -> float:
    """The closed form."""
    match profile:
        case Constant():
            return math.log(beta)
        case Exponential():
            return math.log(beta) + profile.rate(STEP) * time
        case Linear():
            return math.log(beta + profile.growth * time)
        case Power():
            return math.log(beta) + profile.exponent * math.log1p(time / profile.age)
        case Tabulated():
            times, betas = zip(*profile.knots, strict=True)
            return float(np.interp(time, times, np.log(betas)))
        case _:
            raise AssertionError(profile)


def integral(profile: ThermalProfile, beta: float, start: float, end: float) -> float:
    """∫β dt by Gauss's rule, between the knots where there are any."""
    knots = [time for time, _ in profile.knots] if isinstance(profile, Tabulated) else []
    cuts = [start, *(time for time in knots if start < time < end), end]
    points, weights = np.polynomial.legendre.leggauss(40)
    total = 0.0
    for low, high in itertools.pairwise(cuts):
        times = (high - low) / 2 * points + (high + low) / 2
        betas = [math.exp(log_beta_at(profile, beta, time)) for time in times]
        total += (high - low) / 2 * float(weights @ np.array(betas))
    return total


STEP = 0.5


def gradients(count: int) -> list[Tensor]:
    return draw(7, *[SIZE] * count, dtype=torch.float64, device=CPU)


def start() -> list[Tensor]:
    return draw(3, SIZE, dtype=torch.float64, device=CPU)


def session(name: str, *, gain: float = 0.7, **settings: Any) -> Hamiltonian:
    profile = PROFILES[name]
    return Hamiltonian(
        learning_rate=0.01,
        step_duration=STEP,
        thermal=profile,
        initial_beta=1.5,
        force=Force(mode=ForceMode.PHYSICAL, gradient_gain=gain),
        **settings,
    )


def test_decay_average_is_exact_near_zero_and_at_infinity() -> None:
    got = decay_average(torch.tensor([0.0, math.inf, 1e-12, 2.0], dtype=torch.float64)).tolist()
    assert got == pytest.approx([1, 0, 1 - 5e-13, (1 - math.exp(-2)) / 2], rel=1e-15)


def over(hamiltonian: Hamiltonian, scalars: Scalars[float] | None = None) -> tuple[Cooling, Scalars[float]]:
    """One stretch of cooling from some scalars, and the scalars after it."""
    scalars = scalars or initial_scalars(hamiltonian)
    numbers = torch.tensor([hamiltonian.numbers()], dtype=torch.float64)
    c = Coefficients(*numbers[:, : len(COEFFICIENTS)].unbind(1))
    bath = Scalars(*torch.tensor([scalars], dtype=torch.float64).unbind(1)).bath
    cooling = cool(hamiltonian.family(()), c, numbers[:, len(COEFFICIENTS) :], bath)
    after = scalars._replace(clock=scalars.clock + hamiltonian.step_duration, log_beta=float(cooling.log_beta))
    return cooling, after


@pytest.mark.parametrize("duration", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("name", PROFILES)
def test_two_half_steps_of_a_profile_make_one(name: str, duration: float) -> None:
    whole, _ = over(dataclasses.replace(session(name), step_duration=duration))
    halved = dataclasses.replace(session(name), step_duration=duration / 2)
    if name in ("retention", "default"):  # said a step, not a unit of time
        rate = PROFILES[name].rate(duration)  # type: ignore[union-attr]
        halved = dataclasses.replace(halved, thermal=Exponential(cooling_rate=rate))
    first, middle = over(halved)
    second, _ = over(halved, middle)
    assert float(first.retention * second.retention) == pytest.approx(float(whole.retention), rel=1e-14)
    kernel = float(second.retention * first.kernel + second.kernel)
    assert kernel == pytest.approx(float(whole.kernel), rel=1e-13)
    assert float(1 - whole.retention) == pytest.approx(float(whole.friction), abs=1e-15)
    assert float(whole.gain) == pytest.approx(-math.log(float(whole.retention)), abs=1e-14)


@pytest.mark.parametrize("name", PROFILES)
def test_profile_is_its_closed_form_step_by_step(name: str) -> None:
    """ln β, r, kern and φ/β of 15 steps, knots within steps included."""
    hamiltonian = session(name)
    profile, scalars = hamiltonian.thermal, initial_scalars(hamiltonian)
    beta = math.exp(scalars.log_beta)
    for step in range(15):
        start, end = step * STEP, (step + 1) * STEP
        cooling, scalars = over(hamiltonian, scalars)
        wanted = log_beta_at(profile, beta, end)
        assert scalars.log_beta == pytest.approx(wanted, abs=1e-12)
        before = log_beta_at(profile, beta, start)
        assert float(cooling.retention) == pytest.approx(math.exp(before - wanted), rel=1e-12)
        kernel = integral(profile, beta, start, end) / math.exp(wanted)
        assert float(cooling.kernel) == pytest.approx(kernel, rel=1e-11)
        nudge = 1e-6
        slope = (log_beta_at(profile, beta, start + nudge) - before) / nudge
        assert float(cooling.rate) == pytest.approx(slope, rel=1e-4, abs=1e-9)
        slope = (wanted - log_beta_at(profile, beta, end - nudge)) / nudge
        assert float(cooling.rate_after) == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", PROFILES)
def test_momentum_is_the_weighted_sum_of_gradients_and_its_unit_the_sum_of_weights(name: str) -> None:
    hamiltonian = session(name)
    batch, steps = batch_of(hamiltonian, start()), 20
    beta = math.exp(batch.scalar("log_beta"))
    given = gradients(steps)
    for gradient in given:
        batch.step(batch.rows_of([gradient]))
    end = math.exp(log_beta_at(hamiltonian.thermal, beta, steps * STEP))
    # c²/h is the gain over the step; each gradient weighs as the integral of β over its step.
    masses = [integral(hamiltonian.thermal, beta, each * STEP, (each + 1) * STEP) for each in range(steps)]
    weights = [0.7 / STEP * mass / end for mass in masses]
    wanted = sum(weight * gradient for weight, gradient in zip(weights, given, strict=True))
    momentum = batch.vectors_of(batch.state.momentum)[0]
    torch.testing.assert_close(momentum, wanted, rtol=1e-11, atol=1e-12)
    assert batch.scalar("unit_momentum") == pytest.approx(sum(weights), rel=1e-11)
    assert batch.scalar("clock") == pytest.approx(steps * STEP)
    mean = sum(mass * gradient for mass, gradient in zip(masses, given, strict=True)) / sum(masses)
    torch.testing.assert_close(momentum / batch.scalar("unit_momentum"), mean, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in PROFILES if name != "table"])
def test_kick_conserves_potential_and_thermal_energy_together(name: str) -> None:
    """h φU + β c² L is the same before and after; a table is left out because its knots do work."""
    hamiltonian = session(name, weight_decay=WeightDecay(thermal=0.2))
    batch, h, c2 = batch_of(hamiltonian, start()), hamiltonian.action_unit, 0.7 * hamiltonian.action_unit / STEP
    batch.step(batch.rows_of(gradients(1)), [2.0])  # anchors U

    def energy(loss: float) -> float:
        """φ = dβ/dt, by the closed form at the age that β tells."""
        log_beta, heat = batch.scalar("log_beta"), batch.scalar("internal_energy")
        beta, profile = math.exp(log_beta), hamiltonian.thermal
        match profile:
            case Linear():
                phi = profile.growth
            case Power():
                phi = beta * profile.exponent / (profile.age + batch.scalar("clock"))
            case _:
                phi = beta * profile.rate(STEP)  # type: ignore[union-attr]
        return h * phi * heat + beta * c2 * loss

    for gradient, loss in zip(gradients(5), (1.0, 4.0, -2.0, 0.0, 7.0), strict=True):
        full = loss + 0.1 * float(batch.position().square().sum())
        before = energy(full)
        batch.step(batch.rows_of([gradient]), [loss], [0.0])  # no drift: the kick alone
        assert energy(full) == pytest.approx(before, rel=1e-11)


def test_smoothed_loss_is_the_thermal_average_of_loss_less_kinetic_energy() -> None:
    """-U/ζ_eff ← r (-U/ζ_eff) + (1-r) L - heating/ζ_eff, and starts at the first loss."""
    batch = batch_of(Hamiltonian(learning_rate=0.01, kinetic=Relativistic(max_step=0.1)), start())
    losses = [5.0, 4.0, 3.0, 2.0]
    smoothed = None
    for gradient, loss in zip(gradients(4), losses, strict=True):
        sample = sample_of(batch.step(batch.rows_of([gradient]), [loss], [0.0]))
        smoothed = loss if smoothed is None else 0.9 * smoothed + 0.1 * loss
        assert sample.smoothed_loss == pytest.approx(smoothed, rel=1e-12)
    constant = Hamiltonian(learning_rate=0.1, thermal=Constant(), force=Force(mode=ForceMode.UNIT))
    batch = batch_of(constant, start())
    assert math.isnan(sample_of(batch.step(batch.rows_of(gradients(1)), [1.0])).smoothed_loss)


def trajectory(
    hamiltonian: Hamiltonian, *, gradient_scale: float = 1.0, row_elements: int = 64, steps: int = 30
) -> Tensor:
    batch = batch_of(hamiltonian, start(), row_elements=row_elements)
    for gradient in gradients(steps):
        position = batch.position()
        batch.step(batch.rows_of([gradient_scale * (position + gradient)]), [1.0])
    assert batch.state.position is not None
    return batch.vectors_of(batch.state.position)[0]


GAUGES: dict[str, tuple[Hamiltonian, Hamiltonian]] = {
    "thermal mass and information unit": (
        Hamiltonian(learning_rate=0.1),
        Hamiltonian(learning_rate=0.1, initial_beta=1e7, information_unit=1e-3),
    ),
    "thermal mass under a limit that does not cool": (
        Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.05)),
        Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.05), initial_beta=1e7),
    ),
    "units of time": (
        Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.05)),
        Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.05), step_duration=17.0),
    ),
    "units of time, by cooling rate": (
        Hamiltonian(learning_rate=0.1, thermal=Exponential(cooling_rate=0.4)),
        Hamiltonian(learning_rate=0.1, thermal=Exponential(cooling_rate=0.1), step_duration=4.0),
    ),
    "units of energy": (
        Hamiltonian(learning_rate=0.1, kinetic=Relativistic(speed_limit=0.5)),
        Hamiltonian(learning_rate=0.1 / 8, force=Force(gradient_gain=8.0), kinetic=Relativistic(speed_limit=0.5 * 8)),
    ),
}


@pytest.mark.parametrize("name", GAUGES)
def test_choice_of_units_is_invisible_to_the_parameters(name: str) -> None:
    one, other = (trajectory(hamiltonian) for hamiltonian in GAUGES[name])
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_cooling_limit_does_see_the_thermal_mass_grow() -> None:
    """The same gauge that is invisible above is broken by a limit that cools: the control for the tests above."""
    cools = Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.05, rest_cooling=1.0))
    stays = dataclasses.replace(cools, kinetic=Relativistic(max_step=0.05))
    assert float((trajectory(cools) - trajectory(stays)).abs().max()) > 1e-3


def test_adaptive_metric_does_not_see_the_scale_of_the_loss() -> None:
    adam = resolve("adam", {"lr": 0.05, "eps": 1e-30})
    torch.testing.assert_close(trajectory(adam), trajectory(adam, gradient_scale=1e4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["hermosis euclidean", "rgd", "cooling limit", "relativistic adam", "adamw"])
def test_cut_into_rows_is_invisible(name: str) -> None:
    hamiltonian = roster()[name]
    one = trajectory(hamiltonian, row_elements=64)
    for row_elements in (1, 5, 36, 37):
        torch.testing.assert_close(trajectory(hamiltonian, row_elements=row_elements), one, rtol=1e-12, atol=1e-12)


def test_looking_ahead_at_a_normalised_momentum_looks_ahead_at_its_unit_too() -> None:
    hamiltonian = Hamiltonian(learning_rate=0.3, normalise=True, lookahead=True, first_kick=0.5)
    batch = batch_of(hamiltonian, start())
    x, a = torch.zeros(SIZE, dtype=torch.float64), 0.0
    for step, gradient in enumerate(gradients(4)):
        increment = batch.vectors_of(batch.step(batch.rows_of([gradient])).increment)[0]
        x, a = (0.5 * gradient, 0.5) if step == 0 else (0.9 * x + 0.1 * gradient, 0.9 * a + 0.1)
        wanted = -0.3 * (0.9 * x + 0.1 * gradient) / (0.9 * a + 0.1)
        torch.testing.assert_close(increment, wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("power", [each / 8 for each in range(1, 9)])
@pytest.mark.parametrize("inside", [False, True])
def test_metric_is_the_stated_power_of_the_second_moment(power: float, inside: bool) -> None:
    metric = Diagonal(second_moment_decay=0.0, epsilon=0.3, power=power, epsilon_inside=inside)
    batch = batch_of(
        Hamiltonian(learning_rate=1.0, thermal=Exponential(momentum_retention=0.0), metric=metric), start()
    )
    (gradient,) = gradients(1)
    increment = batch.vectors_of(batch.step(batch.rows_of([gradient])).increment)[0]
    scale = (gradient.square() + 0.3) ** power if inside else gradient.square() ** power + 0.3
    torch.testing.assert_close(increment, -gradient / scale, rtol=1e-13, atol=0)
