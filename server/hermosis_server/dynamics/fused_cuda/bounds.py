"""Bounds: whether a step will stay finite, known before it is taken.

Rows that are changed in place cannot be given back, so the largest numbers that a step can meet are followed through
it: where even they stay well inside float32, so does everything. Energies may leave float64; no step depends on them.
"""

import torch
from torch import Tensor

from hermosis_server.dynamics.cooling import cool
from hermosis_server.dynamics.diagnostics import Setting
from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.metric import POWER_UNIT
from hermosis_server.dynamics.opening import open_step, taken_apart
from hermosis_server.dynamics.phase_state import Scalars

# Of any intermediate number: a tenth of the way, in digits, from float32's end, for all that rounding may add.
MOST = 1e37
# A speed limit whose square is far from zero, so that no norm is divided by nothing.
LEAST_LIMIT = 1e-100


def stays_finite(
    family: Family, *, coefficients: Tensor, scalars: Tensor, lr_scale: Tensor, peak: Tensor, largest: Tensor
) -> Tensor:
    """Which sessions of a family that `covers` names can be stepped in place, (S,) bool.

    Args:
      coefficients, scalars, lr_scale: as for `advance_`.
      peak:    (S,) float64 the largest magnitude in the gradient.
      largest: (S,) likewise in the state; infinite where not known.
    """
    c, table = taken_apart(coefficients)
    old = Scalars(*scalars.unbind(1))
    setting = Setting(family, c, table)
    opening = open_step(setting, old, lr_scale, drive=None, publish=True)
    retention, gain = opening.cooling.retention.abs(), opening.impulse_gain.abs()
    left = torch.ones_like(peak)
    if family.conformal:
        bath = old.bath
        for _ in range(2):
            cooling = cool(family, c, table, bath)
            left = left * cooling.retention.abs()
            bath = bath._replace(log_beta=cooling.log_beta, clock=bath.clock + c.cooling_duration)

    force = peak + c.thermal_decay * largest
    impulse, direction_gain = force, torch.ones_like(peak)
    reached = [force, retention, gain, opening.started.abs(), opening.stiffness.abs(), opening.raising, left]
    if family.diagonal:
        moment = c.second_moment_decay * largest + c.second_moment_gain * force.square()
        mean = c.second_moment_decay * largest + c.second_moment_gain * force
        unit = opening.unit_second_moment if family.normalise_metric else torch.ones_like(peak)
        power = family.power_units / POWER_UNIT if family.epsilon_inside else 1.0
        most = 2 * c.epsilon**-power
        reached += [force.square(), moment, mean.square(), moment / unit, (mean / unit).square(), unit, 1 / unit, most]
        if family.metric_on_kick:
            impulse = force * most
        else:
            direction_gain = most
    momentum = largest.maximum(impulse * opening.started.abs())
    reached += [impulse, momentum, momentum * direction_gain]
    momentum = retention * momentum + gain * impulse + opening.stiffness.abs() * largest
    drifting = retention * momentum + gain * impulse if family.lookahead else momentum
    direction = drifting * direction_gain
    paces = opening.paces  # nothing drifts faster than unbraked
    lead = paces.pace_again.abs() * left.clamp(min=1)
    reach = paces.pace.abs() + lead
    base = largest * (2 + c.kept_drift.abs())
    step = direction * reach + (1 + paces.decay.abs()) * base
    reached += [momentum, drifting, direction, reach, paces.decay.abs(), step, momentum * left]
    bounded = torch.stack(reached).abs().amax(dim=0) <= MOST
    return bounded & (opening.raising >= 0) & (c.speed_limit >= LEAST_LIMIT)
