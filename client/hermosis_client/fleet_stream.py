"""FleetStream: the sessions of a fleet on one Exchange stream, each under its index as handle."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hermosis.v1 import gradient_pb2
from hermosis_client import codec
from hermosis_client.connection import Connection
from hermosis_client.errors import error_from_refusal
from hermosis_client.fleet_work import BrokenAnswer, Ints, Terms, Work, read_answer, read_openings
from hermosis_client.session import Session
from hermosis_client.stream import ExchangeStream

OPENINGS = 512  # in one message; the server takes 1024


@dataclass(slots=True)
class Standing:
    """Where a worker of S sessions stands, whatever stream it is on.

    Attributes:
      steps:       (S,) step of the parameters it holds of each; -1 where it knows none.
      generations: (S,) it knows; zero means any.
    """

    sessions: Sequence[Session]
    worker_id: str
    terms: Terms
    steps: Ints = field(init=False)
    generations: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.steps = np.full(len(self.sessions), -1, np.int64)
        self.generations = np.zeros(len(self.sessions), np.int64)


class FleetStream:
    """One stream of a fleet, from its opening to its end."""

    def __init__(self, connection: Connection, standing: Standing) -> None:
        count = len(standing.sessions)
        self._standing = standing
        self._stream = ExchangeStream(connection)
        self._open: NDArray[np.bool_] = np.zeros(count, bool)
        self._next_sequence: Ints = np.zeros(count, np.int64)
        self._numbers = itertools.count(1)

    @property
    def ended(self) -> bool:
        return self._stream.ended

    def cancel(self) -> None:
        self._stream.cancel()

    def close(self) -> None:
        self._stream.close()

    def attempt(self, work: Work, *, anew: bool) -> None:
        """Opens those who are pending where they are not open yet, sends what they want, and takes what comes.

        Args:
          anew: opens all of them once more, at whatever generation they are.

        Raises:
          HermosisError: the stream has ended.
        """
        try:
            self._introduce(work, anew=anew)
            self._exchange(work)
        except BrokenAnswer:
            raise self._stream.broken("a damaged answer") from None

    def _introduce(self, work: Work, *, anew: bool) -> None:
        places = np.flatnonzero(work.pending)
        if not anew:
            places = places[~self._open[work.members[places]]]
        parts = [places[first : first + OPENINGS] for first in range(0, len(places), OPENINGS)]
        self._stream.send(self._opening(work.members[part], anew=anew) for part in parts)
        for part in parts:
            self._opened(work, part)

    def _opening(self, members: Ints, *, anew: bool) -> bytes:
        standing, terms = self._standing, self._standing.terms
        opens = [
            gradient_pb2.OpenSession(
                handle=member,
                session_id=standing.sessions[member].session_id,
                worker_id=standing.worker_id,
                generation=0 if anew else int(standing.generations[member]),
                layout_digest=standing.sessions[member].layout.digest,
                gradient_dtype=codec.dtype_number(terms.gradient_dtype),
                reply=gradient_pb2.Reply.ValueType(int(terms.replies[member])),
                reply_dtype=codec.dtype_number(terms.reply_dtype),
            )
            for member in members.tolist()
        ]
        close = members[self._open[members]].tolist()
        request = gradient_pb2.OpenSessions(close=close, open=opens)
        return gradient_pb2.ExchangeRequest(open_many=request).SerializeToString()

    def _opened(self, work: Work, places: Ints) -> None:
        answer = None
        while answer is None:
            answer = read_openings(self._stream.receive_bytes())
        place_of = dict(zip(work.members[places].tolist(), places.tolist(), strict=True))
        self._open[work.members[places]] = False
        for opened in answer.opened:
            member = opened.handle
            if place_of.pop(member, None) is None:
                raise BrokenAnswer
            self._open[member] = True
            self._next_sequence[member] = opened.next_sequence
            self._standing.generations[member] = opened.generation
            if self._standing.steps[member] < 0:
                self._standing.steps[member] = opened.step
        for refused in answer.refused:
            place = place_of.pop(refused.handle, None)
            if place is None:
                raise BrokenAnswer
            work.refuse(place, error_from_refusal(refused.refusal))
        if place_of:
            raise BrokenAnswer

    def _exchange(self, work: Work) -> None:
        ready = np.flatnonzero(work.pending)
        ready = ready[self._open[work.members[ready]]]
        members = work.members[ready]
        # A later attempt is about the same contribution.
        first = work.sequences[ready] == 0
        work.sequences[ready[first]] = self._next_sequence[members[first]]
        work.base_steps[ready[first]] = self._standing.steps[members[first]]
        waiting = dict(zip(self._numbers, work.cut(ready), strict=False))
        self._stream.send(work.messages(dict(waiting), self._stream))
        while waiting:
            answer = read_answer(self._stream.receive_bytes())
            places = None if answer is None else waiting.pop(answer.number, None)
            if answer is not None and places is not None:
                work.land(answer, places)
        if work.gradient is not None:
            counted = ready[work.settled[ready]]
            self._next_sequence[work.members[counted]] = work.sequences[counted] + 1
