r"""Energies of a step. Everything is divided by β, because H itself overflows as the session cools.

.. math::
    \mathcal E = \frac{1}{k}\left[\kappa + \frac{\lambda_0 k}{2\beta}|w|^2 + c^2\tilde L\right] + \frac{E}{\beta}, \quad
    \tilde L = L + \frac{\lambda_2}{2}|w|^2, \qquad \frac{kE}{\beta} = h\,\frac{\varphi}{\beta}\,U

U, S and the reference energy pass through a step flow by flow: `anchored`, `kicked`, `drifted`, `cooled`.
NaN means undefined, and spreads by itself: without a loss there is no U, at momentum 0 there is no H.

Source: docs/theory.md, section 9.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.cooling import Bath, Cooling, cool, thermal_energy
from hermosis_server.dynamics.family import Coefficients, Family
from hermosis_server.dynamics.norms import Carried
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT
from hermosis_server.records import EnergySample


@dataclass(frozen=True, slots=True)
class Setting:
    """Which dynamics: what every flow below is given."""

    family: Family
    c: Coefficients[Tensor]
    table: Tensor


class Heat(NamedTuple):
    """The thermal numbers of a batch on their way through a step, each (S,)."""

    log_beta: Tensor
    clock: Tensor
    internal_energy: Tensor
    entropy: Tensor
    reference_energy: Tensor
    rate: Tensor  # φ/β

    @property
    def bath(self) -> Bath[Tensor]:
        return Bath(self.log_beta, self.clock, self.internal_energy)

    @property
    def known_entropy(self) -> Tensor:
        """S while β is a number."""
        return torch.where(self.log_beta < LOG_BETA_LIMIT, self.entropy, math.nan)


class Kick(NamedTuple):
    """The kick as energies see it, each (S,).

    Attributes:
      cooling:         of the kick; a conformal kick does not cool.
      impulse_gain:    z.
      energy_unit:     c² = z h/kern; NaN at momentum 0.
      loss:            L̃ at the published point; NaN where unknown or infinite.
      position_square: |q|² there, or zero where no decay reads it.
    """

    cooling: Cooling
    impulse_gain: Tensor
    energy_unit: Tensor
    loss: Tensor
    position_square: Tensor

    @property
    def smoothing(self) -> Tensor:
        """kern·φ/β, which is 1 at momentum 0: z over this is c²β/(hφ), the weight of the loss in -U."""
        rate = self.cooling.rate
        return torch.where(rate.isinf(), 1.0, self.cooling.kernel * rate)


def known_loss(c: Coefficients[Tensor], loss: Tensor, position_square: Tensor) -> Tensor:
    """L̃ = L + λ₂|q|²/2; NaN for a loss that is not finite."""
    return loss + (loss - loss) + c.thermal_decay / 2 * position_square


def anchored(setting: Setting, heat: Heat, kick: Kick, kinetic: Tensor) -> tuple[Heat, Tensor]:
    r"""Gives U and S a value where they have none, and tells 𝓔 before the kick.

    U is anchored by its first finite loss at H = 0, which is :math:`U_0 = -(\kappa + c^2\tilde L)\beta/(h\varphi)`, and
    at U = 0 where the profile has no rate. The reference energy of a fresh anchor is left to `kicked`.
    """
    c = setting.c
    lost = ~heat.internal_energy.isfinite()
    fresh = lost | ~heat.reference_energy.isfinite()
    rate = kick.cooling.rate
    matter = kinetic + _bare(c, heat.log_beta, kick)
    energy_anchor = torch.where(rate.isinf() | (rate == 0), 0.0, 1 / (c.action_unit * rate))
    smoothing = kick.smoothing
    loss_anchor = torch.where(smoothing == 0, 0.0, kick.impulse_gain / smoothing)
    internal_energy = torch.where(lost, -(energy_anchor * matter + loss_anchor * kick.loss), heat.internal_energy)
    warm = thermal_energy(setting.family, c, setting.table, heat.log_beta, rate, internal_energy)
    energy = (matter + kick.energy_unit * kick.loss + warm) / c.information_unit
    return (
        heat._replace(
            rate=rate,
            internal_energy=internal_energy,
            entropy=torch.where(fresh, 0.0, heat.entropy),
            reference_energy=torch.where(fresh, math.nan, heat.reference_energy),
        ),
        energy,
    )


def kicked(setting: Setting, heat: Heat, kick: Kick, energy: Tensor, kinetic: Tensor) -> tuple[Heat, Tensor]:
    r"""Carries the thermal numbers through the kick, and tells the energy defect.

    .. math::
        U \leftarrow a U - \tfrac{b}{\mathrm{kern}} z\tilde L, \qquad
        \text{defect} = \tfrac12[r\,\mathcal E_n + \mathcal E_{\text{kicked}}] - \mathcal E_{\text{reference}}

    The reference is the first such mean after an anchor: against H itself just before the first kick the defect would
    be of first order only in the conformal scheme, where β is half a step ahead of U.

    At a knot of a table H jumps, so the reference is lost there, and found again at the next kick.

    Args:
      energy:  𝓔 before.
      kinetic: κ after.
    """
    c, cooling = setting.c, kick.cooling
    internal_energy = cooling.internal_energy
    if internal_energy is None:
        internal_energy = (
            cooling.heat_retention * heat.internal_energy - cooling.heat_weight * kick.impulse_gain * kick.loss
        )
    potential = kick.energy_unit * kick.loss
    family, table = setting.family, setting.table
    warm = thermal_energy(family, c, table, heat.log_beta, heat.rate, heat.internal_energy)
    warm_after = thermal_energy(family, c, table, cooling.log_beta, cooling.rate_after, internal_energy)
    matter = kinetic + _bare(c, cooling.log_beta, kick)
    energy_after = (matter + potential + warm_after) / c.information_unit
    reference = cooling.retention * heat.reference_energy + (kick.loss - kick.loss)
    middle = (cooling.retention * energy + energy_after) / 2
    reference = torch.where(heat.reference_energy.isnan(), middle, reference)
    defect = middle - reference
    if cooling.crossed is not None:
        reference, defect = torch.where(cooling.crossed, math.nan, reference), torch.where(cooling.crossed, 0.0, defect)
    if cooling.entropy is not None:
        produced = cooling.entropy
    else:
        impulse = _beta(cooling.log_beta) * kick.impulse_gain * kick.loss
        total = _beta(heat.log_beta) * c.learning_rate * (potential + warm)  # C τ, with φU + βc²L/h = C
        produced = -(cooling.homogeneity * (total - impulse) + impulse)
    after = Heat(
        log_beta=cooling.log_beta,
        clock=heat.clock if family.conformal else heat.clock + c.cooling_duration,
        internal_energy=internal_energy,
        entropy=heat.entropy + produced,
        reference_energy=reference,
        rate=cooling.rate_after,
    )
    return after, defect


def drifted(heat: Heat, carried: Carried, pace: Tensor) -> Heat:
    r"""Carries the thermal numbers through a drift of duration d, with pace d/h.

    .. math:: U \leftarrow U + \tfrac{d}{h}[h X\!\cdot\!v - (\kappa + \dot\kappa)], \qquad
        S \leftarrow S - \tfrac{d}{h}\beta(\kappa + \dot\kappa), \qquad \dot\kappa = \partial\kappa/\partial\ln\beta
    """
    return heat._replace(
        internal_energy=heat.internal_energy + pace * (carried.power - carried.effort),
        entropy=heat.entropy - pace * _beta(heat.log_beta) * carried.effort,
    )


def cooled(setting: Setting, heat: Heat) -> tuple[Heat, Cooling]:
    r"""Carries the thermal numbers through one stretch of cooling by itself.

    .. math:: U \leftarrow a U, \qquad S \leftarrow S - g\,d\,\varphi U, \qquad g = d\ln\varphi/d\ln\beta
    """
    c, family, table = setting.c, setting.family, setting.table
    cooling = cool(family, c, table, heat.bath)
    internal_energy = cooling.internal_energy
    if internal_energy is None:
        internal_energy = cooling.heat_retention * heat.internal_energy
    warm = thermal_energy(family, c, table, heat.log_beta, cooling.rate, heat.internal_energy)
    reference = cooling.retention * heat.reference_energy
    if cooling.crossed is not None:
        reference = torch.where(cooling.crossed, math.nan, reference)
    produced = cooling.entropy
    if produced is None:
        produced = -cooling.homogeneity * c.cooling_duration * _beta(heat.log_beta) * warm / c.action_unit
    after = Heat(
        log_beta=cooling.log_beta,
        clock=heat.clock + c.cooling_duration,
        internal_energy=internal_energy,
        entropy=heat.entropy + produced,
        reference_energy=reference,
        rate=cooling.rate_after,
    )
    return after, cooling


def energies(setting: Setting, heat: Heat, kick: Kick, carried: Carried, parameter_counts: Tensor) -> dict[str, Tensor]:
    """The energies at the end of a step, by their names in records.EnergySample."""
    c = setting.c
    unit = c.information_unit
    potential = kick.energy_unit * kick.loss + _bare(c, heat.log_beta, kick)
    warm = thermal_energy(setting.family, c, setting.table, heat.log_beta, heat.rate, heat.internal_energy)
    smoothing = torch.where(heat.rate.isinf(), 1.0, kick.cooling.kernel * heat.rate)
    return {
        "internal_energy": heat.internal_energy,
        "entropy": heat.known_entropy,
        "kinetic_energy": carried.kinetic / unit,
        "potential_energy": potential / unit,
        "thermal_energy": warm / unit,
        "total_energy": (carried.kinetic + potential + warm) / unit,
        "kinetic_loss": carried.kinetic / kick.energy_unit,
        "kinetic_temperature": 2 * carried.kinetic / unit / parameter_counts,
        "smoothed_loss": torch.where(smoothing > 0, -heat.internal_energy * smoothing / kick.impulse_gain, math.nan),
        "log_beta": heat.log_beta,
        "cooling_rate": heat.rate,
    }


def sample_rows(sample: dict[str, Tensor]) -> Tensor:
    """(S, len(EnergySample._fields)) float64, a row a session, in the order of records.EnergySample."""
    return torch.stack([sample[name] for name in EnergySample._fields], dim=1)


def _bare(c: Coefficients[Tensor], log_beta: Tensor, kick: Kick) -> Tensor:
    """kλ₀|q|²/2β."""
    pull = c.information_unit * c.bare_decay / 2 * kick.position_square
    return pull * (-log_beta.clamp(-LOG_BETA_LIMIT, LOG_BETA_LIMIT)).exp()


def _beta(log_beta: Tensor) -> Tensor:
    """β while it is a number: the entropy is given up beyond."""
    return torch.where(log_beta < LOG_BETA_LIMIT, log_beta, math.nan).exp()
