"""Between the JSON of schemas.py and the client's records."""

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import JsonValue

from hermosis.v1 import dynamics_pb2
from hermosis.wire import Dtype
from hermosis_client import errors, layout, records
from hermosis_sidecar import schemas

_Message = TypeVar("_Message", bound=Message)

_DTYPE_WORDS: Mapping[Dtype, schemas.DtypeWord] = {
    Dtype.FLOAT32: "FLOAT32",
    Dtype.FLOAT16: "FLOAT16",
    Dtype.BFLOAT16: "BFLOAT16",
}


def session(info: records.SessionInfo) -> schemas.Session:
    """A session in full."""
    return schemas.Session(
        session_id=info.session_id,
        spec=schemas.SessionSpec(
            layout=_layout(info.layout),
            optimizer=optimizer(info.optimizer),
            consistency=consistency(info.consistency),
            aggregation=schemas.Aggregation(**_words(info.aggregation, "rule")),
            durability=schemas.Durability(
                mode=info.durability,
                snapshot_every_steps=info.snapshot_every_steps,
                snapshot_every_s=info.snapshot_every_s,
            ),
            parameters_on=info.parameters_on,
            display_name=info.display_name,
            labels=dict(info.labels),
        ),
        status=info.status,
        status_reason=info.status_reason,
        step=info.step,
        durable_step=info.durable_step,
        generation=info.generation,
        layout_digest=info.layout.digest.hex(),
        parameter_count=info.parameter_count,
        device=info.device,
        device_bytes=info.device_bytes,
        host_bytes=info.host_bytes,
        lr_scale=info.lr_scale,
        create_time=_time(info.create_time_s),
        etag=info.etag,
        workers=info.workers,
    )


def summary(info: records.SessionInfo, reading: records.TelemetryReading | None) -> schemas.SessionSummary:
    """A session in a list."""
    return schemas.SessionSummary(
        session_id=info.session_id,
        display_name=info.display_name,
        status=info.status,
        status_reason=info.status_reason,
        step=info.step,
        durable_step=info.durable_step,
        generation=info.generation,
        parameter_count=info.parameter_count,
        device=info.device,
        device_bytes=info.device_bytes,
        host_bytes=info.host_bytes,
        optimizer=optimizer(info.optimizer),
        lr_scale=info.lr_scale,
        consistency_mode=records.ConsistencyMode[info.consistency.mode.upper()],
        durability_mode=info.durability,
        workers=info.workers,
        expected_workers=info.consistency.workers,
        labels=dict(info.labels),
        create_time=_time(info.create_time_s),
        reading=None if reading is None else schemas.TelemetryReading.model_validate(reading),
    )


def consistency(record: records.Consistency) -> schemas.Consistency:
    """When contributions become a step."""
    return schemas.Consistency(**_words(record, "mode", "late", "staleness_weight"))


def consistency_record(asked: schemas.NewConsistency) -> records.Consistency:
    """The other way round."""
    return records.Consistency(**_said(asked, "mode", "late", "staleness_weight"))


def aggregation_record(asked: schemas.NewAggregation) -> records.Aggregation:
    """How the contributions of a round become one gradient."""
    return records.Aggregation(**_said(asked, "rule"))


def _words(record: records.Consistency | records.Aggregation, *names: str) -> dict[str, Any]:
    """The fields of a record; those named are words, which JSON has in capitals."""
    fields = dataclasses.asdict(record)
    return fields | {name: fields[name].upper() for name in names}


def _said(asked: schemas.NewConsistency | schemas.NewAggregation, *names: str) -> dict[str, Any]:
    fields = asked.model_dump()
    return fields | {name: fields[name].lower() for name in names}


def optimizer(record: records.Optimizer) -> schemas.Optimizer:
    """A recipe, or the whole Hamiltonian in protobuf's JSON."""
    if isinstance(record, records.Recipe):
        return schemas.Optimizer(recipe=schemas.Recipe(name=record.name, parameters=record.parameters))
    return schemas.Optimizer(hamiltonian=json_format.MessageToDict(record, preserving_proto_field_name=True))


def optimizer_record(asked: schemas.Optimizer) -> records.Optimizer:
    """The other way round.

    Raises:
      InvalidRequest: the Hamiltonian is not one.
    """
    if asked.recipe is not None:
        return records.Recipe(asked.recipe.name, **asked.recipe.parameters)
    return _parsed(asked.hamiltonian or {}, dynamics_pb2.Hamiltonian(), field="optimizer.hamiltonian")


def thermal_profile_record(asked: dict[str, JsonValue]) -> dynamics_pb2.ThermalProfile:
    """A thermal profile.

    Raises:
      InvalidRequest: it is none.
    """
    return _parsed(asked, dynamics_pb2.ThermalProfile(), field="thermal_profile")


def durability_record(asked: schemas.NewDurability) -> records.Durability:
    """What is to be kept of a session."""
    modes: dict[str, Literal["none", "snapshot", "journal"]] = {
        "NONE": "none",
        "SNAPSHOT": "snapshot",
        "JOURNAL": "journal",
    }
    return records.Durability(
        mode=modes[asked.mode],
        snapshot_every_steps=asked.snapshot_every_steps,
        snapshot_every_s=asked.snapshot_every_s,
    )


def layout_record(asked: schemas.ParameterLayout) -> layout.ParameterLayout:
    """The layout as the client wants it; whether it is a good one, the server decides."""
    return layout.ParameterLayout(
        tuple(
            layout.TensorSpec(name=tensor.name, shape=tuple(tensor.shape), dtype=Dtype[tensor.dtype])
            for tensor in asked.tensors
        )
    )


def snapshot(record: records.Snapshot) -> schemas.Snapshot:
    """A snapshot that was just written."""
    return schemas.Snapshot(snapshot_id=record.snapshot_id, step=record.step, state_digest=record.state_digest.hex())


def snapshots(held: list[records.SnapshotInfo]) -> schemas.SnapshotList:
    """What the disk has."""
    return schemas.SnapshotList(
        snapshots=[
            schemas.SnapshotInfo(
                snapshot_id=each.snapshot_id,
                step=each.step,
                generation=each.generation,
                size_bytes=each.size_bytes,
                time=_time(each.time_s),
            )
            for each in held
        ]
    )


def workers(known: list[records.WorkerInfo]) -> schemas.WorkerList:
    """Who contributes."""
    return schemas.WorkerList(
        workers=[
            schemas.Worker(
                worker_id=each.worker_id,
                connected=each.connected,
                next_sequence=each.next_sequence,
                base_step=each.base_step,
                staleness=each.staleness,
                received_bytes=each.received_bytes,
                awaited=each.awaited,
                lost=each.lost,
                influence=each.influence,
                compression_error=each.compression_error,
                last_seen_time=_time(each.last_seen_time_s),
            )
            for each in known
        ]
    )


def token(info: records.TokenInfo) -> schemas.Token:
    """What is known of a token."""
    return schemas.Token(
        name=info.name,
        role=info.role,
        tenant=info.tenant,
        sessions=info.sessions,
        create_time=_time(info.create_time_s),
        expire_time=None if info.expire_time_s is None else _time(info.expire_time_s),
        revoke_time=None if info.revoke_time_s is None else _time(info.revoke_time_s),
    )


def audit_entry(record: records.AuditEntry) -> schemas.AuditEntry:
    """One management call."""
    return schemas.AuditEntry(
        time=_time(record.time_s),
        subject=record.subject,
        role=record.role,
        method=record.method,
        session_id=record.session_id,
        token=record.token,
        request_id=record.request_id,
        outcome=record.outcome,
    )


def telemetry(reading: records.TelemetryReading) -> schemas.TelemetryReading:
    """One reading."""
    return schemas.TelemetryReading.model_validate(reading)


def capabilities(record: records.Capabilities) -> schemas.Capabilities:
    """What the server is. The client writes dtypes and codecs small; here they are words like all others."""
    shown = schemas.Capabilities.model_validate(record)
    words = {name: [word.upper() for word in getattr(record, name)] for name in ("dtypes", "codecs")}
    return shown.model_copy(update=words)


def recipes(descriptions: list[records.RecipeDescription]) -> schemas.RecipeList:
    """The named optimizers."""
    return schemas.RecipeList(recipes=[schemas.RecipeDescription.model_validate(each) for each in descriptions])


def _parsed(asked: dict[str, JsonValue], message: _Message, *, field: str) -> _Message:
    try:
        return json_format.ParseDict(asked, message)
    except json_format.ParseError as error:
        raise errors.InvalidRequest(str(error), field=field) from None


def _layout(record: layout.ParameterLayout) -> schemas.ParameterLayout:
    return schemas.ParameterLayout(
        tensors=[
            schemas.TensorSpec(name=tensor.name, shape=list(tensor.shape), dtype=_DTYPE_WORDS[tensor.dtype])
            for tensor in record.tensors
        ]
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
