"""Chunks of one contribution on their way out, and of its answer on their way in."""

from collections.abc import Iterator

import numpy as np

from hermosis import wire
from hermosis.v1 import gradient_pb2
from hermosis_client import codec
from hermosis_client.dtypes import Float32, decode_into, encode, encode_into
from hermosis_client.errors import error_from_refusal
from hermosis_client.layout import ParameterLayout, Tensors
from hermosis_client.records import StepResult
from hermosis_client.segment import Segment
from hermosis_client.stream import ExchangeStream

# A worker's stream carries one session, under this name.
HANDLE = 1


class OutgoingGradient:
    """Messages of one contribution, each encoded when the wire is ready for it."""

    def __init__(
        self,
        flat: Float32,
        dtype: wire.Dtype,
        chunk_bytes: int,
        commit: gradient_pb2.Commit,
        segment: Segment | None,
    ) -> None:
        self.abandoned = False
        self._flat = flat
        self._dtype = dtype
        self._chunk_bytes = chunk_bytes
        self._commit = commit
        self._segment = segment

    def __iter__(self) -> Iterator[gradient_pb2.ExchangeRequest]:
        yield from self._chunks() if self._segment is None else self._segment_chunks(self._segment)
        # Also of an abandoned one: up to here the server ignores it.
        yield gradient_pb2.ExchangeRequest(commit=self._commit)

    def _segment_chunks(self, segment: Segment) -> Iterator[gradient_pb2.ExchangeRequest]:
        itemsize, area = self._dtype.itemsize, segment.gradient
        for offset, length in wire.spans(self._flat.size, itemsize, wire.MAX_CHUNK_BYTES):
            if self.abandoned:  # The segment may be closed then.
                break
            place = area[offset * itemsize : (offset + length) * itemsize]
            encode_into(self._flat[offset : offset + length], self._dtype, place)
            chunk = gradient_pb2.SegmentChunk(
                handle=HANDLE,
                sequence=self._commit.sequence,
                offset=offset,
                length=length,
                crc32=wire.checksum(place.data),
            )
            yield gradient_pb2.ExchangeRequest(segment=chunk)

    def _chunks(self) -> Iterator[gradient_pb2.ExchangeRequest]:
        dtype = codec.dtype_number(self._dtype)
        for span in wire.spans(self._flat.size, self._dtype.itemsize, self._chunk_bytes):
            if self.abandoned:
                break
            payload = encode(self._flat[span.offset : span.offset + span.length], self._dtype)
            chunk = gradient_pb2.GradientChunk(
                handle=HANDLE,
                sequence=self._commit.sequence,
                offset=span.offset,
                dtype=dtype,
                crc32=wire.checksum(payload),
                payload=payload,
            )
            yield gradient_pb2.ExchangeRequest(chunk=chunk)


class Landing:
    """Where an answer's chunks land: straight in the vector that the caller gets."""

    def __init__(self, layout: ParameterLayout, out: Float32 | None) -> None:
        self._flat = np.empty(layout.parameter_count, np.float32) if out is None else layout.checked(out)
        self.tensors = Tensors(layout, self._flat)

    def zero(self) -> None:
        self._flat[:] = 0

    def receive(self, stream: ExchangeStream, sequence: int, segment: Segment | None, dtype: wire.Dtype) -> int:
        """Takes all chunks of one answer; gives the step they speak of."""
        filled = step = 0
        while filled < self._flat.size:
            response = _awaited(stream, sequence)
            kind = response.WhichOneof("message")
            payload: bytes | memoryview
            if kind == "segment" and segment is not None and response.segment.sequence == sequence:
                chunk: gradient_pb2.SegmentChunk | gradient_pb2.ParametersChunk = response.segment
                begin, end = chunk.offset * dtype.itemsize, (chunk.offset + response.segment.length) * dtype.itemsize
                payload = segment.answer[begin:end].data
            elif kind == "chunk" and response.chunk.sequence == sequence:
                chunk = response.chunk
                payload = response.chunk.payload  # Once: every access builds a new object.
                dtype = wire.Dtype(response.chunk.dtype)
            else:
                continue
            end = chunk.offset + len(payload) // dtype.itemsize
            if chunk.offset != filled or end > self._flat.size or wire.checksum(payload) != chunk.crc32:
                raise stream.broken("a damaged answer")
            decode_into(payload, dtype, self._flat[filled:end])
            filled, step = end, chunk.step
        return step


def wait_for_opening(stream: ExchangeStream) -> gradient_pb2.SessionOpened:
    while True:
        response = _awaited(stream, 0)
        if response.WhichOneof("message") == "opened":
            return response.opened


def wait_for_result(stream: ExchangeStream, sequence: int) -> StepResult:
    while True:
        response = _awaited(stream, sequence)
        if response.WhichOneof("message") == "result" and response.result.sequence == sequence:
            return codec.step_result(response.result)


def _awaited(stream: ExchangeStream, sequence: int) -> gradient_pb2.ExchangeResponse:
    """The next message; raises the typed error when it refuses the work with that number."""
    response = stream.receive()
    if response.WhichOneof("message") == "refused" and response.refused.sequence == sequence:
        raise error_from_refusal(response.refused.refusal)
    return response
