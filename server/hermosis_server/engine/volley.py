"""Volley: contributions to many sessions that came in one message, each a round of its own. Columns, not objects.

The rules are those of every contribution (session.py); only the records are lean. What the steps led to stays in the
columns it came in, and becomes a StepResult or a TelemetryReading when somebody asks for it.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.engine import checks
from hermosis_server.engine.assembler import Staging
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.interim import FleetDone, Part, ReadyFleet, address_of, submit_fleet
from hermosis_server.engine.rounds import StepTicket, WorkerRecord
from hermosis_server.engine.session import Session
from hermosis_server.engine.telemetry import Watchers
from hermosis_server.errors import HermosisError, SessionNotFound
from hermosis_server.records import (
    EnergySample,
    Outcome,
    Reply,
    ReplyWish,
    SessionStatus,
    StepResult,
    TelemetryReading,
    Vector,
)

T = TypeVar("T")


@dataclass(eq=False, slots=True, kw_only=True)
class Volley:
    """S contributions of one worker to different sessions, each of which makes a step by itself.

    Entry i of every column is of the same contribution.

    Attributes:
      generations: that the worker knows of the sessions.
      lr_scales:   the worker's own.
      staging:     memory with the gradients.
      gradients:   where in it each one begins and ends, in bytes; aligned to its elements.
      peaks:       the largest magnitude in each gradient; not finite if one of its elements is not.
      checksums:   CRC-32 of each gradient.
      reply_bytes: of each one's reply.
    """

    worker_id: str
    wish: ReplyWish
    dtype: Dtype
    sessions: Sequence[Session]
    workers: Sequence[WorkerRecord]
    generations: Sequence[int]
    sequences: Sequence[int]
    base_steps: Sequence[int]
    losses: Sequence[float]
    lr_scales: Sequence[float]
    staging: Staging
    gradients: Sequence[slice]
    peaks: Sequence[float]
    checksums: Sequence[int]
    reply_bytes: Sequence[int]


@dataclass(eq=False, slots=True, kw_only=True)
class Fates:
    """What became of contributions that stepped together, in their order; kept for repeats and telemetry.

    Attributes:
      samples: (S, len(EnergySample._fields)); meaningless where nothing was applied.
    """

    session_ids: Sequence[str]
    generations: Sequence[int]
    sequences: Sequence[int]
    outcomes: Sequence[Outcome]
    steps: Sequence[int]
    stalenesses: Sequence[int]
    samples: NDArray[np.float64]
    received_bytes: Sequence[int]
    sent_bytes: Sequence[int]
    time_s: float
    device_s: float
    batch_sessions: int
    wait_s: float

    def result(self, place: int) -> StepResult:
        """The fate of one contribution."""
        outcome = self.outcomes[place]
        return StepResult(
            sequence=self.sequences[place],
            outcome=outcome,
            step=self.steps[place],
            generation=self.generations[place],
            staleness=self.stalenesses[place],
            contributions=1,
            energies=self._energies(place) if outcome is Outcome.APPLIED else None,
        )

    def reading(self, place: int) -> TelemetryReading:
        """The step of one session as a reading."""
        return TelemetryReading(
            session_id=self.session_ids[place],
            step=self.steps[place],
            time_s=self.time_s,
            energies=self._energies(place),
            contributions=1,
            staleness=self.stalenesses[place],
            received_bytes=self.received_bytes[place],
            sent_bytes=self.sent_bytes[place],
            device_s=self.device_s,
            batch_sessions=self.batch_sessions,
            wait_s=self.wait_s,
        )

    def _energies(self, place: int) -> EnergySample:
        return EnergySample(*self.samples[place].tolist())


class Landing(NamedTuple):
    """Those of a volley that were counted: their places in it, fates, and replies; None where there is none."""

    places: Sequence[int]
    fates: Fates
    replies: Sequence[memoryview | None]


Refuse = Callable[[int, Exception], None]
Land = Callable[[Landing | None], None]


class Volleys:
    """Takes volleys and hands them to the device thread, each as one.

    Args:
      executor: owns the device.
      watchers: hear of each step.
    """

    def __init__(self, executor: Executor, watchers: Watchers) -> None:
        self._executor = executor
        self._watchers = watchers

    def fire(self, volley: Volley, *, refuse: Refuse, land: Land) -> None:
        """Counts those contributions that can be counted. Takes over the staging memory, whatever happens.

        Args:
          refuse: hears of each one that cannot, by its place in the volley, and why; at once, or when its step failed.
          land:   hears once, after all refusals, what became of the others; None where there are no others.
        """
        places: list[int] = []
        tickets: list[StepTicket] = []
        parts: list[Part] = []
        now_s = time.time()
        memory, address = volley.staging.memory, address_of(volley.staging.memory)
        columns = zip(
            volley.sessions,
            volley.workers,
            volley.generations,
            volley.sequences,
            volley.base_steps,
            volley.losses,
            volley.lr_scales,
            volley.gradients,
            volley.peaks,
            volley.checksums,
            strict=True,
        )
        for place, (session, worker, known, sequence, base, loss, scale, piece, peak, crc32) in enumerate(columns):
            try:
                _require_countable(session, worker, known, sequence, base, loss, scale)
            except HermosisError as error:
                refuse(place, error)
                continue
            ticket = StepTicket(crc32)
            session.count(worker, sequence, base, ticket, piece.stop - piece.start, now_s)
            session.stepping += 1
            places.append(place)
            tickets.append(ticket)
            parts.append(Part(memory[piece], address + piece.start, volley.dtype, peak))
        if not places:
            volley.staging.release()
            land(None)
            return
        taken = _of(volley.sessions, places)
        ready = ReadyFleet(
            residents=[session.on_device for session in taken],
            parts=parts,
            losses=_of(volley.losses, places),
            lr_scales=[s.lr_scale * own for s, own in zip(taken, _of(volley.lr_scales, places), strict=True)],
            wish=volley.wish,
            worker_id=volley.worker_id,
            sequences=_of(volley.sequences, places),
            checksums=_of(volley.checksums, places),
            size_bytes=len(memory),
            done=functools.partial(self._finished, volley, places, tickets, time.monotonic(), refuse, land),
        )
        submit_fleet(self._executor, ready)

    def _finished(
        self,
        volley: Volley,
        places: list[int],
        tickets: list[StepTicket],
        counted_s: float,
        refuse: Refuse,
        land: Land,
        done: FleetDone | Exception,
    ) -> None:
        """Hears of a volley's fate: frees its memory, settles its tickets, tells rings and watchers, and the worker."""
        volley.staging.release()
        failed = dict.fromkeys(range(len(places)), done) if isinstance(done, Exception) else done.failed
        for index, error in failed.items():
            place = places[index]
            volley.sessions[place].stepping -= 1
            volley.workers[place].forget(volley.sequences[place])
            tickets[index].fail(error)
            refuse(place, error)
        if isinstance(done, Exception):
            land(None)
            return
        sessions, base_steps = _of(volley.sessions, places), _of(volley.base_steps, places)
        steps = done.after.tolist()
        stalenesses = [before - base for before, base in zip(done.before.tolist(), base_steps, strict=True)]
        fates = Fates(
            session_ids=[session.session_id for session in sessions],
            generations=[session.generation for session in sessions],
            sequences=_of(volley.sequences, places),
            outcomes=done.outcomes,
            steps=steps,
            stalenesses=stalenesses,
            samples=done.samples,
            received_bytes=[piece.stop - piece.start for piece in _of(volley.gradients, places)],
            sent_bytes=_of(volley.reply_bytes, places),
            time_s=time.time(),
            device_s=done.launch.device_s,
            batch_sessions=done.launch.sessions,
            wait_s=max(0.0, done.launch.started_s - counted_s),
        )
        columns = zip(sessions, _of(volley.workers, places), tickets, done.outcomes, steps, stalenesses, strict=True)
        for index, (session, worker, ticket, outcome, step, staleness) in enumerate(columns):
            if index in failed:
                continue
            session.stepping -= 1
            session.step = step
            worker.staleness = staleness
            ticket.settle((fates, index))
            if outcome is Outcome.APPLIED:
                session.telemetry.append((fates, index))
                if self._watchers:
                    self._watchers.offer(fates.reading(index))
        if volley.wish.reply is Reply.INCREMENT:
            _keep_increments(volley.wish, tickets, fates, done.replies)
        land(Landing(places, fates, done.replies))


def _of(column: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    """The entries at places, which are all or some of them, in order."""
    return column if len(places) == len(column) else [column[place] for place in places]


def _require_countable(
    session: Session, worker: WorkerRecord, generation: int, sequence: int, base_step: int, loss: float, lr_scale: float
) -> None:
    """Raises unless a gradient that came whole may be counted now; see `Session.require_admissible`."""
    if session.status is SessionStatus.CLOSED:
        raise SessionNotFound(f"session {session.session_id} is closed")
    session.require_generation(generation)
    checks.check_lr_scale(lr_scale, field="lr_scales")
    session.require_admissible(worker, sequence, base_step, loss)


def _keep_increments(
    wish: ReplyWish, tickets: Sequence[StepTicket], fates: Fates, replies: Sequence[memoryview | None]
) -> None:
    """Each worker's last increment stays with its ticket, because nobody could compute it again."""
    for ticket, step, reply in zip(tickets, fates.steps, replies, strict=True):
        if reply is not None:
            # A copy: the memory of one reply is that of its whole launch.
            ticket.increment = Vector(step=step, reply=wish.reply, dtype=wish.dtype, payload=bytes(reply))
