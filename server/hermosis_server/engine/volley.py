"""Volley: contributions to many sessions that came in one message, each a round of its own. Columns, not objects.

The rules are those of every contribution (session.py); only the records are lean. What is known of a volley stays in
the columns it came in, and becomes a ticket, a result or a reading when somebody asks for it.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.engine import checks
from hermosis_server.engine.assembler import Staging
from hermosis_server.engine.batch import FleetDone
from hermosis_server.engine.budget import RETRY_AFTER_S
from hermosis_server.engine.entries import Part
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.keeper import Keeper
from hermosis_server.engine.overview import Activity
from hermosis_server.engine.resident import Resident
from hermosis_server.engine.rounds import Answer, StepTicket, WorkerRecord
from hermosis_server.engine.scheduler import ReadyFleet
from hermosis_server.engine.session import Session
from hermosis_server.engine.telemetry import Watchers
from hermosis_server.errors import HermosisError, Overloaded, SessionNotFound
from hermosis_server.identity import shown_id
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
from hermosis_server.tracing import Tracing

T = TypeVar("T")


class Roster:
    """Sessions by their ids, in an order; the same for volley after volley of the same handles."""

    def __init__(self, session_ids: Sequence[str]) -> None:
        self.session_ids = session_ids

    @functools.cached_property
    def places(self) -> Mapping[str, int]:
        """Of each in the order."""
        return {session_id: place for place, session_id in enumerate(self.session_ids)}


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Volley:
    """S contributions of one worker to different sessions, each of which makes a step by itself.

    Entry i of every column is of the same contribution.

    Attributes:
      executor:    of the device that all the sessions live on.
      generations: that the worker knows of the sessions.
      lr_scales:   the worker's own.
      staging:     memory with the gradients.
      gradients:   where in it each one begins and ends, in bytes; aligned to its elements.
      peaks:       the largest magnitude in each gradient; not finite if one of its elements is not.
      checksums:   CRC-32 of each gradient.
      reply_bytes: of each one's reply.
    """

    executor: Executor
    worker_id: str
    wish: ReplyWish
    dtype: Dtype
    staging: Staging
    roster: Roster
    sessions: Sequence[Session]
    residents: Sequence[Resident]
    workers: Sequence[WorkerRecord]
    generations: Sequence[int]
    sequences: Sequence[int]
    base_steps: Sequence[int]
    losses: Sequence[float]
    lr_scales: Sequence[float]
    gradients: Sequence[slice]
    peaks: Sequence[float]
    checksums: Sequence[int]
    reply_bytes: Sequence[int]

    def at(self, places: Sequence[int]) -> "Volley":
        """Those contributions only."""
        columns: dict[str, Any] = {name: _of(getattr(self, name), places) for name in _COLUMNS}
        return replace(self, roster=Roster(_of(self.roster.session_ids, places)), **columns)


_COLUMNS = (
    *("sessions", "residents", "workers", "generations", "sequences", "base_steps", "losses", "lr_scales"),
    *("gradients", "peaks", "checksums", "reply_bytes"),
)


def _no_samples() -> NDArray[np.float64]:
    return np.zeros((0, len(EnergySample._fields)))


@dataclass(eq=False, slots=True, kw_only=True)
class Fates:
    """What is remembered of a volley that was counted, for repeats and telemetry; columns in its order.

    It holds no session, gradient or reply: as long as one session remembers it, it is there for all of them.

    Attributes:
      known:   whether the columns below are.
      durable_steps: empty where nothing is kept on disk.
      samples: (S, len(EnergySample._fields)); meaningless where nothing was applied.
    """

    roster: Roster
    generations: Sequence[int]
    sequences: Sequence[int]
    checksums: Sequence[int]
    gradients: Sequence[slice]
    reply_bytes: Sequence[int]
    known: bool = False
    outcomes: Sequence[Outcome] = ()
    steps: Sequence[int] = ()
    stalenesses: Sequence[int] = ()
    durable_steps: Sequence[int] = ()
    samples: NDArray[np.float64] = field(default_factory=_no_samples)
    time_s: float = 0.0
    device_s: float = 0.0
    batch_sessions: int = 0
    wait_s: float = 0.0
    _waiting: dict[int, StepTicket] = field(default_factory=dict)

    def ticket(self, session_id: str) -> StepTicket:
        """Of one contribution, for a worker that sends it again; one whose fate is not known yet will hear of it."""
        place = self.roster.places[session_id]
        if self.known:
            return StepTicket(self.checksums[place], result=self.result(place))
        return self._waiting.setdefault(place, StepTicket(self.checksums[place]))

    def result(self, place: int) -> StepResult:
        """The fate of one contribution."""
        outcome = self.outcomes[place]
        return StepResult(
            sequence=self.sequences[place],
            outcome=outcome,
            step=self.steps[place],
            generation=self.generations[place],
            staleness=self.stalenesses[place],
            durable_step=self.durable_steps[place] if self.durable_steps else 0,
            contributions=1,
            energies=self._energies(place) if outcome is Outcome.APPLIED else None,
        )

    def reading(self, session_id: str) -> TelemetryReading:
        """The step of one session as a reading."""
        place = self.roster.places[session_id]
        return TelemetryReading(
            session_id=session_id,
            step=self.steps[place],
            time_s=self.time_s,
            energies=self._energies(place),
            contributions=1,
            staleness=self.stalenesses[place],
            received_bytes=self.gradients[place].stop - self.gradients[place].start,
            sent_bytes=self.reply_bytes[place],
            device_s=self.device_s,
            batch_sessions=self.batch_sessions,
            wait_s=self.wait_s,
        )

    def learn(self, done: FleetDone, base_steps: Sequence[int], counted_s: float) -> None:
        """Takes what the device thread tells."""
        self.outcomes = done.outcomes
        self.steps = done.after.tolist()
        self.stalenesses = [step - base for step, base in zip(done.before.tolist(), base_steps, strict=True)]
        self.samples = done.samples
        self.time_s = time.time()
        self.device_s = done.launch.device_s
        self.batch_sessions = done.launch.sessions
        self.wait_s = max(0.0, done.launch.started_s - counted_s)
        self.known = True

    def tell(self, failed: Mapping[int, Exception]) -> None:
        """Lets those hear who asked before anything was known."""
        for place, ticket in self._waiting.items():
            if place in failed:
                ticket.fail(failed[place])
            else:
                ticket.resolve(Answer(self.result(place), None))
        self._waiting.clear()

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
      watchers: hear of each step.
      activity: counts them.
      keeper:   hears of them too; None where nothing is kept.
      tracing:  makes spans of launches; None while nobody traces.
    """

    def __init__(
        self,
        watchers: Watchers,
        *,
        activity: Activity,
        keeper: Keeper | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._watchers = watchers
        self._activity = activity
        self._tracing = tracing
        self._keeper = keeper

    def fire(self, volley: Volley, *, refuse: Refuse, land: Land) -> None:
        """Counts those contributions that can be counted. Takes over the staging memory, whatever happens.

        Args:
          refuse: hears of each one that cannot, by its place in the volley, and why; at once, or when its step failed.
          land:   hears once, after all refusals, what became of the others; None where there are no others.
        """
        places = _countable(volley, refuse)
        if not places:
            volley.staging.release()
            land(None)
            return
        if len(places) < len(volley.sessions):
            volley = volley.at(places)
        fates = Fates(
            roster=volley.roster,
            generations=volley.generations,
            sequences=volley.sequences,
            checksums=volley.checksums,
            gradients=volley.gradients,
            reply_bytes=volley.reply_bytes,
        )
        now_s = time.time()
        columns = zip(
            volley.sessions, volley.workers, volley.sequences, volley.base_steps, volley.gradients, strict=True
        )
        for session, worker, sequence, base_step, piece in columns:
            session.count(worker, sequence, base_step, fates, piece.stop - piece.start, now_s)
            session.stepping += 1
        origin = None if self._tracing is None else self._tracing.here()
        memory, address, dtype = volley.staging.memory, volley.staging.address, volley.dtype
        ready = ReadyFleet(
            residents=volley.residents,
            parts=[
                Part(memory[piece], address + piece.start, dtype, peak)
                for piece, peak in zip(volley.gradients, volley.peaks, strict=True)
            ],
            losses=volley.losses,
            lr_scales=[s.lr_scale * own for s, own in zip(volley.sessions, volley.lr_scales, strict=True)],
            wish=volley.wish,
            worker_id=volley.worker_id,
            sequences=volley.sequences,
            checksums=volley.checksums,
            size_bytes=len(memory),
            done=functools.partial(self._finished, volley, places, fates, time.monotonic(), origin, refuse, land),
        )
        self._activity.queued(len(places), len(memory))
        volley.executor.submit(ready)

    def _finished(
        self,
        volley: Volley,
        places: Sequence[int],
        fates: Fates,
        counted_s: float,
        origin: object,
        refuse: Refuse,
        land: Land,
        done: FleetDone | Exception,
    ) -> None:
        """Hears of a volley's fate: frees its memory, tells rings, watchers and workers."""
        size_bytes = len(volley.staging.memory)
        volley.staging.release()
        failed = dict.fromkeys(range(len(places)), done) if isinstance(done, Exception) else done.failed
        for place, error in failed.items():
            volley.sessions[place].stepping -= 1
            volley.workers[place].forget(volley.sequences[place])
            refuse(places[place], error)
        if isinstance(done, Exception):
            self._activity.dropped(len(places), size_bytes)
            fates.tell(failed)
            land(None)
            return
        fates.learn(done, volley.base_steps, counted_s)
        applied = sum(outcome is Outcome.APPLIED for outcome in done.outcomes)
        self._activity.stepped(done.launch, len(places), size_bytes, applied=applied, counted_s=counted_s)
        if self._tracing is not None and applied:
            pairs = zip(volley.sessions, done.outcomes, strict=True)
            stepped = [shown_id(session.session_id) for session, outcome in pairs if outcome is Outcome.APPLIED]
            self._tracing.stepped(done.launch, stepped, (origin,))
        watched = bool(self._watchers)
        columns = zip(volley.sessions, volley.workers, fates.outcomes, fates.steps, fates.stalenesses, strict=True)
        for place, (session, worker, outcome, step, staleness) in enumerate(columns):
            if failed and place in failed:
                continue
            session.stepping -= 1
            session.step = step
            worker.staleness = staleness
            if outcome is Outcome.APPLIED:
                session.telemetry.append(fates)
                if watched:
                    self._watchers.offer(session.session_id, fates.time_s, fates)
        if self._keeper is not None:
            self._keeper.counted(volley.sessions)
            fates.durable_steps = [session.durable_step for session in volley.sessions]
        if volley.wish.reply is Reply.INCREMENT:
            _keep_increments(volley, fates, done.replies)
        fates.tell(failed)
        land(Landing(places, fates, done.replies))


def _of(column: Sequence[T], places: Sequence[int]) -> Sequence[T]:
    return [column[place] for place in places]


def _countable(volley: Volley, refuse: Refuse) -> list[int]:
    """The places of those that may be counted now, by the rules of `Session.require_admissible`."""
    places = []
    columns = zip(
        volley.sessions,
        volley.workers,
        volley.generations,
        volley.sequences,
        volley.base_steps,
        volley.losses,
        volley.lr_scales,
        strict=True,
    )
    for place, (session, worker, generation, sequence, base_step, loss, lr_scale) in enumerate(columns):
        try:
            if session.status is SessionStatus.CLOSED:
                raise SessionNotFound(f"session {session.session_id} is closed")
            if generation != session.generation:
                session.require_generation(generation)
            if session.stepping >= session.most_stepping:
                raise Overloaded(
                    f"{session.stepping} steps of session {session.session_id} are under way, as many as it has room "
                    "for; send it again shortly",
                    retry_after_s=RETRY_AFTER_S,
                )
            if lr_scale != 1.0:
                checks.check_lr_scale(lr_scale, field="lr_scales")
            session.require_admissible(worker, sequence, base_step, loss)
        except HermosisError as error:
            refuse(place, error)
        else:
            places.append(place)
    return places


def _keep_increments(volley: Volley, fates: Fates, replies: Sequence[memoryview | None]) -> None:
    wish = volley.wish
    columns = zip(volley.sessions, volley.workers, volley.sequences, fates.steps, replies, strict=True)
    for session, worker, sequence, step, reply in columns:
        if reply is not None:
            # A copy: the memory of one reply is that of its whole launch.
            payload = memoryview(bytes(reply))
            increment = Vector(step=step, reply=wish.reply, dtype=wish.dtype, payload=payload)
            session.keep_increment(worker, sequence, increment)
