r"""Energies of a step. Everything is divided by β, because H itself overflows as the session cools.

.. math::
    \mathcal E = \frac{1}{k}\left[\kappa + c^2\tilde L + \frac{\lambda_0 k}{2\beta}|w|^2 + h\gamma U\right]

NaN means undefined and spreads: a session without a loss has no U, at momentum 0 there is no H.

Source: docs/theory.md, section 9.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.hamiltonian import Coefficients
from hermosis_server.dynamics.kinetic import Motion
from hermosis_server.records import EnergySample

# Above this ln β the entropy, which is in units of β, is given up.
LOG_BETA_LIMIT = 700.0


class Potential(NamedTuple):
    """The potential at the point of the gradient: `loss` L̃ with its L2 term, and `bare` λ₀k|w|²/2β; each (S,)."""

    loss: Tensor
    bare: Tensor | float


def energy(c: Coefficients[Tensor], motion: Motion, potential: Potential, internal_energy: Tensor) -> Tensor:
    """(S,) H/β."""
    matter = motion.kinetic + c.energy_unit * potential.loss + potential.bare
    return (matter + c.thermal_unit * internal_energy) / c.information_unit


def anchored_internal_energy(c: Coefficients[Tensor], motion: Motion, potential: Potential) -> Tensor:
    r"""(S,) the U at which H is zero; 0 under a constant profile, which has no thermal energy.

    .. math:: U_0 = -\frac{\kappa + c^2\tilde L}{h\gamma}
    """
    return -(c.energy_anchor * (motion.kinetic + potential.bare) + c.loss_anchor * potential.loss)


def heating(c: Coefficients[Tensor], motion: Motion, braked_square: Tensor, duration: Tensor) -> Tensor:
    r"""(S,) what a drift adds to U.

    .. math:: \Delta U = \frac{d}{h}\left[f s - \kappa - \frac{\partial\kappa}{\partial\ln\beta}\right]
    """
    return duration / c.action_unit * (braked_square - motion.kinetic - motion.beta_slope)


def entropy_of_kick(c: Coefficients[Tensor], beta: Tensor, internal_energy: Tensor, loss: Tensor) -> Tensor:
    r"""(S,) :math:`\Delta S = -\tau\beta(\gamma U + c^2\tilde L/h)`, with β and U from before the kick."""
    return -c.step_duration * beta / c.action_unit * (c.thermal_unit * internal_energy + c.energy_unit * loss)


def entropy_of_drift(c: Coefficients[Tensor], beta: Tensor, motion: Motion, duration: Tensor) -> Tensor:
    r"""(S,) :math:`\Delta S = -(d/h)\,\beta\,(\kappa + \partial\kappa/\partial\ln\beta)`."""
    return -duration / c.action_unit * beta * (motion.kinetic + motion.beta_slope)


def where_defined(value: Tensor, defined: Tensor) -> Tensor:
    """The value, and NaN elsewhere."""
    return torch.where(defined, value, math.nan)


def sample_rows(sample: dict[str, Tensor]) -> Tensor:
    """(S, len(EnergySample._fields)) float64, a row a session, in the order of records.EnergySample."""
    return torch.stack([sample[name] for name in EnergySample._fields], dim=1)
