"""The optimizer as a message: a recipe with parameters, or a Hamiltonian; and the recipes described."""

from hermosis.v1 import dynamics_pb2
from hermosis_server.dynamics import RECIPES, Hamiltonian, Parameter, RecipeSpec
from hermosis_server.errors import InvalidRequest
from hermosis_server.records import RecipeChoice
from hermosis_server.rpc.codec import hamiltonian

ROOT = "optimizer"

_PARAMETER_KINDS = {
    "number": dynamics_pb2.PARAMETER_KIND_NUMBER,
    "flag": dynamics_pb2.PARAMETER_KIND_FLAG,
    "choice": dynamics_pb2.PARAMETER_KIND_CHOICE,
}


def from_message(message: dynamics_pb2.Optimizer) -> RecipeChoice | Hamiltonian:
    """What a session was asked to move by.

    Raises:
      InvalidRequest, InvalidHyperparameter: naming the field.
    """
    kind = message.WhichOneof("definition")
    if kind == "recipe":
        values = {name: _value(name, value) for name, value in message.recipe.parameters.items()}
        return RecipeChoice(name=message.recipe.name, parameters=values)
    if kind == "hamiltonian":
        return hamiltonian.from_message(message.hamiltonian)
    raise InvalidRequest("no optimizer was given; name a recipe, or state a Hamiltonian", field=ROOT)


def to_message(optimizer: RecipeChoice | Hamiltonian) -> dynamics_pb2.Optimizer:
    """The same, as it is shown and exported."""
    if isinstance(optimizer, RecipeChoice):
        parameters = {name: _value_message(value) for name, value in optimizer.parameters.items()}
        return dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name=optimizer.name, parameters=parameters))
    return dynamics_pb2.Optimizer(hamiltonian=hamiltonian.to_message(optimizer))


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
