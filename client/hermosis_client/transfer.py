"""Chunks of one contribution on their way out, and of its answer on their way in."""

from collections.abc import Callable, Iterator

import numpy as np

from hermosis import hot, wire
from hermosis.v1 import gradient_pb2
from hermosis_client import codec
from hermosis_client.contribution import Contribution
from hermosis_client.dtypes import Float32, decode_into, encode
from hermosis_client.errors import error_from_refusal
from hermosis_client.layout import ParameterLayout, Tensors
from hermosis_client.records import StepResult
from hermosis_client.segment import Segment
from hermosis_client.stream import ExchangeStream, Message

# A worker's stream carries one session, under this name.
HANDLE = 1


class OutgoingGradient:
    """Messages of one contribution, each encoded when its elements are ready and the wire is; one where that is enough.

    The flat vector is read until the last message has been drawn, and what is ready of it may not change before. Chunks
    lie on one grid and leave in the order in which they become ready.

    Args:
      commit:   what ends the contribution, asked for when it is finished.
      begin:    the first element that the server has not got yet.
      in_order: sends nothing before all is ready, and then by offset.
    """

    def __init__(
        self,
        contribution: Contribution,
        dtype: wire.Dtype,
        chunk_bytes: int,
        commit: Callable[[], hot.Commit],
        segment: Segment | None,
        *,
        sequence: int,
        begin: int = 0,
        in_order: bool = False,
    ) -> None:
        self._contribution = contribution
        self._flat = contribution.gradient
        self._dtype = dtype
        self._chunk_bytes = chunk_bytes
        self._commit = commit
        self._segment = segment
        self._sequence = sequence
        self._begin = begin
        self._in_order = in_order
        self._abandoned = False

    def abandon(self) -> None:
        """Ends the messages early."""
        self._abandoned = True
        self._contribution.look_up()

    def __iter__(self) -> Iterator[bytes]:
        segment, chunk_bytes = self._segment, self._chunk_bytes
        if segment is not None:
            chunk_bytes = wire.MAX_CHUNK_BYTES  # Messages are small, and fewer of them cost less.
        elif 0 < self._flat.size * self._dtype.itemsize <= chunk_bytes:
            self._await_all()
            if not self._abandoned:
                payload = encode(self._flat, self._dtype)
                whole = hot.WholeGradient(self._commit(), self._dtype, wire.checksum(payload), payload)
                yield hot.write_request(whole)
            return
        for offset, length in self._chunks(max(1, chunk_bytes // self._dtype.itemsize)):
            if self._abandoned:
                break
            payload = encode(self._flat[offset : offset + length], self._dtype)
            chunk = hot.GradientChunk(HANDLE, self._sequence, offset, self._dtype, wire.checksum(payload), payload)
            yield hot.write_request(chunk) if segment is None else segment.put(chunk)
        yield hot.write_request(self._commit())  # Also of an abandoned one: up to here the server ignores it.

    def _chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """Offset and length of chunks of at most `most` elements, each when the last of its elements is ready."""
        begin, size = self._begin, self._flat.size
        pieces = self._pieces()
        if self._in_order:
            self._await_all()
            pieces = iter([(0, size)])
        missing: dict[int, int] = {}  # elements of chunks of which some are ready
        for start, stop in pieces:
            start = max(start, begin)
            for offset in range(start - (start - begin) % most, stop, most):
                end = min(offset + most, size)
                lacking = missing.get(offset, end - offset) - (min(stop, end) - max(start, offset))
                missing[offset] = lacking
                if not lacking:
                    yield offset, end - offset

    def _pieces(self) -> Iterator[tuple[int, int]]:
        return self._contribution.pieces(lambda: self._abandoned)

    def _await_all(self) -> None:
        if self._contribution.numbers is None:
            for _ in self._pieces():
                pass


class Landing:
    """Where an answer's chunks land: straight in the vector that the caller gets."""

    def __init__(self, layout: ParameterLayout, out: Float32 | None) -> None:
        self._flat = np.empty(layout.parameter_count, np.float32) if out is None else layout.checked(out)
        self.tensors = Tensors(layout, self._flat)

    def zero(self) -> None:
        self._flat[:] = 0

    def receive(
        self,
        stream: ExchangeStream,
        sequence: int,
        first: hot.ParametersChunk | None = None,
        told: Callable[[int], None] | None = None,
    ) -> int:
        """Takes all chunks of one answer; gives the step they speak of.

        Args:
          first: a chunk that came with the result.
          told:  hears how many elements have landed, each time there are more.
        """
        filled = step = 0
        chunk = first
        while filled < self._flat.size:
            if chunk is None:
                message = _awaited(stream, sequence)
                if not isinstance(message, hot.ParametersChunk) or message.sequence != sequence:
                    continue
                chunk = message
            payload = chunk.payload
            dtype = _DTYPES.get(chunk.dtype)
            end = chunk.offset + len(payload) // dtype.itemsize if dtype else 0
            damaged = chunk.offset != filled or not filled < end <= self._flat.size
            if dtype is None or damaged or wire.checksum(payload) != chunk.crc32:
                raise stream.broken("a damaged answer")
            decode_into(payload, dtype, self._flat[filled:end])
            filled, step, chunk = end, chunk.step, None
            if told is not None:
                told(filled)
        return step


_DTYPES = {int(dtype): dtype for dtype in wire.Dtype}


def wait_for_opening(stream: ExchangeStream) -> gradient_pb2.SessionOpened:
    while True:
        message = _awaited(stream, 0)
        if isinstance(message, gradient_pb2.ExchangeResponse) and message.HasField("opened"):
            return message.opened


def wait_for_result(stream: ExchangeStream, sequence: int) -> tuple[StepResult, hot.ParametersChunk | None]:
    """The fate of a contribution, and its vector where that came in the same message."""
    while True:
        message = _awaited(stream, sequence)
        if isinstance(message, hot.WholeAnswer) and message.result.sequence == sequence:
            return codec.step_result(message.result), message.chunk
        if isinstance(message, hot.StepResult) and message.sequence == sequence:
            return codec.step_result(message), None


def _awaited(stream: ExchangeStream, sequence: int) -> Message:
    """The next message; raises the typed error when it refuses the work with that number."""
    message = stream.receive()
    if (
        isinstance(message, gradient_pb2.ExchangeResponse)
        and message.HasField("refused")
        and message.refused.sequence == sequence
    ):
        raise error_from_refusal(message.refused.refusal)
    return message
