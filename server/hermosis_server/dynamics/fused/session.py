"""A session's few numbers through a step, compiled: what integrators.advance_ does on tensors of (S,).

`plan` is all that is known before the kick, with the proof that the step will stay finite; `settle` follows the kick;
`finish` follows the drift. Each function of diagnostics.py, cooling.py and norms.py is named where its formula stands.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

import math

import numpy as np

from hermosis_server.dynamics.family import COEFFICIENTS, Coefficients
from hermosis_server.dynamics.fused.rows import exact
from hermosis_server.dynamics.fused.tables import Flag, Number, Plan, Sum
from hermosis_server.dynamics.kinetic import MAX_RAPIDITY
from hermosis_server.dynamics.phase_state import SCALARS, Scalars
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT, ForceMode
from hermosis_server.records import EnergySample

# Compiled code reads tables by number.
C = Coefficients(*range(len(COEFFICIENTS)))
STATE = Scalars(*range(len(SCALARS)))
SAMPLE = EnergySample(*range(len(EnergySample._fields)))
FORCES = {ForceMode.UNIT: 0, ForceMode.PHYSICAL: 1, ForceMode.EMA: 2}
# Magnitudes up to which a step is proven to stay finite: float32 ends at 3.4e38, its squares at 1.8e19.
MOST, MOST_SQUARED = 1e36, 1e17
MANY = 1e150  # of a float64 that will be squared


@exact
def _beta(log_beta):
    """diagnostics._beta."""
    return math.exp(log_beta) if log_beta < LOG_BETA_LIMIT else np.nan


@exact
def _inverse_beta(log_beta):
    return math.exp(-min(max(log_beta, -LOG_BETA_LIMIT), LOG_BETA_LIMIT))


@exact
def plan(flags, c, state, number, plans):
    """What is known before the kick; True where the step is proven to stay finite.

    Args:
      flags:  (len(Flag),) of the family.
      c:      coefficients.
      state:  scalars; unchanged.
      number: what came with the gradient.
      plans:  (len(Plan),) filled in.
    """
    retention, friction, kernel = c[C.retention], c[C.friction], c[C.kernel]
    if flags[Flag.FORCE] == 1:
        gain = c[C.gradient_gain] * kernel / c[C.step_duration]
    elif flags[Flag.FORCE] == 2:
        gain = c[C.gradient_gain] * friction
    else:
        gain = c[C.gradient_gain]
    first = state[STATE.step] == 0
    started = (c[C.first_kick] - gain) / retention if flags[Flag.FIRST_KICK] else 0.0
    unit_momentum = (started if first else state[STATE.unit_momentum]) * retention + gain
    decay, second_gain = c[C.second_moment_decay], c[C.second_moment_gain]
    unit_second = state[STATE.unit_second_moment] * decay + second_gain
    raising = 1.0
    if flags[Flag.NORMALISE]:
        raising = c[C.gradient_gain] / (unit_momentum * retention + gain if flags[Flag.LOOKAHEAD] else unit_momentum)
    old_log_beta = state[STATE.log_beta]
    log_beta = old_log_beta + c[C.log_beta_gain]
    stiffness = c[C.information_unit] * c[C.bare_decay] * c[C.learning_rate] * _inverse_beta(log_beta)
    heat_before, heat_after = 1.0, 1.0
    if flags[Flag.REST_COOLING]:
        heat_before = _heat(c, old_log_beta)
        heat_after = _heat(c, log_beta)
    plans[Plan.RETENTION], plans[Plan.GAIN], plans[Plan.FIRST], plans[Plan.STARTED] = retention, gain, first, started
    plans[Plan.STIFFNESS], plans[Plan.UNIT_MOMENTUM] = stiffness, unit_momentum
    plans[Plan.UNIT_SECOND_MOMENT], plans[Plan.RAISING], plans[Plan.LOG_BETA] = unit_second, raising, log_beta
    plans[Plan.PACE] = number[Number.LR_SCALE] * c[C.learning_rate]
    plans[Plan.HEAT_BEFORE], plans[Plan.HEAT_AFTER] = heat_before, heat_after
    return _stays_finite(flags, c, number, plans)


@exact
def _heat(c, log_beta):
    """norms.moment: (β/β₀)^ν."""
    grown = c[C.rest_cooling] * (log_beta - c[C.initial_log_beta])
    return math.exp(min(max(grown, -LOG_BETA_LIMIT), LOG_BETA_LIMIT))


@exact
def _stays_finite(flags, c, number, plans):
    """Bounds every intermediate result from the largest magnitudes of gradient and state. Comparisons fail on NaN."""
    state = number[Number.LARGEST]
    force = number[Number.PEAK] + c[C.thermal_decay] * state
    if not (state < MOST_SQUARED and force < MOST_SQUARED):
        return False
    scale = 1.0
    if flags[Flag.DIAGONAL]:
        unit = plans[Plan.UNIT_SECOND_MOMENT] if flags[Flag.NORMALISE_METRIC] else 1.0
        epsilon = np.float64(np.float32(c[C.epsilon]))
        if not (epsilon > 0 and np.float64(np.float32(unit)) > 1e-30):
            return False
        moment = c[C.second_moment_decay] * state + c[C.second_moment_gain] * force * force
        if not moment / unit < MOST:
            return False
        scale = epsilon ** (flags[Flag.POWER_UNITS] / 8) if flags[Flag.EPSILON_INSIDE] else epsilon
        scale *= 0.99
    impulse = force / scale if flags[Flag.METRIC_ON_KICK] else force
    begun = max(state, abs(plans[Plan.STARTED]) * impulse)
    momentum = plans[Plan.RETENTION] * begun + abs(plans[Plan.GAIN]) * impulse + plans[Plan.STIFFNESS] * state
    drifting = momentum
    if flags[Flag.LOOKAHEAD]:
        drifting = plans[Plan.RETENTION] * momentum + abs(plans[Plan.GAIN]) * impulse
    direction = drifting if flags[Flag.METRIC_ON_KICK] else drifting / scale
    reach = plans[Plan.PACE] * abs(plans[Plan.RAISING])
    increment = reach * direction + plans[Plan.PACE] * c[C.decoupled_decay] * state
    return (
        impulse < MOST
        and momentum < MOST
        and drifting < MOST
        and direction < MOST
        and reach < MOST
        and state + increment < MOST
        and plans[Plan.STIFFNESS] < MOST
        and abs(plans[Plan.STARTED]) < MOST
    )


@exact
def motion(flags, c, square, heat):
    """kinetic.motion: κ, ∂κ/∂lnβ and f of a squared norm."""
    if not flags[Flag.RELATIVISTIC]:
        return square / 2, 0.0, 1.0
    limit = c[C.speed_limit]
    rapidity, rest = math.sqrt(square) / limit, c[C.rest_energy] * (limit * limit)
    if flags[Flag.REST_COOLING]:
        rapidity = rapidity * heat
        rest = rest / heat / heat
    rapidity = min(rapidity, MAX_RAPIDITY)
    gamma = math.sqrt(rapidity * rapidity + 1)
    moving = square / (gamma + 1)
    slope = 0.0
    if flags[Flag.REST_COOLING]:
        less_one = rapidity / (gamma + 1) * rapidity
        slope = -c[C.rest_cooling] * (moving * less_one / gamma + 2 * rest)
    return moving + rest, slope, 1 / gamma


@exact
def carried(flags, c, plans, sums, spans, elements, after, pulls):
    """norms.GroupNorms.carried, or that of CoordinateNorms: κ, its slope, power and mean braking of a session.

    Args:
      sums:  (R, len(Sum)) of its rows.
      spans: rows of each of its spans.
      after: whether the kick has been.
      pulls: (R,) braking of each row's group, filled in after the kick; not with norms by coordinate.
    """
    heat = plans[Plan.HEAT_AFTER] if after else plans[Plan.HEAT_BEFORE]
    raising = plans[Plan.RAISING]
    if flags[Flag.BY_COORDINATE]:
        kinetic, slope, power, work = 0.0, 0.0, 0.0, 0.0
        for row in range(len(sums)):
            kinetic += sums[row, Sum.KINETIC] if after else sums[row, Sum.KINETIC_BEFORE]
            slope += sums[row, Sum.SLOPE]
            power += sums[row, Sum.POWER]
            work += sums[row, Sum.WORK] if after else sums[row, Sum.WORK_BEFORE]
        rest, rest_slope, _ = motion(flags, c, 0.0, heat)
        return kinetic + elements * rest, slope + elements * rest_slope, power, power / work if work > 0 else 1.0
    square_column = Sum.SQUARE if after else Sum.SQUARE_BEFORE
    work_column = Sum.WORK if after else Sum.WORK_BEFORE
    kinetic, slope, power, work = 0.0, 0.0, 0.0, 0.0
    braking, top = 1.0, 0
    groups = len(spans) if flags[Flag.BY_TENSOR] else 1
    for group in range(groups):
        rows = spans[group] if flags[Flag.BY_TENSOR] else len(sums)
        group_square, group_work = 0.0, 0.0
        for row in range(top, top + rows):
            group_square += sums[row, square_column]
            group_work += sums[row, work_column]
        top += rows
        if not flags[Flag.EUCLIDEAN_NORM]:
            group_square *= raising
        group_work *= raising
        one, one_slope, braking = motion(flags, c, group_square, heat)
        if after:
            pulls[top - rows : top] = braking
        kinetic += one
        slope += one_slope
        power += braking * group_work
        work += group_work
    if flags[Flag.BY_TENSOR]:
        braking = power / work if work > 0 else 1.0
    return kinetic, slope, power, braking


@exact
def finish(flags, c, state, number, plans, before, after, sums, elements, sample):
    """The thermal numbers of a step, and its energies: diagnostics.anchored, kicked, drifted, energies.

    Args:
      state:         scalars; updated.
      before, after: what `carried` gave before and after the kick.
      sample:        (len(EnergySample._fields),) filled in.
    """
    gradient_square, momentum_square, position_square, increment_square = 0.0, 0.0, 0.0, 0.0
    for row in range(len(sums)):
        gradient_square += sums[row, Sum.GRADIENT]
        momentum_square += sums[row, Sum.MOMENTUM]
        position_square += sums[row, Sum.POSITION]
        increment_square += sums[row, Sum.INCREMENT]
    unit, action, kernel, rate = c[C.information_unit], c[C.action_unit], c[C.kernel], c[C.cooling_rate]
    retention, gain, log_beta, pace = plans[Plan.RETENTION], plans[Plan.GAIN], plans[Plan.LOG_BETA], plans[Plan.PACE]
    old_log_beta = state[STATE.log_beta]
    raw = number[Number.LOSS]
    loss = raw + (raw - raw) + c[C.thermal_decay] / 2 * position_square
    energy_unit = gain * action / kernel if kernel > 0 else np.nan
    smoothing = 1.0 if math.isinf(rate) else kernel * rate
    bare = unit * c[C.bare_decay] / 2 * position_square
    bare_before, bare_after = bare * _inverse_beta(old_log_beta), bare * _inverse_beta(log_beta)
    warm_rate = action * (np.nan if math.isinf(rate) else rate)
    potential = energy_unit * loss

    # anchored
    internal, entropy, reference = state[STATE.internal_energy], state[STATE.entropy], state[STATE.reference_energy]
    lost = not math.isfinite(internal)
    if lost or not math.isfinite(reference):
        entropy, reference = 0.0, np.nan
    matter = before[0] + bare_before
    if lost:
        energy_anchor = 0.0 if math.isinf(rate) or rate == 0 else 1 / (action * rate)
        loss_anchor = 0.0 if smoothing == 0 else gain / smoothing
        internal = -(energy_anchor * matter + loss_anchor * loss)
    warm = warm_rate * internal
    energy = (matter + potential + warm) / unit

    # kicked
    kicked = retention * internal - gain * loss
    energy_after = (after[0] + bare_after + potential + warm_rate * kicked) / unit
    middle = (retention * energy + energy_after) / 2
    reference = middle if math.isnan(reference) else retention * reference + (loss - loss)
    defect = middle - reference
    entropy += -(_beta(old_log_beta) * c[C.learning_rate] * (potential + warm))

    # drifted
    effort = after[0] + after[1]
    internal = kicked + pace * (after[2] - effort)
    entropy -= pace * _beta(log_beta) * effort
    if not log_beta < LOG_BETA_LIMIT:
        entropy = np.nan

    # energies
    warm = warm_rate * internal
    still = potential + bare_after
    sample[SAMPLE.loss] = raw
    weight = smoothing / gain
    sample[SAMPLE.smoothed_loss] = -internal * weight if smoothing > 0 else np.nan
    sample[SAMPLE.kinetic_energy] = after[0] / unit
    sample[SAMPLE.potential_energy] = still / unit
    sample[SAMPLE.thermal_energy] = warm / unit
    sample[SAMPLE.total_energy] = (after[0] + still + warm) / unit
    sample[SAMPLE.kinetic_loss] = after[0] / energy_unit
    sample[SAMPLE.kinetic_temperature] = 2 * after[0] / unit / max(1, elements)
    sample[SAMPLE.energy_defect] = defect
    sample[SAMPLE.internal_energy] = internal
    sample[SAMPLE.entropy] = entropy
    sample[SAMPLE.log_beta] = log_beta
    sample[SAMPLE.retention] = math.exp(-state[STATE.published_cooling]) * retention
    sample[SAMPLE.cooling_rate] = rate
    sample[SAMPLE.braking] = after[3]
    sample[SAMPLE.step_norm] = math.sqrt(increment_square)
    sample[SAMPLE.gradient_norm] = math.sqrt(gradient_square)
    sample[SAMPLE.momentum_norm] = math.sqrt(momentum_square)
    sample[SAMPLE.learning_rate] = pace

    state[STATE.step] += 1
    state[STATE.clock] += c[C.cooling_duration]
    state[STATE.log_beta] = log_beta
    state[STATE.internal_energy] = internal
    state[STATE.unit_momentum] = plans[Plan.UNIT_MOMENTUM]
    state[STATE.unit_second_moment] = plans[Plan.UNIT_SECOND_MOMENT]
    state[STATE.entropy] = entropy
    state[STATE.reference_energy] = reference
    state[STATE.published_cooling] = 0.0
    number[Number.LARGEST] = 0.0
    for row in range(len(sums)):
        number[Number.LARGEST] = max(number[Number.LARGEST], sums[row, Sum.PEAK])
