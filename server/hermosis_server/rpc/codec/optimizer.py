"""The optimizer as a message: a recipe with parameters, or the parts of a Hamiltonian; and the recipes described."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from hermosis.v1 import dynamics_pb2
from hermosis_server.dynamics import (
    RECIPES,
    Classical,
    Constant,
    Diagonal,
    Euclidean,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    MetricPlace,
    Parameter,
    RecipeSpec,
    Relativistic,
    WeightDecay,
)
from hermosis_server.dynamics.kinetic import KineticEnergy
from hermosis_server.dynamics.metric import Metric
from hermosis_server.dynamics.thermal import ThermalProfile
from hermosis_server.errors import InvalidRequest, Unsupported
from hermosis_server.records import RecipeChoice

ROOT = "optimizer"

_FORCE_MODES = {
    0: ForceMode.EMA,
    dynamics_pb2.FORCE_MODE_EMA: ForceMode.EMA,
    dynamics_pb2.FORCE_MODE_UNIT: ForceMode.UNIT,
    dynamics_pb2.FORCE_MODE_PHYSICAL: ForceMode.PHYSICAL,
}
_PLACES = {
    0: MetricPlace.DRIFT,
    dynamics_pb2.METRIC_PLACE_DRIFT: MetricPlace.DRIFT,
    dynamics_pb2.METRIC_PLACE_KICK: MetricPlace.KICK,
}
_PARAMETER_KINDS = {
    "number": dynamics_pb2.PARAMETER_KIND_NUMBER,
    "flag": dynamics_pb2.PARAMETER_KIND_FLAG,
    "choice": dynamics_pb2.PARAMETER_KIND_CHOICE,
}
_DESCRIPTOR = dynamics_pb2.DESCRIPTOR


def from_message(message: dynamics_pb2.Optimizer) -> RecipeChoice | Hamiltonian:
    """What a session was asked to move by.

    Raises:
      InvalidRequest, InvalidHyperparameter: naming the field.
      Unsupported: part of the theory that this server does not compute yet.
    """
    kind = message.WhichOneof("definition")
    if kind == "recipe":
        values = {name: _value(name, value) for name, value in message.recipe.parameters.items()}
        return RecipeChoice(name=message.recipe.name, parameters=values)
    if kind == "hamiltonian":
        return _hamiltonian(message.hamiltonian)
    raise InvalidRequest("no optimizer was given; name a recipe, or state a Hamiltonian", field=ROOT)


def to_message(optimizer: RecipeChoice | Hamiltonian) -> dynamics_pb2.Optimizer:
    """The same, as it is shown and exported."""
    if isinstance(optimizer, RecipeChoice):
        parameters = {name: _value_message(value) for name, value in optimizer.parameters.items()}
        return dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name=optimizer.name, parameters=parameters))
    return dynamics_pb2.Optimizer(hamiltonian=_hamiltonian_message(optimizer))


def thermal_profile(message: dynamics_pb2.ThermalProfile, field: str) -> ThermalProfile:
    """A thermal profile; none means the default exponential one."""
    kind = message.WhichOneof("profile")
    if kind == "constant":
        return Constant()
    if kind is None or kind == "exponential":
        rate = message.exponential.WhichOneof("rate")
        return Exponential(**_given(message.exponential, rate))
    raise _not_yet(f"thermal profile {kind}", "constant or exponential", f"{field}.{kind}")


def recipe_names() -> list[str]:
    """The named optimizers, in the order in which they should be shown."""
    return list(RECIPES)


def descriptions() -> list[dynamics_pb2.RecipeDescription]:
    """All of them, as GetRecipes tells."""
    return [_description(spec) for spec in RECIPES.values()]


def _description(spec: RecipeSpec) -> dynamics_pb2.RecipeDescription:
    return dynamics_pb2.RecipeDescription(
        name=spec.name, parameters=map(_parameter, spec.parameters), physics=spec.physics, source=spec.source
    )


def _hamiltonian(message: dynamics_pb2.Hamiltonian) -> Hamiltonian:
    path = f"{ROOT}.hamiltonian"
    scheme = message.integrator.scheme
    if scheme not in (0, dynamics_pb2.INTEGRATION_SCHEME_SYMPLECTIC_EULER):
        raise _not_yet(_name("IntegrationScheme", scheme), "SYMPLECTIC_EULER", f"{path}.integrator.scheme")
    decay = message.weight_decay
    return Hamiltonian(
        learning_rate=message.learning_rate,
        **_given(message, "step_duration", "information_unit", "initial_beta", "first_kick"),
        thermal=thermal_profile(message.thermal_profile, f"{path}.thermal_profile"),
        kinetic=_kinetic_energy(message.kinetic_energy, f"{path}.kinetic_energy"),
        metric=_metric(message.metric, f"{path}.metric"),
        force=Force(
            mode=_member(_FORCE_MODES, message.force.mode, "ForceMode", f"{path}.force.mode"),
            **_given(message.force, "gradient_gain"),
        ),
        weight_decay=WeightDecay(
            bare=decay.bare, thermal=decay.thermal, decoupled=decay.decoupled, follows_speed=decay.follows_speed
        ),
        normalise=message.normalise,
        lookahead=message.lookahead,
    )


def _kinetic_energy(message: dynamics_pb2.KineticEnergy, path: str) -> KineticEnergy:
    if message.norm_scope not in (0, dynamics_pb2.NORM_SCOPE_SESSION):
        raise _not_yet(_name("NormScope", message.norm_scope), "SESSION", f"{path}.norm_scope")
    if message.norm_kind not in (0, dynamics_pb2.NORM_KIND_METRIC):
        raise _not_yet(_name("NormKind", message.norm_kind), "METRIC", f"{path}.norm_kind")
    kind = message.WhichOneof("kind")
    if kind is None or kind == "classical":
        return Classical()
    if kind == "relativistic":
        limit = message.relativistic.WhichOneof("limit")
        return Relativistic(
            **_given(message.relativistic, limit),
            rest_cooling=message.relativistic.rest_cooling,
            rest_energy=message.relativistic.rest_energy,
        )
    raise _not_yet(f"kinetic energy {kind}", "classical or relativistic", f"{path}.{kind}")


def _metric(message: dynamics_pb2.Metric, path: str) -> Metric:
    if message.kind in (0, dynamics_pb2.METRIC_KIND_EUCLIDEAN):
        return Euclidean()
    if message.kind != dynamics_pb2.METRIC_KIND_DIAGONAL:
        raise _not_yet(_name("MetricKind", message.kind), "EUCLIDEAN or DIAGONAL", f"{path}.kind")
    return Diagonal(
        **_given(message, "second_moment_decay", "second_moment_gain", "epsilon", "power"),
        epsilon_inside=message.epsilon_inside,
        centered=message.centered,
        normalise=message.normalise,
        place=_member(_PLACES, message.place, "MetricPlace", f"{path}.place"),
    )


def _hamiltonian_message(record: Hamiltonian) -> dynamics_pb2.Hamiltonian:
    decay = record.weight_decay
    return dynamics_pb2.Hamiltonian(
        learning_rate=record.learning_rate,
        step_duration=record.step_duration,
        information_unit=record.information_unit,
        initial_beta=record.initial_beta,
        thermal_profile=_thermal_profile_message(record.thermal),
        kinetic_energy=_kinetic_energy_message(record.kinetic),
        metric=_metric_message(record.metric),
        force=dynamics_pb2.Force(
            mode=_number(_FORCE_MODES, record.force.mode), gradient_gain=record.force.gradient_gain
        ),
        weight_decay=dynamics_pb2.WeightDecay(
            bare=decay.bare, thermal=decay.thermal, decoupled=decay.decoupled, follows_speed=decay.follows_speed
        ),
        integrator=dynamics_pb2.Integrator(scheme=dynamics_pb2.INTEGRATION_SCHEME_SYMPLECTIC_EULER),
        normalise=record.normalise,
        lookahead=record.lookahead,
        first_kick=record.first_kick,
    )


def _thermal_profile_message(record: ThermalProfile) -> dynamics_pb2.ThermalProfile:
    if isinstance(record, Constant):
        return dynamics_pb2.ThermalProfile(constant=dynamics_pb2.ConstantProfile())
    profile = dynamics_pb2.ExponentialProfile(**_held(record, "momentum_retention", "cooling_rate"))
    return dynamics_pb2.ThermalProfile(exponential=profile)


def _kinetic_energy_message(record: KineticEnergy) -> dynamics_pb2.KineticEnergy:
    if isinstance(record, Classical):
        return dynamics_pb2.KineticEnergy(classical=dynamics_pb2.ClassicalKinetic())
    relativistic = dynamics_pb2.RelativisticKinetic(
        **_held(record, "max_step", "speed_limit"), rest_cooling=record.rest_cooling, rest_energy=record.rest_energy
    )
    return dynamics_pb2.KineticEnergy(relativistic=relativistic)


def _metric_message(record: Metric) -> dynamics_pb2.Metric:
    if isinstance(record, Euclidean):
        return dynamics_pb2.Metric(kind=dynamics_pb2.METRIC_KIND_EUCLIDEAN)
    return dynamics_pb2.Metric(
        kind=dynamics_pb2.METRIC_KIND_DIAGONAL,
        **_held(record, "second_moment_decay", "second_moment_gain", "epsilon", "power"),
        epsilon_inside=record.epsilon_inside,
        centered=record.centered,
        normalise=record.normalise,
        place=_number(_PLACES, record.place),
    )


def _parameter(record: Parameter) -> dynamics_pb2.RecipeParameter:
    return dynamics_pb2.RecipeParameter(
        name=record.name,
        kind=_PARAMETER_KINDS[record.kind],
        default_value=_value_message(record.default),
        minimum=record.minimum,
        minimum_excluded=record.minimum_excluded,
        maximum=record.maximum,
        maximum_excluded=record.maximum_excluded,
        choices=record.choices,
        description=record.description,
    )


def _value(name: str, message: dynamics_pb2.ParameterValue) -> float | bool | str:
    kind = message.WhichOneof("value")
    if kind is None:
        raise InvalidRequest(
            f"parameter {name[:80]!r} has no value; set number, flag or choice",
            field=f"{ROOT}.recipe.parameters.{name[:80]}",
        )
    value: float | bool | str = getattr(message, kind)
    return value


def _value_message(value: float | bool | str) -> dynamics_pb2.ParameterValue:
    if isinstance(value, bool):
        return dynamics_pb2.ParameterValue(flag=value)
    if isinstance(value, str):
        return dynamics_pb2.ParameterValue(choice=value)
    return dynamics_pb2.ParameterValue(number=value)


def _given(message: Message, *names: str | None) -> dict[str, Any]:
    """The fields that were set, so that absent ones take the default of the class they go to."""
    return {name: getattr(message, name) for name in names if name and message.HasField(name)}


def _held(record: object, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names if getattr(record, name) is not None}


def _member(members: Mapping[Any, Any], number: int, enum: str, field: str) -> Any:
    if number not in members:
        names = ", ".join(str(member) for member in dict.fromkeys(members.values()))
        raise InvalidRequest(f"{field} is {_name(enum, number)}; this server knows {names}", field=field)
    return members[number]


def _number(members: Mapping[Any, Any], wanted: object) -> Any:
    return next(number for number, member in members.items() if number and member == wanted)


def _name(enum: str, number: int) -> str:
    value = _DESCRIPTOR.enum_types_by_name[enum].values_by_number.get(number)
    return value.name if value else str(number)


def _not_yet(what: str, known: str, field: str) -> Unsupported:
    return Unsupported(f"{what} is part of the contract, but this server computes {known} so far", field=field)
