"""Energies: what a session's sums mean, how far its rows drift, and how its thermal numbers pass through the step.

The formulas are those of kinetic.py, norms.py and diagnostics.py, for one session instead of a batch.
"""

import math
from typing import NamedTuple

from hermosis_server.dynamics.family import Coefficients
from hermosis_server.dynamics.fused.compiled import compiled
from hermosis_server.dynamics.fused.plan import Moment, Plan, Stretch, bounded_exp
from hermosis_server.dynamics.fused.sweep import Pull, Sum
from hermosis_server.dynamics.fused.tables import Integers, Numbers
from hermosis_server.dynamics.fused.traits import Trait
from hermosis_server.dynamics.kinetic import MAX_RAPIDITY
from hermosis_server.dynamics.phase_state import Scalars
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT
from hermosis_server.records import EnergySample


class Carried(NamedTuple):
    """`norms.Carried` for one session."""

    kinetic: float
    slope: float
    power: float
    braking: float


class Warmth(NamedTuple):
    """The thermal numbers on their way through a step; `diagnostics.Heat` for one session."""

    log_beta: float
    clock: float
    internal_energy: float
    entropy: float
    reference_energy: float
    rate: float


class Shift(NamedTuple):
    """The kick as energies see it; `diagnostics.Kick` for one session."""

    energy_unit: float
    loss: float
    position_square: float
    smoothing: float


@compiled
def motion(traits: Integers, c: Coefficients[float], square: float, heat: float) -> tuple[float, float, float]:
    """κ, ∂κ/∂lnβ and f of one norm group; `kinetic.motion`."""
    if not traits[Trait.RELATIVISTIC]:
        return square / 2, 0.0, 1.0
    rest = c.rest_energy * (c.speed_limit * c.speed_limit) / heat / heat
    rapidity = min(math.sqrt(square) / c.speed_limit * heat, MAX_RAPIDITY)
    gamma = math.sqrt(rapidity * rapidity + 1)
    moving = square / (gamma + 1)
    slope = 0.0
    if traits[Trait.REST_COOLING]:
        slope = -c.rest_cooling * (moving * (rapidity / (gamma + 1) * rapidity) / gamma + 2 * rest)
    return moving + rest, slope, 1 / gamma


@compiled
def added(sums: Numbers, first: int, last: int, column: int) -> float:
    """Sum over rows, in their order."""
    value = 0.0
    for row in range(first, last):
        value += sums[row, column]
    return value


@compiled
def carried(
    traits: Integers,
    c: Coefficients[float],
    spans: Integers,
    sums: Numbers,
    column: int,
    moment: Moment,
    parameters: int,
) -> Carried:
    """What a session carries, from the sums of its rows that begin at a column; `norms.*.carried`."""
    count = sums.shape[0]
    if traits[Trait.BY_COORDINATE]:
        kinetic, slope = added(sums, 0, count, column), added(sums, 0, count, column + 1)
        power, work = added(sums, 0, count, column + 2), added(sums, 0, count, column + 3)
        at_rest, rest_slope, _ = motion(traits, c, 0.0, moment.heat)
        braking = power / work if work > 0 else 1.0
        return Carried(kinetic + parameters * at_rest, slope + parameters * rest_slope, power, braking)
    if not traits[Trait.BY_TENSOR]:
        square = added(sums, 0, count, column) * moment.square_factor
        work = added(sums, 0, count, column + 1) * moment.work_factor
        kinetic, slope, braking = motion(traits, c, square, moment.heat)
        return Carried(kinetic, slope, braking * work, braking)
    kinetic = slope = power = work = 0.0
    first = 0
    for span in range(spans.shape[0]):
        last = first + spans[span]
        square = added(sums, first, last, column) * moment.square_factor
        done = added(sums, first, last, column + 1) * moment.work_factor
        energy, its_slope, braking = motion(traits, c, square, moment.heat)
        kinetic, slope, power, work = kinetic + energy, slope + its_slope, power + braking * done, work + done
        first = last
    return Carried(kinetic, slope, power, power / work if work > 0 else 1.0)


@compiled
def draw(pulls: Numbers, first: int, last: int, plan: Plan, braking: float, again: float, follows: bool) -> None:
    """How far these rows drift under this braking; `norms.GroupNorms.prepare`."""
    for row in range(first, last):
        pulls[row, Pull.LEAD] = plan.pace_again * again
        pulls[row, Pull.REACH] = plan.pace * braking + plan.pace_again * again
        pulls[row, Pull.DECAY] = plan.decay * braking if follows else plan.decay


@compiled
def brake(
    traits: Integers,
    c: Coefficients[float],
    plan: Plan,
    spans: Integers,
    sums: Numbers,
    pulls: Numbers,
) -> None:
    """How far each row drifts, now that the norms are known."""
    follows = traits[Trait.FOLLOWS_SPEED] != 0
    first, groups = 0, spans.shape[0] if traits[Trait.BY_TENSOR] else 1
    for group in range(groups):
        last = first + spans[group] if traits[Trait.BY_TENSOR] else sums.shape[0]
        square = added(sums, first, last, Sum.AFTER)
        _, _, braking = motion(traits, c, square * plan.after.square_factor, plan.after.heat)
        _, _, again = motion(traits, c, square * plan.again.square_factor, plan.again.heat)
        draw(pulls, first, last, plan, braking, again, follows)
        first = last


@compiled
def known_beta(log_beta: float) -> float:
    """β while it is a number."""
    return math.exp(log_beta) if log_beta < LOG_BETA_LIMIT else math.nan


@compiled
def known_entropy(heat: Warmth) -> float:
    """S while β is a number."""
    return heat.entropy if heat.log_beta < LOG_BETA_LIMIT else math.nan


@compiled
def thermal_energy(c: Coefficients[float], rate: float, internal_energy: float) -> float:
    """`cooling.thermal_energy`."""
    return c.action_unit * (math.nan if math.isinf(rate) else rate) * internal_energy


@compiled
def bare(c: Coefficients[float], log_beta: float, position_square: float) -> float:
    """kλ₀|q|²/2β."""
    return c.information_unit * c.bare_decay / 2 * position_square * bounded_exp(-log_beta)


@compiled
def anchored(c: Coefficients[float], heat: Warmth, plan: Plan, shift: Shift, kinetic: float) -> tuple[Warmth, float]:
    """`diagnostics.anchored`."""
    lost = not math.isfinite(heat.internal_energy)
    fresh = lost or not math.isfinite(heat.reference_energy)
    rate = plan.kick.rate
    matter = kinetic + bare(c, heat.log_beta, shift.position_square)
    internal_energy = heat.internal_energy
    if lost:
        energy_anchor = 0.0 if math.isinf(rate) or rate == 0 else 1 / (c.action_unit * rate)
        loss_anchor = 0.0 if shift.smoothing == 0 else plan.impulse_gain / shift.smoothing
        internal_energy = -(energy_anchor * matter + loss_anchor * shift.loss)
    warm = thermal_energy(c, rate, internal_energy)
    energy = (matter + shift.energy_unit * shift.loss + warm) / c.information_unit
    return (
        Warmth(
            heat.log_beta,
            heat.clock,
            internal_energy,
            0.0 if fresh else heat.entropy,
            math.nan if fresh else heat.reference_energy,
            rate,
        ),
        energy,
    )


@compiled
def kicked(
    traits: Integers,
    c: Coefficients[float],
    heat: Warmth,
    plan: Plan,
    shift: Shift,
    energy: float,
    kinetic: float,
) -> tuple[Warmth, float]:
    """`diagnostics.kicked`."""
    cooling = plan.kick
    internal_energy = (
        cooling.heat_retention * heat.internal_energy - cooling.heat_weight * plan.impulse_gain * shift.loss
    )
    potential = shift.energy_unit * shift.loss
    warm = thermal_energy(c, heat.rate, heat.internal_energy)
    warm_after = thermal_energy(c, cooling.rate_after, internal_energy)
    matter = kinetic + bare(c, cooling.log_beta, shift.position_square)
    energy_after = (matter + potential + warm_after) / c.information_unit
    middle = (cooling.retention * energy + energy_after) / 2
    reference = middle
    if not math.isnan(heat.reference_energy):
        reference = cooling.retention * heat.reference_energy + (shift.loss - shift.loss)
    impulse = known_beta(cooling.log_beta) * plan.impulse_gain * shift.loss
    whole = known_beta(heat.log_beta) * c.learning_rate * (potential + warm)
    produced = -(cooling.homogeneity * (whole - impulse) + impulse)
    clock = heat.clock if traits[Trait.CONFORMAL] else heat.clock + c.cooling_duration
    after = Warmth(cooling.log_beta, clock, internal_energy, heat.entropy + produced, reference, cooling.rate_after)
    return after, middle - reference


@compiled
def drifted(heat: Warmth, carry: Carried, pace: float) -> Warmth:
    """`diagnostics.drifted`."""
    effort = carry.kinetic + carry.slope
    return Warmth(
        heat.log_beta,
        heat.clock,
        heat.internal_energy + pace * (carry.power - effort),
        heat.entropy - pace * known_beta(heat.log_beta) * effort,
        heat.reference_energy,
        heat.rate,
    )


@compiled
def cooled(c: Coefficients[float], heat: Warmth, cooling: Stretch) -> Warmth:
    """`diagnostics.cooled`."""
    warm = thermal_energy(c, cooling.rate, heat.internal_energy)
    produced = -cooling.homogeneity * c.cooling_duration * known_beta(heat.log_beta) * warm / c.action_unit
    return Warmth(
        cooling.log_beta,
        heat.clock + c.cooling_duration,
        cooling.heat_retention * heat.internal_energy,
        heat.entropy + produced,
        cooling.retention * heat.reference_energy,
        cooling.rate_after,
    )


@compiled
def finish(
    traits: Integers,
    c: Coefficients[float],
    plan: Plan,
    old: Scalars[float],
    raw_loss: float,
    parameters: int,
    spans: Integers,
    sums: Numbers,
    scalars: Numbers,
    sample: Numbers,
) -> float:
    """Writes a session's scalars and its sample, and gives its LARGEST.

    Args:
      parameters: elements of the session.
      spans:      (spans,) rows of each.
      sums:       (rows, Sum.COUNT) as `sweep` left them.
      scalars:    (len(SCALARS),) overwritten.
      sample:     (len(EnergySample._fields),) overwritten.
    """
    rows, parameters = sums.shape[0], max(1, parameters)
    conformal = traits[Trait.CONFORMAL] != 0
    before = carried(traits, c, spans, sums, Sum.BEFORE, plan.before, parameters)
    after = carried(traits, c, spans, sums, Sum.AFTER, plan.after, parameters)
    ended = published = after
    if conformal:  # the momentum has only cooled since; by coordinate that was summed by itself
        by_coordinate = traits[Trait.BY_COORDINATE] != 0
        ended = carried(traits, c, spans, sums, Sum.END if by_coordinate else Sum.AFTER, plan.end, parameters)
        published = carried(traits, c, spans, sums, Sum.AGAIN if by_coordinate else Sum.AFTER, plan.again, parameters)

    kernel, gain = plan.kick.kernel, plan.impulse_gain
    position_square = added(sums, 0, rows, Sum.POSITION)
    shift = Shift(
        gain * c.action_unit / kernel if kernel > 0 else math.nan,
        raw_loss + (raw_loss - raw_loss) + c.thermal_decay / 2 * position_square,
        position_square,
        1.0 if math.isinf(plan.kick.rate) else kernel * plan.kick.rate,
    )
    heat = Warmth(old.log_beta, old.clock, old.internal_energy, old.entropy, old.reference_energy, plan.kick.rate)
    heat, energy = anchored(c, heat, plan, shift, before.kinetic)
    heat, defect = kicked(traits, c, heat, plan, shift, energy, after.kinetic)
    heat = drifted(heat, after, plan.drift)
    if conformal:
        heat = cooled(c, heat, plan.ending)
    at_end = heat
    if conformal:
        heat = cooled(c, heat, plan.publishing)
    heat = drifted(heat, published, plan.again_drift)

    unit = c.information_unit
    potential = shift.energy_unit * shift.loss + bare(c, at_end.log_beta, position_square)
    warm = thermal_energy(c, at_end.rate, at_end.internal_energy)
    smoothing = 1.0 if math.isinf(at_end.rate) else kernel * at_end.rate
    smoothed_loss = -at_end.internal_energy * smoothing / gain if smoothing > 0 else math.nan
    measured = EnergySample(
        loss=raw_loss,
        smoothed_loss=smoothed_loss,
        kinetic_energy=ended.kinetic / unit,
        potential_energy=potential / unit,
        thermal_energy=warm / unit,
        total_energy=(ended.kinetic + potential + warm) / unit,
        kinetic_loss=ended.kinetic / shift.energy_unit,
        kinetic_temperature=2 * ended.kinetic / unit / parameters,
        energy_defect=defect,
        internal_energy=at_end.internal_energy,
        entropy=known_entropy(at_end),
        log_beta=at_end.log_beta,
        retention=math.exp(-old.published_cooling) * plan.kick.retention * plan.left_at_end,
        cooling_rate=at_end.rate,
        braking=after.braking,
        step_norm=math.sqrt(added(sums, 0, rows, Sum.INCREMENT)),
        gradient_norm=math.sqrt(added(sums, 0, rows, Sum.GRADIENT)),
        momentum_norm=math.sqrt(added(sums, 0, rows, Sum.MOMENTUM)) * plan.left_at_end,
        learning_rate=plan.learning_rate,
    )
    for column in range(len(measured)):
        sample[column] = measured[column]
    published_cooling = plan.publishing.gain if conformal else 0.0
    new = Scalars(
        step=old.step + 1,
        clock=heat.clock,
        log_beta=heat.log_beta,
        internal_energy=heat.internal_energy,
        unit_momentum=plan.unit_momentum * plan.left,
        unit_second_moment=plan.unit_second_moment,
        entropy=known_entropy(heat),
        reference_energy=heat.reference_energy,
        published_cooling=published_cooling,
    )
    for column in range(len(new)):
        scalars[column] = new[column]
    largest = 0.0
    for row in range(rows):
        largest = max(largest, sums[row, Sum.PEAK])
    return largest
