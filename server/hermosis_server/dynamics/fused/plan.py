"""Plan: all numbers of one session's step that its rows have no say in, before any row is touched.

The same formulas as in cooling.py, norms.py and integrators.py, for one session instead of a batch.
"""

import math
from typing import NamedTuple

from hermosis_server.dynamics.family import Coefficients
from hermosis_server.dynamics.fused.compiled import compiled
from hermosis_server.dynamics.fused.tables import Integers, Numbers
from hermosis_server.dynamics.fused.traits import FORCES, PROFILES, Trait
from hermosis_server.dynamics.phase_state import Scalars
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT, ForceMode, ProfileKind

LINEAR, POWER = PROFILES.index(ProfileKind.LINEAR), PROFILES.index(ProfileKind.POWER)
UNIT, PHYSICAL = FORCES.index(ForceMode.UNIT), FORCES.index(ForceMode.PHYSICAL)


class Stretch(NamedTuple):
    """One stretch of cooling; `cooling.Cooling` for one session."""

    log_beta: float
    gain: float
    retention: float
    friction: float
    kernel: float
    heat_retention: float
    heat_weight: float
    rate: float
    rate_after: float
    homogeneity: float


class Moment(NamedTuple):
    """When norms are taken; `norms.Moment` for one session, with a heat of 1 where no limit cools."""

    square_factor: float
    work_factor: float
    heat: float


class Plan(NamedTuple):
    """The plan of a step.

    Attributes:
      kick:               what the bath does while the gradient acts.
      ending, publishing: the two stretches of cooling in the conformal scheme.
      impulse_gain:       z.
      first:              1 in a session's first step, else 0.
      started:            what the momentum of a unit gradient was before the first kick.
      stiffness:          of bare decay.
      unit_momentum:      A after the kick.
      unit_second_moment: D.
      before … again:     the moments at which norms are taken.
      left_at_end, left:  what cooling leaves of the momentum, up to the end of the step and in all.
      learning_rate:      η times lr_scale; the whole step in units of h.
      drift, again_drift: lengths of the drifts in those units.
      pace, pace_again:   the same with the raising factor.
      decay:              of the parameters, without braking.
    """

    kick: Stretch
    ending: Stretch
    publishing: Stretch
    impulse_gain: float
    first: float
    started: float
    stiffness: float
    unit_momentum: float
    unit_second_moment: float
    before: Moment
    after: Moment
    end: Moment
    again: Moment
    left_at_end: float
    left: float
    learning_rate: float
    drift: float
    again_drift: float
    pace: float
    pace_again: float
    decay: float


@compiled
def coefficients_of(row: Numbers) -> Coefficients[float]:
    """A session's row of numbers, by name."""
    return Coefficients(
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
        row[10], row[11], row[12], row[13], row[14], row[15], row[16], row[17], row[18], row[19],
        row[20], row[21], row[22], row[23], row[24], row[25], row[26], row[27], row[28],
    )  # fmt: skip


@compiled
def scalars_of(row: Numbers) -> Scalars[float]:
    """A session's row of scalars, by name."""
    return Scalars(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8])


@compiled
def bounded_exp(log: float) -> float:
    """e to this power, within float64."""
    return math.exp(min(max(log, -LOG_BETA_LIMIT), LOG_BETA_LIMIT))


@compiled
def decay_average(x: float) -> float:
    """(1 - e^-x)/x; see cooling.py."""
    return 1.0 if x == 0 else -math.expm1(-x) / x


@compiled
def cool(profile: int, c: Coefficients[float], log_beta: float) -> Stretch:
    """One stretch of `c.cooling_duration` from this ln β; `cooling.cool`."""
    if profile == LINEAR:
        rate = c.profile_growth * math.exp(-log_beta)
        growth = rate * c.cooling_duration
        growth = growth if growth > -1 else math.nan
        retention = 1 / (1 + growth)
        gain = math.log1p(growth)
        kernel = c.cooling_duration * (1 + retention) / 2
        return Stretch(
            log_beta + gain, gain, retention, growth * retention, kernel,
            1.0, 2 / (1 + retention), rate, rate * retention, 0.0,
        )  # fmt: skip
    if profile == POWER:
        p = c.profile_exponent
        age = c.profile_age * math.exp((log_beta - c.profile_log_beta) / p)
        aged = math.log1p(c.cooling_duration / age)
        age_after = age + c.cooling_duration
        mass, heat = decay_average((p + 1) * aged), decay_average(p * aged)
        return Stretch(
            log_beta + p * aged, p * aged, math.exp(-p * aged), -math.expm1(-p * aged), age_after * aged * mass,
            math.exp(-(p - 1) * aged), heat / mass, p / age, p / age_after, (p - 1) / p,
        )  # fmt: skip
    return Stretch(
        log_beta + c.log_beta_gain, c.log_beta_gain, c.retention, c.friction, c.kernel,
        c.retention, 1.0, c.cooling_rate, c.cooling_rate, 1.0,
    )  # fmt: skip


@compiled
def moment(traits: Integers, c: Coefficients[float], raising: float, log_beta: float, left: float) -> Moment:
    """The moment at which ln β is this and so much of the momentum is left; `norms._Norms.moment`."""
    heat = 1.0
    if traits[Trait.REST_COOLING]:
        heat = bounded_exp(c.rest_cooling * (log_beta - c.initial_log_beta))
    remaining = left * left
    work = raising * (left if traits[Trait.NORMALISE] else remaining)
    return Moment(remaining if traits[Trait.EUCLIDEAN_NORM] else work, work, heat)


@compiled
def plan_of(traits: Integers, c: Coefficients[float], old: Scalars[float], lr_scale: float) -> Plan:
    """The plan of a session's next step; `integrators.advance_`."""
    profile, conformal = traits[Trait.PROFILE], traits[Trait.CONFORMAL] != 0
    kick = cool(profile, c, old.log_beta)
    ending = publishing = kick
    left_at_end = left = 1.0
    if conformal:
        ending = kick
        publishing = cool(profile, c, ending.log_beta)
        left_at_end = ending.retention
        left = left_at_end * publishing.retention
        kick = Stretch(
            old.log_beta, 0.0, 1.0, 0.0, c.step_duration, 1.0, 1.0, ending.rate, ending.rate, 0.0,
        )  # fmt: skip

    gain = c.gradient_gain
    if traits[Trait.FORCE] == PHYSICAL:
        gain = c.gradient_gain * kick.kernel / c.step_duration
    elif traits[Trait.FORCE] != UNIT:
        gain = 2 * c.gradient_gain * old.published_cooling if conformal else c.gradient_gain * kick.friction
    first = 1.0 if old.step == 0 else 0.0
    started = (c.first_kick - gain) / kick.retention if traits[Trait.FIRST_KICK] else 0.0
    unit_momentum = (started if first != 0 else old.unit_momentum) * kick.retention + gain
    raising = 1.0
    if traits[Trait.NORMALISE]:
        drifting = unit_momentum * kick.retention + gain if traits[Trait.LOOKAHEAD] else unit_momentum
        raising = c.gradient_gain / drifting

    before = moment(traits, c, raising, old.log_beta, 1.0)
    after = moment(traits, c, raising, kick.log_beta, 1.0)
    end = again = after
    if conformal:
        end = moment(traits, c, raising, ending.log_beta, left_at_end)
        again = moment(traits, c, raising, publishing.log_beta, left)

    learning_rate = lr_scale * c.learning_rate
    drift, again_drift = learning_rate, 0.0
    if traits[Trait.PUBLISHES]:
        drift = again_drift = learning_rate / 2
    lasting = 1.0 if traits[Trait.NORMALISE] else left
    return Plan(
        kick,
        ending,
        publishing,
        gain,
        first,
        started,
        c.information_unit * c.bare_decay * c.learning_rate * bounded_exp(-kick.log_beta),
        unit_momentum,
        old.unit_second_moment * c.second_moment_decay + c.second_moment_gain,
        before,
        after,
        end,
        again,
        left_at_end,
        left,
        learning_rate,
        drift,
        again_drift,
        drift * raising,
        again_drift * raising * lasting,
        learning_rate * c.decoupled_decay,
    )
