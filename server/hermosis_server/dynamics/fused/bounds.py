"""Bounds: proof, before a step touches anything, that it cannot leave float32.

A step in place cannot be taken back. From the largest magnitude in a session's state and in its gradient follow bounds
on everything that the rows calculate, each monotone in the ones before. They are loose, by many orders of magnitude for
a metric near its ε; the room up to float32's own limit takes the rounding. What is not proven is not wrong: such a
session goes through the flows, which look at what came out.
"""

import math

from torch import Tensor

from hermosis_server.dynamics.family import Coefficients
from hermosis_server.dynamics.fused.compiled import compiled
from hermosis_server.dynamics.fused.plan import Plan
from hermosis_server.dynamics.fused.tables import Integers
from hermosis_server.dynamics.fused.traits import Trait
from hermosis_server.dynamics.metric import POWER_UNIT

CEILING = 1e30
FLOOR = 1e-37  # of divisors; still a normal float32


@compiled
def proven(traits: Integers, c: Coefficients[float], plan: Plan, largest: float, peak: float) -> bool:
    """Whether a step from a state and with a gradient of these magnitudes stays in float32; NaN proves nothing."""
    z, r = abs(plan.impulse_gain), abs(plan.kick.retention)
    force = peak + (c.thermal_decay * largest if traits[Trait.THERMAL_DECAY] else 0.0)
    worst = max_of(largest, peak, force, c.thermal_decay)
    least = 1.0  # element of the metric's diagonal
    if traits[Trait.DIAGONAL]:
        second = c.second_moment_decay * largest + c.second_moment_gain * force * force
        mean = c.second_moment_decay * largest + c.second_moment_gain * force
        worst = max_of(worst, second, mean, 0.0)
        worst = max_of(worst, force * force, c.second_moment_gain, 0.0)
        if traits[Trait.NORMALISE_METRIC]:
            if not plan.unit_second_moment > FLOOR:
                return False
            second, mean = second / plan.unit_second_moment, mean / plan.unit_second_moment
            worst = max_of(worst, plan.unit_second_moment, 0.0, 0.0)
        least = c.epsilon
        if traits[Trait.EPSILON_INSIDE]:
            least = 0.99 * math.pow(c.epsilon, traits[Trait.POWER_UNITS] / POWER_UNIT)
        if not least > FLOOR:
            return False
        worst = max_of(worst, second + c.epsilon, mean * mean if traits[Trait.CENTERED] else 0.0, c.epsilon)
    inverse = 1 / least
    impulse = force * (inverse if traits[Trait.METRIC_ON_KICK] else 1.0)
    onwards = 1.0 if traits[Trait.METRIC_ON_KICK] else inverse
    momentum = max_of(largest, abs(plan.started) * impulse, 0.0, 0.0)
    worst = max_of(worst, impulse, momentum * onwards, abs(plan.started))
    momentum = r * momentum + z * impulse + plan.stiffness * largest
    drifting = max_of(momentum, r * momentum + z * impulse, 0.0, 0.0)
    direction = drifting * onwards
    worst = max_of(worst, r, z, plan.stiffness)
    worst = max_of(worst, drifting, direction, plan.left)
    reach = abs(plan.pace) + abs(plan.pace_again)
    lead = reach * direction
    increment = lead + (1 + abs(plan.decay)) * 2 * largest
    worst = max_of(worst, reach, abs(plan.decay), increment)
    return worst < CEILING and largest + increment < CEILING


@compiled
def max_of(a: float, b: float, c: float, d: float) -> float:
    """The largest, or NaN where one is."""
    return max(max(a, b), max(c, d)) + 0 * (a + b + c + d)


def largest(*buffers: Tensor | None) -> float:
    """What a session's LARGEST begins with: the largest magnitude in its buffers; infinite where one is not finite."""
    present = [rows for rows in buffers if rows is not None and rows.numel()]
    found = max((float(rows.abs().amax()) for rows in present), default=0.0)
    return found if all(bool(rows.isfinite().all()) for rows in present) else math.inf
