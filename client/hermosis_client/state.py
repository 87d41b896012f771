"""ExportedState: a session's whole optimizer state, for a checkpoint that lives with the worker."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from hermosis import wire
from hermosis.v1 import session_pb2
from hermosis_client.dtypes import Float32, decode_into, encode
from hermosis_client.errors import CorruptState

_PREFIX = "STATE_BUFFER_"
_State = session_pb2.SessionState


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedState:
    """All that a session needs to go on as if nothing had happened.

    Attributes:
      head:    numbers, sequence table and digest, as the bytes of a hermosis.v1 SessionState; opaque.
      buffers: the vectors that the optimizer keeps: (P,) such as "parameters" and "momentum", and the matrices of a
               full or Kronecker metric, side by side.
    """

    head: bytes
    buffers: Mapping[str, Float32] = field(repr=False)

    @property
    def step(self) -> int:
        """Steps that had been applied."""
        return _State.FromString(self.head).scalars.step

    @property
    def state_digest(self) -> bytes:
        """Digest of the state, as the server computed it."""
        return _State.FromString(self.head).state_digest


def received(messages: Iterable[session_pb2.ExportSessionResponse]) -> ExportedState:
    """Puts an export together.

    Raises:
      CorruptState: a piece is missing, out of place or damaged.
    """
    head: _State | None = None
    buffers: dict[str, Float32] = {}
    filled: dict[str, int] = {}
    for message in messages:
        if message.WhichOneof("part") == "state":
            head = message.state
            if len(head.buffers) != len(head.buffer_elements):
                raise CorruptState("the export tells the length of some buffers only; the server is of another version")
            buffers = {
                _name(buffer): np.empty(elements, np.float32)
                for buffer, elements in zip(head.buffers, head.buffer_elements, strict=True)
            }
            filled = dict.fromkeys(buffers, 0)
            continue
        chunk = message.chunk
        name = _name(chunk.buffer)
        payload = chunk.payload  # Once: every access builds a new object.
        end = chunk.offset + len(payload) // 4
        if (
            filled.get(name) != chunk.offset
            or end > buffers[name].size
            or len(payload) % 4
            or wire.checksum(payload) != chunk.crc32
        ):
            raise CorruptState(f"the export came damaged at element {chunk.offset} of {name}; export it again")
        decode_into(payload, wire.Dtype.FLOAT32, buffers[name][chunk.offset : end])
        filled[name] = end
    if head is None or any(end != buffers[name].size for name, end in filled.items()):
        raise CorruptState("the export ended early; export it again")
    return ExportedState(head=head.SerializeToString(), buffers=buffers)


def sent(state: ExportedState, session_id: str, chunk_bytes: int) -> Iterator[session_pb2.ImportSessionRequest]:
    """The messages of an import."""
    head = _State.FromString(state.head)
    yield session_pb2.ImportSessionRequest(session_id=session_id, state=head)
    for buffer in head.buffers:
        values = state.buffers[_name(buffer)]
        for offset, length in wire.spans(values.size, 4, chunk_bytes):
            payload = bytes(encode(values[offset : offset + length], wire.Dtype.FLOAT32))
            chunk = session_pb2.StateChunk(buffer=buffer, offset=offset, crc32=wire.checksum(payload), payload=payload)
            yield session_pb2.ImportSessionRequest(chunk=chunk)


def _name(buffer: session_pb2.StateBuffer.ValueType) -> str:
    return session_pb2.StateBuffer.Name(buffer).removeprefix(_PREFIX).lower()
