"""The oracle against optimizers that others have written: torch.optim and the algorithms of `references`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from . import references
from .oracle import Oracle, Settings, Vector
from .oracle_kinetics import Relativistic, Vr
from .oracle_metrics import Diagonal, Full, Metric
from .oracle_profiles import Exponential, Power

STEPS = 120
SHAPES: list[tuple[int, ...]] = [(3, 4), (5,), (1,)]
SIZES = [math.prod(shape) for shape in SHAPES]
SCHEDULE = [1 + 0.5 * math.cos(n) for n in range(STEPS)]
CONSTANT = [1.0] * STEPS


def start() -> Vector:
    return np.random.default_rng(5).normal(size=sum(SIZES))


def gradient(w: Vector, n: int) -> Vector:
    """Of a smooth function with a minimum that wanders, so that nothing comes to rest."""
    gap = w - np.sin(np.arange(w.size) + n / 7)
    return np.linspace(0.5, 2.0, w.size) * gap + 0.1 * gap**3 + 0.2 * np.roll(gap, 1)


def heavy(mu: float) -> Exponential:
    return Exponential(-math.log(mu) if mu else math.inf)


def committed(settings: Settings, rates: Iterable[float] = CONSTANT, w: Vector | None = None) -> list[Vector]:
    """The points at the end of each step."""
    oracle = Oracle(settings, SHAPES, start() if w is None else w)
    points = [oracle.w]
    for n, rate in enumerate(rates):
        oracle.update(gradient(oracle.publish(rate), n), math.nan, rate)
        points.append(oracle.w)
    return points


def published(settings: Settings, rates: Iterable[float] = CONSTANT) -> list[Vector]:
    """The points where gradients are asked for."""
    oracle = Oracle(settings, SHAPES, start())
    points = []
    for n, rate in enumerate(rates):
        points.append(oracle.publish(rate))
        oracle.update(gradient(points[-1], n), math.nan, rate)
    return points


def torch_points(build: Callable[..., torch.optim.Optimizer], lr: float, rates: Iterable[float]) -> list[Vector]:
    parameter = torch.from_numpy(start()).requires_grad_()
    optimizer = build([parameter], lr=lr)
    points = [parameter.detach().numpy().copy()]
    for n, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = lr * rate
        parameter.grad = torch.from_numpy(gradient(parameter.detach().numpy(), n))
        optimizer.step()
        points.append(parameter.detach().numpy().copy())
    return points


def difference(ours: list[Vector], theirs: list[Vector]) -> float:
    """The largest, in units of the largest coordinate; and proof that anything moved at all."""
    assert np.abs(theirs[-1] - theirs[0]).max() > 0.1
    return float(np.abs(np.array(ours) - np.array(theirs)).max() / np.abs(theirs).max())


@dataclass(frozen=True)
class Twin:
    name: str
    build: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    settings: Settings

    def __str__(self) -> str:
        return self.name


def rmsprop(centered: bool, momentum: float, lam2: float = 0.0) -> Settings:
    metric = Diagonal(rho2=0.95, eps=1e-6, centered=centered, normalise=False)
    return Settings(eta=0.01, profile=heavy(momentum), metric=metric, metric_on="kick", lam2=lam2)


SGD, ADAM = Settings(eta=0.05), Settings(eta=0.02, force="ema", metric=Diagonal(eps=1e-6), normalise=True)
ADAGRAD = Diagonal(rho2=1.0, q2=1.0, eps=1e-10, normalise=False)
TWINS = [
    Twin("sgd", torch.optim.SGD, {}, replace(SGD, profile=heavy(0))),
    Twin("sgd-weight-decay", torch.optim.SGD, {"weight_decay": 0.1}, replace(SGD, profile=heavy(0), lam2=0.1)),
    Twin("momentum", torch.optim.SGD, {"momentum": 0.9}, SGD),
    Twin("momentum-decay", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, replace(SGD, lam2=0.1)),
    Twin("dampening", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}, replace(SGD, zeta=1 - 0.3, x_first=1.0)),
    Twin(
        "dampening-like-momentum",
        torch.optim.SGD,
        {"momentum": 0.9, "dampening": 0.9},
        replace(SGD, zeta=1 - 0.9, x_first=1.0),
    ),
    Twin("nesterov", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, replace(SGD, lookahead=True)),
    Twin("adam", torch.optim.Adam, {"eps": 1e-6}, ADAM),
    Twin("adam-l2", torch.optim.Adam, {"eps": 1e-6, "weight_decay": 0.1}, replace(ADAM, lam2=0.1)),
    Twin("adam-memoryless", torch.optim.Adam, {"eps": 1e-6, "betas": (0.0, 0.999)}, replace(ADAM, profile=heavy(0))),
    Twin("adamw", torch.optim.AdamW, {"eps": 1e-6, "weight_decay": 0.1}, replace(ADAM, lam_d=0.1)),
    Twin("rmsprop", torch.optim.RMSprop, {"alpha": 0.95, "eps": 1e-6}, rmsprop(False, 0)),
    Twin("rmsprop-momentum", torch.optim.RMSprop, {"alpha": 0.95, "eps": 1e-6, "momentum": 0.9}, rmsprop(False, 0.9)),
    Twin(
        "rmsprop-centered",
        torch.optim.RMSprop,
        {"alpha": 0.95, "eps": 1e-6, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
        rmsprop(True, 0.5, 0.1),
    ),
    Twin("adagrad", torch.optim.Adagrad, {}, Settings(eta=0.2, profile=heavy(0), metric=ADAGRAD)),
]


@pytest.mark.parametrize("rates", [CONSTANT, SCHEDULE], ids=["constant", "schedule"])
@pytest.mark.parametrize("twin", TWINS, ids=str)
def test_oracle_moves_as_torch_does(twin: Twin, rates: list[float]) -> None:
    def build(parameters: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return twin.build(parameters, lr=lr, foreach=False, **twin.options)

    assert difference(committed(twin.settings, rates), torch_points(build, twin.settings.eta, rates)) < 1e-12


def test_conformal_without_symplecticity_publishes_the_points_of_torch_nesterov() -> None:
    lr = 0.02
    settings = Settings(eta=2 * lr, integrator="conformal", alpha=0.0)

    def build(parameters: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True)

    assert difference(published(settings), torch_points(build, lr, CONSTANT[:-1])) < 1e-12
    # Under a schedule they part: our half drifts are scaled by two different rates.
    assert difference(published(settings, SCHEDULE), torch_points(build, lr, SCHEDULE[:-1])) > 1e-4


@pytest.mark.parametrize("delta", [0.5, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_conformal_is_relativistic_gradient_descent(alpha: float, delta: float) -> None:
    settings = Settings(
        eta=1.0, zeta=2 * 0.01, kinetic=Relativistic(2 / math.sqrt(delta)), integrator="conformal", alpha=alpha
    )
    theirs = references.relativistic_gradient_descent(
        gradient, start(), STEPS, epsilon=0.01, mu=0.9, delta=delta, alpha=alpha
    )
    assert difference(committed(settings), theirs) < 1e-12


def test_euler_is_the_first_form_of_relativistic_gradient_descent() -> None:
    settings = Settings(eta=1.0, zeta=0.01, kinetic=Relativistic(1 / math.sqrt(5.0)))
    theirs = references.relativistic_gradient_descent_first_form(
        gradient, start(), STEPS, epsilon=0.01, mu=0.9, delta=5.0
    )
    assert difference(committed(settings), theirs) < 1e-12


@pytest.mark.parametrize("cap", [0.7, 10.0])
@pytest.mark.parametrize("per_tensor", [False, True], ids=["session", "tensor"])
@pytest.mark.parametrize("rates", [CONSTANT, SCHEDULE], ids=["constant", "schedule"])
def test_vr_kinetic_energy_with_the_raw_norm_is_vradam(rates: list[float], per_tensor: bool, cap: float) -> None:
    settings = replace(
        ADAM,
        kinetic=Vr(0.8, cap),
        norm="euclid",
        norm_over="tensor" if per_tensor else "session",
        lam_d=0.1,
        follows_speed=True,
    )
    theirs = references.vradam(
        gradient,
        start(),
        STEPS,
        eta=settings.eta,
        beta1=0.9,
        beta2=0.999,
        beta3=0.8,
        lr_cutoff=cap,
        eps=1e-6,
        weight_decay=0.1,
        sizes=SIZES if per_tensor else None,
        rates=rates,
    )
    assert difference(committed(settings, rates), theirs) < 1e-12


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
def test_moments_over_windows_are_covariant_gradient_descent(full: bool) -> None:
    window1, window2, eps = 4.0, 30.0, 1e-2
    rho2 = window2 / (1 + window2)
    metric: Metric = (
        Full(rho2=rho2, eps=eps, normalise=False) if full else Diagonal(rho2=rho2, eps=eps, normalise=False)
    )
    settings = Settings(eta=0.02, force="ema", profile=heavy(window1 / (1 + window1)), metric=metric)
    method = references.covariant_descent_full if full else references.covariant_descent_diagonal
    theirs = method(gradient, start(), STEPS, rate=0.02, window1=window1, window2=window2, eps=eps)
    assert difference(committed(settings), theirs) < (1e-7 if full else 1e-11)


STIFFNESS = np.array([1.0, 4.0, 9.0])
HEIGHTS = np.array([1.0, -0.5, 2.0])


def nesterov_flow(p: float, t0: float, tau: float, integrator: str, x: Vector, w: Vector, steps: int) -> Oracle:
    """w'' + (p/t)w' + λw = 0: h = 1 and c² = 1, so ζ = τ."""
    settings = Settings(
        eta=tau,
        tau=tau,
        zeta=tau,
        force="physical",
        profile=Power(p, t0),
        integrator=integrator,  # type: ignore[arg-type]
    )
    oracle = Oracle(settings, [(3,)], w)
    oracle.x = x
    for _ in range(steps):
        q = oracle.publish()
        oracle.update(STIFFNESS * q, float(STIFFNESS @ q**2) / 2)
    return oracle


@pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("leapfrog", 2), ("conformal", 2)])
@pytest.mark.parametrize("p", [2.0, 3.0, 5.0])
def test_power_profile_converges_to_the_bessel_solution(p: float, integrator: str, order: int) -> None:
    errors = []
    w, speed = references.su_boyd_candes(0.5, HEIGHTS, STIFFNESS, p)
    for n in (40, 80, 160):
        oracle = nesterov_flow(p, 0.5, 2 / n, integrator, -speed, w, n)
        errors.append(np.abs(oracle.w - references.su_boyd_candes(2.5, HEIGHTS, STIFFNESS, p)[0]).max())
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((order - 0.2 < slopes) & (slopes < order + 0.3)), slopes


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_power_three_from_rest_and_almost_no_age_converges_to_the_bessel_solution(share: float) -> None:
    errors = []
    for n in (100, 200, 400):
        tau = 4 / n
        oracle = nesterov_flow(3.0, share * tau, tau, "euler", np.zeros(3), HEIGHTS, n)
        exact = references.su_boyd_candes(4 + share * tau, HEIGHTS, STIFFNESS, 3.0)[0]
        errors.append(np.abs(oracle.w - exact).max())
    assert errors[-1] < 0.02
    assert np.all(np.log2(np.array(errors[:-1]) / errors[1:]) > 0.8), errors


def test_nesterovs_own_iterates_track_the_power_three_profile() -> None:
    errors = []
    for n in (200, 400, 800):
        tau = 4 / n
        theirs = references.nesterov_1983(lambda w, _: STIFFNESS * w, HEIGHTS, n, step_size=tau**2)
        errors.append(np.abs(nesterov_flow(3.0, tau, tau, "euler", np.zeros(3), HEIGHTS, n).w - theirs[-1]).max())
    assert errors[-1] < 0.01
    assert np.all(np.log2(np.array(errors[:-1]) / errors[1:]) > 0.8), errors
