"""Sessions, layouts and what a server can do."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from google.protobuf.message import Message

from hermosis import wire
from hermosis.v1 import session_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_server.dynamics import SCALARS
from hermosis_server.engine.checks import CONSISTENCY_MODES, MAX_NAME_BYTES
from hermosis_server.engine.engine import SessionEdit
from hermosis_server.engine.resident import ExportedState
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.errors import InvalidRequest, LayoutMismatch, QuotaExceeded, Unsupported
from hermosis_server.identity import shown_id
from hermosis_server.records import (
    Consistency,
    ConsistencyMode,
    DurabilityMode,
    Limits,
    Outcome,
    ParameterLayout,
    ParametersOn,
    StateBuffer,
    StateScalars,
    TensorSpec,
    WorkerSequence,
)
from hermosis_server.rpc.codec import enums, hamiltonian, optimizer
from hermosis_server.rpc.codec.telemetry import timestamp

MAX_AXIS = 1 << 40

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


def spec(message: session_pb2.SessionSpec, limits: Limits) -> SessionSpec:
    durability = enums.known(
        DurabilityMode, message.durability.mode, default=DurabilityMode.NONE, field="spec.durability.mode"
    )
    if durability is not DurabilityMode.NONE:
        raise Unsupported(
            f"durability {durability.name} is part of the contract, but this server keeps sessions in memory so far; "
            "ask for NONE, or export the session where you want to keep it",
            field="spec.durability.mode",
        )
    return SessionSpec(
        layout=layout(message.layout, limits),
        optimizer=optimizer.from_message(message.optimizer),
        consistency=consistency(message.consistency),
        parameters_on=enums.known(
            ParametersOn, message.parameters_on, default=ParametersOn.SERVER, field="spec.parameters_on"
        ),
        display_name=message.display_name,
        labels=dict(message.labels),
    )


def consistency(message: types_pb2.Consistency) -> Consistency:
    return Consistency(
        mode=enums.known(ConsistencyMode, message.mode, default=ConsistencyMode.BARRIER, field="spec.consistency.mode"),
        workers=message.workers or 1,
        max_staleness=message.max_staleness,
    )


def session(record: Session) -> session_pb2.Session:
    parameters = record.spec.layout
    return session_pb2.Session(
        session_id=shown_id(record.session_id),
        spec=_spec_message(record.spec),
        status=int(record.status),  # type: ignore[arg-type]
        step=record.step,
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


def _spec_message(record: SessionSpec) -> session_pb2.SessionSpec:
    tensors = [
        types_pb2.TensorSpec(name=tensor.name, shape=tensor.shape, dtype=int(tensor.dtype))  # type: ignore[arg-type]
        for tensor in record.layout.tensors
    ]
    return session_pb2.SessionSpec(
        layout=types_pb2.ParameterLayout(tensors=tensors),
        optimizer=optimizer.to_message(record.optimizer),
        consistency=types_pb2.Consistency(
            mode=int(record.consistency.mode),  # type: ignore[arg-type]
            workers=record.consistency.workers,
            max_staleness=record.consistency.max_staleness,
        ),
        durability=types_pb2.Durability(mode=int(DurabilityMode.NONE)),  # type: ignore[arg-type]
        parameters_on=int(record.parameters_on),  # type: ignore[arg-type]
        display_name=record.display_name,
        labels=record.labels,
    )


def edit(request: session_pb2.UpdateSessionRequest) -> SessionEdit:
    """The fields that the mask names."""
    readers: Mapping[str, Callable[[], object]] = {
        "lr_scale": lambda: request.edit.lr_scale,
        "thermal_profile": lambda: hamiltonian.thermal_profile(request.edit.thermal_profile),
        "display_name": lambda: request.edit.display_name,
        "labels": lambda: dict(request.edit.labels),
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
    record: Limits, *, version: str, device: str, recipes: list[str], free_bytes: int
) -> session_pb2.Capabilities:
    return session_pb2.Capabilities(
        server_version=version,
        device=device,
        limits=limits(record),
        dtypes=[int(member) for member in Dtype],  # type: ignore[misc]
        recipes=recipes,
        consistency_modes=[int(mode) for mode in CONSISTENCY_MODES],  # type: ignore[misc]
        durability_modes=[int(DurabilityMode.NONE)],  # type: ignore[list-item]
        default_durability_mode=int(DurabilityMode.NONE),  # type: ignore[arg-type]
        device_bytes_free=free_bytes,
    )


def exported(record: Session, state: ExportedState, chunk_bytes: int) -> Iterator[session_pb2.ExportSessionResponse]:
    """A whole optimizer state as a stream: the numbers first, then each buffer in chunks."""
    head = session_pb2.SessionState(
        layout_digest=record.spec.layout.digest,
        optimizer=optimizer.to_message(record.spec.optimizer),
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
    yield session_pb2.ExportSessionResponse(state=head)
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
    if sorted(message.buffers) != sorted(int(buffer) for buffer in buffers):
        raise LayoutMismatch(
            f"the state holds buffers {sorted(message.buffers)}, session {shown_id(record.session_id)} keeps "
            f"{sorted(int(buffer) for buffer in buffers)}; make a session with the optimizer of the export",
            field="state.buffers",
        )
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


def fingerprint(request: Message) -> bytes:
    """Tells one request from another under the same request_id."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
