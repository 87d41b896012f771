"""Between protobuf messages and the client's records. The only file that reads management and telemetry messages."""

import dataclasses
import math
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from hermosis import hot
from hermosis.coding import CodecKind
from hermosis.v1 import access_pb2, dynamics_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_client.layout import ParameterLayout, TensorSpec
from hermosis_client.records import (
    ENERGIES,
    Aggregation,
    Alert,
    AlertSeverity,
    AuditEntry,
    Capabilities,
    Consistency,
    ConsistencyMode,
    DeviceOverview,
    Durability,
    DurabilityMode,
    EnergySample,
    Limits,
    Optimizer,
    Outcome,
    Overview,
    ParameterKind,
    ParametersOn,
    Recipe,
    RecipeDescription,
    RecipeParameter,
    RecipeValue,
    Role,
    SessionInfo,
    SessionMemory,
    SessionStatus,
    SnapshotInfo,
    StepResult,
    TelemetryReading,
    TokenInfo,
    WorkerInfo,
)

_ABSENT_WHEN_UNSET = frozenset(field.name for field in types_pb2.EnergySample.DESCRIPTOR.fields if field.has_presence)
_DTYPES = frozenset(map(int, Dtype))
_CODECS = frozenset(map(int, CodecKind))
_LIMITS = tuple(field.name for field in dataclasses.fields(Limits))


def dtype_number(dtype: Dtype) -> types_pb2.Dtype.ValueType:
    """The enumeration value of a wire dtype."""
    return types_pb2.Dtype.ValueType(int(dtype))


def layout_message(layout: ParameterLayout) -> types_pb2.ParameterLayout:
    return types_pb2.ParameterLayout(
        tensors=[
            types_pb2.TensorSpec(name=tensor.name, shape=tensor.shape, dtype=dtype_number(tensor.dtype))
            for tensor in layout.tensors
        ]
    )


def layout(message: types_pb2.ParameterLayout) -> ParameterLayout:
    return ParameterLayout(
        tuple(
            TensorSpec(name=tensor.name, shape=tuple(tensor.shape), dtype=Dtype(tensor.dtype or Dtype.FLOAT32))
            for tensor in message.tensors
        )
    )


def optimizer_message(optimizer: Optimizer | str) -> dynamics_pb2.Optimizer:
    """The message of a recipe, of a recipe's name, or of a whole Hamiltonian."""
    if isinstance(optimizer, dynamics_pb2.Hamiltonian):
        return dynamics_pb2.Optimizer(hamiltonian=optimizer)
    recipe = Recipe(optimizer) if isinstance(optimizer, str) else optimizer
    values = {name: _parameter_value(name, value) for name, value in recipe.items}
    return dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name=recipe.name, parameters=values))


def optimizer(message: dynamics_pb2.Optimizer) -> Optimizer:
    if message.WhichOneof("definition") == "hamiltonian":
        return message.hamiltonian
    given = {name: _value(value) for name, value in message.recipe.parameters.items()}
    return Recipe(message.recipe.name, **{name: value for name, value in given.items() if value is not None})


def session_info(message: session_pb2.Session) -> SessionInfo:
    spec = message.spec
    return SessionInfo(
        session_id=message.session_id,
        status=SessionStatus(message.status),
        status_reason=message.status_reason,
        step=message.step,
        durable_step=message.durable_step,
        generation=message.generation,
        layout=layout(spec.layout),
        parameter_count=message.parameter_count,
        device=message.device,
        device_bytes=message.device_bytes,
        host_bytes=message.host_bytes,
        lr_scale=message.lr_scale,
        optimizer=optimizer(spec.optimizer),
        consistency=_consistency(spec.consistency),
        aggregation=_aggregation(spec.aggregation),
        workers=message.workers,
        durability=DurabilityMode(spec.durability.mode),
        snapshot_every_steps=spec.durability.snapshot_every_steps,
        snapshot_every_s=spec.durability.snapshot_every_s,
        parameters_on=ParametersOn(spec.parameters_on or ParametersOn.SERVER),
        display_name=spec.display_name,
        labels=dict(spec.labels),
        create_time_s=_seconds(message.create_time),
        etag=message.etag,
    )


def consistency_message(wanted: Consistency) -> types_pb2.Consistency:
    """Raises ValueError for a word that there is not."""
    return types_pb2.Consistency(
        mode=_number(types_pb2.ConsistencyMode, wanted.mode),
        workers=wanted.workers,
        quorum=wanted.quorum,
        deadline_s=wanted.deadline_s,
        max_staleness=wanted.max_staleness,
        local_steps=wanted.local_steps,
        late=_number(types_pb2.LatePolicy, wanted.late)
        if wanted.late != "default"
        else types_pb2.LATE_POLICY_UNSPECIFIED,
        staleness_weight=_number(types_pb2.StalenessWeight, wanted.staleness_weight),
        lease_s=wanted.lease_s,
    )


def aggregation_message(wanted: Aggregation | None) -> types_pb2.Aggregation | None:
    """Raises ValueError for a word that there is not."""
    if wanted is None:
        return None
    return types_pb2.Aggregation(
        rule=_number(types_pb2.AggregationRule, wanted.rule),
        max_norm=wanted.max_norm,
        byzantine=wanted.byzantine,
        quarantine=wanted.quarantine,
        clip_norm=wanted.clip_norm,
    )


def _consistency(message: types_pb2.Consistency) -> Consistency:
    return Consistency(
        mode=_word(types_pb2.ConsistencyMode, message.mode or types_pb2.CONSISTENCY_MODE_BARRIER),
        workers=message.workers or 1,
        quorum=message.quorum,
        deadline_s=message.deadline_s,
        max_staleness=message.max_staleness,
        local_steps=message.local_steps,
        late=_word(types_pb2.LatePolicy, message.late) if message.late else "default",
        staleness_weight=_word(
            types_pb2.StalenessWeight, message.staleness_weight or types_pb2.STALENESS_WEIGHT_AS_NOW
        ),
        lease_s=message.lease_s,
    )


def _aggregation(message: types_pb2.Aggregation) -> Aggregation:
    return Aggregation(
        rule=_word(types_pb2.AggregationRule, message.rule or types_pb2.AGGREGATION_RULE_MEAN),
        max_norm=message.max_norm,
        byzantine=message.byzantine,
        quarantine=message.quarantine,
        clip_norm=message.clip_norm,
    )


def _words(kind: Any) -> dict[int, str]:
    """An enumeration's words as people write them, by number."""
    known = kind.DESCRIPTOR.values_by_number
    prefix = known[0].name.removesuffix("UNSPECIFIED")
    return {number: value.name.removeprefix(prefix).lower() for number, value in known.items() if number}


def _word(kind: Any, number: int) -> Any:
    """The word of a number; "unknown" for one of a later version."""
    return _words(kind).get(number, "unknown")


def _number(kind: Any, word: str) -> Any:
    """The other way round. Raises ValueError for a word that there is not."""
    for number, known in _words(kind).items():
        if known == word:
            return number
    raise ValueError(f"{word!r} is not one of {', '.join(map(repr, _words(kind).values()))}")


def durability_message(wanted: Durability | None) -> types_pb2.Durability | None:
    if wanted is None:
        return None
    return types_pb2.Durability(
        mode=types_pb2.DurabilityMode.ValueType(DurabilityMode[wanted.mode.upper()]),
        snapshot_every_steps=wanted.snapshot_every_steps,
        snapshot_every_s=wanted.snapshot_every_s,
    )


def snapshot_info(message: session_pb2.Snapshot) -> SnapshotInfo:
    return SnapshotInfo(
        snapshot_id=message.snapshot_id,
        step=message.step,
        generation=message.generation,
        size_bytes=message.size_bytes,
        time_s=_seconds(message.time),
    )


def token_info(message: access_pb2.Token) -> TokenInfo:
    return TokenInfo(
        name=message.name,
        role=Role(message.role),
        tenant=message.tenant,
        sessions=message.sessions,
        create_time_s=_seconds(message.create_time),
        expire_time_s=_seconds(message.expire_time) if message.HasField("expire_time") else None,
        revoke_time_s=_seconds(message.revoke_time) if message.HasField("revoke_time") else None,
    )


def audit_entry(message: access_pb2.AuditEntry) -> AuditEntry:
    return AuditEntry(
        time_s=_seconds(message.time),
        subject=message.subject,
        role=Role(message.role),
        method=message.method,
        session_id=message.session_id,
        token=message.token,
        request_id=message.request_id,
        outcome=message.outcome,
    )


def worker_info(message: session_pb2.Worker) -> WorkerInfo:
    return WorkerInfo(
        worker_id=message.worker_id,
        connected=message.connected,
        next_sequence=message.next_sequence,
        base_step=message.base_step,
        staleness=message.staleness,
        received_bytes=message.received_bytes,
        awaited=message.awaited,
        lost=message.lost,
        influence=message.influence,
        compression_error=_known(message, "compression_error"),
        last_seen_time_s=_seconds(message.last_seen_time),
    )


def energies(message: types_pb2.EnergySample) -> EnergySample:
    """A sample with NaN for whatever the server left undefined."""
    given = {field.name for field, _ in message.ListFields()}
    undefined = _ABSENT_WHEN_UNSET - given
    return EnergySample(**{name: math.nan if name in undefined else getattr(message, name) for name in ENERGIES})


def step_result(message: hot.StepResult) -> StepResult:
    return StepResult(
        sequence=message.sequence,
        outcome=Outcome(message.outcome),
        step=message.step,
        durable_step=message.durable_step,
        generation=message.generation,
        duplicate=message.duplicate,
        staleness=message.staleness,
        contributions=message.contributions,
        energies=EnergySample() if message.energies is None else EnergySample(*message.energies),
        state_digest=message.state_digest,
    )


def telemetry_reading(message: telemetry_pb2.TelemetryReading) -> TelemetryReading:
    return TelemetryReading(
        session_id=message.session_id,
        step=message.step,
        time_s=_seconds(message.time),
        energies=energies(message.energies),
        contributions=message.contributions,
        staleness=message.staleness,
        received_bytes=message.received_bytes,
        sent_bytes=message.sent_bytes,
        device_s=message.device_s,
        batch_sessions=message.batch_sessions,
        wait_s=message.wait_s,
        compression_error=_known(message, "compression_error"),
    )


def overview(message: telemetry_pb2.Overview) -> Overview:
    return Overview(
        time_s=_seconds(message.time),
        uptime_s=message.uptime_s,
        steps=message.steps,
        received_bytes=message.received_bytes,
        sent_bytes=message.sent_bytes,
        steps_per_s=message.steps_per_s,
        received_bytes_per_s=message.received_bytes_per_s,
        sent_bytes_per_s=message.sent_bytes_per_s,
        queue_rounds=message.queue_rounds,
        queue_bytes=message.queue_bytes,
        batch_sessions=message.batch_sessions if message.HasField("batch_sessions") else math.nan,
        step_p50_s=message.step_p50_s if message.HasField("step_p50_s") else math.nan,
        step_p99_s=message.step_p99_s if message.HasField("step_p99_s") else math.nan,
        streams=message.streams,
        staging_bytes=message.staging_bytes,
        staging_limit_bytes=message.staging_limit_bytes,
        devices=tuple(
            DeviceOverview(
                name=device.name,
                capacity_bytes=device.capacity_bytes,
                used_bytes=device.used_bytes,
                free_bytes=device.free_bytes,
                sessions=tuple(
                    SessionMemory(
                        session_id=held.session_id, device_bytes=held.device_bytes, host_bytes=held.host_bytes
                    )
                    for held in device.sessions
                ),
            )
            for device in message.devices
        ),
        alerts=tuple(
            Alert(severity=AlertSeverity(alert.severity), rule=alert.rule, session_id=alert.session_id, text=alert.text)
            for alert in message.alerts
        ),
    )


def capabilities(message: session_pb2.Capabilities) -> Capabilities:
    return Capabilities(
        server_version=message.server_version,
        device=message.device,
        limits=Limits(**{name: getattr(message.limits, name) for name in _LIMITS}),
        dtypes=tuple(Dtype(number).name.lower() for number in map(int, message.dtypes) if number in _DTYPES),
        recipes=tuple(message.recipes),
        consistency_modes=tuple(ConsistencyMode(mode) for mode in message.consistency_modes),
        durability_modes=tuple(DurabilityMode(mode) for mode in message.durability_modes),
        default_durability_mode=DurabilityMode(message.default_durability_mode),
        device_bytes_free=message.device_bytes_free,
        codecs=tuple(CodecKind(number).name.lower() for number in map(int, message.codecs) if number in _CODECS),
    )


def recipe_description(message: dynamics_pb2.RecipeDescription) -> RecipeDescription:
    return RecipeDescription(
        name=message.name,
        parameters=tuple(_recipe_parameter(parameter) for parameter in message.parameters),
        physics=message.physics,
        source=message.source,
    )


def _recipe_parameter(message: dynamics_pb2.RecipeParameter) -> RecipeParameter:
    return RecipeParameter(
        name=message.name,
        kind=ParameterKind(message.kind),
        default=_value(message.default_value),
        minimum=message.minimum if message.HasField("minimum") else -math.inf,
        minimum_excluded=message.minimum_excluded,
        maximum=message.maximum if message.HasField("maximum") else math.inf,
        maximum_excluded=message.maximum_excluded,
        choices=tuple(message.choices),
        description=message.description,
    )


def _parameter_value(name: str, value: RecipeValue) -> dynamics_pb2.ParameterValue:
    if isinstance(value, bool):
        return dynamics_pb2.ParameterValue(flag=value)
    if isinstance(value, str):
        return dynamics_pb2.ParameterValue(choice=value)
    try:
        return dynamics_pb2.ParameterValue(number=float(value))
    except (TypeError, ValueError):
        raise TypeError(f"recipe parameter {name} is {value!r}; it can be a number, a flag or a word") from None


def _value(message: dynamics_pb2.ParameterValue) -> RecipeValue | None:
    match message.WhichOneof("value"):
        case "number":
            return message.number
        case "flag":
            return message.flag
        case "choice":
            return message.choice
        case _:
            return None


def _known(message: Any, name: str) -> float:
    """An optional number; NaN where it is absent."""
    return float(getattr(message, name)) if message.HasField(name) else math.nan


def _seconds(time: Timestamp) -> float:
    return time.seconds + time.nanos / 1e9
