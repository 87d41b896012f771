"""The Hamiltonian as a message, both ways: each part of the dynamics, with the field's path in every refusal."""

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from hermosis.v1 import dynamics_pb2
from hermosis_server.dynamics import (
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
)
from hermosis_server.errors import InvalidHyperparameter, InvalidRequest

PATH = "optimizer.hamiltonian"

T = TypeVar("T")

# What each number means; unspecified means the first.
_FORCE_MODES: dict[int, ForceMode] = {
    dynamics_pb2.FORCE_MODE_EMA: ForceMode.EMA,
    dynamics_pb2.FORCE_MODE_UNIT: ForceMode.UNIT,
    dynamics_pb2.FORCE_MODE_PHYSICAL: ForceMode.PHYSICAL,
}
_PLACES: dict[int, MetricPlace] = {
    dynamics_pb2.METRIC_PLACE_DRIFT: MetricPlace.DRIFT,
    dynamics_pb2.METRIC_PLACE_KICK: MetricPlace.KICK,
}
_SCOPES: dict[int, NormScope] = {
    dynamics_pb2.NORM_SCOPE_SESSION: NormScope.SESSION,
    dynamics_pb2.NORM_SCOPE_TENSOR: NormScope.TENSOR,
    dynamics_pb2.NORM_SCOPE_COORDINATE: NormScope.COORDINATE,
}
_NORMS: dict[int, NormKind] = {
    dynamics_pb2.NORM_KIND_METRIC: NormKind.METRIC,
    dynamics_pb2.NORM_KIND_EUCLIDEAN: NormKind.EUCLIDEAN,
}
_SCHEMES: dict[int, Scheme] = {
    dynamics_pb2.INTEGRATION_SCHEME_SYMPLECTIC_EULER: Scheme.SYMPLECTIC_EULER,
    dynamics_pb2.INTEGRATION_SCHEME_LEAPFROG: Scheme.LEAPFROG,
    dynamics_pb2.INTEGRATION_SCHEME_CONFORMAL: Scheme.CONFORMAL,
}
_METRICS: dict[int, type[Metric]] = {
    dynamics_pb2.METRIC_KIND_EUCLIDEAN: Euclidean,
    dynamics_pb2.METRIC_KIND_DIAGONAL: Diagonal,
    dynamics_pb2.METRIC_KIND_FULL: Full,
    dynamics_pb2.METRIC_KIND_KRONECKER: Kronecker,
}


def from_message(message: dynamics_pb2.Hamiltonian) -> Hamiltonian:
    """The dynamics that a message states.

    Raises:
      InvalidRequest, InvalidHyperparameter: naming the field.
    """
    decay, integrator = message.weight_decay, message.integrator
    return Hamiltonian(
        learning_rate=message.learning_rate,
        **_given(message, "step_duration", "information_unit", "initial_beta", "first_kick"),
        thermal=thermal_profile(message.thermal_profile),
        kinetic=_kinetic_energy(message.kinetic_energy),
        norm_scope=_member(_SCOPES, "NormScope", message.kinetic_energy.norm_scope, "kinetic_energy.norm_scope"),
        norm_kind=_member(_NORMS, "NormKind", message.kinetic_energy.norm_kind, "kinetic_energy.norm_kind"),
        metric=_metric(message.metric),
        force=Force(
            mode=_member(_FORCE_MODES, "ForceMode", message.force.mode, "force.mode"),
            **_given(message.force, "gradient_gain"),
        ),
        weight_decay=WeightDecay(
            bare=decay.bare, thermal=decay.thermal, decoupled=decay.decoupled, follows_speed=decay.follows_speed
        ),
        normalise=message.normalise,
        lookahead=message.lookahead,
        integrator=_member(_SCHEMES, "IntegrationScheme", integrator.scheme, "integrator.scheme"),
        kept_drift=integrator.alpha if integrator.HasField("alpha") else 1.0,
    )


def to_message(record: Hamiltonian) -> dynamics_pb2.Hamiltonian:
    """The same, as it is shown and exported."""
    decay = record.weight_decay
    return dynamics_pb2.Hamiltonian(
        learning_rate=record.learning_rate,
        step_duration=record.step_duration,
        information_unit=record.information_unit,
        initial_beta=record.initial_beta,
        thermal_profile=_thermal_profile_message(record.thermal),
        kinetic_energy=_kinetic_energy_message(record),
        metric=_metric_message(record.metric),
        force=dynamics_pb2.Force(
            mode=_number(_FORCE_MODES, record.force.mode), gradient_gain=record.force.gradient_gain
        ),
        weight_decay=dynamics_pb2.WeightDecay(
            bare=decay.bare, thermal=decay.thermal, decoupled=decay.decoupled, follows_speed=decay.follows_speed
        ),
        integrator=dynamics_pb2.Integrator(scheme=_number(_SCHEMES, record.integrator), alpha=record.kept_drift),
        normalise=record.normalise,
        lookahead=record.lookahead,
        first_kick=record.first_kick,
    )


def thermal_profile(message: dynamics_pb2.ThermalProfile) -> ThermalProfile:
    """A thermal profile; none means the default exponential one."""
    match message.WhichOneof("profile"):
        case "constant":
            return Constant()
        case "linear":
            return Linear(growth=message.linear.rate)
        case "power":
            power = message.power
            return Power(exponent=power.exponent, age=power.age, **_given(power, "reference_log_beta"))
        case "tabulated":
            return Tabulated(knots=tuple((knot.time, knot.beta) for knot in message.tabulated.knots))
        case "polynomial":
            return Polynomial(
                terms=tuple(
                    Term(
                        coefficient=term.coefficient,
                        internal_energy_power=term.internal_energy_power,
                        beta_power=term.beta_power,
                    )
                    for term in message.polynomial.terms
                )
            )
        case _:
            return Exponential(**_given(message.exponential, message.exponential.WhichOneof("rate")))


def _thermal_profile_message(record: ThermalProfile) -> dynamics_pb2.ThermalProfile:
    match record:
        case Constant():
            return dynamics_pb2.ThermalProfile(constant=dynamics_pb2.ConstantProfile())
        case Linear():
            return dynamics_pb2.ThermalProfile(linear=dynamics_pb2.LinearProfile(rate=record.growth))
        case Power():
            held = _held(record, "exponent", "age", "reference_log_beta")
            return dynamics_pb2.ThermalProfile(power=dynamics_pb2.PowerProfile(**held))
        case Tabulated():
            knots = [dynamics_pb2.ThermalKnot(time=time, beta=beta) for time, beta in record.knots]
            return dynamics_pb2.ThermalProfile(tabulated=dynamics_pb2.TabulatedProfile(knots=knots))
        case Polynomial():
            terms = [
                dynamics_pb2.PolynomialTerm(**_held(term, "coefficient", "internal_energy_power", "beta_power"))
                for term in record.terms
            ]
            return dynamics_pb2.ThermalProfile(polynomial=dynamics_pb2.PolynomialProfile(terms=terms))
        case Exponential():
            profile = dynamics_pb2.ExponentialProfile(**_held(record, "momentum_retention", "cooling_rate"))
            return dynamics_pb2.ThermalProfile(exponential=profile)


def _kinetic_energy(message: dynamics_pb2.KineticEnergy) -> KineticEnergy:
    match message.WhichOneof("kind"):
        case "relativistic":
            relativistic = message.relativistic
            return Relativistic(
                **_given(relativistic, relativistic.WhichOneof("limit")),
                rest_cooling=relativistic.rest_cooling,
                rest_energy=relativistic.rest_energy,
            )
        case "quartic":
            return Quartic(stiffness=message.quartic.stiffness)
        case "truncated":
            return Truncated(speed_limit=message.truncated.speed_limit)
        case "velocity_regularised":
            regularised = message.velocity_regularised
            return VelocityRegularised(stiffness=regularised.stiffness, cap=regularised.cap)
        case _:
            return Classical()


def _kinetic_energy_message(record: Hamiltonian) -> dynamics_pb2.KineticEnergy:
    kinetic = record.kinetic
    message = dynamics_pb2.KineticEnergy(
        norm_scope=_number(_SCOPES, record.norm_scope), norm_kind=_number(_NORMS, record.norm_kind)
    )
    match kinetic:
        case Classical():
            message.classical.SetInParent()
        case Relativistic():
            held = _held(kinetic, "max_step", "speed_limit", "rest_cooling", "rest_energy")
            message.relativistic.CopyFrom(dynamics_pb2.RelativisticKinetic(**held))
        case Quartic():
            message.quartic.CopyFrom(dynamics_pb2.QuarticKinetic(stiffness=kinetic.stiffness))
        case Truncated():
            message.truncated.CopyFrom(dynamics_pb2.TruncatedKinetic(speed_limit=kinetic.speed_limit))
        case VelocityRegularised():
            held = _held(kinetic, "stiffness", "cap")
            message.velocity_regularised.CopyFrom(dynamics_pb2.VelocityRegularisedKinetic(**held))
    return message


def _metric(message: dynamics_pb2.Metric) -> Metric:
    kind = _member(_METRICS, "MetricKind", message.kind, "metric.kind")
    if kind is Euclidean:
        return Euclidean()
    settings: dict[str, Any] = {
        **_given(message, "second_moment_decay", "second_moment_gain", "epsilon", "power"),
        "epsilon_inside": message.epsilon_inside,
        "normalise": message.normalise,
        "place": _member(_PLACES, "MetricPlace", message.place, "metric.place"),
    }
    if kind is Diagonal:
        return Diagonal(**settings, centered=message.centered)
    if message.centered:
        raise _refuse("metric.centered", "got it with a metric of matrices, wanted DIAGONAL")
    settings["refresh_steps"] = message.refresh_steps or 1
    if kind is Kronecker:
        if message.max_side:
            settings["max_side"] = message.max_side
        return Kronecker(**settings)
    scope = _member(_SCOPES, "NormScope", message.scope, "metric.scope")
    if scope is NormScope.COORDINATE:
        raise _refuse("metric.scope", "got COORDINATE for a FULL metric, wanted SESSION or TENSOR")
    return Full(**settings, by_tensor=scope is NormScope.TENSOR)


def _metric_message(record: Metric) -> dynamics_pb2.Metric:
    message = dynamics_pb2.Metric(kind=_number(_METRICS, type(record)))
    if isinstance(record, Euclidean):
        return message
    for name in ("second_moment_decay", "epsilon", "power", "epsilon_inside", "normalise"):
        setattr(message, name, getattr(record, name))
    if record.second_moment_gain is not None:
        message.second_moment_gain = record.second_moment_gain
    message.place = _number(_PLACES, record.place)
    if isinstance(record, Diagonal):
        message.centered = record.centered
        return message
    message.refresh_steps = record.refresh_steps
    if isinstance(record, Kronecker):
        message.max_side = record.max_side
    else:
        message.scope = dynamics_pb2.NORM_SCOPE_TENSOR if record.by_tensor else dynamics_pb2.NORM_SCOPE_SESSION
    return message


def _given(message: Message, *names: str | None) -> dict[str, Any]:
    """The fields that were set, so that absent ones take the default of the class they go to."""
    return {name: getattr(message, name) for name in names if name and message.HasField(name)}


def _held(record: object, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names if getattr(record, name) is not None}


def _member(members: Mapping[int, T], enum: str, number: int, field: str) -> T:
    """The member of that number; zero is the first. `enum` is the contract's name of them all."""
    if number == 0:
        return next(iter(members.values()))
    if number not in members:
        values = dynamics_pb2.DESCRIPTOR.enum_types_by_name[enum].values
        known = ", ".join(value.name for value in values if value.number)
        raise InvalidRequest(f"{field} is {number}; this server knows {known}", field=f"{PATH}.{field}")
    return members[number]


def _number(members: Mapping[int, T], wanted: T) -> Any:
    return next(number for number, member in members.items() if member == wanted)


def _refuse(field: str, message: str) -> InvalidHyperparameter:
    return InvalidHyperparameter(f"{field}: {message}", field=f"{PATH}.{field}")
