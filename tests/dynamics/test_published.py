"""Recipes against published algorithms, each written from its own paper or code in references.py."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hermosis_server.dynamics import (
    SCALARS,
    Force,
    ForceMode,
    Hamiltonian,
    Power,
    Scheme,
    advance_,
    resolve,
    update_,
)

from . import references
from .batches import Batch, batch_of
from .references import Vector

STEPS = 300
SIZE = 12


def gradient(point: Vector, step: int) -> Vector:
    """Of a smooth function, not quadratic, whose minimum wanders."""
    stiffness = np.linspace(0.5, 3.0, point.size)
    gap = point - np.sin(np.arange(point.size) + step / 5)
    return stiffness * gap + gap**3 / 10 + np.roll(gap, 1) / 5


def start() -> Vector:
    return np.random.default_rng(4).normal(size=SIZE)


def published(
    hamiltonian: Hamiltonian, device: torch.device, *, sizes: Sequence[int] = (SIZE,), rates: Sequence[float] = ()
) -> tuple[list[Vector], Batch]:
    """The points at which gradients are taken, the first one included."""
    shapes = [(size,) for size in sizes]
    batch = batch_of(hamiltonian, [torch.from_numpy(start()).to(device)], row_elements=8, shapes=shapes)
    points = [batch.position().cpu().numpy()]
    for step in range(STEPS):
        rows = batch.rows_of([torch.from_numpy(gradient(points[-1], step)).to(device)])
        batch.step(rows, lr_scale=[rates[step]] if rates else None)
        points.append(batch.position().cpu().numpy().copy())
    return points, batch


def worst(ours: Sequence[Vector], theirs: Sequence[Vector]) -> float:
    return max(float((np.abs(a - b) / (1 + np.abs(b))).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("delta", [0.0, 0.5, 30.0])
def test_rgd_takes_its_gradients_where_the_authors_code_does(alpha: float, delta: float, device: torch.device) -> None:
    asked: list[Vector] = []

    def watched(point: Vector, step: int) -> Vector:
        asked.append(point.copy())
        return gradient(point, step)

    settings = {"lr": 0.02, "momentum": 0.8, "delta": delta, "alpha": alpha}
    ours, _ = published(resolve("rgd", settings), device)
    references.relativistic_gradient_descent(watched, start(), STEPS, epsilon=0.02, mu=0.8, delta=delta, alpha=alpha)
    assert worst(ours[:STEPS], asked) <= 1e-12


@pytest.mark.parametrize("delta", [0.0, 30.0])
def test_rgd_in_its_euler_form_is_the_first_one_printed(delta: float, device: torch.device) -> None:
    ours, _ = published(resolve("rgd", {"lr": 0.02, "momentum": 0.8, "delta": delta, "form": "euler"}), device)
    theirs = references.relativistic_gradient_descent_first_form(
        gradient, start(), STEPS, epsilon=0.02, mu=0.8, delta=delta
    )
    assert worst(ours, theirs) <= 1e-12


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("norm", ["model", "tensor"])
def test_vradam_is_the_authors_code(norm: str, scheduled: bool, device: torch.device) -> None:
    rates = [1 + 0.5 * math.cos(step / 9) for step in range(STEPS)] if scheduled else []
    settings = {"lr": 0.01, "beta2": 0.99, "beta3": 3.0, "lr_cutoff": 4.0, "weight_decay": 0.1, "norm": norm}
    ours, _ = published(resolve("vradam", settings), device, sizes=(5, 7), rates=rates)
    theirs = references.vradam(
        gradient, start(), STEPS, eta=0.01, beta1=0.9, beta2=0.99, beta3=3.0, lr_cutoff=4.0, weight_decay=0.1,
        sizes=[5, 7] if norm == "tensor" else None, rates=rates or None,
    )  # fmt: skip
    assert worst(ours, theirs) <= 1e-12


def test_cgd_is_covariant_gradient_descent(device: torch.device) -> None:
    windows = {"lr": 0.01, "gradient_window": 4.0, "metric_window": 30.0, "eps": 0.01}
    settings = {"rate": 0.01, "window1": 4.0, "window2": 30.0, "eps": 0.01}
    diagonal, _ = published(resolve("cgd", windows), device)
    assert worst(diagonal, references.covariant_descent_diagonal(gradient, start(), STEPS, **settings)) <= 1e-11
    full, _ = published(resolve("cgd", windows | {"metric": "full"}), device)
    svd = references.covariant_descent_full(gradient, start(), STEPS // 3, **settings)
    assert worst(full[: len(svd)], svd) <= 1e-7


def test_conformal_at_alpha_zero_publishes_the_points_of_nesterov(device: torch.device) -> None:
    nesterov, _ = published(resolve("nesterov", {"lr": 0.02, "momentum": 0.9}), device)
    rgd, _ = published(resolve("rgd", {"lr": 0.02, "momentum": 0.9, "delta": 0.0, "alpha": 0.0}), device)
    # torch's momentum is published after the step, the conformal one before it: the same sequence of points.
    assert worst(rgd, nesterov) <= 1e-12


@pytest.mark.parametrize("exponent", [2.0, 3.0, 5.0])
@pytest.mark.parametrize("scheme", Scheme)
def test_power_profile_converges_to_the_bessel_solution(exponent: float, scheme: Scheme) -> None:
    """w'' + (p/t) w' + λ w = 0 from t₀ on, started on the exact solution by its momentum."""
    stiffness, age, total = np.array([0.7, 2.0]), 0.5, 4.0
    errors = []
    for steps in (100, 200, 400):
        tau = total / steps
        hamiltonian = Hamiltonian(
            learning_rate=tau,
            step_duration=tau,
            thermal=Power(exponent=exponent, age=age),
            force=Force(mode=ForceMode.PHYSICAL, gradient_gain=tau),
            integrator=scheme,
        )
        w, speed = references.su_boyd_candes(age, np.array([1.0, -2.0]), stiffness, exponent)
        batch = batch_of(hamiltonian, [torch.from_numpy(w)], row_elements=2)
        batch.state.momentum[0] = torch.from_numpy(-speed)
        if scheme is not Scheme.SYMPLECTIC_EULER:  # begin at the end of a step
            for name, value in (("clock", 0.0), ("log_beta", 0.0), ("published_cooling", 0.0)):
                batch.state.scalars[0, SCALARS.index(name)] = value
            batch.publish()
        from_start = batch.position()
        assert from_start.shape == (2,)
        for step in range(steps):
            last = step == steps - 1
            rows = torch.from_numpy(stiffness) * batch.position()
            batch.step(batch.rows_of([rows]), act=update_ if last else advance_)
        exact, _ = references.su_boyd_candes(age + total, np.array([1.0, -2.0]), stiffness, exponent)
        errors.append(float(np.abs(batch.position().numpy() - exact).max()))
    order = 1 if scheme is Scheme.SYMPLECTIC_EULER else 2
    for coarse, fine in itertools.pairwise(errors):
        assert order - 0.2 < math.log2(coarse / fine) < order + 0.3


def test_nesterovs_iterates_track_the_power_profile() -> None:
    """With age τ/2 and step size τ², as τ falls."""
    stiffness, total, gaps = np.array([0.7, 2.0]), 4.0, []
    for steps in (100, 200, 400):
        tau = total / steps
        theirs = references.nesterov_1983(lambda x, _: stiffness * x, np.array([1.0, -2.0]), steps, step_size=tau**2)[
            -1
        ]
        recipe = resolve("nesterov_ode", {"lr": tau**2, "age": 0.5})
        batch = batch_of(recipe, [torch.tensor([1.0, -2.0], dtype=torch.float64)], row_elements=2)
        for _ in range(steps):
            batch.step(batch.rows_of([torch.from_numpy(stiffness) * batch.position()]))
        gaps.append(float(np.abs(batch.position().numpy() - theirs).max()))
    assert gaps[0] > 1.5 * gaps[1] > 1.5**2 * gaps[2]
    assert gaps[-1] < 0.02
