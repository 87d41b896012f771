"""Records of the client against the messages they stand for."""

import dataclasses
import math
import pickle
from typing import Any

import pytest

from hermosis import hot
from hermosis.v1 import dynamics_pb2, gradient_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis_client import ParameterLayout, Recipe, codec, records

TWINS = [
    (records.SessionStatus, types_pb2.SessionStatus),
    (records.ParametersOn, types_pb2.ParametersOn),
    (records.ConsistencyMode, types_pb2.ConsistencyMode),
    (records.DurabilityMode, types_pb2.DurabilityMode),
    (records.Outcome, types_pb2.Outcome),
    (records.AlertSeverity, telemetry_pb2.AlertSeverity),
    (records.Reply, gradient_pb2.Reply),
    (records.ParameterKind, dynamics_pb2.ParameterKind),
]


@pytest.mark.parametrize(("kind", "wire"), TWINS, ids=lambda side: getattr(side, "__name__", ""))
def test_enumerations_have_the_names_and_numbers_of_the_wire(kind: Any, wire: Any) -> None:
    prefix = wire.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    on_the_wire = {name.removeprefix(prefix): number for name, number in wire.items() if number}
    assert {member.name: member.value for member in kind if member} == on_the_wire


@pytest.mark.parametrize(("kind", "wire"), TWINS, ids=lambda side: getattr(side, "__name__", ""))
def test_a_number_of_a_newer_server_reads_as_unknown(kind: Any, wire: Any) -> None:
    assert kind(999) is kind.UNKNOWN


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (records.EnergySample, types_pb2.EnergySample),
        (records.Limits, session_pb2.Limits),
        (records.Capabilities, session_pb2.Capabilities),
        (records.RecipeDescription, dynamics_pb2.RecipeDescription),
    ],
)
def test_fields_are_those_of_the_message(record: Any, message: Any) -> None:
    names = getattr(record, "_fields", None) or tuple(field.name for field in dataclasses.fields(record))
    assert list(names) == list(message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("record", "message", "renamed"),
    [
        (records.TelemetryReading, telemetry_pb2.TelemetryReading, {"time": "time_s"}),
        (records.Overview, telemetry_pb2.Overview, {"time": "time_s"}),
        (records.DeviceOverview, telemetry_pb2.DeviceOverview, {}),
        (records.SessionMemory, telemetry_pb2.SessionMemory, {}),
        (records.Alert, telemetry_pb2.Alert, {}),
        (records.WorkerInfo, session_pb2.Worker, {"last_seen_time": "last_seen_time_s"}),
        (records.StepResult, gradient_pb2.StepResult, {"handle": ""}),
    ],
)
def test_fields_are_those_of_the_message_but_for_plain_times(record: Any, message: Any, renamed: dict) -> None:
    expected = {renamed.get(name, name) for name in message.DESCRIPTOR.fields_by_name} - {""}
    assert {field.name for field in dataclasses.fields(record)} == expected


def test_undefined_energies_are_nan_and_defined_zeros_are_zero() -> None:
    sample = codec.energies(types_pb2.EnergySample(loss=0.0, log_beta=2.0))
    assert sample.loss == 0.0  # present, though zero
    assert sample.log_beta == 2.0
    assert sample.step_norm == 0.0  # always defined
    assert math.isnan(sample.entropy)


def test_energies_are_nan_where_nothing_was_applied() -> None:
    energies = codec.step_result(hot.StepResult(sequence=1)).energies
    assert all(math.isnan(value) for value in energies)


@pytest.mark.parametrize(
    "recipe", [Recipe("sgd"), Recipe("adamw", lr=1e-3, weight_decay=0), Recipe("sgd", nesterov=True, kind="fast")]
)
def test_recipes_come_back_from_their_message_and_from_a_pickle(recipe: Recipe) -> None:
    assert codec.optimizer(codec.optimizer_message(recipe)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(recipe) == hash(Recipe(recipe.name, **recipe.parameters))


def test_recipes_keep_flags_apart_from_numbers() -> None:
    message = codec.optimizer_message(Recipe("sgd", nesterov=True, lr=1)).recipe
    assert message.parameters["nesterov"].WhichOneof("value") == "flag"
    assert message.parameters["lr"].WhichOneof("value") == "number"
    with pytest.raises(TypeError, match="lr is None"):
        codec.optimizer_message(Recipe("sgd", lr=None))  # type: ignore[arg-type]


def test_recipe_reads_as_it_is_written() -> None:
    assert repr(Recipe("sgd", lr=0.1)) == "Recipe('sgd', lr=0.1)"


def test_layouts_come_back_from_their_message() -> None:
    layout = ParameterLayout.of({"scalar": (), "w": (3, 0, 2)})
    assert codec.layout(codec.layout_message(layout)) == layout
