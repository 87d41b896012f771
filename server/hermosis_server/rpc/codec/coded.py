"""Coded: gradients that come in fewer bytes than they stand for, and answers that go back so."""

from collections.abc import Callable, Iterator

import numpy as np

from hermosis import coding, wire
from hermosis.coding import Codec, CodecKind, Undecodable
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_server.engine.budget import Budget
from hermosis_server.errors import CorruptChunk, InvalidRequest
from hermosis_server.records import GradientChunk, Vector
from hermosis_server.rpc.codec import enums


def codec(message: types_pb2.Codec, *, field: str) -> Codec:
    """A codec that a worker asks for; an absent message is PLAIN.

    Raises:
      InvalidRequest: a kind that there is not, or a fraction that is none.
    """
    kind = enums.known(CodecKind, message.kind, default=CodecKind.PLAIN, field=f"{field}.kind")
    try:
        return Codec(kind, message.fraction or coding.DEFAULT_FRACTION)
    except ValueError as error:
        raise InvalidRequest(str(error), field=f"{field}.fraction") from None


def gradient_chunk(
    message: gradient_pb2.CodedChunk, kind: CodecKind, dtype: Dtype, *, max_chunk_bytes: int
) -> GradientChunk:
    """A coded piece of a gradient, decoded.

    Args:
      dtype:           of what it decodes to, as the handle was opened for.
      max_chunk_bytes: what one chunk may decode to; memory is taken when that has been checked.

    Raises:
      InvalidRequest: the handle was opened without a codec; no elements or too many; a payload that is none of them.
      CorruptChunk:   the payload is not what was sent.
    """
    if kind is CodecKind.PLAIN:
        raise InvalidRequest("a coded chunk came on a handle without a gradient_codec; open it with one", field="coded")
    length, payload = message.length, message.payload
    if not 0 < length * dtype.itemsize <= max_chunk_bytes or len(payload) > max_chunk_bytes + coding.EXTRA_BYTES:
        raise InvalidRequest(
            f"coded chunk has {length} elements in {len(payload)} bytes; wanted at least one, decoded at most "
            f"{max_chunk_bytes} bytes",
            field="coded.length",
        )
    actual = wire.checksum(payload)
    if actual != message.crc32:
        raise CorruptChunk(
            f"chunk at element {message.offset} has checksum {actual:08x}, its sender computed {message.crc32:08x}; "
            "send it again",
            field="coded.crc32",
        )
    try:
        if kind is CodecKind.DEFLATE:
            decoded = coding.inflate(payload, dtype.itemsize, length)
        else:
            values = np.empty(length, np.dtype("<f4"))
            coding.decode(kind, payload, values)
            decoded = values.data.cast("B")
    except Undecodable as error:
        raise InvalidRequest(f"chunk at element {message.offset} cannot be decoded: {error}", field="coded") from None
    return GradientChunk(
        sequence=message.sequence,
        offset=message.offset,
        dtype=dtype,
        crc32=wire.checksum(decoded),
        payload=decoded,
        saved_bytes=len(decoded) - len(payload),
    )


class CodedAnswers:
    """Answers on one handle under a codec.

    Under one that loses something the server keeps what the worker holds, and sends what that lacks: whatever a codec
    leaves out is in the next difference again, and so is what other workers did in between.

    Args:
      codec:    not PLAIN.
      elements: P of the session.
      budget:   of the session, which pays for what is kept.

    Raises:
      Overloaded: there is no memory for it just now.
    """

    def __init__(self, codec: Codec, elements: int, budget: Budget) -> None:
        self._codec = codec
        self._budget = budget
        self._kept_bytes = elements * Dtype.FLOAT32.itemsize if codec.is_lossy else 0
        budget.take(self._kept_bytes)
        self._answers = 0  # so far; no two send elements of the same places
        self._held: coding.Float32 | None = None  # (P,), by the worker, when it has read all that was written

    def close(self) -> None:
        """Gives what is kept back. Called once."""
        self._budget.give(self._kept_bytes)
        self._held = None

    def messages(
        self,
        vector: Vector,
        *,
        handle: int,
        sequence: int,
        chunk_bytes: int,
        plain: Callable[[memoryview, int], bytes],
    ) -> Iterator[bytes]:
        """ExchangeResponses with the chunks of a vector, each made when it is to be written, and written when made.

        Args:
          plain: makes one without a codec, of a piece of the vector and its offset.
        """
        self._answers += 1
        itemsize = vector.dtype.itemsize
        begins = self._codec.is_lossy and self._held is None
        if begins:
            self._held = np.empty(len(vector.payload) // itemsize, np.float32)
        for offset, length in wire.spans(len(vector.payload) // itemsize, itemsize, chunk_bytes):
            piece = vector.payload[offset * itemsize : (offset + length) * itemsize]
            if begins and self._held is not None:
                self._held[offset : offset + length] = np.frombuffer(piece, "<f4")
                yield plain(piece, offset)
                continue
            payload = self._coded(piece, offset, vector)
            message = gradient_pb2.CodedChunk(
                handle=handle,
                sequence=sequence,
                offset=offset,
                length=length,
                crc32=wire.checksum(payload),
                payload=payload,
                step=vector.step,
                reply=int(vector.reply),  # type: ignore[arg-type]
            )
            yield gradient_pb2.ExchangeResponse(coded=message).SerializeToString()

    def _coded(self, piece: memoryview, offset: int, vector: Vector) -> bytes:
        if not self._codec.is_lossy:
            return coding.deflate(piece, vector.dtype.itemsize)
        assert self._held is not None, "the first answer was plain"
        present = np.frombuffer(piece, "<f4")
        held = self._held[offset : offset + len(present)]
        change = present - held
        payload = coding.encode(self._codec, change, seed=coding.seed_of("answer", self._answers, offset))
        coding.decode(self._codec.kind, payload, change)
        held += change
        return payload
