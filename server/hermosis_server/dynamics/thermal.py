r"""Thermal profiles: how the thermal mass :math:`\beta` grows, and how strongly a gradient kicks.

What a profile does over one step is computed for a whole batch in cooling.py; here is what a user states.

Source: Learning Dynamics v0.1.0, "Thermal energy" and "Integration"; docs/theory.md, sections 3 and 6.
"""

import enum
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hermosis_server.dynamics.checks import number, refuse

# Beyond this ln β, β or its inverse leaves float64: what is in units of β is given up there, such as the entropy.
LOG_BETA_LIMIT = 700.0
MAX_KNOTS = 1024
MAX_TERMS = 64
MAX_POWER = 16


class ProfileKind(enum.StrEnum):
    """The code path of a profile."""

    STEADY = "steady"  # constant and exponential: the same numbers every step
    LINEAR = "linear"
    POWER = "power"
    TABULATED = "tabulated"
    POLYNOMIAL = "polynomial"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """β stays: no friction, and momentum is never forgotten."""

    kind = ProfileKind.STEADY
    cools = False
    heats = False

    def rate(self, step_duration: float) -> float:
        return 0.0

    def retention(self, duration: float, step_duration: float) -> float:
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """β grows as exp(γ t), in one of two spellings; neither means a momentum_retention of 0.9.

    Attributes:
      momentum_retention: μ = exp(-γ τ), in [0, 1). Zero is the limit γ → ∞: each step forgets all before it.
      cooling_rate:       γ, per unit of time; positive.
    """

    momentum_retention: float | None = None
    cooling_rate: float | None = None

    kind = ProfileKind.STEADY
    cools = True
    heats = False

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

    @property
    def _mu(self) -> float:
        return 0.9 if self.momentum_retention is None else self.momentum_retention

    def rate(self, step_duration: float) -> float:
        """γ; infinite where each step forgets all before it."""
        if self.cooling_rate is not None:
            return self.cooling_rate
        return -math.log(self._mu) / step_duration if self._mu > 0 else math.inf

    def retention(self, duration: float, step_duration: float) -> float:
        """r over a duration; μ itself over a whole step, without the detour through its logarithm."""
        if self.cooling_rate is not None:
            return math.exp(-self.cooling_rate * duration)
        if duration == step_duration:
            return self._mu
        return math.pow(self._mu, duration / step_duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """β grows as β₀ + α t.

    Attributes:
      growth: α, thermal mass per unit of time. Negative heats the session until β would reach zero, where its steps are
              refused; zero is constant.
    """

    growth: float

    kind = ProfileKind.LINEAR

    def __post_init__(self) -> None:
        number("thermal_profile.linear.rate", self.growth)

    @property
    def cools(self) -> bool:
        return self.growth > 0

    @property
    def heats(self) -> bool:
        return self.growth < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """β grows as β₀ (1 + t/t₀)^p, so the friction p/(t + t₀) fades. p = 3 is the ODE of Su, Boyd and Candès.

    Attributes:
      exponent: p; not zero. Negative heats the session.
      age:      t₀, the time that has passed before the first step; positive.
      reference_log_beta: ln β at that age; None means that of the start. A profile that is set while a session runs has
                that of its moment.
    """

    exponent: float
    age: float
    reference_log_beta: float | None = None

    kind = ProfileKind.POWER

    def __post_init__(self) -> None:
        number("thermal_profile.power.exponent", self.exponent)
        if self.exponent == 0:
            raise refuse("thermal_profile.power.exponent", "got 0, wanted another number; for no friction say constant")
        number("thermal_profile.power.age", self.age, above=0)
        if self.reference_log_beta is not None:
            number("thermal_profile.power.reference_log_beta", self.reference_log_beta)

    @property
    def cools(self) -> bool:
        return self.exponent > 0

    @property
    def heats(self) -> bool:
        return self.exponent < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tabulated:
    """ln β linear in time between knots, constant outside them. Only ratios of β count: it starts where it is.

    Attributes:
      knots: (time, β) pairs, at least two, in increasing time on the session's clock; β positive.
    """

    knots: tuple[tuple[float, float], ...]

    kind = ProfileKind.TABULATED
    cools = False  # not everywhere: β is constant outside the knots

    def __post_init__(self) -> None:
        path = "thermal_profile.tabulated.knots"
        if not 2 <= len(self.knots) <= MAX_KNOTS:
            raise refuse(path, f"got {len(self.knots)} knots, wanted 2 to {MAX_KNOTS}")
        for time, beta in self.knots:
            number(path, time)
            number(path, beta, above=0)
        for (earlier, _), (later, _) in itertools.pairwise(self.knots):
            if not later > earlier:
                raise refuse(path, f"got time {later!r} after {earlier!r}, wanted increasing times")
        if not all(math.isfinite(slope) for slope in self.slopes):
            raise refuse(path, "got knots so close that d ln(β)/dt overflows, wanted them further apart")

    @property
    def heats(self) -> bool:
        return any(slope < 0 for slope in self.slopes)

    @property
    def slopes(self) -> tuple[float, ...]:
        """d ln β/dt before the first knot, between each pair, and after the last."""
        inner = [
            (math.log(right[1]) - math.log(left[1])) / (right[0] - left[0])
            for left, right in itertools.pairwise(self.knots)
        ]
        return (0.0, *inner, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """coefficient · U^internal_energy_power · β^beta_power."""

    coefficient: float
    internal_energy_power: int = 0
    beta_power: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Polynomial:
    """Feedback: a thermal energy E(U, β) that is a polynomial, so that β answers to the loss. U starts at zero.

    Attributes:
      terms: of the sum.
    """

    terms: tuple[Term, ...]

    kind = ProfileKind.POLYNOMIAL
    cools = False  # whether it does depends on the losses
    heats = False

    def __post_init__(self) -> None:
        path = "thermal_profile.polynomial.terms"
        if not 1 <= len(self.terms) <= MAX_TERMS:
            raise refuse(path, f"got {len(self.terms)} terms, wanted 1 to {MAX_TERMS}")
        for term in self.terms:
            number(path + ".coefficient", term.coefficient)
            for name in ("internal_energy_power", "beta_power"):
                if not 0 <= getattr(term, name) <= MAX_POWER:
                    raise refuse(f"{path}.{name}", f"got {getattr(term, name)!r}, wanted 0 to {MAX_POWER}")


ThermalProfile = Constant | Exponential | Linear | Power | Tabulated | Polynomial


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


def table_of(profile: ThermalProfile) -> Sequence[float]:
    """The numbers of a profile that has a variable count of them: K knot times, then K + 1 slopes; or coefficients."""
    if isinstance(profile, Tabulated):
        return (*(time for time, _ in profile.knots), *profile.slopes)
    if isinstance(profile, Polynomial):
        return tuple(term.coefficient for term in profile.terms)
    return ()
