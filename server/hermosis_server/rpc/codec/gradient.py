"""Gradients, results and vectors."""

import math
from collections.abc import Iterator
from typing import Any

from hermosis import hot, wire
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis.wire import Dtype
from hermosis_server.engine.rounds import Answer
from hermosis_server.errors import InvalidRequest, LayoutMismatch
from hermosis_server.records import Commit, EnergySample, GradientChunk, Reply, SegmentOffer, StepResult, Vector
from hermosis_server.rpc.codec import enums
from hermosis_server.rpc.codec.coded import CodedAnswers

# These exist for every step; the others may be undefined, and then are absent.
_ALWAYS = frozenset(field.name for field in types_pb2.EnergySample.DESCRIPTOR.fields if not field.has_presence)


def chunk(message: hot.GradientChunk, agreed: Dtype) -> GradientChunk:
    """A chunk of a gradient whose stream was opened for `agreed`."""
    return GradientChunk(
        sequence=message.sequence,
        offset=message.offset,
        dtype=enums.dtype(message.dtype, field="chunk.dtype", default=agreed) if message.dtype else agreed,
        crc32=message.crc32,
        payload=message.payload,
    )


def segment_chunk(message: gradient_pb2.SegmentChunk, place: memoryview, agreed: Dtype) -> GradientChunk:
    """A piece of a gradient that lies in shared memory.

    Raises:
      LayoutMismatch: it ends beyond the place.
    """
    begin, end = message.offset * agreed.itemsize, (message.offset + message.length) * agreed.itemsize
    if end > len(place):
        raise LayoutMismatch(
            f"chunk ends at element {message.offset + message.length}, the session has "
            f"{len(place) // agreed.itemsize}; check the parameter order and sizes",
            field="segment.offset",
        )
    return GradientChunk(
        sequence=message.sequence, offset=message.offset, dtype=agreed, crc32=message.crc32, payload=place[begin:end]
    )


def segment_offer(message: gradient_pb2.SegmentOffer) -> SegmentOffer:
    return SegmentOffer(message.process_id, message.descriptor, message.token)


def commit(message: hot.Commit) -> Commit:
    return Commit(
        sequence=message.sequence,
        base_step=message.base_step,
        loss=math.nan if message.loss is None else message.loss,
        sample_count=message.sample_count,
        lr_scale=message.lr_scale,
        want_digest=message.want_digest,
        skipped=message.skipped,
        loss_scale=message.loss_scale,
        compression_error=message.compression_error,
    )


def whole_gradient(message: hot.WholeGradient, agreed: Dtype) -> GradientChunk:
    """A gradient that came whole: a chunk from the first element on."""
    return GradientChunk(
        sequence=message.commit.sequence,
        offset=0,
        dtype=enums.dtype(message.dtype, field="gradient.dtype", default=agreed) if message.dtype else agreed,
        crc32=message.crc32,
        payload=message.payload,
    )


def hot_result(result: StepResult, handle: int) -> hot.StepResult:
    """A result on a stream."""
    return hot.StepResult(
        handle,
        result.sequence,
        result.outcome,
        result.step,
        result.durable_step,
        result.generation,
        result.duplicate,
        result.staleness,
        result.contributions,
        result.energies,
        result.state_digest,
    )


def energies(sample: EnergySample) -> types_pb2.EnergySample:
    """Undefined numbers are left out."""
    values = sample._asdict()
    return types_pb2.EnergySample(
        **{name: value for name, value in values.items() if name in _ALWAYS or not math.isnan(value)}
    )


def step_result(result: StepResult, handle: int = 0) -> gradient_pb2.StepResult:
    return gradient_pb2.StepResult(
        handle=handle,
        sequence=result.sequence,
        outcome=int(result.outcome),  # type: ignore[arg-type]
        step=result.step,
        durable_step=result.durable_step,
        generation=result.generation,
        duplicate=result.duplicate,
        staleness=result.staleness,
        contributions=result.contributions,
        energies=None if result.energies is None else energies(result.energies),
        state_digest=result.state_digest,
    )


def vector_chunk(
    vector: Vector, payload: memoryview, *, handle: int, sequence: int, offset: int
) -> hot.ParametersChunk:
    """The piece of a vector that begins at an element."""
    return hot.ParametersChunk(
        handle, sequence, vector.step, vector.reply, offset, vector.dtype, wire.checksum(payload), payload
    )


def answer_messages(
    answer: Answer,
    *,
    handle: int,
    whole: bool,
    chunk_bytes: int,
    place: memoryview | None,
    coded: CodedAnswers | None = None,
) -> Iterator[bytes]:
    """ExchangeResponses for one contribution, each made when it is to be written.

    Args:
      whole: the gradient came whole, so the answer may.
      place: shared memory to put the vector in.
      coded: makes the vector smaller.
    """
    result, vector = answer
    told = hot_result(result, handle)
    if whole and vector is not None and place is None and coded is None and len(vector.payload) <= chunk_bytes:
        chunk = vector_chunk(vector, vector.payload, handle=handle, sequence=result.sequence, offset=0)
        yield hot.write_response(hot.WholeAnswer(told, chunk))
        return
    yield hot.write_response(told)
    if vector is not None:
        yield from vector_messages(
            vector, handle=handle, sequence=result.sequence, chunk_bytes=chunk_bytes, place=place, coded=coded
        )


def vector_messages(
    vector: Vector,
    *,
    handle: int,
    sequence: int,
    chunk_bytes: int,
    place: memoryview | None,
    coded: CodedAnswers | None = None,
) -> Iterator[bytes]:
    """ExchangeResponses with the chunks of a vector, each made when it is to be written."""
    if coded is not None:

        def plain(piece: memoryview, offset: int) -> bytes:
            return hot.write_response(vector_chunk(vector, piece, handle=handle, sequence=sequence, offset=offset))

        yield from coded.messages(vector, handle=handle, sequence=sequence, chunk_bytes=chunk_bytes, plain=plain)
        return
    itemsize = vector.dtype.itemsize
    largest = chunk_bytes if place is None else wire.MAX_CHUNK_BYTES
    for offset, length in wire.spans(len(vector.payload) // itemsize, itemsize, largest):
        begin, end = offset * itemsize, (offset + length) * itemsize
        chunk = vector_chunk(vector, vector.payload[begin:end], handle=handle, sequence=sequence, offset=offset)
        if place is None:
            yield hot.write_response(chunk)
        else:
            if vector.payload is not place:  # A step may have written it there.
                place[begin:end] = chunk.payload
            yield _in_segment(chunk, length)


def _in_segment(chunk: hot.ParametersChunk, length: int) -> bytes:
    """The ExchangeResponse for a chunk whose payload lies in shared memory."""
    message = gradient_pb2.SegmentChunk(
        handle=chunk.handle,
        sequence=chunk.sequence,
        offset=chunk.offset,
        length=length,
        crc32=chunk.crc32,
        step=chunk.step,
        reply=chunk.reply,  # type: ignore[arg-type]
    )
    return gradient_pb2.ExchangeResponse(segment=message).SerializeToString()


def whole_vector(vector: Vector | None, *, limit_bytes: int) -> dict[str, Any]:
    """The fields reply, dtype, crc32 and payload of a message that carries a whole vector.

    Raises:
      InvalidRequest: the vector does not fit one message.
    """
    if vector is None:
        return {"reply": int(Reply.NONE)}
    require_fits(len(vector.payload), limit_bytes)
    payload = bytes(vector.payload)
    return {
        "reply": int(vector.reply),
        "dtype": int(vector.dtype),
        "crc32": wire.checksum(payload),
        "payload": payload,
    }


def require_fits(size_bytes: int, limit_bytes: int) -> None:
    """Raises InvalidRequest for a vector that does not fit one message."""
    if size_bytes > limit_bytes:
        raise InvalidRequest(
            f"the vector is {size_bytes} bytes, one message holds {limit_bytes}; use Exchange, which sends chunks"
        )
