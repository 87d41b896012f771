"""State digest: one hash for everything that decides how a session goes on. Standard library only."""

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence

from hermosis_server.records import StateBuffer, WorkerSequence

_NAN = struct.pack("<d", math.nan)


def state_digest(
    buffers: Mapping[StateBuffer, bytes | bytearray | memoryview],
    scalars: Sequence[float],
    workers: Sequence[WorkerSequence],
) -> bytes:
    """SHA-256 of a session's optimizer state; equal states have equal digests on every machine.

    Everything is little-endian and counted before it is written, so no two states give the same bytes.

    Args:
      buffers: float32 elements of each buffer, exactly one a parameter and no padding.
      scalars: in the order of records.StateScalars; every NaN counts as the same.
      workers: in any order; they are sorted by id.
    """
    digest = hashlib.sha256(b"hermosis.state.v1")
    digest.update(struct.pack("<I", len(buffers)))
    for kind in sorted(buffers):
        payload = memoryview(buffers[kind]).cast("B")
        digest.update(struct.pack("<IQ", int(kind), payload.nbytes))
        digest.update(payload)
    digest.update(struct.pack("<I", len(scalars)))
    for value in scalars:
        digest.update(_NAN if math.isnan(value) else struct.pack("<d", value))
    digest.update(struct.pack("<I", len(workers)))
    for worker in sorted(workers, key=lambda worker: worker.worker_id):
        name = worker.worker_id.encode()
        digest.update(struct.pack("<I", len(name)) + name)
        digest.update(struct.pack("<QIIQ", worker.sequence, worker.payload_crc32, int(worker.outcome), worker.step))
    return digest.digest()
