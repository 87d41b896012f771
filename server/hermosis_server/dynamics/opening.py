"""Opening: a step as far as its numbers are known before its gradient is looked at."""

from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.cooling import Cooling, cool
from hermosis_server.dynamics.diagnostics import Setting
from hermosis_server.dynamics.family import COEFFICIENTS, Coefficients, Scheme
from hermosis_server.dynamics.norms import Drift
from hermosis_server.dynamics.phase_state import Scalars
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT, ForceMode


class Opening(NamedTuple):
    """How a step begins, each (S,) float64.

    Attributes:
      cooling:            of the kick.
      impulse_gain:       z.
      first:              bool: no step was taken before.
      started:            A₀, the momentum that a unit gradient would have left behind before the first step.
      unit_momentum:      A after the kick.
      unit_second_moment: D after it.
      raising:            a.
      stiffness:          kλ₀τ/(hβ₊).
      pace:               of a whole step.
      drift, again:       of the drift that ends the step, and of the one that publishes.
      paces:              lengths of the drifts, as long as the momentum does not cool between them.
    """

    cooling: Cooling
    impulse_gain: Tensor
    first: Tensor
    started: Tensor
    unit_momentum: Tensor
    unit_second_moment: Tensor
    raising: Tensor
    stiffness: Tensor
    pace: Tensor
    drift: Tensor
    again: Tensor
    paces: Drift


def open_step(
    setting: Setting, old: Scalars[Tensor], lr_scale: Tensor, *, drive: Tensor | None, publish: bool
) -> Opening:
    """The bath over the kick, the weight of the gradient in it, the length of the drift after it.

    Args:
      old:   the scalars before the step.
      drive: c²L̃/h, for a feedback profile.
      The others as for `advance_`.
    """
    family, c = setting.family, setting.c
    cooling = _kick_cooling(setting, old, drive)
    gain = _impulse_gain(setting, old, cooling)
    first = old.step == 0
    started = (c.first_kick - gain) / cooling.retention if family.first_kick else torch.zeros_like(gain)
    unit_momentum = torch.where(first, started, old.unit_momentum) * cooling.retention + gain
    raising = torch.ones_like(gain)
    if family.normalise:
        raising = c.gradient_gain / (unit_momentum * cooling.retention + gain if family.lookahead else unit_momentum)
    stiffness = c.information_unit * c.bare_decay * c.learning_rate
    stiffness = stiffness * (-cooling.log_beta.clamp(-LOG_BETA_LIMIT, LOG_BETA_LIMIT)).exp()
    euler = family.scheme is Scheme.SYMPLECTIC_EULER
    pace = lr_scale * c.learning_rate
    drift = pace if euler else pace / 2
    again = drift if publish and not euler else torch.zeros_like(pace)
    return Opening(
        cooling=cooling,
        impulse_gain=gain,
        first=first,
        started=started,
        unit_momentum=unit_momentum,
        unit_second_moment=learned_unit(setting, old),
        raising=raising,
        stiffness=stiffness,
        pace=pace,
        drift=drift,
        again=again,
        paces=Drift(drift * raising, again * raising, pace * c.decoupled_decay),
    )


def learned_unit(setting: Setting, old: Scalars[Tensor]) -> Tensor:
    """(S,) D once the step's gradient has been learned from."""
    c = setting.c
    return old.unit_second_moment * c.second_moment_decay + c.second_moment_gain


def taken_apart(coefficients: Tensor) -> tuple[Coefficients[Tensor], Tensor]:
    """A table of `Hamiltonian.numbers` as coefficients, each (S,), and the rest."""
    count = len(COEFFICIENTS)
    return Coefficients(*coefficients[:, :count].unbind(1)), coefficients[:, count:]


def _kick_cooling(setting: Setting, old: Scalars[Tensor], drive: Tensor | None) -> Cooling:
    """What the bath does while the gradient acts: a whole stretch, or nothing in the conformal scheme."""
    family, c = setting.family, setting.c
    if not family.conformal:
        return cool(family, c, setting.table, old.bath, drive)
    rate = cool(family, c, setting.table, old.bath)
    one, nothing = torch.ones_like(old.clock), torch.zeros_like(old.clock)
    return Cooling(
        log_beta=old.log_beta,
        gain=nothing,
        retention=one,
        friction=nothing,
        kernel=c.step_duration,
        heat_retention=one,
        heat_weight=one,
        rate=rate.rate,
        rate_after=rate.rate,
        homogeneity=nothing,
    )


def _impulse_gain(setting: Setting, old: Scalars[Tensor], cooling: Cooling) -> Tensor:
    """z, the weight of the gradient: docs/theory.md, section 6."""
    c = setting.c
    match setting.family.force:
        case ForceMode.UNIT:
            return c.gradient_gain
        case ForceMode.PHYSICAL:
            return c.gradient_gain * cooling.kernel / c.step_duration
        case ForceMode.EMA:
            if setting.family.conformal:  # -2ζ ln r of the half cooling before the kick
                return 2 * c.gradient_gain * old.published_cooling
            return c.gradient_gain * cooling.friction
