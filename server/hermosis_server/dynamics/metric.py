r"""Metrics: the length of a step in parameter space, learned from the gradients.

The diagonal metric is a thermal average of squared gradients over a second, slower-cooling mass:

.. math::
    M \leftarrow \rho_2 M + q_2\,g^2, \qquad D \leftarrow \rho_2 D + q_2, \qquad
    g_{ii} = (M/D)^a + \varepsilon, \qquad G = 1/g_{ii}

It is an external field: updated first, then held through the kick and the drift.

Source: docs/theory.md, section 5, which derives Adam from it.
"""

import enum
from dataclasses import dataclass

from torch import Tensor

from hermosis_server.dynamics.checks import number, refuse

# The smallest normal float32. Anything below is zero on the server, and zero over zero is not a number.
MINIMUM_EPSILON = 2.0**-126
# Powers are chains of square roots, which round the same on every device and at every place in a batch; pow does not.
POWER_UNIT = 8


class MetricPlace(enum.StrEnum):
    """Where the inverse metric acts."""

    DRIFT = "drift"  # on the momentum, as in Adam
    KICK = "kick"  # on the gradient before it is accumulated, as in RMSProp with momentum


@dataclass(frozen=True, slots=True, kw_only=True)
class Euclidean:
    """Every direction alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal:
    """One scale a parameter.

    Attributes:
      second_moment_decay: ρ₂ in [0, 1].
      second_moment_gain:  q₂ > 0, or None for 1 - ρ₂. ρ₂ = 1 with q₂ = 1 is AdaGrad's sum.
      epsilon:             ε, which keeps the metric finite.
      power:               a, a multiple of 1/8 in (0, 1].
      epsilon_inside:      (M/D + ε)^a in place of (M/D)^a + ε.
      centered:            subtracts the squared mean gradient, averaged with the same ρ₂.
      normalise:           divides M by D, the moment of a unit gradient; False leaves D out.
      place:               where G acts.
    """

    second_moment_decay: float = 0.999
    second_moment_gain: float | None = None
    epsilon: float = 1e-8
    power: float = 0.5
    epsilon_inside: bool = False
    centered: bool = False
    normalise: bool = False
    place: MetricPlace = MetricPlace.DRIFT

    def __post_init__(self) -> None:
        number("metric.second_moment_decay", self.second_moment_decay, least=0, most=1)
        if self.second_moment_gain is not None:
            number("metric.second_moment_gain", self.second_moment_gain, above=0)
        elif self.second_moment_decay == 1:
            raise refuse("metric.second_moment_gain", "got none with second_moment_decay 1, wanted a positive number")
        number("metric.epsilon", self.epsilon, least=MINIMUM_EPSILON)
        number("metric.power", self.power, above=0, most=1)
        if (self.power * POWER_UNIT) % 1:
            raise refuse("metric.power", f"got {self.power!r}, wanted a multiple of 1/{POWER_UNIT} in (0, 1]")

    @property
    def gain(self) -> float:
        """q₂."""
        return 1 - self.second_moment_decay if self.second_moment_gain is None else self.second_moment_gain


Metric = Euclidean | Diagonal


def update_moments_(
    second_moment: Tensor, first_moment: Tensor | None, gradient: Tensor, *, decay: Tensor, gain: Tensor
) -> None:
    r"""Averages the gradient into the metric's moments.

    .. math:: M \leftarrow \rho_2 M + q_2\,g^2, \qquad m \leftarrow \rho_2 m + q_2\,g

    Args:
      second_moment: (R, E) M; changed in place.
      first_moment:  (R, E) m of a centered metric; changed in place.
      gradient:      (R, E).
      decay, gain:   (R, 1) ρ₂ and q₂.
    """
    second_moment.mul_(decay).add_(gradient.square().mul_(gain))
    if first_moment is not None:
        first_moment.mul_(decay).add_(gradient * gain)


def diagonal_metric(
    second_moment: Tensor,
    first_moment: Tensor | None,
    *,
    unit_moment: Tensor | None,
    epsilon: Tensor,
    power_units: int,
    epsilon_inside: bool,
) -> Tensor:
    """(R, E) the metric's diagonal, positive. `unit_moment` (R, 1) is D where the moments are divided by it."""
    scale = second_moment.clone() if unit_moment is None else second_moment / unit_moment
    if first_moment is not None:
        mean = first_moment if unit_moment is None else first_moment / unit_moment
        scale.sub_(mean.square()).clamp_(min=0)  # rounding may leave a variance just below zero
    if epsilon_inside:
        return root_power_(scale.add_(epsilon), power_units)
    return root_power_(scale, power_units).add_(epsilon)


def root_power_(base: Tensor, power_units: int) -> Tensor:
    """base ** (power_units / 8) for 1 … 8, as a product of repeated square roots; may change `base`."""
    if power_units == POWER_UNIT:
        return base
    product: Tensor | None = None
    weight = POWER_UNIT // 2
    while True:
        base.sqrt_()
        if power_units & weight:
            if not power_units & (weight - 1):
                return base if product is None else base.mul_(product)
            product = base.clone() if product is None else product.mul_(base)
        weight //= 2
