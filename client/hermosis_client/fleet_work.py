"""One exchange of a fleet: its members' columns, cut into packed messages, and the answers landed in columns again.

Shape letters: M members of this exchange; P parameters of one, N of all of them, end to end in the order of members.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from hermosis import packed, wire
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis_client.dtypes import Float32, decode_into, encode
from hermosis_client.errors import HermosisError, error_from_refusal
from hermosis_client.records import ENERGIES, AckLevel, Reply
from hermosis_client.stream import ExchangeStream

_Message = TypeVar("_Message", bound=Message)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# A message that is large keeps other sessions of the server waiting; a small one costs more than what it carries.
MESSAGE_BYTES = 1 << 20
# Room in a message for what is not columns and payload.
FRAME_BYTES = 1024
# Columns of a member, there and back, the largest of both; and the energies of its step.
COLUMN_BYTES = 48
ENERGY_BYTES = 8 * len(ENERGIES)


class BrokenAnswer(Exception):
    """An answer that makes no sense or came to harm."""


@dataclass(slots=True, kw_only=True)
class Terms:
    """What a fleet agreed on with its server for each of its members.

    Attributes:
      replies: (S,) Reply of each member.
    """

    gradient_dtype: wire.Dtype
    reply_dtype: wire.Dtype
    replies: NDArray[np.int8]
    ack_level: AckLevel = AckLevel.APPLIED


@dataclass(slots=True, kw_only=True)
class Work:
    """One exchange, or a pull, of some members.

    Attributes:
      members:   (M,) indices in the fleet, which are the handles too.
      starts:    (M + 1,) where each member begins in the flat vectors.
      replies:   (M,) Reply that comes back for each.
      gradient:  (N,) flat gradients; None for a pull.
      sequences: (M,) numbers of the contributions, given at the first attempt, kept for all that follow; zero before.
                 Of a pull, those of the contributions that come next.
      generations: (M,) that were pulled at; zero of a contribution.
      landed:    (N,) where the answers land; None where none is wanted.
      energies:  (M, 19) in the order of ENERGIES; None where they are not wanted.
      pending:   (M,) whose fate is not known yet.
      refusals:  of members, by place; one that is worth another attempt is still pending.
    """

    members: Ints
    starts: Ints
    terms: Terms
    replies: NDArray[np.int8]
    gradient: Float32 | None = None
    losses: Floats | None = None
    sample_counts: Ints | None = None
    lr_scales: Floats | None = None
    landed: Float32 | None
    sequences: Ints = field(init=False)
    generations: Ints = field(init=False)
    base_steps: Ints = field(init=False)
    outcome: NDArray[np.uint8] = field(init=False)
    step: Ints = field(init=False)
    reply_step: Ints = field(init=False)
    staleness: Ints = field(init=False)
    contributions: Ints = field(init=False)
    durable_step: Ints = field(init=False)
    duplicate: NDArray[np.bool_] = field(init=False)
    energies: Floats | None = None
    pending: NDArray[np.bool_] = field(init=False)
    refusals: dict[int, HermosisError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.members)
        self.outcome = np.zeros(count, np.uint8)
        self.sequences, self.base_steps, self.generations = (np.zeros(count, np.int64) for _ in range(3))
        self.contributions = np.zeros(count, np.int64)
        self.durable_step = np.zeros(count, np.int64)
        self.step, self.reply_step, self.staleness = (np.zeros(count, np.int64) for _ in range(3))
        self.duplicate = np.zeros(count, bool)
        self.pending = np.ones(count, bool)

    @property
    def settled(self) -> NDArray[np.bool_]:
        """(M,) who was answered, and not refused."""
        settled = ~self.pending
        settled[list(self.refusals)] = False
        return settled

    def ask_for_energies(self) -> None:
        """Makes room for them."""
        self.energies = np.full((len(self.members), len(ENERGIES)), np.nan)

    def refuse(self, place: int, error: HermosisError) -> None:
        """Notes a refusal; a final one settles the member."""
        self.refusals[place] = error
        self.pending[place] = error.worth_another_attempt

    def cut(self, places: Ints) -> list[Ints]:
        """Places of members, in as many messages as they take."""
        widest = max(self.terms.gradient_dtype.itemsize, self.terms.reply_dtype.itemsize)
        if int(self.starts[-1]) * widest + len(places) * (COLUMN_BYTES + ENERGY_BYTES) + FRAME_BYTES <= MESSAGE_BYTES:
            return [places] if len(places) else []
        sizes = np.diff(self.starts)[places]
        there = 0 if self.gradient is None else sizes * self.terms.gradient_dtype.itemsize
        back = 0 if self.landed is None else sizes * self.terms.reply_dtype.itemsize
        energies = 0 if self.energies is None else ENERGY_BYTES
        ends = np.cumsum(np.maximum(there, back + energies) + COLUMN_BYTES)
        cuts, first = [], 0
        while first < len(places):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + MESSAGE_BYTES - FRAME_BYTES, side="right")))
            cuts.append(places[first:last])
            first = last
        return cuts

    def messages(self, cuts: dict[int, Ints], stream: ExchangeStream) -> Iterator[bytes]:
        """An ExchangeRequest for each cut, by the number of its message; encoded when the wire is ready for it."""
        for number, places in cuts.items():
            if stream.ended:
                return
            yield self._pull(number, places) if self.gradient is None else self._gradients(number, places)

    def land(self, answer: packed.PackedResults, places: Ints) -> None:
        """Takes the answer to one message.

        Raises:
          BrokenAnswer: it is not what can be an answer to it; some of it may have been taken, and will come again.
        """
        if answer.refusal is not None:
            error = error_from_refusal(_parsed(types_pb2.Refusal(), answer.refusal))
            for place in places.tolist():
                self.refuse(place, error)
            return
        count = len(places)
        known = np.ones(count, bool)
        for raw in answer.refusals:
            refused = _parsed(gradient_pb2.PackedRefusal(), raw)
            if refused.index >= count:
                raise BrokenAnswer
            known[refused.index] = False
            self.refuse(int(places[refused.index]), error_from_refusal(refused.refusal))
        steps = _column(answer.steps, "<u8", count)
        taken = places[known]
        if self.gradient is not None:
            self.outcome[taken] = _column(answer.outcomes, "u1", count)[known]
            if len(answer.durable_steps):
                self.durable_step[taken] = _column(answer.durable_steps, "<u8", count)[known]
            if len(answer.stalenesses):
                self.staleness[taken] = _column(answer.stalenesses, "<u4", count)[known]
            made = _column(answer.contributions, "<u4", count)[known] if len(answer.contributions) else 1
            self.contributions[taken] = made
            again = np.frombuffer(answer.duplicates, "<u4")
            if (again >= count).any():
                raise BrokenAnswer
            self.duplicate[places[again]] = True
            if self.energies is not None:
                self.energies[taken] = _column(answer.energies, "<f8", count * len(ENERGIES)).reshape(count, -1)[known]
        self.step[taken] = steps[known]
        self.reply_step[taken] = (_column(answer.reply_steps, "<u8", count) if len(answer.reply_steps) else steps)[
            known
        ]
        if self.landed is not None:
            self._land_payload(answer, places, known)
        self.pending[taken] = False
        for place in taken.tolist() if self.refusals else ():
            self.refusals.pop(place, None)

    def _land_payload(self, answer: packed.PackedResults, places: Ints, known: NDArray[np.bool_]) -> None:
        assert self.landed is not None
        dtype = self.terms.reply_dtype
        replies = self.replies[places] != Reply.NONE
        rows = places[replies]
        sizes = self.starts[rows + 1] - self.starts[rows]
        size = int(sizes.sum()) * dtype.itemsize
        if len(answer.payload) != size or wire.checksum(memoryview(answer.payload)) != answer.crc32:
            raise BrokenAnswer
        if not len(rows):
            return
        first, end = int(self.starts[rows[0]]), int(self.starts[rows[-1] + 1])
        if (end - first) * dtype.itemsize == size and known.all():  # neighbours: one copy for all
            decode_into(answer.payload, dtype, self.landed[first:end])
            return
        wanted = known[replies]
        place = 0
        for row, length, taken in zip(rows.tolist(), (sizes * dtype.itemsize).tolist(), wanted.tolist(), strict=True):
            if taken:
                part = memoryview(answer.payload)[place : place + length]
                decode_into(part, dtype, self.landed[self.starts[row] : self.starts[row + 1]])
            place += length

    def _gradients(self, number: int, places: Ints) -> bytes:
        assert self.gradient is not None
        first, last = int(places[0]), int(places[-1])
        if last - first + 1 == len(places):
            part = self.gradient[self.starts[first] : self.starts[last + 1]]
        else:
            part = np.concatenate([self.gradient[self.starts[place] : self.starts[place + 1]] for place in places])
        payload = encode(part, self.terms.gradient_dtype)
        return packed.write_gradients(
            packed.PackedGradients(
                number=number,
                handles=_bytes(self.members[places], "<u4"),
                sequences=_bytes(self.sequences[places], "<u8"),
                base_steps=_bytes(self.base_steps[places], "<u8"),
                losses=b"" if self.losses is None else _bytes(self.losses[places], "<f8"),
                sample_counts=b"" if self.sample_counts is None else _bytes(self.sample_counts[places], "<u8"),
                lr_scales=b"" if self.lr_scales is None else _bytes(self.lr_scales[places], "<f8"),
                want_energies=self.energies is not None,
                without_reply=self.landed is None,
                crc32=wire.checksum(payload),
                payload=payload,
            )
        )

    def _pull(self, number: int, places: Ints) -> bytes:
        request = gradient_pb2.PackedPull(number=number, handles=self.members[places].tolist())
        return gradient_pb2.ExchangeRequest(packed_pull=request).SerializeToString()


def read_answer(raw: bytes) -> packed.PackedResults | None:
    """The packed results in an ExchangeResponse; None where it carries something else.

    Raises:
      BrokenAnswer: the bytes are no message.
    """
    plain = packed.read_results(raw) if packed.is_packed(raw) else None
    if plain is not None:
        return plain
    response = _parsed(gradient_pb2.ExchangeResponse(), raw)
    if response.WhichOneof("message") != "packed":
        return None
    response.DiscardUnknownFields()
    plain = packed.read_results(response.SerializeToString())
    if plain is None:
        raise BrokenAnswer
    return plain


def read_openings(raw: bytes) -> gradient_pb2.SessionsOpened | None:
    """The answer to openings in an ExchangeResponse; None where it carries something else.

    Raises:
      BrokenAnswer: the bytes are no message.
    """
    response = _parsed(gradient_pb2.ExchangeResponse(), raw)
    return response.opened_many if response.WhichOneof("message") == "opened_many" else None


def _parsed(message: _Message, raw: packed.Bytes) -> _Message:
    try:
        message.ParseFromString(bytes(raw))
    except DecodeError:
        raise BrokenAnswer from None
    return message


def _column(raw: packed.Bytes, dtype: str, count: int) -> NDArray[np.generic]:
    column = np.frombuffer(raw, dtype)
    if len(column) != count:
        raise BrokenAnswer
    return column


def _bytes(column: NDArray[np.generic], dtype: str) -> bytes:
    return column.astype(dtype).tobytes()
