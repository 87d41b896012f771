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
    Full,
    Hamiltonian,
    Kronecker,
    Linear,
    NormScope,
    Polynomial,
    Power,
    Quartic,
    Relativistic,
    Scalars,
    Scheme,
    Tabulated,
    Term,
    ThermalProfile,
    Truncated,
    VelocityRegularised,
    WeightDecay,
    check_parameters_on_worker,
    initial_scalars,
)
from hermosis_server.errors import InvalidHyperparameter
from hermosis_server.records import StateScalars

NAN, INF = math.nan, math.inf
NO_MOMENTUM = Exponential(momentum_retention=0.0)
UNIT = Force(mode=ForceMode.UNIT)
TABLE = Tabulated(knots=((0.0, 1.0), (1.0, 2.0)))

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
    ("metric.refresh_steps", lambda: Full(refresh_steps=0)),
    ("metric.max_side", lambda: Kronecker(max_side=0)),
    ("metric.max_side", lambda: Kronecker(max_side=10**6)),
    ("kinetic_energy.quartic.stiffness", lambda: Quartic(stiffness=-1.0)),
    ("kinetic_energy.truncated.speed_limit", lambda: Truncated(speed_limit=0.0)),
    (
        "kinetic_energy.truncated.speed_limit",
        lambda: Hamiltonian(learning_rate=1.0, kinetic=Truncated(speed_limit=1e200)),
    ),
    ("kinetic_energy.velocity_regularised.stiffness", lambda: VelocityRegularised(stiffness=NAN, cap=1.0)),
    ("kinetic_energy.velocity_regularised.cap", lambda: VelocityRegularised(stiffness=1.0, cap=-1.0)),
    (
        "kinetic_energy.norm_scope",
        lambda: Hamiltonian(learning_rate=1.0, norm_scope=NormScope.COORDINATE, metric=Kronecker()),
    ),
    (
        "kinetic_energy.norm_scope",
        lambda: Hamiltonian(learning_rate=1.0, norm_scope=NormScope.COORDINATE, metric=Full()),
    ),
    ("kinetic_energy.norm_scope", lambda: Hamiltonian(learning_rate=1.0, norm_scope=NormScope.TENSOR, metric=Full())),
    ("thermal_profile.linear.rate", lambda: Linear(growth=INF)),
    (
        "thermal_profile.linear.rate",
        lambda: initial_scalars(Hamiltonian(learning_rate=1.0, thermal=Linear(growth=-1.0), force=UNIT)),
    ),
    (
        "thermal_profile.power",
        lambda: Hamiltonian(learning_rate=1.0, thermal=Power(exponent=1.0, age=1.0), force=UNIT).check_bath(INF),
    ),
    ("thermal_profile.power.exponent", lambda: Power(exponent=0.0, age=1.0)),
    ("thermal_profile.power.age", lambda: Power(exponent=1.0, age=0.0)),
    ("thermal_profile.power.reference_log_beta", lambda: Power(exponent=1.0, age=1.0, reference_log_beta=NAN)),
    ("thermal_profile.tabulated.knots", lambda: Tabulated(knots=((0.0, 1.0),))),
    ("thermal_profile.tabulated.knots", lambda: Tabulated(knots=((0.0, 1.0), (0.0, 2.0)))),
    ("thermal_profile.tabulated.knots", lambda: Tabulated(knots=((0.0, 1.0), (1.0, 0.0)))),
    ("thermal_profile.tabulated.knots", lambda: Tabulated(knots=((0.0, 1.0), (5e-324, 2.0)))),
    ("thermal_profile.polynomial.terms", lambda: Polynomial(terms=())),
    ("thermal_profile.polynomial.terms.coefficient", lambda: Polynomial(terms=(Term(coefficient=NAN),))),
    ("thermal_profile.polynomial.terms.beta_power", lambda: Polynomial(terms=(Term(coefficient=1, beta_power=99),))),
    ("force.mode", lambda: Hamiltonian(learning_rate=1.0, thermal=Polynomial(terms=(Term(coefficient=1.0),)))),
    ("force.mode", lambda: Hamiltonian(learning_rate=1.0, thermal=TABLE)),
    ("force.mode", lambda: Hamiltonian(learning_rate=1.0, thermal=Power(exponent=-1.0, age=1.0))),
    ("force.mode", lambda: Hamiltonian(learning_rate=1.0, thermal=NO_MOMENTUM, integrator=Scheme.CONFORMAL)),
    ("integrator.alpha", lambda: Hamiltonian(learning_rate=1.0, integrator=Scheme.CONFORMAL, kept_drift=1.5)),
    ("integrator.alpha", lambda: Hamiltonian(learning_rate=1.0, integrator=Scheme.LEAPFROG, kept_drift=0.5)),
    ("lookahead", lambda: Hamiltonian(learning_rate=1.0, lookahead=True, integrator=Scheme.CONFORMAL)),
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
    assert hamiltonian.family(()).needs_parameters
    with pytest.raises(InvalidHyperparameter, match="parameters_on") as refusal:
        check_parameters_on_worker(hamiltonian)
    assert refusal.value.field == f"optimizer.hamiltonian.weight_decay.{kind}"


def test_zero_weight_decay_needs_no_parameters() -> None:
    hamiltonian = Hamiltonian(learning_rate=0.1, weight_decay=WeightDecay(follows_speed=True))
    check_parameters_on_worker(hamiltonian)
    assert not hamiltonian.family(()).needs_parameters
    assert hamiltonian.family(()) == Hamiltonian(learning_rate=0.1).family(())


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
    one = dataclasses.replace(one, force=Force(mode=ForceMode.UNIT))
    assert one.family([(3, 4)]) == other.family([(5,)])
    assert hash(one.family(())) == hash(other.family(()))
    assert one.coefficients() != other.coefficients()
    cools = dataclasses.replace(one, kinetic=Relativistic(max_step=0.1, rest_cooling=0.5))
    assert one.family(()) != cools.family(())


def test_family_of_matrices_knows_their_sizes() -> None:
    shapes = [(3, 4), (0, 2), (5,), (2, 3, 2), (9, 2)]
    kronecker = Hamiltonian(learning_rate=0.1, metric=Kronecker(max_side=8)).family(shapes)
    assert kronecker.blocks == ((3, 4), None, (2, 6), None)
    assert kronecker.by_tensor
    assert kronecker.diagonal
    full = Hamiltonian(learning_rate=0.1, metric=Full()).family(shapes)
    assert full.blocks == ((12 + 5 + 12 + 18, 1),)
    assert not full.by_tensor
    assert not full.diagonal
    by_tensor = Hamiltonian(learning_rate=0.1, metric=Full(by_tensor=True)).family(shapes)
    assert by_tensor.blocks == ((12, 1), (5, 1), (12, 1), (18, 1))
    vectors = Hamiltonian(learning_rate=0.1, metric=Kronecker()).family([(5,), (3,)])
    assert not vectors.matrix
    assert vectors.diagonal
    with pytest.raises(InvalidHyperparameter, match="at most 2048") as refusal:
        Hamiltonian(learning_rate=0.1, metric=Full()).family([(100, 100)])
    assert refusal.value.field == "optimizer.hamiltonian.metric.kind"


def test_family_names_the_buffers_that_exist() -> None:
    def buffers(shape: tuple[int, ...] = (7,), **settings: object) -> dict[str, tuple[int, ...]]:
        family = Hamiltonian(learning_rate=1.0, **settings).family([shape])  # type: ignore[arg-type]
        return {kind.name: spans for kind, spans in family.buffers((7,), holds_parameters=False).items()}

    assert buffers() == {"MOMENTUM": (7,)}
    assert buffers(metric=Diagonal()) == {"MOMENTUM": (7,), "SECOND_MOMENT": (7,)}
    assert buffers(metric=Diagonal(centered=True)) == dict.fromkeys(("MOMENTUM", "SECOND_MOMENT", "FIRST_MOMENT"), (7,))
    assert buffers(integrator=Scheme.CONFORMAL) == {"MOMENTUM": (7,)}
    assert buffers(integrator=Scheme.CONFORMAL, kept_drift=0.5) == {"MOMENTUM": (7,), "LEAD": (7,)}
    full = {"MOMENTUM": (7,), "COVARIANCE": (49,), "EIGENVECTORS": (49,), "EIGENVALUES": (7,)}
    assert buffers(metric=Full()) == full
    assert buffers((2, 3), metric=Kronecker()) == {
        "MOMENTUM": (7,), "COVARIANCE": (13,), "EIGENVECTORS": (13,), "EIGENVALUES": (5,)
    }  # fmt: skip


def test_scalars_are_those_of_the_records_in_their_order() -> None:
    assert tuple(field.name for field in dataclasses.fields(StateScalars)) == SCALARS == Scalars._fields


def test_session_starts_at_its_own_beta_with_undefined_energies() -> None:
    start = initial_scalars(Hamiltonian(learning_rate=1.0, initial_beta=2.0))
    assert start.log_beta == math.log(2)
    assert start.step == start.clock == start.unit_momentum == start.unit_second_moment == 0
    assert all(math.isnan(value) for value in (start.internal_energy, start.entropy, start.reference_energy))


def test_conformal_session_starts_half_a_cooling_ahead() -> None:
    start = initial_scalars(
        Hamiltonian(learning_rate=1.0, step_duration=0.5, initial_beta=2.0, integrator=Scheme.CONFORMAL)
    )
    half = -math.log(0.9) / 2
    assert start.clock == 0.25
    assert start.published_cooling == pytest.approx(half)
    assert start.log_beta == pytest.approx(math.log(2) + half)


def test_coefficients_are_the_closed_forms() -> None:
    c = Hamiltonian(
        learning_rate=0.1, step_duration=0.5, thermal=Exponential(cooling_rate=0.8), force=Force(gradient_gain=3.0)
    ).coefficients()
    assert Coefficients._fields == COEFFICIENTS
    assert c.action_unit == pytest.approx(5)
    assert c.retention == pytest.approx(math.exp(-0.4))
    assert c.friction == pytest.approx(1 - math.exp(-0.4))
    assert c.kernel == pytest.approx((1 - math.exp(-0.4)) / 0.8)
    assert c.log_beta_gain == pytest.approx(0.4)


def test_momentum_zero_is_the_limit_of_infinite_cooling() -> None:
    c = Hamiltonian(learning_rate=0.1, thermal=NO_MOMENTUM).coefficients()
    assert c.cooling_rate == c.log_beta_gain == INF
    assert c.retention == c.kernel == 0
    assert c.friction == 1


@pytest.mark.parametrize(
    "thermal", [Linear(growth=-0.1), Power(exponent=-1.0, age=1.0), Tabulated(knots=((0, 2.0), (1, 1.0)))], ids=str
)
def test_profile_that_heats_is_allowed_with_a_word_of_caution(thermal: ThermalProfile) -> None:
    hamiltonian = Hamiltonian(learning_rate=0.1, thermal=thermal, force=Force(mode=ForceMode.UNIT))
    assert "heats" in hamiltonian.cautions[0]
    assert Hamiltonian(learning_rate=0.1).cautions == ()
