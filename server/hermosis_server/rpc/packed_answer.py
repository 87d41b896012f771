"""PackedAnswer: the answer to a packed message while its contributions are on their way."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hermosis import packed, wire
from hermosis.packed import PackedResults
from hermosis.v1 import gradient_pb2, types_pb2
from hermosis_server.engine.rounds import Answer
from hermosis_server.engine.volley import Landing
from hermosis_server.records import EnergySample, Outcome, Vector
from hermosis_server.rpc import status

ENERGIES = len(EnergySample._fields)
# A refusal that has more to say is cut to this where the answer would not fit a message otherwise.
BARE_REFUSAL_BYTES = 56
FRAMED_BYTES = 8  # the tag and the length of one in the answer


class PackedAnswer:
    """Gathers what becomes of a message's contributions, and sends the answer when the last is known.

    Args:
      number:        of the message.
      replies:       where each one's reply lies in the payload of the answer.
      energies:      whether they are wanted.
      waits:         for how many calls of `take` and `land` together.
      refusal_bytes: that the answer has for refusals.
      send:          takes the bytes of the answer.
    """

    def __init__(
        self,
        *,
        number: int,
        replies: Sequence[slice],
        energies: bool,
        waits: int,
        refusal_bytes: int,
        send: Callable[[bytes], None],
    ) -> None:
        count = len(replies)
        self._number = number
        self._replies = replies
        self._waits = waits
        self._refusal_bytes = refusal_bytes
        self._send = send
        self._outcomes = np.zeros(count, np.uint8)
        self._steps = np.zeros(count, np.uint64)
        self._durable_steps = np.zeros(count, np.uint64)
        self._stalenesses = np.zeros(count, np.uint32)
        self._contributions = np.ones(count, np.uint32)
        self._energies = np.full((count, ENERGIES), np.nan) if energies else None
        self._reply_steps: dict[int, int] = {}
        self._duplicates: list[int] = []
        self._refusals: dict[int, types_pb2.Refusal] = {}
        self._vectors: list[memoryview | bytes | None] = [None] * count

    def refuse(self, place: int, error: Exception) -> None:
        """Notes a refusal; a call of `take` or `land` follows for the same contribution."""
        self._refusals[place] = status.to_refusal(error)

    def take(self, place: int, answer: Answer | Exception) -> None:
        """Takes the answer to one contribution that went its own way."""
        if isinstance(answer, Exception):
            self.refuse(place, answer)
        else:
            result, vector = answer
            self._outcomes[place] = result.outcome
            self._steps[place] = result.step
            self._durable_steps[place] = result.durable_step
            self._stalenesses[place] = result.staleness
            self._contributions[place] = result.contributions
            if result.duplicate:
                self._duplicates.append(place)
            if self._energies is not None and result.energies is not None:
                self._energies[place] = result.energies
            if vector is not None:
                self._vectors[place] = vector.payload
                if vector.step != result.step:
                    self._reply_steps[place] = vector.step
        self._one_less()

    def land(self, places: Sequence[int], landing: Landing | None) -> None:
        """Takes what became of a volley whose contributions had these places in the message."""
        if landing is not None:
            rows = np.array(places)[landing.places]
            fates = landing.fates
            self._outcomes[rows] = fates.outcomes
            self._steps[rows] = fates.steps
            if fates.durable_steps:
                self._durable_steps[rows] = fates.durable_steps
            self._stalenesses[rows] = fates.stalenesses
            if self._energies is not None:
                applied = np.array(fates.outcomes) == Outcome.APPLIED
                self._energies[rows[applied]] = fates.samples[applied]
            for row, reply in zip(rows.tolist(), landing.replies, strict=True):
                self._vectors[row] = reply
        self._one_less()

    def _one_less(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._send(packed.write_results(self._message()))

    def _message(self) -> PackedResults:
        self._outcomes[list(self._refusals)] = 0
        steps = self._steps.copy()
        for place, step in self._reply_steps.items():
            steps[place] = step
        payload = _joined(self._vectors, self._replies)
        return PackedResults(
            number=self._number,
            outcomes=self._outcomes.tobytes(),
            steps=self._steps.astype("<u8").tobytes(),
            reply_steps=steps.astype("<u8").tobytes() if self._reply_steps else b"",
            stalenesses=self._stalenesses.astype("<u4").tobytes() if self._stalenesses.any() else b"",
            contributions=self._contributions.astype("<u4").tobytes() if (self._contributions != 1).any() else b"",
            duplicates=np.array(self._duplicates, "<u4").tobytes(),
            energies=b"" if self._energies is None else self._energies.astype("<f8").tobytes(),
            refusals=_written(self._refusals, self._refusal_bytes) if self._refusals else (),
            crc32=wire.checksum(payload),
            payload=payload,
            durable_steps=self._durable_steps.astype("<u8").tobytes() if self._durable_steps.any() else b"",
        )


def pulled_message(
    number: int, places: Sequence[slice], vectors: Sequence[Vector | Exception], refusal_bytes: int
) -> bytes:
    """The answer to a packed pull.

    Args:
      places: where each vector lies in the payload.
    """
    refusals = {i: status.to_refusal(each) for i, each in enumerate(vectors) if isinstance(each, Exception)}
    steps = [0 if isinstance(each, Exception) else each.step for each in vectors]
    payload = _joined([None if isinstance(each, Exception) else each.payload for each in vectors], places)
    return packed.write_results(
        PackedResults(
            number=number,
            steps=np.array(steps, "<u8").tobytes(),
            refusals=_written(refusals, refusal_bytes),
            crc32=wire.checksum(payload),
            payload=payload,
        )
    )


def refused_message(number: int, error: Exception) -> bytes:
    """The answer to a message that is refused as a whole."""
    return packed.write_results(PackedResults(number=number, refusal=status.to_refusal(error).SerializeToString()))


def _joined(vectors: Sequence[memoryview | bytes | None], places: Sequence[slice]) -> bytes:
    """The payload; zeros where there is no vector."""
    pairs = zip(vectors, places, strict=True)
    return b"".join(bytes(piece.stop - piece.start) if vector is None else vector for vector, piece in pairs)


def _written(refusals: Mapping[int, types_pb2.Refusal], room: int) -> list[bytes]:
    """Refusals in order; without all but reason, code and time where they would not fit."""
    messages = [gradient_pb2.PackedRefusal(index=i, refusal=refusal) for i, refusal in sorted(refusals.items())]
    if sum(message.ByteSize() + FRAMED_BYTES for message in messages) > room:
        for message in messages:
            for said in ("message", "field", "metadata"):
                message.refusal.ClearField(said)
    return [message.SerializeToString() for message in messages]
