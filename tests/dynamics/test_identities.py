"""What must hold at every discrete step, whatever the loss: docs/theory.md, section 9."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hermosis_server.dynamics import (
    SCALARS,
    Constant,
    Diagonal,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Relativistic,
    ThermalProfile,
    WeightDecay,
    resolve,
)
from hermosis_server.dynamics.thermal import decay_average

from .batches import Batch, batch_of, draw, roster, sample_of

CPU = torch.device("cpu")
SIZE = 37
PROFILES: dict[str, ThermalProfile] = {
    "constant": Constant(),
    "retention": Exponential(momentum_retention=0.8),
    "rate": Exponential(cooling_rate=0.3),
    "default": Exponential(),
}


def scalar(batch: Batch, name: str) -> float:
    return float(batch.state.scalars[0, SCALARS.index(name)])


def gradients(count: int) -> list[Tensor]:
    return draw(7, *[SIZE] * count, dtype=torch.float64, device=CPU)


def start() -> list[Tensor]:
    return draw(3, SIZE, dtype=torch.float64, device=CPU)


def test_decay_average_is_exact_near_zero_and_at_infinity() -> None:
    assert decay_average(0) == 1
    assert decay_average(math.inf) == 0
    assert decay_average(1e-12) == pytest.approx(1 - 5e-13, rel=1e-15)
    assert decay_average(2.0) == pytest.approx((1 - math.exp(-2)) / 2, rel=1e-15)


@pytest.mark.parametrize("duration", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("profile", [Constant(), Exponential(cooling_rate=0.3), Exponential(cooling_rate=1e-9)])
def test_two_half_steps_of_a_profile_make_one(profile: ThermalProfile, duration: float) -> None:
    half, whole = profile.over(duration / 2), profile.over(duration)
    assert half.retention**2 == pytest.approx(whole.retention, rel=1e-14)
    assert half.retention * half.kernel + half.kernel == pytest.approx(whole.kernel, rel=1e-14)
    assert 1 - whole.retention == pytest.approx(whole.friction, abs=1e-15)


def test_kernel_is_the_integral_of_beta_over_beta_at_the_end() -> None:
    times = np.linspace(0, 2, 20_001)
    beta = np.exp(0.3 * times)
    wanted = float(np.trapezoid(beta, times) / beta[-1])
    assert Exponential(cooling_rate=0.3).over(2.0).kernel == pytest.approx(wanted, rel=1e-8)
    assert Exponential(momentum_retention=math.exp(-0.6)).over(2.0).kernel == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("name", PROFILES)
def test_momentum_is_the_weighted_sum_of_gradients_and_its_unit_the_sum_of_weights(name: str) -> None:
    hamiltonian = Hamiltonian(
        learning_rate=0.01,
        step_duration=0.5,
        thermal=PROFILES[name],
        force=Force(mode=ForceMode.PHYSICAL, gradient_gain=0.7),
    )
    batch, steps = batch_of(hamiltonian, start()), 20
    given = gradients(steps)
    for gradient in given:
        batch.step(batch.rows_of([gradient]))
    c = hamiltonian.coefficients()
    weights = [c.retention ** (steps - 1 - each) * c.impulse_gain for each in range(steps)]
    wanted = sum(weight * gradient for weight, gradient in zip(weights, given, strict=True))
    torch.testing.assert_close(batch.vectors_of(batch.state.momentum)[0], wanted, rtol=1e-13, atol=1e-13)
    assert scalar(batch, "unit_momentum") == pytest.approx(sum(weights), rel=1e-13)
    assert scalar(batch, "log_beta") == pytest.approx(steps * c.log_beta_step, rel=1e-13)
    assert scalar(batch, "clock") == pytest.approx(steps * 0.5)
    # X/A is the mean of the gradients under the thermal mass: weights go as the integral of β over a step.
    ends = [math.exp(c.cooling_rate * 0.5 * (each + 1)) for each in range(steps)]
    mass = [end * c.impulse_gain for end in ends]
    mean = sum(weight * gradient for weight, gradient in zip(mass, given, strict=True)) / sum(mass)
    momentum = batch.vectors_of(batch.state.momentum)[0] / scalar(batch, "unit_momentum")
    torch.testing.assert_close(momentum, mean, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PROFILES)
def test_kick_conserves_potential_and_thermal_energy_together(name: str) -> None:
    hamiltonian = Hamiltonian(
        learning_rate=0.01,
        initial_beta=3.0,
        thermal=PROFILES[name],
        force=Force(mode=ForceMode.PHYSICAL),
        weight_decay=WeightDecay(thermal=0.2),
    )
    batch, c = batch_of(hamiltonian, start()), hamiltonian.coefficients()
    batch.step(batch.rows_of(gradients(1)), [2.0])  # anchors U
    for gradient, loss in zip(gradients(5), (1.0, 4.0, -2.0, 0.0, 7.0), strict=True):
        assert batch.state.position is not None
        full = loss + 0.1 * float(batch.state.position.square().sum())
        before = math.exp(scalar(batch, "log_beta")) * (
            c.thermal_unit * scalar(batch, "internal_energy") + c.energy_unit * full
        )
        batch.step(batch.rows_of([gradient]), [loss], [0.0])  # no drift: the kick alone
        after = math.exp(scalar(batch, "log_beta")) * (
            c.thermal_unit * scalar(batch, "internal_energy") + c.energy_unit * full
        )
        assert after == pytest.approx(before, rel=1e-12)


def test_smoothed_loss_is_the_thermal_average_of_loss_less_kinetic_energy() -> None:
    """-U/ζ_eff ← r (-U/ζ_eff) + (1-r) L - heating/ζ_eff, and starts at the first loss."""
    batch = batch_of(resolve("hermosis", {}), start())
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
        assert batch.state.position is not None
        position = batch.vectors_of(batch.state.position)[0]
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


@pytest.mark.parametrize("name", ["hermosis", "rgd", "cooling limit", "relativistic adam", "adamw"])
def test_cut_into_rows_is_invisible(name: str) -> None:
    hamiltonian = roster()[name]
    one = trajectory(hamiltonian, row_elements=64)
    for row_elements in (1, 5, 36, 37):
        torch.testing.assert_close(trajectory(hamiltonian, row_elements=row_elements), one, rtol=1e-12, atol=1e-12)


# Orders. A smooth, non-quadratic problem; γ, h and c stay, τ shrinks.
STIFFNESS = torch.linspace(0.5, 2.0, SIZE, dtype=torch.float64)


def landscape(w: Tensor) -> tuple[float, Tensor]:
    loss = (STIFFNESS * w.square() / 2 + w.square().square() / 20).sum() + torch.cos(w).sum() / 2
    return float(loss), STIFFNESS * w + w**3 / 5 - torch.sin(w) / 2


@functools.cache
def drive(name: str, steps: int, total: float = 2.0) -> list[dict[str, float]]:
    batch = batch_of(MOTIONS[name](total / steps), start())
    samples = []
    for _ in range(steps):
        assert batch.state.position is not None
        loss, gradient = landscape(batch.vectors_of(batch.state.position)[0])
        samples.append(sample_of(batch.step(batch.rows_of([gradient]), [loss]))._asdict())
    return samples


def physical(profile: ThermalProfile, kinetic: Relativistic | None) -> Callable[[float], Hamiltonian]:
    """h = 2 and c² = 3 at every step duration."""

    def at(tau: float) -> Hamiltonian:
        settings = Hamiltonian(
            learning_rate=tau / 2,
            step_duration=tau,
            thermal=profile,
            force=Force(mode=ForceMode.PHYSICAL, gradient_gain=3 * tau / 2),
        )
        return settings if kinetic is None else dataclasses.replace(settings, kinetic=kinetic)

    return at


MOTIONS = {
    "constant classical": physical(Constant(), None),
    "exponential classical": physical(Exponential(cooling_rate=0.7), None),
    "constant relativistic": physical(Constant(), Relativistic(speed_limit=2.0)),
    "exponential relativistic": physical(Exponential(cooling_rate=0.7), Relativistic(speed_limit=2.0)),
    "cooling limit": physical(
        Exponential(cooling_rate=0.7), Relativistic(speed_limit=2.0, rest_cooling=0.5, rest_energy=1.0)
    ),
}


@pytest.mark.parametrize("name", MOTIONS)
def test_energy_defect_falls_fourfold_when_the_step_halves(name: str) -> None:
    defects = [
        max(abs(sample["energy_defect"]) * math.exp(sample["log_beta"]) for sample in drive(name, steps))
        for steps in (60, 120, 240)
    ]
    for coarse, fine in itertools.pairwise(defects):
        assert 1.8 < math.log2(coarse / fine) < 2.3


@pytest.mark.parametrize("name", [name for name in MOTIONS if name.startswith("exponential")])
def test_entropy_stays_put_at_zero_total_energy_up_to_the_step(name: str) -> None:
    """dS/dt = -(k/h) H for a homogeneous H, and U is anchored at H = 0: what is left is the scheme's own error."""
    drifts = [abs(drive(name, steps)[-1]["entropy"]) for steps in (60, 120, 240)]
    for coarse, fine in itertools.pairwise(drifts):
        assert 0.8 < math.log2(coarse / fine) < 2.3


@pytest.mark.parametrize("kinetic", ["classical", "relativistic", "cooling limit"])
def test_step_is_exactly_symplectic(kinetic: str) -> None:
    """JᵀΩJ = Ω for dω = dβ∧(dU + X·dw) + β dX∧dw, and det J = (β before / β after)^d; J by central differences."""
    limit = {
        "classical": None,
        "relativistic": Relativistic(speed_limit=1.5),
        "cooling limit": Relativistic(speed_limit=1.5, rest_cooling=0.5, rest_energy=0.3),
    }[kinetic]
    hamiltonian = physical(Exponential(cooling_rate=0.7), limit)(0.4)

    def step(z: Tensor) -> Tensor:
        """z = (U, ln β, w, X), d = 2."""
        batch = batch_of(hamiltonian, [z[2:4]], row_elements=2)
        batch.state.momentum[0] = z[4:6]
        batch.state.scalars[0, SCALARS.index("internal_energy")] = z[0]
        batch.state.scalars[0, SCALARS.index("log_beta")] = z[1]
        w = z[2:4]
        stiffness = torch.tensor([1.0, 2.0], dtype=torch.float64)
        loss = float((stiffness * w.square() / 2).sum() + (w[0] * w[1]).sin())
        gradient = stiffness * w + (w[0] * w[1]).cos() * w.flip(0)
        batch.step(gradient[None], [loss])
        assert batch.state.position is not None
        numbers = [scalar(batch, "internal_energy"), scalar(batch, "log_beta")]
        return torch.cat([torch.tensor(numbers, dtype=torch.float64), batch.state.position[0], batch.state.momentum[0]])

    def form(z: Tensor) -> Tensor:
        beta, x = math.exp(float(z[1])), z[4:6]
        omega = torch.zeros(6, 6, dtype=torch.float64)  # in (U, ln β, w, X): dβ = β d ln β
        omega[1, 0] = beta
        omega[1, 2:4] = beta * x
        omega[4, 2] = omega[5, 3] = beta
        return omega - omega.T

    z = torch.tensor([0.7, 0.4, 0.3, -0.8, 1.1, 0.5], dtype=torch.float64)
    shift = 1e-5
    columns = [(step(z + shift * e) - step(z - shift * e)) / (2 * shift) for e in torch.eye(6, dtype=torch.float64)]
    jacobian, after = torch.stack(columns, dim=1), step(z)
    torch.testing.assert_close(jacobian.T @ form(after) @ jacobian, form(z), rtol=0, atol=1e-8)
    # In (U, β, …) the volume shrinks by (β before / β after)^d; one more power turns β into ln β.
    wanted = math.exp(3 * (float(z[1]) - float(after[1])))
    assert float(torch.linalg.det(jacobian)) == pytest.approx(wanted, rel=1e-8)


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
