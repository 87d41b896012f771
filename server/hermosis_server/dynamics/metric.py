r"""Metrics: the length of a step in parameter space, learned from the gradients.

A metric is a thermal average of products of gradients over a second, slower-cooling mass, to a power:

.. math::
    M \leftarrow \rho_2 M + q_2\,g \otimes g, \qquad D \leftarrow \rho_2 D + q_2, \qquad
    g_{ij} = (M/D)^a + \varepsilon, \qquad G = g_{ij}^{-1}

Diagonal keeps one number a parameter and is here; full and Kronecker keep matrices, in matrix_metric.py. The metric is
an external field: updated first, then held through the kick and the drift.

Source: docs/theory.md, section 5, which derives Adam from it.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hermosis_server.dynamics.checks import number, refuse

# The smallest normal float32. Anything below is zero on the server, and zero over zero is not a number.
MINIMUM_EPSILON = 2.0**-126
# Powers are chains of square roots, which round the same on every device and at every place in a batch; pow does not.
POWER_UNIT = 8
DEFAULT_SIDE = 1024  # a Kronecker factor is kept for sides up to this
MAX_SIDE = 2048  # a decomposition costs the cube of it, and while one runs all sessions wait


class MetricPlace(enum.StrEnum):
    """Where the inverse metric acts."""

    DRIFT = "drift"  # on the momentum, as in Adam
    KICK = "kick"  # on the gradient before it is accumulated, as in RMSProp with momentum


@dataclass(frozen=True, slots=True, kw_only=True)
class Euclidean:
    """Every direction alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What every learned metric has.

    Attributes:
      second_moment_decay: ρ₂ in [0, 1].
      second_moment_gain:  q₂ > 0, or None for 1 - ρ₂. ρ₂ = 1 with q₂ = 1 is AdaGrad's sum.
      epsilon:             ε, which keeps the metric finite.
      power:               a, a multiple of 1/8 in (0, 1].
      epsilon_inside:      (M/D + ε)^a in place of (M/D)^a + ε.
      normalise:           divides M by D, the moment of a unit gradient; False leaves D out.
      place:               where G acts.
    """

    second_moment_decay: float = 0.999
    second_moment_gain: float | None = None
    epsilon: float = 1e-8
    power: float = 0.5
    epsilon_inside: bool = False
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagonal(Moments):
    """One scale a parameter.

    Attributes:
      centered: subtracts the squared mean gradient, averaged with the same ρ₂.
    """

    centered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Full(Moments):
    """The whole second moment: P² numbers, and a decomposition that costs P³. It turns with the problem.

    Attributes:
      by_tensor:     one matrix a tensor in place of one for the session.
      refresh_steps: between two decompositions; at least 1. The first so many steps each have one.
    """

    by_tensor: bool = False
    refresh_steps: int = 1

    def __post_init__(self) -> None:
        Moments.__post_init__(self)
        _check_refresh(self.refresh_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kronecker(Moments):
    r"""A left and a right factor for each matrix: the whole second moment where that is a Kronecker product.

    A tensor of more than two dimensions counts as a matrix of its first one by all others. A vector, and a matrix with
    a side beyond `max_side`, has a diagonal metric instead.

    Attributes:
      refresh_steps: between two decompositions; at least 1. The first so many steps each have one.
      max_side:      the largest side that a factor is kept for.
    """

    refresh_steps: int = 1
    max_side: int = DEFAULT_SIDE

    def __post_init__(self) -> None:
        Moments.__post_init__(self)
        _check_refresh(self.refresh_steps)
        if not 1 <= self.max_side <= MAX_SIDE:
            raise refuse("metric.max_side", f"got {self.max_side!r}, wanted 1 to {MAX_SIDE}")


Metric = Euclidean | Diagonal | Full | Kronecker
Block = tuple[int, int] | None  # the (m, n) that a span of elements is seen as; None is diagonal


def _check_refresh(steps: int) -> None:
    if not 1 <= steps < 2**31:
        raise refuse("metric.refresh_steps", f"got {steps!r}, wanted 1 or more")


def blocks_of(metric: Metric, shapes: Sequence[tuple[int, ...]]) -> tuple[Block, ...]:
    """How a full or Kronecker metric sees a session's tensors that are not empty; () for the others.

    Raises:
      InvalidHyperparameter: a full metric of a side that nobody could decompose.
    """
    sizes = [math.prod(shape) for shape in shapes if math.prod(shape)]
    if isinstance(metric, Full):
        sides = sizes if metric.by_tensor else [sum(sizes)]
        if max(sides, default=0) > MAX_SIDE:
            raise refuse(
                "metric.kind",
                f"got FULL for {max(sides)} parameters at once, wanted at most {MAX_SIDE}; "
                "choose scope TENSOR, KRONECKER or DIAGONAL",
            )
        return tuple((side, 1) for side in sides if side)
    if isinstance(metric, Kronecker):
        return tuple(_block(shape, metric.max_side) for shape in shapes if math.prod(shape))
    return ()


def _block(shape: tuple[int, ...], max_side: int) -> Block:
    if len(shape) < 2:
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows, columns) if max(rows, columns) <= max_side else None


class InverseMetric(Protocol):
    """G of a run of rows."""

    def times(self, rows: Tensor) -> Tensor:
        """G applied to (R, E) rows, as new rows."""


@dataclass(frozen=True, slots=True)
class DiagonalInverse:
    """G of a diagonal metric; `scale` (R, E) is the metric itself."""

    scale: Tensor

    def times(self, rows: Tensor) -> Tensor:
        return rows / self.scale


def update_moments_(
    second_moment: Tensor, first_moment: Tensor | None, gradient: Tensor, *, decay: Tensor, gain: Tensor
) -> None:
    r"""Averages the gradient into the moments of a diagonal metric.

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
