"""Batch: rounds and fleets become entries of launches, one a cohort, and what those led to goes back to each."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.engine.aggregate import aggregate
from hermosis_server.engine.arena import Arena, from_wire, wire_bytes
from hermosis_server.engine.cohort import Cohort
from hermosis_server.engine.entries import Entry, Part, mean_of
from hermosis_server.engine.resident import Resident, digest
from hermosis_server.engine.rounds import Contribution, weights
from hermosis_server.engine.scheduler import Ready, ReadyFleet, ReadyRound
from hermosis_server.engine.step import Stepped, Stepper
from hermosis_server.errors import InternalError
from hermosis_server.records import EnergySample, Outcome, Reply, ReplyWish, StateBuffer, Vector, WorkerSequence

logger = logging.getLogger(__name__)

MOST_RETENTIONS = 1024  # of a session; a gradient that is later counts nothing as in its own time
_RETENTION = EnergySample._fields.index("retention")


class Launch(NamedTuple):
    """What the sessions of a batch have in common.

    Attributes:
      started_s:  monotonic seconds.
      device_s:   seconds until the batch was done.
      sessions:   in the batch.
    """

    started_s: float
    device_s: float
    sessions: int


class Mixture(NamedTuple):
    """How a round's contributions went into its gradient, each at its place.

    Attributes:
      influences:   from 0 to 1; empty where it is their mean, or nothing was tried.
      quarantined:  those that were left out for not being finite.
      late_weights: beside the mean's; empty where each counts in full.
    """

    influences: Sequence[float] = ()
    quarantined: frozenset[int] = frozenset()
    late_weights: Sequence[float] = ()


_PLAIN = Mixture()


class StepDone(NamedTuple):
    """What a round led to: news from the device thread to the rpc thread."""

    outcome: Outcome
    step: int
    base_step: int  # step before; each contribution's staleness is counted from it
    energies: EnergySample
    vectors: Sequence[Vector | None]  # of each contribution, what it asked for
    state_digest: bytes
    launch: Launch
    mixture: "Mixture"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDone:
    """What the rounds of a fleet led to, in columns in their order.

    Attributes:
      outcomes: of each.
      failed:   those that were not tried, by index; the server's fault.
      before:   (S,) int64 steps before.
      after:    (S,) int64 steps after.
      samples:  (S, len(EnergySample._fields)) energies; meaningless where nothing was applied.
      replies:  the bytes asked for; None where there are none.
    """

    outcomes: Sequence[Outcome]
    failed: dict[int, Exception]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    samples: NDArray[np.float64]
    replies: Sequence[memoryview | None]
    launch: Launch


Results = list[StepDone | FleetDone | Exception]


def step_batch(arena: Arena, stepper: Stepper, batch: Sequence[Ready]) -> Results:
    """Steps all sessions of a batch and tells what became of each item, in order."""
    return begin_batch(arena, stepper, batch)()


def begin_batch(arena: Arena, stepper: Stepper, batch: Sequence[Ready]) -> Callable[[], Results]:
    """Begins what `step_batch` does; calling what it gives waits for the end, and must be done once.

    In between a batch of other sessions may begin, and nothing else may happen in the arena.
    """
    mixed = [_mixed(item) for item in batch]
    end = _begin(stepper, [entry for entries, _ in mixed for entry in entries])

    def results() -> Results:
        fates, first, told = end(), 0, Results()
        for item, (entries, mixture) in zip(batch, mixed, strict=True):
            if not isinstance(item, ReadyRound):
                told.append(_fleet_done(item, fates, first))
            elif not entries:
                told.append(_untried(item, mixture, fates.launch))
            elif first in fates.failed:
                told.append(fates.failed[first])
            else:
                told.append(_round_done(arena, item, fates, first, mixture))
            first += len(entries)
        return told

    return results


def step_failed(error: Exception, sessions: int) -> InternalError:
    """What workers are told of an error that nobody foresaw; the log has the rest."""
    logger.error("event=step_failed sessions=%d", sessions, exc_info=error)
    failure = InternalError("the step failed; the session is unchanged, see the server's log")
    failure.__cause__ = error
    return failure


@dataclass(slots=True)
class _Fates:
    """What became of the entries of a batch, in columns; `failed` has those that were not tried."""

    outcomes: list[Outcome]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    samples: NDArray[np.float64]
    replies: list[memoryview | None]
    launch: Launch
    failed: dict[int, Exception] = field(default_factory=dict)


def _begin(stepper: Stepper, entries: list[Entry]) -> Callable[[], _Fates]:
    """Begins to step entries of any cohorts, a launch for each; an error of one launch is none of the others'."""
    started_s, count = time.monotonic(), len(entries)
    cohorts: dict[Cohort, list[int]] = {}
    for index, entry in enumerate(entries):
        cohorts.setdefault(entry.resident.cohort, []).append(index)
    failed: dict[int, Exception] = {}
    under_way: list[tuple[list[int], Callable[[], Stepped]]] = []
    for indices in cohorts.values():
        try:
            under_way.append((indices, stepper.begin([entries[index] for index in indices])))
        except Exception as error:
            failed |= dict.fromkeys(indices, step_failed(error, len(indices)))

    def end() -> _Fates:
        landed: list[tuple[list[int], Stepped]] = []
        for indices, finish in under_way:
            try:
                landed.append((indices, finish()))
            except Exception as error:
                failed.update(dict.fromkeys(indices, step_failed(error, len(indices))))
        launch = Launch(started_s=started_s, device_s=time.monotonic() - started_s, sessions=count)
        if len(landed) == 1 and not failed:  # as a rule: one launch of them all, in order
            stepped = landed[0][1]
            return _Fates(stepped.outcomes, stepped.before, stepped.after, stepped.samples, stepped.replies, launch)
        return _joined(landed, count, launch, failed)

    return end


def _joined(
    landed: Sequence[tuple[list[int], Stepped]], count: int, launch: Launch, failed: dict[int, Exception]
) -> _Fates:
    """The fates that several launches led to, each at its place."""
    outcomes, replies = [Outcome.DROPPED] * count, list[memoryview | None]([None] * count)
    before, after = np.zeros(count, np.int64), np.zeros(count, np.int64)
    samples = np.full((count, len(EnergySample._fields)), np.nan)
    for indices, stepped in landed:
        before[indices], after[indices], samples[indices] = stepped.before, stepped.after, stepped.samples
        for index, outcome, reply in zip(indices, stepped.outcomes, stepped.replies, strict=True):
            outcomes[index], replies[index] = outcome, reply
    return _Fates(outcomes, before, after, samples, replies, launch, failed)


def _mixed(item: Ready) -> tuple[list[Entry], Mixture]:
    """The entries of an item; none of a round that is not to be tried."""
    if isinstance(item, ReadyFleet):
        wish = None if item.wish.reply is Reply.NONE else item.wish
        columns = zip(item.residents, item.parts, item.losses, item.lr_scales, strict=True)
        return [Entry(resident, (part,), loss, lr_scale, wish) for resident, part, loss, lr_scale in columns], _PLAIN
    if item.dropped:
        return [], _PLAIN
    mixture, late = _PLAIN, _late_weights(item)
    parts = _parts(item.contributions)
    if late:
        mixture = mixture._replace(late_weights=late)
        parts = [part._replace(weight=part.weight * weight) for part, weight in zip(parts, late, strict=True)]
    if item.aggregation is not None:
        one = aggregate(parts, item.aggregation)
        mixture = mixture._replace(influences=one.influences, quarantined=one.quarantined)
        if one.part is None:
            return [], mixture
        parts = [one.part]
    elif len(parts) == 1 and parts[0].weight != 1:
        parts = [mean_of(parts)]
    skipped, wish = _skipped(item.contributions, mixture.quarantined), _launch_wish(item.contributions)
    if skipped and wish is not None and wish.reply is Reply.PARAMETERS:
        wish = None  # they are whole when the launch is over
    return [Entry(item.resident, parts, item.loss, item.lr_scale, wish, skipped)], mixture


def _skipped(contributions: list[Contribution], quarantined: Set[int]) -> tuple[int, ...]:
    """The tensors of which no contribution that counts has a gradient, in ascending order."""
    if not any(one.commit.skipped for one in contributions):
        return ()
    given = [set(one.commit.skipped) for place, one in enumerate(contributions) if place not in quarantined]
    return tuple(sorted(set.intersection(*given)))


def _late_weights(item: ReadyRound) -> Sequence[float]:
    """What late contributions count in their own time: the product of the retentions of the steps since (THEORY 6).

    What is older than the retentions that are known counts nothing.
    """
    if item.late_weights is not None:
        return item.late_weights
    resident: Resident = item.resident
    if not item.as_then:
        return ()
    if resident.retentions is None:
        resident.retentions = deque(maxlen=MOST_RETENTIONS)
    known, now = resident.retentions, resident.step
    ages = [max(0, now - one.commit.base_step) for one in item.contributions]
    if not any(ages):
        return ()
    return [math.prod(list(known)[len(known) - age :]) if age <= len(known) else 0.0 for age in ages]


def _parts(contributions: list[Contribution]) -> list[Part]:
    parts = []
    for contribution, weight in zip(contributions, weights(contributions), strict=True):
        gradient = contribution.gradient
        if gradient.staging is None:
            raise InternalError("a repeated gradient was counted; this is a bug in hermosis")
        staging, loss_scale = gradient.staging, contribution.commit.loss_scale
        part = Part(staging.memory, staging.address, gradient.dtype, gradient.peak)
        if loss_scale is not None and loss_scale != 1:  # before any rule looks at it
            part = mean_of([part._replace(weight=1 / loss_scale)])
        parts.append(part._replace(weight=weight))
    return parts


def _launch_wish(contributions: list[Contribution]) -> ReplyWish | None:
    """The reply that a launch makes for a round; where workers want several, the rest follow from it or the rows."""
    if len(contributions) == 1:
        wish = contributions[0].wish
        return None if wish.reply is Reply.NONE else wish
    wishes = {one.wish for one in contributions if one.wish.reply is not Reply.NONE}
    if len(wishes) <= 1:
        # What several workers get may not lie in the memory of one, who could change it.
        return next((replace(wish, place=None) for wish in wishes), None)
    if any(wish.reply is Reply.INCREMENT for wish in wishes):
        return ReplyWish(reply=Reply.INCREMENT, dtype=Dtype.FLOAT32)
    return None


def outcome_of(outcome: Outcome, mixture: Mixture, place: int) -> Outcome:
    """Of one contribution to a round with that outcome."""
    return Outcome.NON_FINITE_GRADIENT if place in mixture.quarantined else outcome


def _note(item: ReadyRound, outcome: Outcome, step: int, mixture: Mixture) -> None:
    """Writes the round's contributions into the sequence table."""
    resident: Resident = item.resident
    for place, one in enumerate(item.contributions):
        fate = outcome_of(outcome, mixture, place)
        table = resident.workers if fate is Outcome.APPLIED else resident.refused
        table[one.worker.worker_id] = WorkerSequence(
            one.worker.worker_id, one.commit.sequence, one.ticket.payload_crc32, fate, step
        )


def _untried(item: ReadyRound, mixture: Mixture, launch: Launch) -> StepDone:
    """The fate of a round that came too late, or of which nothing was finite."""
    resident: Resident = item.resident
    outcome, step = Outcome.DROPPED if item.dropped else Outcome.NON_FINITE_GRADIENT, resident.step
    _note(item, outcome, step, mixture)
    return StepDone(
        outcome=outcome,
        step=step,
        base_step=step,
        energies=EnergySample(*[math.nan] * len(EnergySample._fields)),
        vectors=_vectors(item, step, None),
        state_digest=b"",
        launch=launch,
        mixture=mixture,
    )


def _round_done(arena: Arena, item: ReadyRound, fates: _Fates, index: int, mixture: Mixture) -> StepDone:
    step, outcome = int(fates.after[index]), fates.outcomes[index]
    resident: Resident = item.resident
    _note(item, outcome, step, mixture)
    if resident.retentions is not None and outcome is Outcome.APPLIED:
        resident.retentions.append(float(fates.samples[index][_RETENTION]))
    wanted = any(one.commit.want_digest for one in item.contributions)
    return StepDone(
        outcome=outcome,
        step=step,
        base_step=int(fates.before[index]),
        energies=EnergySample(*fates.samples[index].tolist()),
        vectors=_vectors(item, step, fates.replies[index]),
        state_digest=digest(arena, resident) if wanted else b"",
        launch=fates.launch,
        mixture=mixture,
    )


def _vectors(item: ReadyRound, step: int, made: memoryview | None) -> list[Vector | None]:
    """What each worker asked for, each kind made once however many want it."""
    launched = _launch_wish(item.contributions)
    if len(item.contributions) == 1 and made is not None and launched is not None:
        return [Vector(step=step, reply=launched.reply, dtype=launched.dtype, payload=made)]
    vectors: dict[ReplyWish, Vector | None] = {}
    for wish in {one.wish for one in item.contributions}:
        payload: memoryview | None = None
        if made is not None and wish == launched:
            payload = made
        elif wish.reply is Reply.PARAMETERS:
            payload = wire_bytes(item.resident.slot.read(StateBuffer.PARAMETERS), wish.dtype)
        elif wish.reply is Reply.INCREMENT and made is not None:
            payload = wire_bytes(from_wire(made, Dtype.FLOAT32), wish.dtype)
        if payload is not None:
            vectors[wish] = Vector(step=step, reply=wish.reply, dtype=wish.dtype, payload=payload)
    return [vectors.get(one.wish) for one in item.contributions]


def _fleet_done(item: ReadyFleet, fates: _Fates, first: int) -> FleetDone:
    part = slice(first, first + len(item.residents))
    failed = {index - first: error for index, error in fates.failed.items() if part.start <= index < part.stop}
    outcomes, after, replies = fates.outcomes[part], fates.after[part], fates.replies[part]
    steps = after.tolist()
    for index, resident in enumerate(item.residents):
        if outcomes[index] is Outcome.APPLIED:
            resident.workers[item.worker_id] = WorkerSequence(
                item.worker_id, item.sequences[index], item.checksums[index], Outcome.APPLIED, steps[index]
            )
        elif index not in failed:
            resident.refused[item.worker_id] = WorkerSequence(
                item.worker_id, item.sequences[index], item.checksums[index], outcomes[index], steps[index]
            )
        if replies[index] is None and item.wish.reply is Reply.PARAMETERS and index not in failed:
            replies[index] = wire_bytes(resident.slot.read(StateBuffer.PARAMETERS), item.wish.dtype)
    return FleetDone(
        outcomes=outcomes,
        failed=failed,
        before=fates.before[part],
        after=after,
        samples=fates.samples[part],
        replies=replies,
        launch=fates.launch,
    )
