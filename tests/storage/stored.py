"""Sessions' records and snapshots for tests, small and with every kind of content."""

import numpy as np

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.records import (
    ExportedState,
    Outcome,
    ParameterLayout,
    SessionStatus,
    StateBuffer,
    StateScalars,
    TensorSpec,
    WorkerSequence,
)
from hermosis_server.storage.snapshot_file import StoredSnapshot
from hermosis_server.storage.store import SessionRecord


def layout() -> ParameterLayout:
    tensors = (
        TensorSpec(name="fc1.weight", shape=(2, 3)),
        TensorSpec(name="größe", shape=(), dtype=Dtype.BFLOAT16),
        TensorSpec(name="none", shape=(0, 4)),
    )
    digest = wire.layout_digest((one.name, one.shape, one.dtype) for one in tensors)
    return ParameterLayout(tensors=tensors, digest=digest, parameter_count=7)


def snapshot(session_id: str = "ant", step: int = 3, generation: int = 1) -> StoredSnapshot:
    scalars = {name: float("nan") for name in StateScalars.__dataclass_fields__} | {"clock": 0.1, "log_beta": -1e-300}
    return StoredSnapshot(
        session_id=session_id,
        generation=generation,
        layout=layout(),
        document=b"\x00settings\xff",
        state=ExportedState(
            scalars=StateScalars(**(scalars | {"step": step})),  # type: ignore[arg-type]
            buffers={
                StateBuffer.PARAMETERS: memoryview(np.arange(7, dtype="<f4") + step),
                StateBuffer.MOMENTUM: memoryview(np.full(7, np.nan, dtype="<f4")).cast("B"),
                StateBuffer.EIGENVALUES: memoryview(np.ones(2, dtype="<f4")).cast("B"),
            },
            workers={"w": WorkerSequence("w", 3, 0xFFFFFFFF, Outcome.APPLIED, step)},
            refused={"w": WorkerSequence("w", 2, 1, Outcome.NON_FINITE_GRADIENT, 1)},
            digest=bytes(range(32)),
        ),
    )


def record(session_id: str = "ant", generation: int = 1, **changed: object) -> SessionRecord:
    fields: dict[str, object] = {
        "session_id": session_id,
        "generation": generation,
        "replaced_generation": 1,
        "recovered_steps": tuple(range(generation - 1)),
        "status": SessionStatus.READY,
        "revision": 4,
        "lr_scale": 0.1,
        "created_s": 1234567.891,
        "document": b"\x01\x02",
        "request_id": "r",
        "request_fingerprint": b"\xff",
    }
    return SessionRecord(**(fields | changed))  # type: ignore[arg-type]


def content(stored: StoredSnapshot) -> tuple[object, ...]:
    """A snapshot as values that compare, NaN being equal to NaN."""
    state = stored.state
    buffers = {kind: bytes(memoryview(payload).cast("B")) for kind, payload in state.buffers.items()}
    return (
        (stored.session_id, stored.generation, stored.layout, stored.document, repr(state.scalars), buffers),
        (state.workers, state.refused, state.digest),
    )
