"""Sweep: kick and drift of one row, sixteen elements at a time, in registers.

`flows.py`, `metric.py` and `norms.py` define what is done here; each function names what it is. A row is swept once
where the length of the drift is known beforehand, and twice where a norm must be summed over its session or tensor
first: then the second sweep finds the direction of the drift again, from what the first one left.
"""

import enum
from typing import NamedTuple

import numpy as np

from hermosis_server.dynamics.family import Coefficients
from hermosis_server.dynamics.fused.compiled import compiled, inlined
from hermosis_server.dynamics.fused.elements import (
    DOUBLE_BYTES,
    FLOAT32,
    FLOAT_BYTES,
    HALF_BYTES,
    add_lanes,
    add_norms,
    cooled_kick,
    metric_scale,
    read_gradient,
    write_reply,
)
from hermosis_server.dynamics.fused.lanes import (
    LANES,
    larger,
    load,
    load_doubles,
    magnitude,
    narrow,
    peak,
    prefetch,
    splat,
    splat_double,
    store,
    total,
    widen,
)
from hermosis_server.dynamics.fused.plan import Plan
from hermosis_server.dynamics.fused.tables import Integers, Numbers, Row
from hermosis_server.dynamics.fused.traits import Trait
from hermosis_server.dynamics.metric import POWER_UNIT
from hermosis_server.records import Reply

PARAMETERS, INCREMENT = int(Reply.PARAMETERS), int(Reply.INCREMENT)


class Sum(enum.IntEnum):
    """Columns of a row's sums, (len(Sum),) float64. Norms have four: those of `norms.CoordinateNorms` by coordinate,
    else s and the work, and two that stay zero."""

    GRADIENT = 0  # |g|²
    MOMENTUM = 1  # |X|² after the kick
    POSITION = 2  # |w|² at the published point
    INCREMENT = 3  # |Δw|²
    PEAK = 4  # not a sum: the largest magnitude of the state
    BEFORE = 5
    AFTER = 9
    END = 13
    AGAIN = 17
    COUNT = 21


class Ways(NamedTuple):
    """What is done to a row; each is the same for all of its elements."""

    kick: bool
    drift: bool
    holds: bool  # its session has parameters
    diagonal: bool
    on_kick: bool  # the metric acts on the gradient, not on the momentum
    centered: bool
    inside: bool  # ε in the metric
    power_units: int
    by_coordinate: bool
    euclidean: bool  # norm of the momentum
    starts: bool  # the first step of a session whose first gradient weighs differently
    lookahead: bool
    bare: bool
    thermal: bool
    decoupled: bool
    leads: bool


class Pull(enum.IntEnum):
    """Columns of how far a row goes, (len(Pull),) float64; by coordinate without braking."""

    REACH = 0
    LEAD = 1
    DECAY = 2


NORMS = Sum.COUNT - Sum.BEFORE


@inlined
def sweep_in(
    ways: Ways,
    rows: Integers,
    index: int,
    traits: Integers,
    c: Coefficients[float],
    plan: Plan,
    pull: Numbers,
    gradient_dtype: int,
    reply: int,
    reply_dtype: int,
    lanes: Numbers,
    sums: Numbers,
) -> None:
    """`sweep`, in ways that may be known to the compiler."""
    row, coming = rows[index], rows[min(index + 1, rows.shape[0] - 1)]
    position, momentum, length = row[Row.POSITION], row[Row.MOMENTUM], row[Row.LENGTH]
    second, first, lead = row[Row.SECOND_MOMENT], row[Row.FIRST_MOMENT], row[Row.LEAD]
    gradient, answer = row[Row.GRADIENT], row[Row.REPLY]
    on_drift = ways.diagonal and not ways.on_kick
    normalise_metric = traits[Trait.NORMALISE_METRIC] != 0
    squares = ways.euclidean and on_drift and not ways.by_coordinate  # s and work are two sums
    weighs = ways.bare or ways.thermal  # who else asks for |w|² multiplies it by zero
    follows, conformal = traits[Trait.FOLLOWS_SPEED] != 0, traits[Trait.CONFORMAL] != 0
    reads = ways.kick or ways.lookahead
    answers_parameters = ways.drift and answer != 0 and ways.holds and reply == PARAMETERS
    answers_increment = ways.drift and answer != 0 and reply == INCREMENT

    # The processor's own guesses at what comes next end with each page; the step is 2 to 3 times as fast with ours.
    next_momentum, next_gradient = coming[Row.MOMENTUM], coming[Row.GRADIENT]
    next_position, next_second = coming[Row.POSITION], coming[Row.SECOND_MOMENT]
    item = FLOAT_BYTES if gradient_dtype == FLOAT32 else HALF_BYTES

    # Numbers of the session, rounded once.
    retention, impulse_gain = splat(np.float32(plan.kick.retention)), splat(np.float32(plan.impulse_gain))
    started, stiffness = splat(np.float32(plan.started)), splat(np.float32(plan.stiffness))
    thermal_decay, epsilon = splat(np.float32(c.thermal_decay)), splat(np.float32(c.epsilon))
    decay_2, gain_2 = splat(np.float32(c.second_moment_decay)), splat(np.float32(c.second_moment_gain))
    unit_2 = splat(np.float32(plan.unit_second_moment))
    left, taken_back = splat(np.float32(plan.left)), splat(np.float32(1 - c.kept_drift))
    zero, no_sum = splat(np.float32(0)), splat_double(0.0)
    drift_by, lead_by = splat(np.float32(-pull[Pull.REACH])), splat(np.float32(-pull[Pull.LEAD]))
    decay_by = splat(np.float32(-pull[Pull.DECAY]))

    lanes_at = lanes.ctypes.data
    if ways.by_coordinate or squares:
        lanes[:] = 0
    gradient_square, momentum_square, position_square = no_sum, no_sum, no_sum
    increment_square, work_before, work_after = no_sum, no_sum, no_sum
    highest = zero
    for i in range(0, length, LANES):
        count = length - i
        at = FLOAT_BYTES * i
        prefetch(next_momentum + at)
        # The force, and the metric that learns from it.
        m2, m1, scale, impulse, w = zero, zero, zero, zero, zero
        if ways.holds and (ways.drift or weighs):
            prefetch(next_position + at)
            w = load(position + at)
        if reads:
            prefetch(next_gradient + item * i)
            g = read_gradient(gradient, gradient_dtype, i, count)
            if ways.kick:
                wide = widen(g)
                gradient_square = gradient_square + wide * wide
            impulse = g
            if ways.thermal:
                impulse = g + w * thermal_decay
        if ways.diagonal:
            prefetch(next_second + at)
            m2 = load(second + at)
            if ways.centered:
                m1 = load(first + at)
            if ways.kick:
                m2 = m2 * decay_2 + impulse * impulse * gain_2  # metric.update_moments_
                store(m2, second + at)
                highest = larger(m2, highest)
                if ways.centered:
                    m1 = m1 * decay_2 + impulse * gain_2
                    store(m1, first + at)
                    highest = larger(magnitude(m1), highest)
            scale = metric_scale(
                m2, m1, unit_2, epsilon, normalise_metric, ways.centered, ways.inside, ways.power_units
            )
            if ways.on_kick:
                impulse = impulse / scale

        x = load(momentum + at)
        if ways.kick:
            if ways.starts:
                x = impulse * started  # flows.start_
            raised = x / scale if on_drift else x
            if ways.by_coordinate:
                add_norms(lanes_at, 0, x, raised, plan.before, c, ways.euclidean)
            else:
                work_before = work_before + widen(x) * widen(raised)
                if squares:
                    add_lanes(lanes_at, 0, widen(x) * widen(x))
            x = cooled_kick(x, impulse, retention, impulse_gain)
            if ways.bare:
                x = x + w * stiffness  # flows.harmonic_kick_
            momentum_square = momentum_square + widen(x) * widen(x)
            if weighs:
                position_square = position_square + widen(w) * widen(w)
        drifting = cooled_kick(x, impulse, retention, impulse_gain) if ways.lookahead else x
        direction = drifting / scale if on_drift else drifting
        if ways.kick and not ways.by_coordinate and (on_drift or ways.lookahead):
            work_after = work_after + widen(drifting) * widen(direction)
            if squares:
                add_lanes(lanes_at, 4, widen(drifting) * widen(drifting))

        if ways.drift:
            if ways.by_coordinate:
                # norms.CoordinateNorms.pull
                braking = add_norms(lanes_at, 4, drifting, direction, plan.after, c, ways.euclidean)
                ahead = splat_double(0.0)
                if conformal:
                    add_norms(lanes_at, 8, drifting, direction, plan.end, c, ways.euclidean)
                    later = add_norms(lanes_at, 12, drifting, direction, plan.again, c, ways.euclidean)
                    ahead = splat_double(plan.pace_again) * later
                elif plan.pace_again != 0:
                    ahead = splat_double(plan.pace_again) * braking
                drift_by = zero - narrow(splat_double(plan.pace) * braking + ahead)
                lead_by = zero - narrow(ahead)
                if follows:
                    decay_by = zero - narrow(splat_double(plan.decay) * braking)
            increment = direction * drift_by  # flows.drift_
            base = w
            if ways.leads:
                before = load(lead + at)
                if ways.decoupled:
                    base = w - taken_back * before
            if ways.decoupled:
                increment = increment + base * decay_by  # flows.decay_
            if ways.leads:
                increment = increment - before * taken_back  # flows.retrace_
                onwards = direction * lead_by
                store(onwards, lead + at)
                highest = larger(magnitude(onwards), highest)
            if conformal:
                x = x * left  # flows.cool_
            wide = widen(increment)
            increment_square = increment_square + wide * wide
            if ways.holds:
                w = w + increment
                store(w, position + at)
                highest = larger(magnitude(w), highest)
            highest = larger(magnitude(x), highest)
            if answers_parameters:
                write_reply(w, answer, reply_dtype, i, count)
            elif answers_increment:
                write_reply(increment, answer, reply_dtype, i, count)
        if ways.kick or conformal:
            store(x, momentum + at)

    largest = np.float64(peak(highest))
    if ways.kick:
        sums[Sum.PEAK] = 0.0
        sums[Sum.GRADIENT] = total(gradient_square)
        sums[Sum.MOMENTUM] = total(momentum_square)
        sums[Sum.POSITION] = total(position_square)
        sums[Sum.BEFORE + 1] = total(work_before)
        sums[Sum.AFTER + 1] = total(work_after) if on_drift or ways.lookahead else sums[Sum.MOMENTUM]
        sums[Sum.BEFORE] = total(load_doubles(lanes_at)) if squares else sums[Sum.BEFORE + 1]
        sums[Sum.AFTER] = total(load_doubles(lanes_at + 4 * LANES * DOUBLE_BYTES)) if squares else sums[Sum.AFTER + 1]
    if ways.drift:
        sums[Sum.INCREMENT] = total(increment_square)
    if ways.by_coordinate:
        for slot in range(NORMS):
            sums[Sum.BEFORE + slot] = total(load_doubles(lanes_at + slot * LANES * DOUBLE_BYTES))
    sums[Sum.PEAK] = max(sums[Sum.PEAK], largest)


@compiled
def sweep(
    rows: Integers,
    index: int,
    traits: Integers,
    c: Coefficients[float],
    plan: Plan,
    pull: Numbers,
    kick: bool,
    drift: bool,
    gradient_dtype: int,
    reply: int,
    reply_dtype: int,
    lanes: Numbers,
    sums: Numbers,
) -> None:
    """Kicks a row, drifts it, or both; `passes.kick_rows_` and `passes.drift_rows_`.

    The common ways are compiled by themselves: in the one for all ways not everything stays in registers.

    Args:
      rows:   (R, 8) where all rows of the batch lie; the one after this is asked for in good time.
      index:  of the row.
      traits: of its family.
      c:      coefficients of its session.
      plan:   of its session's step.
      pull:   (3,) how far it drifts.
      lanes:  (NORMS * LANES,) to sum in; of no meaning afterwards.
      sums:   (Sum.COUNT,) of which the kick writes its own and the drift its own.
    """
    holds, leads = rows[index, Row.POSITION] != 0, rows[index, Row.LEAD] != 0
    diagonal, on_kick = traits[Trait.DIAGONAL] != 0, traits[Trait.METRIC_ON_KICK] != 0
    centered, inside = traits[Trait.CENTERED] != 0, traits[Trait.EPSILON_INSIDE] != 0
    power_units = traits[Trait.POWER_UNITS]
    by_coordinate, euclidean = traits[Trait.BY_COORDINATE] != 0, traits[Trait.EUCLIDEAN_NORM] != 0
    starts = traits[Trait.FIRST_KICK] != 0 and plan.first != 0
    lookahead = traits[Trait.LOOKAHEAD] != 0
    bare = holds and traits[Trait.BARE_DECAY] != 0
    thermal = holds and traits[Trait.THERMAL_DECAY] != 0
    decoupled = holds and traits[Trait.DECOUPLED_DECAY] != 0
    once = kick and drift
    rare = by_coordinate or (euclidean and diagonal) or starts or lookahead or bare or leads or not holds
    if rare or (diagonal and (on_kick or centered or inside or power_units != POWER_UNIT // 2 or not once)):
        ways = Ways(
            kick, drift, holds, diagonal, on_kick, centered, inside, power_units, by_coordinate, euclidean, starts,
            lookahead, bare, thermal, decoupled, leads,
        )  # fmt: skip
        sweep_in(ways, rows, index, traits, c, plan, pull, gradient_dtype, reply, reply_dtype, lanes, sums)
    elif diagonal:  # Adam
        ways = Ways(
            True, True, True, True, False, False, False, POWER_UNIT // 2, False, False, False, False, False, thermal,
            decoupled, False,
        )  # fmt: skip
        sweep_in(ways, rows, index, traits, c, plan, pull, gradient_dtype, reply, reply_dtype, lanes, sums)
    elif once:
        ways = Ways(
            True,
            True,
            True,
            False,
            False,
            False,
            False,
            0,
            False,
            False,
            False,
            False,
            False,
            thermal,
            decoupled,
            False,
        )
        sweep_in(ways, rows, index, traits, c, plan, pull, gradient_dtype, reply, reply_dtype, lanes, sums)
    elif kick:
        ways = Ways(
            True,
            False,
            True,
            False,
            False,
            False,
            False,
            0,
            False,
            False,
            False,
            False,
            False,
            thermal,
            decoupled,
            False,
        )
        sweep_in(ways, rows, index, traits, c, plan, pull, gradient_dtype, reply, reply_dtype, lanes, sums)
    else:
        ways = Ways(
            False,
            True,
            True,
            False,
            False,
            False,
            False,
            0,
            False,
            False,
            False,
            False,
            False,
            thermal,
            decoupled,
            False,
        )
        sweep_in(ways, rows, index, traits, c, plan, pull, gradient_dtype, reply, reply_dtype, lanes, sums)
