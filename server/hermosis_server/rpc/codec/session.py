"""Sessions, layouts and what a server can do."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from hermosis import wire
from hermosis.coding import CodecKind
from hermosis.v1 import session_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_server.dynamics import SCALARS
from hermosis_server.engine.checks import CONSISTENCY_MODES, MAX_NAME_BYTES, MAX_WORKER_ID_BYTES
from hermosis_server.engine.engine import SessionEdit
from hermosis_server.engine.keeper import Held
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.errors import CorruptState, HermosisError, InvalidRequest, LayoutMismatch, QuotaExceeded
from hermosis_server.identity import shown_id
from hermosis_server.records import (
    Aggregation,
    AggregationRule,
    Consistency,
    ConsistencyMode,
    Durability,
    DurabilityMode,
    ExportedState,
    LatePolicy,
    Limits,
    Outcome,
    ParameterLayout,
    ParametersOn,
    SessionStatus,
    StalenessWeight,
    StateBuffer,
    StateScalars,
    TensorSpec,
    WorkerSequence,
)
from hermosis_server.rpc.codec import enums, hamiltonian, optimizer
from hermosis_server.rpc.codec.telemetry import timestamp

MAX_AXIS = 1 << 40
MAX_COUNT = 1 << 53  # of steps and sequences: a state keeps its step as a double

T = TypeVar("T")


def layout(message: types_pb2.ParameterLayout, limits: Limits) -> ParameterLayout:
    """Checks every number before anything is multiplied or kept.

    Raises:
      InvalidRequest, QuotaExceeded: naming the tensor.
    """
    count = len(message.tensors)
    if not 0 < count <= limits.max_tensors:
        raise InvalidRequest(
            f"the layout has {count} tensors; wanted 1 to {limits.max_tensors}", field="spec.layout.tensors"
        )
    tensors, names, total = [], set(), 0
    for index, tensor in enumerate(message.tensors):
        path = f"spec.layout.tensors[{index}]"
        if not wire.is_plain_name(tensor.name, MAX_NAME_BYTES) or tensor.name in names:
            raise InvalidRequest(
                f"tensor {index} is named {tensor.name[:80]!r}; wanted a name of its own, 1 to {MAX_NAME_BYTES} bytes "
                "without control characters",
                field=f"{path}.name",
            )
        if len(tensor.shape) > limits.max_rank or any(not 0 <= axis <= MAX_AXIS for axis in tensor.shape):
            raise InvalidRequest(
                f"tensor {tensor.name[:80]!r} is {list(tensor.shape)[:20]}; wanted {limits.max_rank} axes at most, "
                f"each from 0 to {MAX_AXIS}",
                field=f"{path}.shape",
            )
        spec = TensorSpec(
            name=tensor.name, shape=tuple(tensor.shape), dtype=enums.dtype(tensor.dtype, field=f"{path}.dtype")
        )
        names.add(spec.name)
        tensors.append(spec)
        total += spec.elements
        if total > limits.max_parameters:
            raise QuotaExceeded(
                f"the layout has more than {limits.max_parameters} elements, the most this server takes",
                field="spec.layout",
            )
    if total == 0:
        raise InvalidRequest("the layout has no elements; there is nothing to optimize", field="spec.layout")
    digest = wire.layout_digest((tensor.name, tensor.shape, tensor.dtype) for tensor in tensors)
    return ParameterLayout(tensors=tuple(tensors), digest=digest, parameter_count=total)


def spec(message: session_pb2.SessionSpec, limits: Limits, default: Durability | None) -> SessionSpec:
    """What a session is made from.

    Args:
      default: durability of one that asks for none in particular; None where nothing can be kept.
    """
    return SessionSpec(
        layout=layout(message.layout, limits),
        optimizer=optimizer.from_message(message.optimizer),
        consistency=consistency(message.consistency),
        durability=durability(message.durability, default),
        parameters_on=enums.known(
            ParametersOn, message.parameters_on, default=ParametersOn.SERVER, field="spec.parameters_on"
        ),
        display_name=message.display_name,
        labels=dict(message.labels),
        aggregation=aggregation(message.aggregation),
    )


def consistency(message: types_pb2.Consistency, field: str = "spec.consistency") -> Consistency:
    mode = enums.known(ConsistencyMode, message.mode, default=ConsistencyMode.BARRIER, field=f"{field}.mode")
    usual = LatePolicy.DROP if mode is ConsistencyMode.QUORUM else LatePolicy.REFUSE
    return Consistency(
        mode=mode,
        workers=message.workers or 1,
        quorum=message.quorum,
        deadline_s=message.deadline_s,
        max_staleness=message.max_staleness,
        local_steps=message.local_steps,
        late=enums.known(LatePolicy, message.late, default=usual, field=f"{field}.late"),
        staleness_weight=enums.known(
            StalenessWeight, message.staleness_weight, default=StalenessWeight.AS_NOW, field=f"{field}.staleness_weight"
        ),
        lease_s=message.lease_s,
    )


def aggregation(message: types_pb2.Aggregation) -> Aggregation:
    return Aggregation(
        rule=enums.known(AggregationRule, message.rule, default=AggregationRule.MEAN, field="spec.aggregation.rule"),
        max_norm=message.max_norm,
        byzantine=message.byzantine,
        quarantine=message.quarantine,
        clip_norm=message.clip_norm,
    )


def durability(message: types_pb2.Durability, default: Durability | None) -> Durability:
    """What is kept of a session.

    Raises:
      InvalidRequest: a time between snapshots that is none, or nothing kept where something is asked for.
    """
    usual = Durability() if default is None else default
    mode = enums.known(DurabilityMode, message.mode, default=usual.mode, field="spec.durability.mode")
    every_s = message.snapshot_every_s
    if not 0 <= every_s < math.inf:
        raise InvalidRequest(
            f"snapshot_every_s is {every_s}; it is a number of seconds, or 0 for not by time",
            field="spec.durability.snapshot_every_s",
        )
    if mode is DurabilityMode.NONE:
        return Durability()
    if default is None:
        raise InvalidRequest(
            f"durability {mode.name} needs a server with a data folder; ask for NONE, or export the session",
            field="spec.durability.mode",
        )
    if not (message.snapshot_every_steps or every_s):
        return replace(usual, mode=mode)
    return Durability(mode=mode, snapshot_every_steps=message.snapshot_every_steps, snapshot_every_s=every_s)


def document(record: SessionSpec) -> bytes:
    """A spec as bytes for the disk."""
    return _spec_message(record).SerializeToString(deterministic=True)


def from_document(raw: bytes, limits: Limits) -> SessionSpec:
    """The spec that `document` wrote.

    Raises:
      CorruptState: it is none.
    """
    try:
        return spec(session_pb2.SessionSpec.FromString(raw), limits, Durability(mode=DurabilityMode.SNAPSHOT))
    except (DecodeError, HermosisError) as error:
        raise CorruptState(f"what is stored of its settings cannot be used ({error})") from error


def session(record: Session) -> session_pb2.Session:
    parameters = record.spec.layout
    return session_pb2.Session(
        session_id=shown_id(record.session_id),
        spec=_spec_message(record.spec),
        status=int(record.status),  # type: ignore[arg-type]
        step=record.step,
        durable_step=record.durable_step,
        generation=record.generation,
        layout_digest=parameters.digest,
        parameter_count=parameters.parameter_count,
        device_bytes=record.resident.slot.device_bytes if record.resident else 0,
        host_bytes=record.resident.slot.host_bytes if record.resident else 0,
        device=record.resident.slot.device if record.resident else "",
        lr_scale=record.lr_scale,
        create_time=timestamp(record.created_s),
        etag=str(record.revision),
        workers=len(record.workers),
    )


def set_aside(session_id: str, reason: str) -> session_pb2.Session:
    """A session that was found damaged on disk."""
    status = int(SessionStatus.FAILED)
    return session_pb2.Session(session_id=session_id, status=status, status_reason=reason)  # type: ignore[arg-type]


def snapshot(record: Held) -> session_pb2.Snapshot:
    return session_pb2.Snapshot(
        snapshot_id=record.snapshot_id,
        step=record.step,
        generation=record.generation,
        size_bytes=record.size_bytes,
        time=timestamp(record.written_s),
    )


def _spec_message(record: SessionSpec) -> session_pb2.SessionSpec:
    tensors = [
        types_pb2.TensorSpec(name=tensor.name, shape=tensor.shape, dtype=int(tensor.dtype))  # type: ignore[arg-type]
        for tensor in record.layout.tensors
    ]
    return session_pb2.SessionSpec(
        layout=types_pb2.ParameterLayout(tensors=tensors),
        optimizer=optimizer.to_message(record.optimizer),
        consistency=_consistency_message(record.consistency),
        durability=types_pb2.Durability(
            mode=int(record.durability.mode),  # type: ignore[arg-type]
            snapshot_every_steps=record.durability.snapshot_every_steps,
            snapshot_every_s=record.durability.snapshot_every_s,
        ),
        parameters_on=int(record.parameters_on),  # type: ignore[arg-type]
        display_name=record.display_name,
        labels=record.labels,
        aggregation=None if record.aggregation == Aggregation() else _aggregation_message(record.aggregation),
    )


def _consistency_message(record: Consistency) -> types_pb2.Consistency:
    return types_pb2.Consistency(
        mode=int(record.mode),  # type: ignore[arg-type]
        workers=record.workers,
        quorum=record.quorum,
        deadline_s=record.deadline_s,
        max_staleness=record.max_staleness,
        local_steps=record.local_steps,
        late=int(record.late),  # type: ignore[arg-type]
        staleness_weight=int(record.staleness_weight),  # type: ignore[arg-type]
        lease_s=record.lease_s,
    )


def _aggregation_message(record: Aggregation) -> types_pb2.Aggregation:
    return types_pb2.Aggregation(
        rule=int(record.rule),  # type: ignore[arg-type]
        max_norm=record.max_norm,
        byzantine=record.byzantine,
        quarantine=record.quarantine,
        clip_norm=record.clip_norm,
    )


def edit(request: session_pb2.UpdateSessionRequest) -> SessionEdit:
    """The fields that the mask names."""
    readers: Mapping[str, Callable[[], object]] = {
        "lr_scale": lambda: request.edit.lr_scale,
        "thermal_profile": lambda: hamiltonian.thermal_profile(request.edit.thermal_profile),
        "display_name": lambda: request.edit.display_name,
        "labels": lambda: dict(request.edit.labels),
        "consistency": lambda: consistency(request.edit.consistency, "edit.consistency"),
    }
    paths = request.update_mask.paths
    unknown = [path for path in paths if path not in readers]
    if unknown or not paths:
        raise InvalidRequest(
            f"update_mask names {unknown or 'nothing'}; wanted one or more of {', '.join(readers)}",
            field="update_mask",
        )
    values = {path: readers[path]() for path in paths}
    if values.get("lr_scale") == 0:
        raise InvalidRequest(
            "lr_scale is 0; pause the session instead, or give a positive number", field="edit.lr_scale"
        )
    values["thermal"] = values.pop("thermal_profile", None)
    return SessionEdit(**values)  # type: ignore[arg-type]


def limits(record: Limits) -> session_pb2.Limits:
    names = [field.name for field in session_pb2.Limits.DESCRIPTOR.fields]
    return session_pb2.Limits(**{name: getattr(record, name) for name in names})


def capabilities(
    record: Limits, *, version: str, device: str, recipes: list[str], free_bytes: int, default: Durability | None
) -> session_pb2.Capabilities:
    return session_pb2.Capabilities(
        server_version=version,
        device=device,
        limits=limits(record),
        dtypes=[int(member) for member in Dtype],  # type: ignore[misc]
        recipes=recipes,
        consistency_modes=[int(mode) for mode in CONSISTENCY_MODES],  # type: ignore[misc]
        durability_modes=[int(mode) for mode in DurabilityMode if default or mode is DurabilityMode.NONE],  # type: ignore[misc]
        default_durability_mode=int(default.mode if default else DurabilityMode.NONE),  # type: ignore[arg-type]
        device_bytes_free=free_bytes,
        codecs=[int(kind) for kind in CodecKind],  # type: ignore[misc]
    )


def exported(record: Session, state: ExportedState, chunk_bytes: int) -> Iterator[session_pb2.ExportSessionResponse]:
    """A whole optimizer state as a stream: the numbers first, then each buffer in chunks."""
    yield session_pb2.ExportSessionResponse(state=state_head(_spec_message(record.spec), record.spec.layout, state))
    itemsize = Dtype.FLOAT32.itemsize
    for buffer, memory in state.buffers.items():
        for offset, length in wire.spans(len(memory) // itemsize, itemsize, chunk_bytes):
            payload = bytes(memory[offset * itemsize : (offset + length) * itemsize])
            chunk = session_pb2.StateChunk(
                buffer=int(buffer),  # type: ignore[arg-type]
                offset=offset,
                crc32=wire.checksum(payload),
                payload=payload,
            )
            yield session_pb2.ExportSessionResponse(chunk=chunk)


def state_head(
    made_from: session_pb2.SessionSpec, layout: ParameterLayout, state: ExportedState
) -> session_pb2.SessionState:
    """All of a state but its long vectors."""
    return session_pb2.SessionState(
        layout_digest=layout.digest,
        spec=made_from,
        scalars=session_pb2.StateScalars(**{name: getattr(state.scalars, name) for name in SCALARS}),
        buffers=[int(buffer) for buffer in state.buffers],  # type: ignore[misc]
        workers=[
            session_pb2.WorkerSequence(
                worker_id=entry.worker_id,
                sequence=entry.sequence,
                payload_crc32=entry.payload_crc32,
                outcome=int(entry.outcome),  # type: ignore[arg-type]
                step=entry.step,
            )
            for entry in state.workers.values()
        ],
        state_digest=state.digest,
        buffer_elements=[len(memory) // Dtype.FLOAT32.itemsize for memory in state.buffers.values()],
    )


def imported(
    message: session_pb2.SessionState, record: Session, buffers: Mapping[StateBuffer, memoryview], limits: Limits
) -> ExportedState:
    """The state that an import adds up to.

    Raises:
      LayoutMismatch: it was exported from another layout.
      InvalidRequest: it holds more workers than a session may have, or numbers that no session has.
    """
    if message.layout_digest != record.spec.layout.digest:
        raise LayoutMismatch(
            f"the state is of a layout with digest {message.layout_digest[:32].hex()}, session "
            f"{shown_id(record.session_id)} has {record.spec.layout.digest.hex()}; make a session with the layout of "
            "the export",
            field="state.layout_digest",
        )
    if len(message.workers) > limits.max_workers:
        raise InvalidRequest(
            f"the state has {len(message.workers)} workers; a session may have {limits.max_workers}",
            field="state.workers",
        )
    _check_counts(message)
    if sorted(message.buffers) != sorted(int(buffer) for buffer in buffers):
        raise LayoutMismatch(
            f"the state holds buffers {sorted(message.buffers)}, session {shown_id(record.session_id)} keeps "
            f"{sorted(int(buffer) for buffer in buffers)}; make a session with the optimizer of the export",
            field="state.buffers",
        )
    return state_of(message, buffers)


def state_of(message: session_pb2.SessionState, buffers: Mapping[StateBuffer, memoryview]) -> ExportedState:
    """A state from its head and its vectors."""
    return ExportedState(
        scalars=StateScalars(**{name: getattr(message.scalars, name) for name in SCALARS}),
        buffers=buffers,
        workers={
            entry.worker_id: WorkerSequence(
                worker_id=entry.worker_id,
                sequence=entry.sequence,
                payload_crc32=entry.payload_crc32,
                outcome=enums.known(Outcome, entry.outcome, default=Outcome.APPLIED, field="state.workers.outcome"),
                step=entry.step,
            )
            for entry in message.workers
        },
        digest=message.state_digest,
    )


def _check_counts(message: session_pb2.SessionState) -> None:
    """Raises InvalidRequest for steps and workers that no session has."""
    names = set()
    for place, entry in enumerate(message.workers):
        if not wire.is_plain_name(entry.worker_id, MAX_WORKER_ID_BYTES) or entry.worker_id in names:
            raise InvalidRequest(
                f"worker {place} of the state is named {entry.worker_id[:80]!r}; wanted a name of its own, 1 to "
                f"{MAX_WORKER_ID_BYTES} bytes without control characters",
                field=f"state.workers[{place}].worker_id",
            )
        names.add(entry.worker_id)
    counts = [message.scalars.step, *(number for entry in message.workers for number in (entry.sequence, entry.step))]
    if max(counts) > MAX_COUNT:
        raise InvalidRequest(
            f"the state counts up to {max(counts)}; steps and sequences go to {MAX_COUNT}", field="state"
        )


def fingerprint(request: Message) -> bytes:
    """Tells one request from another under the same request_id."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
