"""FleetStream: the sessions of a fleet on one Exchange stream, each under its index as handle."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hermosis.v1 import gradient_pb2, types_pb2
from hermosis_client import codec
from hermosis_client.connection import Connection
from hermosis_client.errors import StaleGeneration, error_from_refusal
from hermosis_client.fleet_work import BrokenAnswer, Ints, Terms, Work, read_answer, read_openings
from hermosis_client.lineage import goes_on
from hermosis_client.records import Outcome, Reply
from hermosis_client.session import Session
from hermosis_client.stream import ExchangeStream

OPENINGS = 512  # in one message; the server takes 1024


@dataclass(slots=True)
class Standing:
    """Where a worker of S sessions stands, whatever stream it is on.

    Attributes:
      steps:          (S,) step of the parameters it holds of each; -1 where it knows none.
      generations:    (S,) it knows; zero means none.
      next_sequences: (S,) of its next contribution to each.
    """

    sessions: Sequence[Session]
    worker_id: str
    terms: Terms
    steps: Ints = field(init=False)
    generations: Ints = field(init=False)
    next_sequences: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.steps = np.full(len(self.sessions), -1, np.int64)
        self.generations = np.zeros(len(self.sessions), np.int64)
        self.next_sequences = np.ones(len(self.sessions), np.int64)

    def go_on(self, opened: gradient_pb2.SessionOpened, following: int) -> None:
        """Goes on with a member as it is now.

        Args:
          following: the number of the next contribution to it; the server may have it already.

        Raises:
          StaleGeneration: it lost something that this worker builds on; nothing was noted.
        """
        member = opened.handle
        known, step = int(self.generations[member]), int(self.steps[member])
        if known not in (0, opened.generation) and not goes_on(
            opened, generation=known, step=step, following=following
        ):
            raise StaleGeneration(
                f"session {self.sessions[member].session_id} is at step {opened.step} of generation "
                f"{opened.generation}, and lost what was built on step {step} of generation {known}; pull its "
                "parameters",
                metadata={"generation": str(opened.generation), "step": str(opened.step)},
            )
        self.generations[member] = opened.generation
        self.next_sequences[member] = opened.next_sequence
        if step < 0:
            self.steps[member] = opened.step

    def hold(self, work: Work) -> None:
        """Notes the steps of the parameters that came: when the call ends, since before that its caller has none.

        Those that were pulled are held at the generation that they were pulled at, and no sooner.
        """
        if work.landed is None:
            return
        came = work.settled & (
            (work.replies == Reply.PARAMETERS) | ((work.replies == Reply.INCREMENT) & (work.outcome == Outcome.APPLIED))
        )
        self.steps[work.members[came]] = work.reply_step[came]
        if work.gradient is None:
            self.generations[work.members[came]] = work.generations[came]
            self.next_sequences[work.members[came]] = work.sequences[came]


class FleetStream:
    """One stream of a fleet, from its opening to its end."""

    def __init__(self, connection: Connection, standing: Standing) -> None:
        self._standing = standing
        self._stream = ExchangeStream(connection)
        self._generations: Ints = np.zeros(
            len(standing.sessions), np.int64
        )  # that handles are open at; zero: they are not
        self._numbers = itertools.count(1)

    @property
    def ended(self) -> bool:
        return self._stream.ended

    def cancel(self) -> None:
        self._stream.cancel()

    def close(self) -> None:
        self._stream.close()

    def attempt(self, work: Work) -> None:
        """Opens those who are pending where they are not open yet, sends what they want, and takes what comes.

        Raises:
          HermosisError: the stream has ended.
        """
        try:
            self._introduce(work)
            self._exchange(work)
        except BrokenAnswer:
            raise self._stream.broken("a damaged answer") from None

    def _introduce(self, work: Work) -> None:
        places = np.flatnonzero(work.pending)
        if work.gradient is not None:  # A pull opens all of them once more, at whatever generation they are.
            places = places[~self._fits(work.members[places])]
        parts = [places[first : first + OPENINGS] for first in range(0, len(places), OPENINGS)]
        self._stream.send(self._opening(work.members[part]) for part in parts)
        for part in parts:
            self._opened(work, part)

    def _fits(self, members: Ints) -> NDArray[np.bool_]:
        """(M,) who is open at the generation that the worker knows."""
        opened = self._generations[members]
        fits: NDArray[np.bool_] = (opened != 0) & (opened == self._standing.generations[members])
        return fits

    def _opening(self, members: Ints) -> bytes:
        standing, terms = self._standing, self._standing.terms
        opens = [
            gradient_pb2.OpenSession(
                handle=member,
                session_id=standing.sessions[member].session_id,
                worker_id=standing.worker_id,
                layout_digest=standing.sessions[member].layout.digest,
                gradient_dtype=codec.dtype_number(terms.gradient_dtype),
                reply=gradient_pb2.Reply.ValueType(int(terms.replies[member])),
                reply_dtype=codec.dtype_number(terms.reply_dtype),
                ack_level=types_pb2.AckLevel.ValueType(terms.ack_level),
            )
            for member in members.tolist()
        ]
        close = members[self._generations[members] != 0].tolist()
        request = gradient_pb2.OpenSessions(close=close, open=opens)
        return gradient_pb2.ExchangeRequest(open_many=request).SerializeToString()

    def _opened(self, work: Work, places: Ints) -> None:
        """Takes the answer to openings. They were of any generation, since it tells whether to go on from there."""
        answer = None
        while answer is None:
            answer = read_openings(self._stream.receive_bytes())
        place_of = dict(zip(work.members[places].tolist(), places.tolist(), strict=True))
        self._generations[work.members[places]] = 0
        for opened in answer.opened:
            member = opened.handle
            place = place_of.pop(member, None)
            if place is None:
                raise BrokenAnswer
            self._generations[member] = opened.generation
            if work.gradient is None:
                work.generations[place], work.sequences[place] = opened.generation, opened.next_sequence
                continue
            try:
                self._standing.go_on(opened, int(work.sequences[place] or self._standing.next_sequences[member]))
            except StaleGeneration as error:
                work.refuse(place, error)
        for refused in answer.refused:
            place = place_of.pop(refused.handle, None)
            if place is None:
                raise BrokenAnswer
            work.refuse(place, error_from_refusal(refused.refusal))
        if place_of:
            raise BrokenAnswer

    def _exchange(self, work: Work) -> None:
        standing = self._standing
        ready = np.flatnonzero(work.pending)
        members = work.members[ready]
        opened = self._generations[members] != 0 if work.gradient is None else self._fits(members)
        ready, members = ready[opened], members[opened]
        if work.gradient is not None:
            # A later attempt is about the same contribution.
            first = work.sequences[ready] == 0
            work.sequences[ready[first]] = standing.next_sequences[members[first]]
            work.base_steps[ready[first]] = standing.steps[members[first]]
        waiting = dict(zip(self._numbers, work.cut(ready), strict=False))
        self._stream.send(work.messages(dict(waiting), self._stream))
        try:
            while waiting:
                answer = read_answer(self._stream.receive_bytes())
                places = None if answer is None else waiting.pop(answer.number, None)
                if answer is not None and places is not None:
                    work.land(answer, places)
        finally:  # What came before the stream broke has come.
            if work.gradient is not None:
                counted = ready[work.settled[ready]]
                standing.next_sequences[work.members[counted]] = work.sequences[counted] + 1
