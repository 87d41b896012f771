"""SnapshotFile: a session's whole optimizer state as one safetensors file, which any reader of that format opens.

Vectors with an element a parameter are there tensor by tensor, under names such as "parameters/fc1.weight"; others are
whole.
The numbers, the sequence table and a checksum of everything ride in the header's metadata:

    hermosis        JSON: what is not a tensor, the tensors' places, and the CRC-32 of each buffer
    hermosis_crc32  of that text

Reading believes nothing that the checksums do not cover: the header must be, byte for byte, the one that would be
written.
"""

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.errors import CorruptState
from hermosis_server.records import (
    ExportedState,
    Outcome,
    ParameterLayout,
    StateBuffer,
    StateScalars,
    TensorSpec,
    WorkerSequence,
)
from hermosis_server.storage.disk import Bytes, Disk

FORMAT = 1
MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
_LENGTH = struct.Struct("<Q")
_READ_BYTES = 16 << 20
_ITEMSIZE = Dtype.FLOAT32.itemsize
_WHOLE = "the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSnapshot:
    """A session's state with what is needed to make the session again.

    Attributes:
      generation: that the state belongs to: the one that began when it was last replaced on purpose.
      document:   the session's settings, in whatever bytes the server writes them.
    """

    session_id: str
    generation: int
    layout: ParameterLayout
    state: ExportedState
    document: bytes


def parts(snapshot: StoredSnapshot) -> list[Bytes]:
    """The file's bytes, one piece after another; the vectors are not copied."""
    buffers = {kind: memoryview(payload).cast("B") for kind, payload in sorted(snapshot.state.buffers.items())}
    manifest = _manifest(snapshot, {kind: wire.checksum(payload) for kind, payload in buffers.items()})
    sizes = {kind: len(payload) for kind, payload in buffers.items()}
    return [*_header(manifest, snapshot.layout, sizes), *buffers.values()]


def write(disk: Disk, path: Path, snapshot: StoredSnapshot, *, aside: str = "") -> int:
    """Writes the file, whole or not at all; gives its length in bytes.

    Raises:
      StorageFull, OSError.
    """
    pieces = parts(snapshot)
    disk.write_whole(path, pieces, aside=aside)
    return sum(len(piece) for piece in pieces)


def read(path: Path) -> StoredSnapshot:
    """Reads a file back.

    Raises:
      CorruptState: it is not what was written, in whatever way.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            content = memoryview(bytearray(size))
            filled = 0
            while filled < size and (count := file.readinto(content[filled : filled + _READ_BYTES])):
                filled += count
    except OSError as error:
        raise CorruptState(f"snapshot {path.name} cannot be read ({error.strerror})") from error
    try:
        return from_bytes(content[:filled])
    except CorruptState as error:
        raise CorruptState(f"snapshot {path.name} is damaged: {error}") from error


def from_bytes(content: memoryview) -> StoredSnapshot:
    """The snapshot in a file's bytes; its vectors are views of them.

    Raises:
      CorruptState: it is not what was written.
    """
    try:
        return _from_bytes(content)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise CorruptState(f"its header cannot be read ({error})") from error


def _from_bytes(content: memoryview) -> StoredSnapshot:
    (length,) = _LENGTH.unpack_from(content)
    if length > min(MAX_HEADER_BYTES, len(content) - _LENGTH.size):
        raise CorruptState(f"its header would be {length} bytes long, {_WHOLE} is {len(content)}")
    end = _LENGTH.size + length
    metadata = json.loads(bytes(content[_LENGTH.size : end]))["__metadata__"]
    text = metadata["hermosis"]
    if metadata["hermosis_crc32"] != f"{wire.checksum(text.encode()):08x}":
        raise CorruptState("its manifest has another checksum than when it was written")
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise CorruptState(f"it has format {manifest['format']}, and this version reads {FORMAT}")
    layout = _layout(manifest["layout"])
    sizes = {StateBuffer[name]: said["bytes"] for name, said in manifest["buffers"].items()}
    if b"".join(map(bytes, _header(manifest, layout, sizes))) != bytes(content[:end]):
        raise CorruptState("its header is not the one that goes with its manifest")
    if end + sum(sizes.values()) != len(content):
        raise CorruptState(f"it is {len(content)} bytes long, and should be {end + sum(sizes.values())}")
    buffers: dict[StateBuffer, memoryview] = {}
    for kind, size in sizes.items():
        buffers[kind] = content[end : end + size]
        if wire.checksum(buffers[kind]) != manifest["buffers"][kind.name]["crc32"]:
            raise CorruptState(f"its {kind.name.lower()} have another checksum than when they were written")
        end += size
    return StoredSnapshot(
        session_id=manifest["session_id"],
        generation=manifest["generation"],
        layout=layout,
        document=base64.b64decode(manifest["document"], validate=True),
        state=ExportedState(
            scalars=_scalars(manifest["scalars"]),
            buffers=buffers,
            workers=_table(manifest["workers"]),
            refused=_table(manifest["refused"]),
            digest=bytes.fromhex(manifest["state_digest"]),
        ),
    )


def _manifest(snapshot: StoredSnapshot, checksums: Mapping[StateBuffer, int]) -> dict[str, Any]:
    state = snapshot.state
    return {
        "format": FORMAT,
        "session_id": snapshot.session_id,
        "generation": snapshot.generation,
        "state_digest": state.digest.hex(),
        "scalars": {
            "step": state.scalars.step,
            **{
                name: float(getattr(state.scalars, name)).hex()
                for name in StateScalars.__dataclass_fields__
                if name != "step"
            },
        },
        "workers": [[*entry] for entry in state.workers.values()],
        "refused": [[*entry] for entry in state.refused.values()],
        "buffers": {
            kind.name: {"bytes": len(memoryview(payload).cast("B")), "crc32": checksums[kind]}
            for kind, payload in sorted(state.buffers.items())
        },
        "layout": [[tensor.name, list(tensor.shape), int(tensor.dtype)] for tensor in snapshot.layout.tensors],
        "document": base64.b64encode(snapshot.document).decode(),
    }


def _header(manifest: Mapping[str, Any], layout: ParameterLayout, sizes: Mapping[StateBuffer, int]) -> list[bytes]:
    """The length and the JSON of a safetensors header; a function of the manifest alone."""
    text = json.dumps(manifest, separators=(",", ":"))
    header: dict[str, Any] = {
        "__metadata__": {"hermosis": text, "hermosis_crc32": f"{wire.checksum(text.encode()):08x}"}
    }
    begin = 0
    for kind, size in sizes.items():
        if size == layout.parameter_count * _ITEMSIZE:
            pieces: Sequence[tuple[str, Sequence[int]]] = [
                (f"{kind.name.lower()}/{tensor.name}", tensor.shape) for tensor in layout.tensors
            ]
        else:
            pieces = [(kind.name.lower(), (size // _ITEMSIZE,))]
        for name, shape in pieces:
            end = begin + math.prod(shape) * _ITEMSIZE
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the vectors begin where eight bytes do
    return [_LENGTH.pack(len(raw)), raw]


def _layout(said: Sequence[Any]) -> ParameterLayout:
    tensors = tuple(TensorSpec(name=name, shape=tuple(shape), dtype=Dtype(dtype)) for name, shape, dtype in said)
    digest = wire.layout_digest((tensor.name, tensor.shape, tensor.dtype) for tensor in tensors)
    return ParameterLayout(tensors=tensors, digest=digest, parameter_count=sum(tensor.elements for tensor in tensors))


def _scalars(said: Mapping[str, Any]) -> StateScalars:
    numbers = {name: float.fromhex(value) for name, value in said.items() if name != "step"}
    return StateScalars(step=said["step"], **numbers)


def _table(said: Sequence[Any]) -> dict[str, WorkerSequence]:
    lines = [
        WorkerSequence(name, sequence, crc32, Outcome(outcome), step) for name, sequence, crc32, outcome, step in said
    ]
    return {line.worker_id: line for line in lines}
