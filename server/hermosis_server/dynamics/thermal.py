r"""Thermal profiles: how the thermal mass :math:`\beta` grows, and how strongly a gradient kicks.

Over one step of duration :math:`\tau` a profile is three numbers:

.. math::
    r = \frac{\beta}{\beta_+}, \qquad
    \gamma = \frac{\dot\beta}{\beta}, \qquad
    \mathrm{kern} = \frac{1}{\beta_+} \int_t^{t+\tau} \beta \, dt

`retention` r is what remains of the momentum, `cooling_rate` γ the friction, `kernel` the weight of a force that is
held constant over the step. The thermal energy is :math:`E = (h/k)\,\gamma\beta U`, so that the total is conserved.

Source: Learning Dynamics v0.1.0, "Thermal energy" and "Integration"; docs/theory.md, sections 3 and 6.
"""

import enum
import math
from dataclasses import dataclass, field
from typing import NamedTuple

from hermosis_server.dynamics.checks import number, refuse


class ThermalStep(NamedTuple):
    """A thermal profile over one step. `friction` is 1 - retention, kept apart because the difference cancels."""

    retention: float
    friction: float
    cooling_rate: float
    kernel: float


def decay_average(x: float) -> float:
    """(1 - e^-x)/x, the average of e^-t over 0 … x; 1 at 0, and 0 at infinity."""
    if x == 0:
        return 1.0
    return -math.expm1(-x) / x


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """β stays: no friction, and momentum is never forgotten."""

    def over(self, step_duration: float) -> ThermalStep:
        return ThermalStep(retention=1.0, friction=0.0, cooling_rate=0.0, kernel=step_duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """β grows as exp(γ t), in one of two spellings; neither means a momentum_retention of 0.9.

    Attributes:
      momentum_retention: μ = exp(-γ τ), in [0, 1). Zero is the limit γ → ∞: each step forgets all before it.
      cooling_rate:       γ, per unit of time; positive.
    """

    momentum_retention: float | None = None
    cooling_rate: float | None = None

    def __post_init__(self) -> None:
        path = "thermal_profile.exponential."
        if self.momentum_retention is not None and self.cooling_rate is not None:
            raise refuse(path + "cooling_rate", "got momentum_retention as well, wanted one of the two; leave one out")
        if self.momentum_retention is not None:
            if self.momentum_retention == 1:
                raise refuse(path + "momentum_retention", "got 1, wanted less; for no friction say a constant profile")
            number(path + "momentum_retention", self.momentum_retention, least=0, below=1)
        if self.cooling_rate is not None:
            number(path + "cooling_rate", self.cooling_rate, above=0)

    def over(self, step_duration: float) -> ThermalStep:
        if self.cooling_rate is not None:
            elapsed = self.cooling_rate * step_duration
            return ThermalStep(
                retention=math.exp(-elapsed),
                friction=-math.expm1(-elapsed),
                cooling_rate=self.cooling_rate,
                kernel=step_duration * decay_average(elapsed),
            )
        retention = 0.9 if self.momentum_retention is None else self.momentum_retention
        elapsed = -math.log(retention) if retention > 0 else math.inf
        return ThermalStep(
            retention=retention,
            friction=1 - retention,
            cooling_rate=elapsed / step_duration,
            kernel=step_duration * decay_average(elapsed),
        )


ThermalProfile = Constant | Exponential


class ForceMode(enum.StrEnum):
    """How the weight z of a gradient follows from the profile."""

    EMA = "ema"  # z = ζ (1 - r): the momentum is a running mean
    UNIT = "unit"  # z = ζ: the momentum is a running sum
    PHYSICAL = "physical"  # z = ζ kern/τ: the profile's own integral


@dataclass(frozen=True, slots=True, kw_only=True)
class Force:
    """How strongly a gradient kicks: `gradient_gain` is ζ, positive."""

    mode: ForceMode = ForceMode.EMA
    gradient_gain: float = field(default=1.0)

    def __post_init__(self) -> None:
        number("force.gradient_gain", self.gradient_gain, above=0)

    def impulse_gain(self, thermal: ThermalStep, step_duration: float) -> float:
        """z, the weight of this step's gradient in the momentum."""
        match self.mode:
            case ForceMode.EMA:
                return self.gradient_gain * thermal.friction
            case ForceMode.UNIT:
                return self.gradient_gain
            case ForceMode.PHYSICAL:
                return self.gradient_gain * thermal.kernel / step_duration
