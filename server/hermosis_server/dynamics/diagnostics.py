r"""Energies of a step. Everything is divided by β, because H itself overflows as the session cools.

.. math::
    \mathcal E = \frac{1}{k}\left[\kappa + \frac{\lambda_0 k}{2\beta}|w|^2 + c^2\tilde L + h\gamma U\right], \qquad
    \tilde L = L + \frac{\lambda_2}{2}|w|^2

NaN means undefined, and spreads by itself: without a loss there is no U, at momentum 0 there is no H.

Source: docs/theory.md, section 9.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.hamiltonian import Coefficients, Family
from hermosis_server.dynamics.kinetic import Motion
from hermosis_server.dynamics.phase_state import Scalars
from hermosis_server.records import EnergySample

# Above this ln β the entropy, which is in units of β, is given up.
LOG_BETA_LIMIT = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What a step measured on its way, each (S,) float64.

    Attributes:
      loss:            L at the point of the gradient; not finite means not known.
      position_square: |w|² there; None where no decay reads it.
      before:          the momentum before the kick, in the metric of after it.
      after:           the momentum that the drift saw.
      square:          s of the latter.
      pace:            d/h of the drift, which is lr_scale η.
      log_beta:        ln β after the step.
      beta:            its exponential, clipped.
    """

    loss: Tensor
    position_square: Tensor | None
    before: Motion
    after: Motion
    square: Tensor
    pace: Tensor
    log_beta: Tensor
    beta: Tensor


class Balance(NamedTuple):
    """The energies after a step, each (S,); those named as in records.EnergySample mean the same."""

    internal_energy: Tensor
    entropy: Tensor
    reference_energy: Tensor
    kinetic_energy: Tensor
    potential_energy: Tensor
    thermal_energy: Tensor
    energy_defect: Tensor
    kinetic_loss: Tensor
    smoothed_loss: Tensor


def settle(c: Coefficients[Tensor], old: Scalars[Tensor], step: Passage, family: Family) -> Balance:
    r"""Carries U, S and the reference energy over a step, and takes stock.

    .. math::
        U &\leftarrow r U - z\tilde L, \qquad U \leftarrow U + \tfrac{d}{h}[f s - \kappa - \dot\kappa], \qquad
            \dot\kappa = \partial\kappa/\partial\ln\beta \\
        \Delta S &= -\tau\beta_n(\gamma U_n + c^2\tilde L/h) - \tfrac{d}{h}\beta_+(\kappa + \dot\kappa) \\
        \text{defect} &= \tfrac12[r\,\mathcal E_n + \mathcal E_{\text{kicked}}] - \mathcal E_{\text{reference}}

    A session whose U is undefined is anchored by its first finite loss: under an exponential profile at H = 0, which is
    :math:`U_0 = -(\kappa + c^2\tilde L)/(h\gamma)`, under a constant one, which has no thermal energy, at U = 0. The
    reference energy is H at the anchor and is carried as H/β, so it shrinks by r each step.
    """
    loss = step.loss + (step.loss - step.loss)  # the bracket is zero, or NaN for an infinite loss
    matter_before, matter_after = step.before.kinetic, step.after.kinetic
    bare: Tensor | None = None
    if step.position_square is not None:
        loss = loss + c.thermal_decay / 2 * step.position_square
        if family.bare_decay:
            bare = c.information_unit * c.bare_decay / 2 * step.position_square / step.beta
            matter_before, matter_after = matter_before + bare / c.retention, matter_after + bare

    unanchored = old.internal_energy - old.internal_energy != 0
    anchor = -(c.energy_anchor * matter_before + c.loss_anchor * loss)
    heat = torch.where(unanchored, anchor, old.internal_energy)
    potential = c.energy_unit * loss
    surroundings = potential + c.thermal_unit * heat
    energy_before = (matter_before + surroundings) / c.information_unit
    reference = c.retention * torch.where(unanchored, energy_before, old.reference_energy) + (loss - loss)

    kicked = c.retention * heat - c.impulse_gain * loss
    energy_kicked = (matter_after + potential + c.thermal_unit * kicked) / c.information_unit
    slope = step.after.beta_slope
    effort = step.after.kinetic if slope is None else step.after.kinetic + slope
    internal_energy = kicked + step.pace * (step.square * step.after.braking - effort)
    produced = c.retention * c.learning_rate * surroundings + step.pace * effort
    entropy = torch.where(unanchored, 0.0, old.entropy) - step.beta * produced
    return Balance(
        internal_energy=internal_energy,
        entropy=torch.where(step.log_beta < LOG_BETA_LIMIT, entropy, math.nan),
        reference_energy=reference,
        kinetic_energy=step.after.kinetic / c.information_unit,
        potential_energy=(potential if bare is None else potential + bare) / c.information_unit,
        thermal_energy=c.thermal_unit * internal_energy / c.information_unit,
        energy_defect=(c.retention * energy_before + energy_kicked) / 2 - reference,
        kinetic_loss=step.after.kinetic / c.energy_unit,
        smoothed_loss=torch.where(c.loss_anchor > 0, -internal_energy / c.loss_anchor, math.nan),
    )


def sample_rows(sample: dict[str, Tensor]) -> Tensor:
    """(S, len(EnergySample._fields)) float64, a row a session, in the order of records.EnergySample."""
    return torch.stack([sample[name] for name in EnergySample._fields], dim=1)
