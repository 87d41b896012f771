"""The pass itself, compiled: kick and drift of rows, and a session's step made of them.

A row is done while it lies in the processor's cache: every byte of the state moves once between memory and processor,
or twice where the norm over many rows must be known before the drift.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import math

import numpy as np

from hermosis.wire import Dtype
from hermosis_server.dynamics.fused import rows as on_row
from hermosis_server.dynamics.fused.rows import bits16, bits32, exact, floats
from hermosis_server.dynamics.fused.session import C, carried, finish, plan
from hermosis_server.dynamics.fused.tables import (
    APPLIED,
    NON_FINITE_GRADIENT,
    UNPROVEN,
    Flag,
    Number,
    Plan,
    Row,
    Sum,
    Whole,
)
from hermosis_server.dynamics.kinetic import MAX_RAPIDITY
from hermosis_server.records import Reply

FLOAT16, BFLOAT16 = int(Dtype.FLOAT16), int(Dtype.BFLOAT16)
INCREMENT = int(Reply.INCREMENT)
SCRATCH_ROWS = 5  # gradient or force, metric, product of roots or momentum ahead, direction, increment


@exact
def kick_row(flags, c, plans, row, dtype, length, scratch, direction_at, sums):
    """passes.kick_rows_ of one row.

    Args:
      row:          (len(Row),) addresses.
      length:       E.
      scratch:      (SCRATCH_ROWS * E,) float32.
      direction_at: address where the direction of the drift is left, where that is not the momentum.
      sums:         (len(Sum),) filled in.
    """
    valid, base = row[Row.LENGTH], scratch.ctypes.data
    momentum = floats(row[Row.MOMENTUM], length)
    for column in range(len(sums)):
        sums[column] = 0.0
    gradient = _gradient(row, dtype, base)
    sums[Sum.GRADIENT] = on_row.square(gradient)
    position = floats(row[Row.POSITION], length) if row[Row.POSITION] else momentum
    if flags[Flag.PARAMETERS]:
        sums[Sum.POSITION] = on_row.square(position)
    if flags[Flag.THERMAL_DECAY]:
        force = floats(base, valid)
        on_row.add_scaled(force, gradient, position, np.float32(c[C.thermal_decay]))
        gradient = force
    scale, direction = floats(base + 4 * length, valid), floats(direction_at, valid)
    if flags[Flag.DIAGONAL]:
        _learn(flags, c, plans, row, gradient, scale, floats(base + 8 * length, valid))
    metric = flags[Flag.DIAGONAL] and not flags[Flag.METRIC_ON_KICK]
    if flags[Flag.METRIC_ON_KICK]:
        impulse = floats(base, valid)
        on_row.divide(impulse, gradient, scale)
        gradient = impulse
    retention, gain = np.float32(plans[Plan.RETENTION]), np.float32(plans[Plan.GAIN])
    alive = momentum[:valid]
    if flags[Flag.FIRST_KICK] and plans[Plan.FIRST]:
        on_row.start(alive, gradient, np.float32(plans[Plan.STARTED]))
    if metric:
        on_row.divide(direction, alive, scale)
        _measure(flags, c, plans, alive, direction, sums, False)
    elif flags[Flag.BY_COORDINATE]:
        _measure(flags, c, plans, alive, alive, sums, False)
    before, after = on_row.kick(alive, gradient, retention, gain)
    if not metric:
        sums[Sum.SQUARE_BEFORE] = sums[Sum.WORK_BEFORE] = before
    if flags[Flag.BARE_DECAY]:
        on_row.harmonic_kick(alive, position, np.float32(plans[Plan.STIFFNESS]))
        after = on_row.square(alive)
    sums[Sum.MOMENTUM] = after
    drifting = alive
    if flags[Flag.LOOKAHEAD]:
        on_row.lookahead(direction, alive, gradient, retention, gain)
        drifting = direction
        after = on_row.square(drifting)
    if metric:
        if flags[Flag.LOOKAHEAD]:
            ahead = floats(base + 8 * length, valid)
            ahead[:] = drifting
            drifting = ahead
        on_row.divide(direction, drifting, scale)
        _measure(flags, c, plans, drifting, direction, sums, True)
    else:
        if flags[Flag.BY_COORDINATE]:
            _measure(flags, c, plans, drifting, drifting, sums, True)
        sums[Sum.SQUARE] = sums[Sum.WORK] = after
    sums[Sum.PEAK] = _peak(row, length, flags)


@exact
def _gradient(row, dtype, base):
    """The gradient of a row as float32: where it lies, or widened into scratch."""
    valid = row[Row.LENGTH]
    if dtype == BFLOAT16:
        on_row.widen_bfloat16(bits16(row[Row.GRADIENT], valid), bits32(base, valid))
    elif dtype == FLOAT16:
        on_row.widen_float16(bits16(row[Row.GRADIENT], valid), bits32(base, valid), floats(base, valid))
    else:
        return floats(row[Row.GRADIENT], valid)
    return floats(base, valid)


@exact
def _learn(flags, c, plans, row, gradient, scale, spare):
    """geometry.learned of a diagonal metric: its moments, and the metric itself in `scale`."""
    valid = row[Row.LENGTH]
    decay, gain = np.float32(c[C.second_moment_decay]), np.float32(c[C.second_moment_gain])
    unit, epsilon = np.float32(plans[Plan.UNIT_SECOND_MOMENT]), np.float32(c[C.epsilon])
    second = floats(row[Row.SECOND_MOMENT], valid)
    on_row.update_moment(second, gradient, decay, gain)
    on_row.metric_base(scale, second, unit, flags[Flag.NORMALISE_METRIC])
    if flags[Flag.CENTERED]:
        first = floats(row[Row.FIRST_MOMENT], valid)
        on_row.update_mean(first, gradient, decay, gain)
        on_row.centre(scale, first, unit, flags[Flag.NORMALISE_METRIC])
    if flags[Flag.EPSILON_INSIDE]:
        on_row.add_number(scale, epsilon)
    if flags[Flag.POWER_UNITS] != 8:
        on_row.root_power(scale, spare, flags[Flag.POWER_UNITS])
    if not flags[Flag.EPSILON_INSIDE]:
        on_row.add_number(scale, epsilon)


@exact
def _measure(flags, c, plans, momentum, raised, sums, after):
    """norms.measure: squared norm and work of a row, or by coordinate what its elements make of them."""
    if flags[Flag.BY_COORDINATE]:
        kinetic, slope, power, work = _coordinates(flags, c, plans, momentum, raised, after)
        if after:
            sums[Sum.KINETIC], sums[Sum.SLOPE], sums[Sum.POWER], sums[Sum.WORK] = kinetic, slope, power, work
        else:
            sums[Sum.KINETIC_BEFORE], sums[Sum.WORK_BEFORE] = kinetic, work
        return
    work = on_row.product(momentum, raised)
    square = on_row.square(momentum) if flags[Flag.EUCLIDEAN_NORM] else work
    if after:
        sums[Sum.SQUARE], sums[Sum.WORK] = square, work
    else:
        sums[Sum.SQUARE_BEFORE], sums[Sum.WORK_BEFORE] = square, work


@exact
def _braking(c, square, heat):
    """kinetic.relativistic_motion for one element: Γ."""
    rapidity = min(math.sqrt(square) / c[C.speed_limit] * heat, MAX_RAPIDITY)
    return rapidity, math.sqrt(rapidity * rapidity + 1)


@exact
def _coordinates(flags, c, plans, momentum, raised, after):
    """norms.CoordinateNorms: sums of κ, ∂κ/∂lnβ, power and work over the elements of a row, without rest energy."""
    kinetic, slope, power, total = 0.0, 0.0, 0.0, 0.0
    heat = plans[Plan.HEAT_AFTER] if after else plans[Plan.HEAT_BEFORE]
    raising, cooling = plans[Plan.RAISING], c[C.rest_cooling] if flags[Flag.REST_COOLING] else 0.0
    for i in range(len(momentum)):
        value = np.float64(momentum[i])
        work = value * np.float64(raised[i])
        square = value * value if flags[Flag.EUCLIDEAN_NORM] else work * raising
        work *= raising
        rapidity, gamma = _braking(c, square, heat)
        moving = square / (gamma + 1)
        kinetic += moving
        slope -= cooling * (moving * (rapidity / (gamma + 1) * rapidity) / gamma)
        power += work / gamma
        total += work
    return kinetic, slope, power, total


@exact
def _peak(row, length, flags):
    """The largest magnitude in the momentum and the moments of a row."""
    most = on_row.largest_bits(bits32(row[Row.MOMENTUM], length))
    if flags[Flag.DIAGONAL]:
        most = max(most, on_row.largest_bits(bits32(row[Row.SECOND_MOMENT], length)))
    if flags[Flag.CENTERED]:
        most = max(most, on_row.largest_bits(bits32(row[Row.FIRST_MOMENT], length)))
    return _magnitude(most)


@exact
def _magnitude(word):
    """The number that bits of a float32 without sign stand for."""
    return np.float64(np.uint32(word).view(np.float32))


@exact
def drift_row(flags, c, plans, braking, row, reply, dtype, length, scratch, direction_at, sums):
    """passes.drift_rows_ of one row, and its reply in the dtype that the workers want.

    Args:
      braking: f of its norm group.
    """
    valid, base = row[Row.LENGTH], scratch.ctypes.data
    alive = floats(row[Row.MOMENTUM], valid)
    elsewhere = flags[Flag.LOOKAHEAD] or (flags[Flag.DIAGONAL] and not flags[Flag.METRIC_ON_KICK])
    direction = floats(direction_at, valid) if elsewhere else alive
    increment = floats(base + 16 * length, valid)
    pace = plans[Plan.PACE]
    decay = pace * c[C.decoupled_decay]
    if flags[Flag.BY_COORDINATE]:
        drifting = alive
        if flags[Flag.LOOKAHEAD]:
            drifting = (
                floats(base + 8 * length, valid)
                if flags[Flag.DIAGONAL] and not flags[Flag.METRIC_ON_KICK]
                else direction
            )
        position = floats(row[Row.POSITION], valid) if row[Row.POSITION] else alive
        _drift_coordinates(flags, c, plans, drifting, direction, position, increment, decay)
        if row[Row.POSITION]:
            for i in range(valid):
                position[i] += increment[i]
        sums[Sum.INCREMENT] = on_row.square(increment)
    else:
        reach = np.float32(pace * plans[Plan.RAISING] * braking)
        if flags[Flag.DECAY_FOLLOWS_SPEED]:
            decay *= braking
        if not row[Row.POSITION]:
            sums[Sum.INCREMENT] = on_row.drift_away(increment, direction, reach)
        elif flags[Flag.DECOUPLED_DECAY]:
            on_row.drift_decayed(increment, direction, floats(row[Row.POSITION], valid), reach, np.float32(decay))
            sums[Sum.INCREMENT] = on_row.square(increment)
        else:
            sums[Sum.INCREMENT] = on_row.drift(increment, direction, floats(row[Row.POSITION], valid), reach)
    if row[Row.POSITION]:
        most = _magnitude(on_row.largest_bits(bits32(row[Row.POSITION], valid)))
        sums[Sum.PEAK] = max(sums[Sum.PEAK], most)
    if row[Row.REPLY]:
        source = base + 16 * length if reply == INCREMENT else row[Row.POSITION]
        _write(source, row[Row.REPLY], dtype, valid, base, length)


@exact
def _drift_coordinates(flags, c, plans, momentum, direction, position, increment, decay):
    """norms.CoordinateNorms.pull and the drift: each element with its own braking."""
    heat, raising = plans[Plan.HEAT_AFTER], plans[Plan.RAISING]
    pace = plans[Plan.PACE] * raising
    for i in range(len(increment)):
        value = np.float64(momentum[i])
        square = value * value if flags[Flag.EUCLIDEAN_NORM] else value * np.float64(direction[i]) * raising
        _, gamma = _braking(c, square, heat)
        braking = 1 / gamma
        step = direction[i] * -np.float32(pace * braking)
        if flags[Flag.DECOUPLED_DECAY]:
            rate = decay * braking if flags[Flag.DECAY_FOLLOWS_SPEED] else decay
            step += position[i] * -np.float32(rate)
        increment[i] = step


@exact
def _write(source, target, dtype, valid, base, length):
    """Puts a row of the reply where it goes out from."""
    if dtype == BFLOAT16:
        on_row.narrow_bfloat16(bits32(source, valid), bits16(target, valid))
    elif dtype == FLOAT16:
        spare = base + 4 * length
        on_row.narrow_float16(
            floats(source, valid),
            bits32(source, valid),
            floats(spare, valid),
            bits32(spare, valid),
            bits16(target, valid),
        )
    else:
        floats(target, valid)[:] = floats(source, valid)


@exact
def begin(flags, sessions, numbers, coefficients, scalars, plans, outcome):
    """Plans the step of each session, and tells which will be taken."""
    for one in range(len(sessions)):
        if not math.isfinite(numbers[one, Number.PEAK]):
            outcome[one] = NON_FINITE_GRADIENT
        elif plan(flags, coefficients[one], scalars[one], numbers[one], plans[one]):
            outcome[one] = APPLIED
        else:
            outcome[one] = UNPROVEN


@exact
def pass_rows(
    flags,
    first,
    last,
    kicks,
    drifts,
    rows,
    sessions,
    coefficients,
    plans,
    outcome,
    pulls,
    spread,
    length,
    scratch,
    sums,
):
    """Kicks, drifts, or both, rows from `first` up to `last` of a batch.

    Args:
      pulls:  (R,) braking of each row's norm group; 1 where it is not known before the drift.
      spread: (R * E,) float32 for directions that wait for their drift; empty where they do not wait.
    """
    for one in range(len(sessions)):
        top = sessions[one, Whole.FIRST_ROW]
        end = top + sessions[one, Whole.ROWS]
        if outcome[one] != APPLIED or top >= last or end <= first:
            continue
        for row in range(max(top, first), min(end, last)):
            direction_at = scratch.ctypes.data + 12 * length
            if len(spread):
                direction_at = spread.ctypes.data + 4 * length * row
            if kicks:
                kick_row(
                    flags, coefficients[one], plans[one], rows[row], sessions[one, Whole.GRADIENT_DTYPE],
                    length, scratch, direction_at, sums[row],
                )  # fmt: skip
            if drifts:
                drift_row(
                    flags, coefficients[one], plans[one], pulls[row], rows[row], sessions[one, Whole.REPLY],
                    sessions[one, Whole.REPLY_DTYPE], length, scratch, direction_at, sums[row],
                )  # fmt: skip


@exact
def settle(flags, first, last, sessions, spans, coefficients, plans, outcome, sums, pulls, carry):
    """What sessions from `first` up to `last` carry before and after the kick, and the braking of their rows.

    Args:
      carry: (S, 8) filled in: κ, its slope, power and braking, before and after.
    """
    for one in range(first, last):
        if outcome[one] != APPLIED:
            continue
        top, span = sessions[one, Whole.FIRST_ROW], sessions[one, Whole.FIRST_SPAN]
        end, elements = top + sessions[one, Whole.ROWS], sessions[one, Whole.ELEMENTS]
        own_sums, own_spans = sums[top:end], spans[span : span + sessions[one, Whole.SPANS]]
        for after in (False, True):
            found = carried(flags, coefficients[one], plans[one], own_sums, own_spans, elements, after, pulls[top:end])
            for column in range(4):
                carry[one, 4 * after + column] = found[column]


@exact
def conclude(flags, first, last, sessions, numbers, coefficients, scalars, plans, outcome, sums, carry, samples):
    """Ends the step of sessions from `first` up to `last`: their numbers and energies."""
    for one in range(first, last):
        if outcome[one] != APPLIED:
            continue
        top = sessions[one, Whole.FIRST_ROW]
        before = (carry[one, 0], carry[one, 1], carry[one, 2], carry[one, 3])
        after = (carry[one, 4], carry[one, 5], carry[one, 6], carry[one, 7])
        finish(
            flags, coefficients[one], scalars[one], numbers[one], plans[one], before, after,
            sums[top : top + sessions[one, Whole.ROWS]], sessions[one, Whole.ELEMENTS], samples[one],
        )  # fmt: skip


@exact
def step_sessions(
    flags, first, last, at_once, rows, sessions, spans, numbers, coefficients, scalars, plans, outcome, pulls, spread,
    length, scratch, sums, carry, samples,
):  # fmt: skip
    """Steps sessions from `first` up to `last`, one after another, each while it lies in the cache."""
    for one in range(first, last):
        top = sessions[one, Whole.FIRST_ROW]
        end, only = top + sessions[one, Whole.ROWS], one + 1
        mine = sessions[one:only]
        of = slice(one, only)
        pass_rows(
            flags, top, end, True, at_once, rows, mine, coefficients[of], plans[of], outcome[of], pulls, spread, length,
            scratch, sums,
        )  # fmt: skip
        settle(flags, one, only, sessions, spans, coefficients, plans, outcome, sums, pulls, carry)
        if not at_once:
            pass_rows(
                flags, top, end, False, True, rows, mine, coefficients[of], plans[of], outcome[of], pulls, spread,
                length, scratch, sums,
            )  # fmt: skip
        conclude(flags, one, only, sessions, numbers, coefficients, scalars, plans, outcome, sums, carry, samples)
