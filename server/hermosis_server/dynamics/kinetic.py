r"""Kinetic energies: how fast a momentum moves the parameters.

A kinetic energy is :math:`K = (\beta/k)\,\kappa(s, \ln\beta)` with s the squared norm of the momentum over the whole
session. It gives the velocity :math:`v = f\,G X/h` with the braking factor :math:`f = 2\,\partial\kappa/\partial s`.

Source: Learning Dynamics v0.1.0, "Kinetic energy"; docs/theory.md, sections 4 and 10.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.checks import number, refuse

# Beyond this the square overflows; a session that is 1e150 times over its limit stands still to any precision.
MAX_RAPIDITY = 1e150


@dataclass(frozen=True, slots=True, kw_only=True)
class Classical:
    """κ = s/2: velocity in proportion to momentum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relativistic:
    """A speed limit, whatever the momentum.

    Attributes:
      max_step:     ηχ, the largest change of the session's parameters in one step at lr_scale 1, in the metric's norm.
      speed_limit:  χ, the same limit in units of momentum; give one of the two.
      rest_cooling: ν in [0, 1]: the limit falls as β^-ν. Zero keeps it, and is the one that keeps learning.
      rest_energy:  ρ ≥ 0, the weight of the rest energy χ².
    """

    max_step: float | None = None
    speed_limit: float | None = None
    rest_cooling: float = 0.0
    rest_energy: float = 0.0

    def __post_init__(self) -> None:
        path = "kinetic_energy.relativistic."
        if (self.max_step is None) == (self.speed_limit is None):
            got = "neither" if self.max_step is None else "both"
            raise refuse(path + "limit", f"got {got} of max_step and speed_limit, wanted one of the two")
        for name, limit in (("max_step", self.max_step), ("speed_limit", self.speed_limit)):
            if limit is not None:
                number(path + name, limit, above=0)
        number(path + "rest_cooling", self.rest_cooling, least=0, most=1)
        number(path + "rest_energy", self.rest_energy, least=0)

    def limit(self, learning_rate: float) -> float:
        """χ at the initial β."""
        if self.max_step is not None:
            return self.max_step / learning_rate
        assert self.speed_limit is not None
        return self.speed_limit


KineticEnergy = Classical | Relativistic


class Motion(NamedTuple):
    r"""What a kinetic energy makes of a momentum, each (S,) float64.

    Attributes:
      kinetic:    κ, which is k K/β.
      beta_slope: ∂κ/∂lnβ at constant s, or None where κ does not know β.
      braking:    f, velocity over Newtonian velocity.
    """

    kinetic: Tensor
    beta_slope: Tensor | None
    braking: Tensor


def classical_motion(squared_momentum: Tensor) -> Motion:
    """κ = s/2, f = 1."""
    return Motion(squared_momentum / 2, None, torch.ones_like(squared_momentum))


def relativistic_motion(
    squared_momentum: Tensor, *, speed_limit: Tensor, rest_cooling: Tensor, rest_energy: Tensor, heat: Tensor | None
) -> Motion:
    r"""A momentum under a speed limit.

    .. math::
        \chi = \chi_0 (\beta_0/\beta)^\nu, \quad \Gamma = \sqrt{1 + s/\chi^2}, \quad f = 1/\Gamma, \quad
        \kappa = \frac{s}{\Gamma + 1} + \rho\chi^2, \quad
        \frac{\partial\kappa}{\partial\ln\beta} =
            -\nu\left[\frac{s}{\Gamma+1}\,\frac{\Gamma-1}{\Gamma} + 2\rho\chi^2\right]

    Args:
      squared_momentum: (S,) s.
      speed_limit:      (S,) χ at the initial β.
      rest_cooling:     (S,) ν.
      rest_energy:      (S,) ρ.
      heat:             (S,) (β/β_0)^ν, or None where no session's limit cools.

    Source: docs/theory.md, section 4. The published text is ν = 1, ρ = 1; França et al. (1903.04100) is ν = 0, ρ = 0.
    """
    rapidity = squared_momentum.sqrt() / speed_limit
    rest = rest_energy * speed_limit.square()
    if heat is not None:
        rapidity = rapidity * heat
        rest = rest / heat / heat
    rapidity = rapidity.clamp(max=MAX_RAPIDITY)
    gamma = rapidity.square().add_(1).sqrt_()
    moving = squared_momentum / (gamma + 1)
    slope: Tensor | None = None
    if heat is not None:
        gamma_less_one = rapidity / (gamma + 1) * rapidity
        slope = -rest_cooling * (moving * gamma_less_one / gamma + 2 * rest)
    return Motion(moving + rest, slope, gamma.reciprocal())
