"""Coded: gradients that go out in fewer bytes than they stand for, and answers that come back so.

What a codec leaves out of a gradient is kept here and added to the next one (error feedback), so that nothing is lost
for good, only late.

Source: Seide et al. 2014, "1-bit stochastic gradient descent"; Karimireddy et al. 2019.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hermosis import coding, hot, wire
from hermosis.coding import CodecKind, Undecodable
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis_client.dtypes import Float32, encode
from hermosis_client.layout import ParameterLayout
from hermosis_client.records import Outcome, StepResult

CodecName = Literal["plain", "int8", "top_k", "random_k", "deflate"]


@dataclass(frozen=True, slots=True)
class Codec:
    """How gradients, or what comes back, are made smaller on the wire.

    Attributes:
      kind:     "int8", a byte an element; "top_k", the largest elements and their places; "random_k", elements at
                random places; "deflate", which loses nothing; "plain".
      fraction: of the elements that "top_k" and "random_k" send, at most 0.5.

    Raises:
      ValueError: there is no such kind, or the fraction is none.
    """

    kind: CodecName
    fraction: float = coding.DEFAULT_FRACTION

    def __post_init__(self) -> None:
        _ = self.on_the_wire

    @property
    def on_the_wire(self) -> coding.Codec:
        """The same for the wire."""
        if (name := str(self.kind).upper()) not in CodecKind.__members__:
            known = ", ".join(kind.name.lower() for kind in CodecKind)
            raise ValueError(f"codec is {self.kind!r}; there are {known}")
        return coding.Codec(CodecKind[name], self.fraction)


def codec_named(codec: Codec | CodecName) -> coding.Codec:
    """The codec that a caller means."""
    return (codec if isinstance(codec, Codec) else Codec(codec)).on_the_wire


def codec_message(codec: coding.Codec) -> types_pb2.Codec | None:
    """For an opening; None where nothing is coded."""
    return None if codec.is_plain else types_pb2.Codec(kind=int(codec.kind), fraction=codec.fraction)  # type: ignore[arg-type]


class Feedback:
    """Codes the gradients of one worker, and keeps what was left out.

    Args:
      layout:    of the session; a tensor that is skipped goes as zeros, and what was left out of it stays.
      dtype:     of gradients under a codec that loses nothing; the others are of float32.
      worker_id: so that no two workers send elements of the same places.
    """

    def __init__(self, codec: coding.Codec, layout: ParameterLayout, dtype: wire.Dtype, worker_id: str) -> None:
        self.codec = codec
        self.tensors = list(layout.slices.values())
        self.dtype = dtype
        self.worker_id = worker_id
        self.left_out: Float32 | None = np.zeros(layout.parameter_count, np.float32) if codec.is_lossy else None
        self._loss_scale = 1.0  # that left_out is multiplied by
        self._spare: Float32 | None = None

    def code(self, flat: Float32, commit: hot.Commit, chunk_bytes: int) -> "CodedGradient":
        """One contribution, to be sent as often as it takes; its fate is told to `settle`."""
        spare, self._spare = self._spare, None
        leaves = None
        if self.left_out is not None:
            self._rescale(self.left_out, 1.0 if commit.loss_scale is None else commit.loss_scale)
            leaves = np.empty_like(self.left_out) if spare is None else spare
        return CodedGradient(self, flat, commit, chunk_bytes, leaves)

    def settle(self, coded: "CodedGradient", result: StepResult) -> None:
        """What a contribution that counts has left out goes with the next one; of any other, what it was to bring.

        Only the first time that a contribution's fate is told.
        """
        if coded.leaves is None or coded.settled:
            return
        coded.settled = True
        if coded.finite and result.outcome in (Outcome.APPLIED, Outcome.RECEIVED):
            self.left_out, self._spare = coded.leaves, self.left_out
        else:
            self._spare = coded.leaves

    def _rescale(self, left_out: Float32, loss_scale: float) -> None:
        if loss_scale != self._loss_scale and 0 < loss_scale < math.inf:  # the server refuses any other
            with np.errstate(over="ignore"):
                left_out *= np.float32(loss_scale / self._loss_scale)
            self._loss_scale = loss_scale


class CodedGradient:
    """The chunks of one contribution, each coded when the wire is first ready for it and kept for when it is so again.

    What was counted once is recognised by its bytes, so a contribution whose fate is unknown must be sent as it was.
    The flat vector is read until the last chunk has been coded, and may not change before.

    Args:
      feedback: with what was left out before.
      commit:   that will end it, with whose numbers it goes out.
      leaves:   where what is left out now goes; nobody else has this memory until the fate is known.

    Attributes:
      finite: whether all that was coded so far is; of a gradient that is not nothing is kept.
    """

    def __init__(
        self, feedback: Feedback, flat: Float32, commit: hot.Commit, chunk_bytes: int, leaves: Float32 | None
    ) -> None:
        self.leaves = leaves
        self.settled = False
        self.finite = True
        self._feedback = feedback
        self._left_out = feedback.left_out
        self._flat = flat
        self._handle, self._sequence = commit.handle, commit.sequence
        self._skipped = [feedback.tensors[index] for index in commit.skipped]
        self._spans = list(wire.spans(flat.size, feedback.dtype.itemsize, chunk_bytes))
        self._messages: list[bytes] = []
        self._coding = threading.Lock()
        self._wanted = self._missed = 0.0  # squared lengths, of what was to be sent and of what was left out

    def sending(self, commit: hot.Commit, begin: int) -> "Sending":
        """Messages from an element on, which is the beginning of a chunk; from the first one where it is none."""
        first = next((place for place, span in enumerate(self._spans) if span.offset == begin), 0)
        return Sending(self, commit, first)

    @property
    def error(self) -> float | None:
        """Length of what was left out over that of what was to be sent, when all is coded; None where nothing was."""
        if self.leaves is None or not math.isfinite(self._missed) or not 0 < self._wanted < math.inf:
            return None
        return math.sqrt(self._missed / self._wanted)

    def __len__(self) -> int:
        return len(self._spans)

    def message(self, place: int) -> bytes:
        """A chunk; those before it are coded first."""
        with self._coding:
            while len(self._messages) <= place:
                self._messages.append(self._coded(self._spans[len(self._messages)]))
            return self._messages[place]

    def _coded(self, span: wire.Span) -> bytes:
        offset, length = span
        if self.leaves is None or self._left_out is None:
            dtype = self._feedback.dtype
            payload = coding.deflate(encode(self._flat[offset : offset + length], dtype), dtype.itemsize)
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                wanted = self._flat[offset : offset + length] + self._left_out[offset : offset + length]
            skipped = [
                slice(max(0, tensor.start - offset), tensor.stop - offset)
                for tensor in self._skipped
                if tensor.start < offset + length and tensor.stop > offset
            ]
            for piece in skipped:
                wanted[piece] = 0
            self.finite = self.finite and bool(np.isfinite(wanted).all())
            if skipped and not self.finite:  # a codec might tell it in an element that must be zero
                return self._plain(wanted, offset)
            payload = self._feed_back(wanted, self.leaves[offset : offset + length], offset)
            for piece in skipped:
                self.leaves[offset : offset + length][piece] = self._left_out[offset : offset + length][piece]
        message = gradient_pb2.CodedChunk(
            handle=self._handle,
            sequence=self._sequence,
            offset=offset,
            length=length,
            crc32=wire.checksum(payload),
            payload=payload,
        )
        return gradient_pb2.ExchangeRequest(coded=message).SerializeToString()

    def _feed_back(self, wanted: Float32, leaves: Float32, offset: int) -> bytes:
        codec = self._feedback.codec
        payload = coding.encode(codec, wanted, seed=coding.seed_of(self._feedback.worker_id, self._sequence, offset))
        coding.decode(codec.kind, payload, leaves)
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(wanted, leaves, out=leaves)
            self._wanted += float(np.dot(wanted, wanted))
            self._missed += float(np.dot(leaves, leaves))
        return payload

    def _plain(self, values: Float32, offset: int) -> bytes:
        payload = encode(values, wire.Dtype.FLOAT32)
        crc32 = wire.checksum(payload)
        return hot.write_request(
            hot.GradientChunk(self._handle, self._sequence, offset, wire.Dtype.FLOAT32, crc32, payload)
        )


class Sending:
    """One way of a coded gradient over one stream."""

    def __init__(self, coded: CodedGradient, commit: hot.Commit, first: int) -> None:
        self._abandoned = False
        self._coded = coded
        self._commit = commit
        self._first = first

    def abandon(self) -> None:
        """Ends the messages early."""
        self._abandoned = True

    def __iter__(self) -> Iterator[bytes]:
        for place in range(self._first, len(self._coded)):
            if self._abandoned:
                break
            yield self._coded.message(place)
        yield hot.write_request(self._commit._replace(compression_error=self._coded.error))


class CodedAnswers:
    """Reads answers under a codec as if they were plain.

    Args:
      elements: P.
      dtype:    of answers under a codec that loses nothing.
    """

    def __init__(self, codec: coding.Codec, elements: int, dtype: wire.Dtype) -> None:
        self._codec = codec
        self._dtype = dtype
        self._held = np.zeros(elements, np.float32) if codec.is_lossy else None

    def plain(self, chunk: hot.ParametersChunk) -> hot.ParametersChunk:
        """A chunk that came plain: from here on changes are told."""
        if self._held is not None and chunk.dtype == wire.Dtype.FLOAT32 and len(chunk.payload) % 4 == 0:
            values = np.frombuffer(chunk.payload, "<f4")
            held = self._held[chunk.offset : chunk.offset + len(values)]
            if len(held) == len(values):  # else whoever takes the chunk finds it damaged
                held[:] = values
        return chunk

    def found(self, chunk: gradient_pb2.CodedChunk) -> hot.ParametersChunk:
        """A coded chunk as the plain one that it stands for.

        Raises:
          Undecodable: it is damaged, and stands for none.
        """
        offset, length, payload = chunk.offset, chunk.length, chunk.payload
        if wire.checksum(payload) != chunk.crc32:
            raise Undecodable("the checksum of a coded answer is wrong")
        decoded: memoryview
        if self._held is None:
            if not 0 < length * self._dtype.itemsize <= wire.MAX_CHUNK_BYTES:
                raise Undecodable(f"a coded answer covers {length} elements")
            dtype, decoded = self._dtype, coding.inflate(payload, self._dtype.itemsize, length)
        else:
            held = self._held[offset : offset + length]
            if len(held) != length:
                raise Undecodable(f"a coded answer ends at element {offset + length} of {len(self._held)}")
            change = np.empty(length, np.float32)
            coding.decode(self._codec.kind, payload, change)
            held += change
            dtype, decoded = wire.Dtype.FLOAT32, encode(held, wire.Dtype.FLOAT32)
        crc32 = wire.checksum(decoded)
        return hot.ParametersChunk(chunk.handle, chunk.sequence, chunk.step, chunk.reply, offset, dtype, crc32, decoded)
