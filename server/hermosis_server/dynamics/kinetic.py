r"""Kinetic energies: how fast a momentum moves the parameters.

A kinetic energy is :math:`K = (\beta/k)\,\kappa(s, \ln\beta)` with s the squared norm of the momentum over a norm
group: the whole session, each tensor, or each coordinate. It gives the velocity :math:`v = f\,G X/h` with the braking
factor :math:`f = 2\,\partial\kappa/\partial s`. All agree for small s; they differ in how they meet a large one.

Source: Learning Dynamics v0.1.0, "Kinetic energy"; docs/theory.md, sections 4 and 10.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.checks import number, refuse

# Beyond this the square overflows; a session that is 1e150 times over its limit stands still to any precision.
MAX_RAPIDITY = 1e150


class KineticKind(enum.StrEnum):
    """The code path of a kinetic energy."""

    CLASSICAL = "classical"
    RELATIVISTIC = "relativistic"
    QUARTIC = "quartic"
    TRUNCATED = "truncated"
    VELOCITY_REGULARISED = "velocity_regularised"


class NormScope(enum.StrEnum):
    """Over what the norm of the momentum is taken; energies add over the groups, braking is each group's own."""

    SESSION = "session"
    TENSOR = "tensor"
    COORDINATE = "coordinate"


class NormKind(enum.StrEnum):
    """Which norm of the momentum the kinetic energy sees."""

    METRIC = "metric"  # X·GX of the momentum that drifts: the Hamiltonian one
    EUCLIDEAN = "euclidean"  # X·X of the raw momentum, as VRAdam takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Classical:
    """κ = s/2: velocity in proportion to momentum."""

    kind = KineticKind.CLASSICAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Relativistic:
    """A speed limit, whatever the momentum.

    Attributes:
      max_step:     ηχ, the largest change of a norm group's parameters in one step at lr_scale 1, in the metric's norm.
      speed_limit:  χ, the same limit in units of momentum; give one of the two.
      rest_cooling: ν in [0, 1]: the limit falls as β^-ν. Zero keeps it, and is the one that keeps learning.
      rest_energy:  ρ ≥ 0, the weight of the rest energy χ².
    """

    max_step: float | None = None
    speed_limit: float | None = None
    rest_cooling: float = 0.0
    rest_energy: float = 0.0

    kind = KineticKind.RELATIVISTIC

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Quartic:
    """The Lagrangian u²/2 + b u⁴/4: momentum u + b u³ for a speed u.

    Attributes:
      stiffness: b ≥ 0; zero is classical.
    """

    stiffness: float

    kind = KineticKind.QUARTIC

    def __post_init__(self) -> None:
        number("kinetic_energy.quartic.stiffness", self.stiffness, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """The relativistic series cut after its second term, at constant speed from where the cut series would turn round.

    Attributes:
      speed_limit: χ > 0, in units of momentum.
    """

    speed_limit: float

    kind = KineticKind.TRUNCATED

    def __post_init__(self) -> None:
        number("kinetic_energy.truncated.speed_limit", self.speed_limit, above=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VelocityRegularised:
    """VRAdam's factor 1/(1 + min(b s, cap)). Not convex: beyond s = 1/b more momentum is less speed.

    Attributes:
      stiffness: b ≥ 0; zero is classical.
      cap:       ≥ 0, bounds the braking; zero is classical.
    """

    stiffness: float
    cap: float

    kind = KineticKind.VELOCITY_REGULARISED

    def __post_init__(self) -> None:
        number("kinetic_energy.velocity_regularised.stiffness", self.stiffness, least=0)
        number("kinetic_energy.velocity_regularised.cap", self.cap, least=0)


KineticEnergy = Classical | Relativistic | Quartic | Truncated | VelocityRegularised


def kind_of(kinetic: KineticEnergy) -> KineticKind:
    """The code path; a stiffness or a cap of zero takes the classical one."""
    if (isinstance(kinetic, Quartic | VelocityRegularised) and kinetic.stiffness == 0) or (
        isinstance(kinetic, VelocityRegularised) and kinetic.cap == 0
    ):
        return KineticKind.CLASSICAL
    return kinetic.kind


class Motion(NamedTuple):
    r"""What a kinetic energy makes of a momentum, float64, in the shape of its norms.

    Attributes:
      kinetic:    κ, which is k K/β.
      beta_slope: ∂κ/∂lnβ at constant s, or None where κ does not know β.
      braking:    f, velocity over Newtonian velocity.
    """

    kinetic: Tensor
    beta_slope: Tensor | None
    braking: Tensor


class Limits(NamedTuple):
    """The numbers of a kinetic energy, each broadcastable to the norms; those its kind does not use are ignored."""

    speed_limit: Tensor  # χ at the initial β
    rest_cooling: Tensor  # ν
    rest_energy: Tensor  # ρ
    stiffness: Tensor  # b
    braking_cap: Tensor


def motion(kind: KineticKind, square: Tensor, limits: Limits, heat: Tensor | None) -> Motion:
    """The motion of momenta whose squared norms are `square`; `heat` is (β/β₀)^ν, None where no limit cools."""
    match kind:
        case KineticKind.CLASSICAL:
            return classical_motion(square)
        case KineticKind.RELATIVISTIC:
            return relativistic_motion(square, limits, heat)
        case KineticKind.QUARTIC:
            return quartic_motion(square, limits.stiffness)
        case KineticKind.TRUNCATED:
            return truncated_motion(square, limits.speed_limit)
        case KineticKind.VELOCITY_REGULARISED:
            return velocity_regularised_motion(square, limits.stiffness, limits.braking_cap)


def classical_motion(square: Tensor) -> Motion:
    """κ = s/2, f = 1."""
    return Motion(square / 2, None, torch.ones_like(square))


def relativistic_motion(square: Tensor, limits: Limits, heat: Tensor | None) -> Motion:
    r"""A momentum under a speed limit.

    .. math::
        \chi = \chi_0 (\beta_0/\beta)^\nu, \quad \Gamma = \sqrt{1 + s/\chi^2}, \quad f = 1/\Gamma, \quad
        \kappa = \frac{s}{\Gamma + 1} + \rho\chi^2, \quad
        \frac{\partial\kappa}{\partial\ln\beta} =
            -\nu\left[\frac{s}{\Gamma+1}\,\frac{\Gamma-1}{\Gamma} + 2\rho\chi^2\right]

    Source: docs/theory.md, section 4. The published text is ν = 1, ρ = 1; França et al. (1903.04100) is ν = 0, ρ = 0.
    """
    rapidity = square.sqrt() / limits.speed_limit
    rest = limits.rest_energy * limits.speed_limit.square()
    if heat is not None:
        rapidity = rapidity * heat
        rest = rest / heat / heat
    rapidity = rapidity.clamp(max=MAX_RAPIDITY)
    gamma = rapidity.square().add_(1).sqrt_()
    moving = square / (gamma + 1)
    slope: Tensor | None = None
    if heat is not None:
        gamma_less_one = rapidity / (gamma + 1) * rapidity
        slope = -limits.rest_cooling * (moving * gamma_less_one / gamma + 2 * rest)
    return Motion(moving + rest, slope, gamma.reciprocal())


def quartic_motion(square: Tensor, stiffness: Tensor) -> Motion:
    r"""The speed u of a momentum p = √s by Cardano's formula in its hyperbolic form.

    .. math::
        u = \frac{2}{\sqrt{3b}} \sinh\Bigl(\tfrac13 \operatorname{asinh}\frac{3\sqrt{3b}\,p}{2}\Bigr), \quad
        \kappa = p u - \frac{u^2}{2} - \frac{b u^4}{4} = \frac{u^2}{2} + \frac{3 b u^4}{4}, \quad
        f = \frac{u}{p} = \frac{1}{1 + b u^2}

    Source: docs/theory.md, section 4.
    """
    scale = (3 * stiffness).sqrt()
    growth = torch.expm1(torch.asinh(1.5 * scale * square.sqrt()) / 3)
    sinh = (growth + growth / (growth + 1)) / 2  # torch's sinh rounds by an element's place in the batch
    speed_square = (2 / scale * sinh).square()
    stiff = stiffness * speed_square
    return Motion(speed_square * (0.5 + 0.75 * stiff), None, (1 + stiff).reciprocal())


def truncated_motion(square: Tensor, speed_limit: Tensor) -> Motion:
    r"""κ = s/2 - s²/8χ² and f = 1 - s/2χ² up to s* = 2χ²/3; from there on the speed stays.

    Source: docs/theory.md, section 4. The cut series of the text turns round at s* and runs backwards from 2χ² on.
    """
    limit = speed_limit.square()
    turn = limit * (2 / 3)
    within = square.minimum(turn)
    top, momentum = turn.sqrt(), square.maximum(turn).sqrt()
    kinetic = within / 2 - within / limit * within / 8 + (2 / 3) * top * (momentum - top)
    return Motion(kinetic, None, (1 - within / limit / 2) * (top / momentum))


def velocity_regularised_motion(square: Tensor, stiffness: Tensor, cap: Tensor) -> Motion:
    r"""κ = log1p(bs)/2b and f = 1/(1 + bs) up to bs = cap; from there on the braking stays.

    Source: docs/theory.md, section 4; VRAdam (2505.13196), its algorithm.
    """
    stiff = (stiffness * square).minimum(cap)
    excess = (square - cap / stiffness).clamp(min=0)
    return Motion(stiff.log1p() / (2 * stiffness) + excess / (2 * (1 + cap)), None, (1 + stiff).reciprocal())
