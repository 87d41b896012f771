"""The batched step against a second, independent writing of the theory."""

import math

import numpy as np
import pytest
import torch

from hermosis_server.dynamics import (
    Classical,
    Constant,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Relativistic,
    WeightDecay,
    resolve,
)
from hermosis_server.records import EnergySample

from .batches import Batch, batch_of, sample_of
from .oracle import Bath, Oracle, Point, Vector

SIZE = 150
STEPS = 60


def field(w: Vector, step: int) -> tuple[float, Vector]:
    """A smooth function with a minimum that wanders, so that nothing comes to rest."""
    stiffness = np.linspace(0.5, 2.0, w.size)
    gap = w - np.sin(np.arange(w.size) + step / 7)
    loss = float(np.sum(stiffness * gap**2 / 2 + gap**4 / 50)) + 3.0
    return loss, stiffness * gap + gap**3 * 4 / 50


def start() -> Vector:
    return np.random.default_rng(5).normal(size=SIZE)


def compare(batch: Batch, oracle: Oracle, *, rtol: float = 1e-12) -> tuple[EnergySample, Point]:
    """Steps both side by side and compares everything after each step."""
    for step in range(STEPS):
        assert batch.state.position is not None
        w = batch.vectors_of(batch.state.position)[0].cpu().numpy()
        loss, gradient = field(w, step)
        lr_scale = 1 + 0.5 * math.cos(step)
        advance = batch.step(batch.rows_of([torch.from_numpy(gradient)]), [loss], [lr_scale])
        point = oracle.step(lr_scale)
        sample = sample_of(advance)
        np.testing.assert_allclose(
            batch.vectors_of(batch.state.position)[0].cpu().numpy(), point.w, rtol=rtol, atol=rtol
        )
        np.testing.assert_allclose(
            batch.vectors_of(batch.state.momentum)[0].cpu().numpy(), point.x, rtol=rtol, atol=rtol
        )
        scalars = dict(zip(("step", "clock", "log_beta"), batch.state.scalars[0].tolist(), strict=False))
        assert scalars["step"] == step + 1
        assert scalars["clock"] == pytest.approx((step + 1) * oracle.bath.tau, rel=rtol)
        assert float(batch.state.scalars[0, 4]) == pytest.approx(point.a, rel=rtol)
        scale = abs(point.kinetic) + abs(point.potential) + abs(point.thermal)
        for got, wanted, unit in (
            (sample.log_beta, math.log(point.beta), 1.0),
            (sample.kinetic_energy, point.kinetic, scale),
            (sample.potential_energy, point.potential, scale),
            (sample.thermal_energy, point.thermal, scale),
            (sample.energy_defect, point.defect, scale),
            (sample.internal_energy, point.u, abs(point.u)),
            (sample.entropy, point.s, point.beta * scale),
            (sample.braking, point.braking, 1.0),
            (float(batch.state.scalars[0, 7]), point.reference / point.beta, scale),
        ):
            assert got == pytest.approx(wanted, rel=rtol, abs=100 * rtol * unit)
    return sample, point


def pair(hamiltonian: Hamiltonian, bath: Bath, device: torch.device) -> tuple[Batch, Oracle]:
    return batch_of(hamiltonian, [torch.from_numpy(start()).to(device)]), Oracle(bath, start(), field)


@pytest.mark.parametrize("rest_energy", [0.0, 1.0])
@pytest.mark.parametrize("rest_cooling", [0.0, 0.5, 1.0])
def test_relativistic_session_follows_the_oracle(rest_cooling: float, rest_energy: float, device: torch.device) -> None:
    kinetic = Relativistic(speed_limit=0.7, rest_cooling=rest_cooling, rest_energy=rest_energy)
    hamiltonian = Hamiltonian(
        learning_rate=0.05, step_duration=0.5, information_unit=1.7, initial_beta=2.5, kinetic=kinetic
    )
    bath = Bath(
        gamma=-math.log(0.9) / 0.5,
        tau=0.5,
        h=10.0,
        k=1.7,
        z=0.1,
        beta=2.5,
        chi=0.7,
        nu=rest_cooling,
        rho=rest_energy,
    )
    sample, _ = compare(*pair(hamiltonian, bath, device))
    assert sample.braking < 0.9  # the limit was felt


@pytest.mark.parametrize(
    ("decay", "name"),
    [(WeightDecay(bare=0.3), "bare"), (WeightDecay(thermal=0.3), "thermal"), (WeightDecay(decoupled=0.3), "decoupled")],
    ids=["bare", "thermal", "decoupled"],
)
@pytest.mark.parametrize("profile", ["constant", "exponential"])
def test_weight_decay_of_each_kind_follows_the_oracle(
    decay: WeightDecay, name: str, profile: str, device: torch.device
) -> None:
    thermal, gamma = (Constant(), 0.0) if profile == "constant" else (Exponential(cooling_rate=0.2), 0.2)
    force = Force(mode=ForceMode.PHYSICAL, gradient_gain=0.4)
    hamiltonian = Hamiltonian(
        learning_rate=0.02, thermal=thermal, force=force, weight_decay=decay, information_unit=1.3, initial_beta=0.7
    )
    kern = 1.0 if gamma == 0 else (1 - math.exp(-0.2)) / 0.2
    bath = Bath(gamma=gamma, tau=1.0, h=50.0, k=1.3, z=0.4 * kern, beta=0.7)
    setattr(bath, name, 0.3)
    compare(*pair(hamiltonian, bath, device), rtol=1e-11)


def test_decay_that_follows_the_speed_is_braked_with_it(device: torch.device) -> None:
    hamiltonian = Hamiltonian(
        learning_rate=0.05,
        kinetic=Relativistic(speed_limit=0.7),
        weight_decay=WeightDecay(decoupled=0.3, follows_speed=True),
    )
    bath = Bath(gamma=-math.log(0.9), tau=1.0, h=20.0, z=0.1, chi=0.7, decoupled=0.3, follows_speed=True)
    compare(*pair(hamiltonian, bath, device))


def test_hermosis_recipe_is_relativistic_ema_in_an_exponential_bath(device: torch.device) -> None:
    hamiltonian = resolve("hermosis", {"lr": 0.03, "max_step": 0.01})
    bath = Bath(gamma=-math.log(0.9), tau=1.0, h=1 / 0.03, z=0.1, chi=0.01 / 0.03)
    batch, oracle = pair(hamiltonian, bath, device)
    sample, _ = compare(batch, oracle)
    assert sample.step_norm <= 0.01 * 1.5
    assert sample.braking < 0.5


@pytest.mark.parametrize("delta", [0.0, 30.0])
def test_rgd_recipe_is_the_first_form_of_relativistic_gradient_descent(delta: float, device: torch.device) -> None:
    """v = mu v - lr g, x += v/sqrt(1 + delta |v|^2), as printed by França et al."""
    batch = batch_of(
        resolve("rgd", {"lr": 0.02, "momentum": 0.8, "delta": delta}), [torch.from_numpy(start()).to(device)]
    )
    x, v = start(), np.zeros(SIZE)
    for step in range(200):
        _, gradient = field(x, step)
        batch.step(batch.rows_of([torch.from_numpy(gradient)]))
        v = 0.8 * v - 0.02 * gradient
        x = x + v / math.sqrt(1 + delta * float(v @ v))
        assert batch.state.position is not None
        np.testing.assert_allclose(batch.vectors_of(batch.state.position)[0].cpu().numpy(), x, rtol=1e-12, atol=1e-12)


def test_kinetic_slope_is_the_derivative_by_log_beta() -> None:
    """The oracle's own slope, by differences: otherwise both could be wrong alike."""
    bath = Bath(gamma=0.1, tau=1.0, h=1.0, z=1.0, beta=1.0, chi=0.7, nu=0.6, rho=0.8)
    oracle = Oracle(bath, start(), field)
    x, step = start() / 5, 1e-5
    up, down = oracle.kappa(x, 3 * math.exp(step)), oracle.kappa(x, 3 * math.exp(-step))
    assert oracle.slope(x, 3.0) == pytest.approx((up - down) / (2 * step), rel=1e-8)
    assert isinstance(Hamiltonian(learning_rate=1.0).kinetic, Classical)
