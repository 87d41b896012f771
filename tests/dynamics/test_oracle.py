"""The batched step against a second, independent writing of the theory."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hermosis_server.dynamics import (
    RECIPES,
    Classical,
    Constant,
    Diagonal,
    Euclidean,
    Exponential,
    Force,
    ForceMode,
    Full,
    Hamiltonian,
    KineticEnergy,
    Kronecker,
    Linear,
    Metric,
    MetricPlace,
    NormKind,
    NormScope,
    Polynomial,
    Power,
    Quartic,
    Relativistic,
    Scheme,
    Tabulated,
    Term,
    ThermalProfile,
    Truncated,
    VelocityRegularised,
    WeightDecay,
    resolve,
)

from .against_oracle import compare
from .batches import SHAPES, matrix_roster, roster

PROFILES: dict[str, ThermalProfile] = {
    "constant": Constant(),
    "exponential": Exponential(momentum_retention=0.8),
    "linear": Linear(growth=0.4),
    "power": Power(exponent=2.5, age=1.5),
    "tabulated": Tabulated(knots=((0.0, 1.3), (0.4, 2.0), (2.1, 2.0), (2.5, 3.0), (3.0, 2.5))),
    "polynomial": Polynomial(
        terms=(
            Term(coefficient=3.0, internal_energy_power=1, beta_power=1),
            Term(coefficient=-0.3, internal_energy_power=2),
            Term(coefficient=0.2, beta_power=2),
        )
    ),
}
KINETICS: dict[str, KineticEnergy] = {
    "classical": Classical(),
    "relativistic": Relativistic(speed_limit=0.4, rest_cooling=0.6, rest_energy=0.7),
    "quartic": Quartic(stiffness=3.0),
    "truncated": Truncated(speed_limit=0.5),
    "velocity_regularised": VelocityRegularised(stiffness=4.0, cap=0.8),
}
METRICS: dict[str, Metric] = {
    "euclidean": Euclidean(),
    "diagonal": Diagonal(second_moment_decay=0.9, epsilon=0.1, centered=True, power=0.375),
    "full": Full(second_moment_decay=0.9, epsilon=0.2, by_tensor=True, normalise=True, refresh_steps=3),
    "kronecker": Kronecker(second_moment_decay=0.95, epsilon=0.2, power=0.5),
}
SCHEMES = {
    "euler": (Scheme.SYMPLECTIC_EULER, 1.0),
    "leapfrog": (Scheme.LEAPFROG, 1.0),
    "conformal": (Scheme.CONFORMAL, 1.0),
    "conformal, a part kept": (Scheme.CONFORMAL, 0.4),
}


def cross() -> Iterator[tuple[str, Hamiltonian]]:
    """Every profile × kinetic energy × metric × scheme; norms, decays and flags take turns."""
    every = itertools.product(PROFILES, KINETICS, METRICS, SCHEMES)
    for turn, (profile, kinetic, metric, scheme) in enumerate(every, start=1):
        matrix = metric in ("full", "kronecker")
        scopes = (NormScope.SESSION, NormScope.TENSOR) if matrix else tuple(NormScope)
        thermal = PROFILES[profile]
        modes = [ForceMode.PHYSICAL]
        if profile != "polynomial":
            modes.append(ForceMode.UNIT)
        if thermal.cools:
            modes.append(ForceMode.EMA)
        integrator, kept = SCHEMES[scheme]
        hamiltonian = Hamiltonian(
            learning_rate=0.08,
            step_duration=0.5,
            information_unit=1.4,
            initial_beta=1.2,
            thermal=thermal,
            force=Force(mode=modes[turn % len(modes)], gradient_gain=0.3),
            kinetic=KINETICS[kinetic],
            norm_scope=scopes[turn % len(scopes)],
            norm_kind=tuple(NormKind)[turn // 2 % 2],
            metric=METRICS[metric],
            weight_decay=WeightDecay(
                bare=0.1 * (turn % 3 == 0),
                thermal=0.2 * (turn % 4 == 0),
                decoupled=0.3 * (turn % 2 == 0),
                follows_speed=turn % 6 < 3,
            ),
            normalise=turn % 5 < 2,
            lookahead=scheme == "euler" and turn % 3 == 1,
            first_kick=0.5 if turn % 7 == 0 else None,
            integrator=integrator,
            kept_drift=kept,
        )
        yield f"{profile} {kinetic} {metric} {scheme}", hamiltonian


CROSS = dict(cross())


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kinetic", KINETICS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_profile_kinetic_energy_metric_and_scheme_follows_the_oracle(
    profile: str, kinetic: str, metric: str, device: torch.device
) -> None:
    for scheme in SCHEMES:
        hamiltonian = CROSS[f"{profile} {kinetic} {metric} {scheme}"]
        compare(hamiltonian, rtol=1e-11 if metric in ("euclidean", "diagonal") else 1e-8, device=device.type)


@pytest.mark.parametrize("name", [*roster(), *matrix_roster()])
def test_roster_follows_the_oracle(name: str, device: torch.device) -> None:
    hamiltonian = (roster() | matrix_roster())[name]
    compare(hamiltonian, steps=25, rtol=1e-8 if name in matrix_roster() else 1e-10, device=device.type)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_without_losses_moves_alike(name: str, device: torch.device) -> None:
    sample = compare(resolve(name, {}), losses=False, device=device.type)
    assert math.isnan(sample.internal_energy)
    assert math.isnan(sample.smoothed_loss)


@pytest.mark.parametrize("metric", [Diagonal(), Full(epsilon=1e-2), Kronecker(epsilon=1e-2)], ids=str)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("place", MetricPlace)
def test_metric_on_kick_and_drift_follows_the_oracle(
    metric: Metric, inside: bool, place: MetricPlace, device: torch.device
) -> None:
    settings = {slot: getattr(metric, slot) for slot in ("epsilon",)}
    chosen = type(metric)(**settings, epsilon_inside=inside, place=place)  # type: ignore[arg-type]
    hamiltonian = Hamiltonian(
        learning_rate=0.01, kinetic=Relativistic(speed_limit=0.5), metric=chosen, integrator=Scheme.CONFORMAL
    )
    compare(hamiltonian, shapes=((3, 4), (5,)), rtol=1e-8, device=device.type)


@pytest.mark.parametrize("shapes", [((),), ((1,),), ((0,), (3,)), ((2, 0), (), (1, 1))], ids=str)
@pytest.mark.parametrize("metric", METRICS)
def test_scalar_and_empty_tensors_follow_the_oracle(
    shapes: tuple[tuple[int, ...], ...], metric: str, device: torch.device
) -> None:
    hamiltonian = Hamiltonian(
        learning_rate=0.05,
        kinetic=Relativistic(speed_limit=0.4),
        norm_scope=NormScope.TENSOR,
        metric=METRICS[metric],
        integrator=Scheme.CONFORMAL,
    )
    compare(hamiltonian, shapes=shapes, rtol=1e-9, device=device.type)


@pytest.mark.parametrize("row_elements", [1, 3, 64])
def test_length_of_a_row_is_invisible(row_elements: int, device: torch.device) -> None:
    compare(CROSS["power quartic kronecker conformal"], rtol=1e-9, row_elements=row_elements, device=device.type)
    compare(roster()["power by coordinate"], row_elements=row_elements, device=device.type)


def test_hermosis_recipe_never_steps_further_than_its_limit() -> None:
    hamiltonian = resolve("hermosis", {"lr": 10.0, "max_step": 0.01, "metric": "euclidean"})
    sample = compare(hamiltonian)
    tensors = sum(1 for shape in SHAPES if math.prod(shape))
    # lr_scale reaches 1.5; a normalised momentum is measured in its own metric, X·X/A.
    assert sample.step_norm <= 0.01 * 1.5 * math.sqrt(tensors / (8 * -math.log(0.9) * 0.9**8))
    assert sample.braking < 0.5
    assert np.isfinite(sample.total_energy)
