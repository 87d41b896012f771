"""Settings that are refused, and by what name; what is structure and what is coefficient."""

import dataclasses
import math
from collections.abc import Callable

import pytest

from hermosis_server.dynamics import (
    COEFFICIENTS,
    SCALARS,
    Coefficients,
    Constant,
    Diagonal,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Relativistic,
    Scalars,
    Scheme,
    WeightDecay,
    check_parameters_on_worker,
    initial_scalars,
)
from hermosis_server.errors import InvalidHyperparameter, Unsupported
from hermosis_server.records import StateBuffer, StateScalars

NAN, INF = math.nan, math.inf
NO_MOMENTUM = Exponential(momentum_retention=0.0)

REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("learning_rate", lambda: Hamiltonian(learning_rate=0.0)),
    ("learning_rate", lambda: Hamiltonian(learning_rate=NAN)),
    ("learning_rate", lambda: Hamiltonian(learning_rate=INF)),
    ("learning_rate", lambda: Hamiltonian(learning_rate=1e-308, step_duration=1e10)),
    ("step_duration", lambda: Hamiltonian(learning_rate=1.0, step_duration=-1.0)),
    ("information_unit", lambda: Hamiltonian(learning_rate=1.0, information_unit=0.0)),
    ("initial_beta", lambda: Hamiltonian(learning_rate=1.0, initial_beta=0.0)),
    ("first_kick", lambda: Hamiltonian(learning_rate=1.0, first_kick=0.0)),
    ("first_kick", lambda: Hamiltonian(learning_rate=1.0, first_kick=1.0, thermal=NO_MOMENTUM)),
    ("thermal_profile.exponential.momentum_retention", lambda: Exponential(momentum_retention=1.0)),
    ("thermal_profile.exponential.momentum_retention", lambda: Exponential(momentum_retention=-0.1)),
    ("thermal_profile.exponential.cooling_rate", lambda: Exponential(cooling_rate=0.0)),
    ("thermal_profile.exponential.cooling_rate", lambda: Exponential(cooling_rate=INF)),
    ("thermal_profile.exponential.cooling_rate", lambda: Exponential(momentum_retention=0.9, cooling_rate=1.0)),
    ("force.gradient_gain", lambda: Force(gradient_gain=0.0)),
    ("force.mode", lambda: Hamiltonian(learning_rate=1.0, thermal=Constant())),
    ("force.mode", lambda: Hamiltonian(learning_rate=1.0, thermal=NO_MOMENTUM, force=Force(mode=ForceMode.PHYSICAL))),
    ("kinetic_energy.relativistic.limit", Relativistic),
    ("kinetic_energy.relativistic.limit", lambda: Relativistic(max_step=1.0, speed_limit=1.0)),
    (
        "kinetic_energy.relativistic.limit",
        lambda: Hamiltonian(learning_rate=1e-9, kinetic=Relativistic(max_step=1e300)),
    ),
    ("kinetic_energy.relativistic.max_step", lambda: Relativistic(max_step=0.0)),
    ("kinetic_energy.relativistic.speed_limit", lambda: Relativistic(speed_limit=NAN)),
    ("kinetic_energy.relativistic.rest_cooling", lambda: Relativistic(max_step=1.0, rest_cooling=1.1)),
    ("kinetic_energy.relativistic.rest_energy", lambda: Relativistic(max_step=1.0, rest_energy=-1.0)),
    (
        "kinetic_energy.relativistic.rest_cooling",
        lambda: Hamiltonian(
            learning_rate=1.0, thermal=NO_MOMENTUM, kinetic=Relativistic(max_step=1.0, rest_cooling=0.5)
        ),
    ),
    ("metric.second_moment_decay", lambda: Diagonal(second_moment_decay=1.5)),
    ("metric.second_moment_gain", lambda: Diagonal(second_moment_decay=1.0)),
    ("metric.second_moment_gain", lambda: Diagonal(second_moment_gain=0.0)),
    ("metric.epsilon", lambda: Diagonal(epsilon=0.0)),
    ("metric.epsilon", lambda: Diagonal(epsilon=1e-40)),
    ("metric.power", lambda: Diagonal(power=0.0)),
    ("metric.power", lambda: Diagonal(power=0.3)),
    ("metric.power", lambda: Diagonal(power=2.0)),
    ("weight_decay.bare", lambda: WeightDecay(bare=-1.0)),
    ("weight_decay.thermal", lambda: WeightDecay(thermal=NAN)),
    ("weight_decay.decoupled", lambda: WeightDecay(decoupled=INF)),
    ("weight_decay.decoupled", lambda: Hamiltonian(learning_rate=0.5, weight_decay=WeightDecay(decoupled=2.0))),
    (
        "weight_decay.bare",
        lambda: Hamiltonian(learning_rate=1.0, thermal=NO_MOMENTUM, weight_decay=WeightDecay(bare=1.0)),
    ),
]


@pytest.mark.parametrize(("field", "build"), REFUSED)
def test_setting_out_of_range_is_refused_by_its_path(field: str, build: Callable[[], object]) -> None:
    with pytest.raises(InvalidHyperparameter, match=r"got .*(wanted|say|small|weigh|range)") as refusal:
        build()
    assert refusal.value.field == "optimizer.hamiltonian." + field
    assert field.split(".")[-1] in str(refusal.value)


@pytest.mark.parametrize("scheme", [Scheme.LEAPFROG, Scheme.CONFORMAL])
def test_scheme_that_is_not_there_yet_is_said_to_be_so(scheme: Scheme) -> None:
    with pytest.raises(Unsupported, match="not carried out by this server yet") as refusal:
        Hamiltonian(learning_rate=1.0, integrator=scheme)
    assert refusal.value.field == "optimizer.hamiltonian.integrator.scheme"


@pytest.mark.parametrize(
    ("kind", "decay"),
    [
        ("bare", WeightDecay(bare=0.01)),
        ("thermal", WeightDecay(thermal=0.01)),
        ("decoupled", WeightDecay(decoupled=0.01)),
    ],
)
def test_weight_decay_is_refused_where_the_worker_holds_the_parameters(kind: str, decay: WeightDecay) -> None:
    hamiltonian = Hamiltonian(learning_rate=0.1, weight_decay=decay)
    assert hamiltonian.family.needs_parameters
    with pytest.raises(InvalidHyperparameter, match="parameters_on") as refusal:
        check_parameters_on_worker(hamiltonian)
    assert refusal.value.field == f"optimizer.hamiltonian.weight_decay.{kind}"


def test_zero_weight_decay_needs_no_parameters() -> None:
    hamiltonian = Hamiltonian(learning_rate=0.1, weight_decay=WeightDecay(follows_speed=True))
    check_parameters_on_worker(hamiltonian)
    assert not hamiltonian.family.needs_parameters
    assert hamiltonian.family == Hamiltonian(learning_rate=0.1).family


def test_family_is_structure_alone() -> None:
    one = Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.1))
    other = Hamiltonian(
        learning_rate=3.0,
        step_duration=2.0,
        initial_beta=5.0,
        thermal=Constant(),
        force=Force(mode=ForceMode.UNIT, gradient_gain=7.0),
        kinetic=Relativistic(speed_limit=9.0, rest_energy=1.0),
    )
    assert one.family == other.family
    assert hash(one.family) == hash(other.family)
    assert one.coefficients() != other.coefficients()
    assert one.family != dataclasses.replace(one, kinetic=Relativistic(max_step=0.1, rest_cooling=0.5)).family


def test_family_names_the_buffers_that_exist() -> None:
    assert Hamiltonian(learning_rate=1.0).family.buffers == (StateBuffer.MOMENTUM,)
    diagonal = Hamiltonian(learning_rate=1.0, metric=Diagonal()).family.buffers
    assert diagonal == (StateBuffer.MOMENTUM, StateBuffer.SECOND_MOMENT)
    centered = Hamiltonian(learning_rate=1.0, metric=Diagonal(centered=True)).family.buffers
    assert centered == (StateBuffer.MOMENTUM, StateBuffer.SECOND_MOMENT, StateBuffer.FIRST_MOMENT)


def test_scalars_are_those_of_the_records_in_their_order() -> None:
    assert tuple(field.name for field in dataclasses.fields(StateScalars)) == SCALARS == Scalars._fields


def test_session_starts_at_its_own_beta_with_undefined_energies() -> None:
    start = initial_scalars(Hamiltonian(learning_rate=1.0, initial_beta=2.0))
    assert start.log_beta == math.log(2)
    assert start.step == start.clock == start.unit_momentum == start.unit_second_moment == 0
    assert all(math.isnan(value) for value in (start.internal_energy, start.entropy, start.reference_energy))


def test_coefficients_are_the_closed_forms() -> None:
    c = Hamiltonian(
        learning_rate=0.1, step_duration=0.5, thermal=Exponential(cooling_rate=0.8), force=Force(gradient_gain=3.0)
    ).coefficients()
    assert Coefficients._fields == COEFFICIENTS
    assert c.action_unit == pytest.approx(5)
    assert c.retention == pytest.approx(math.exp(-0.4))
    assert c.impulse_gain == pytest.approx(3 * (1 - math.exp(-0.4)))
    assert c.energy_unit == pytest.approx(3 * 5 * 0.8)  # an EMA force has c² = ζhγ
    assert c.loss_anchor == pytest.approx(3)
    assert c.thermal_unit == pytest.approx(5 * 0.8)


def test_momentum_zero_is_the_limit_of_infinite_cooling() -> None:
    c = Hamiltonian(learning_rate=0.1, thermal=NO_MOMENTUM).coefficients()
    assert c.cooling_rate == c.log_beta_step == INF
    assert c.retention == c.energy_anchor == 0
    assert c.impulse_gain == c.loss_anchor == 1
    assert math.isnan(c.energy_unit)
