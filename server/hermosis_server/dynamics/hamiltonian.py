r"""The Hamiltonian of a session: which optimizer it is, in physical settings.

.. math::
    H = \frac{\beta}{k}\,\kappa(s, \beta) + \frac{\beta c^2}{k}\Bigl(L + \frac{\lambda_2}{2}|w|^2\Bigr)
        + \frac{\lambda_0}{2}|w|^2 + \frac{h}{k}\gamma\,\beta U

`Hamiltonian` is what a user states, `Family` the code path it takes, `Coefficients` the numbers that path needs.

Source: docs/theory.md, sections 1, 6 and 8.
"""

import enum
import math
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from hermosis_server.dynamics.checks import number, refuse
from hermosis_server.dynamics.kinetic import Classical, KineticEnergy, Relativistic
from hermosis_server.dynamics.metric import POWER_UNIT, Diagonal, Euclidean, Metric, MetricPlace
from hermosis_server.dynamics.thermal import Exponential, Force, ForceMode, ThermalProfile, ThermalStep
from hermosis_server.errors import InvalidHyperparameter, Unsupported
from hermosis_server.records import StateBuffer

T = TypeVar("T")


class Scheme(enum.StrEnum):
    """The order in which the exact flows are composed."""

    SYMPLECTIC_EULER = "symplectic_euler"
    LEAPFROG = "leapfrog"
    CONFORMAL = "conformal"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDecay:
    """Weight decay in its three places; zero means none.

    Attributes:
      bare:          λ₀, the literal harmonic term of H; fades as 1/β.
      thermal:       λ₂, the L2 penalty inside the loss (weight_decay of torch's SGD and Adam).
      decoupled:     λ_d, a dilation of the parameters outside H (AdamW).
      follows_speed: multiplies the decoupled decay by the braking factor.
    """

    bare: float = 0.0
    thermal: float = 0.0
    decoupled: float = 0.0
    follows_speed: bool = False

    def __post_init__(self) -> None:
        number("weight_decay.bare", self.bare, least=0)
        number("weight_decay.thermal", self.thermal, least=0)
        number("weight_decay.decoupled", self.decoupled, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Everything structural about a Hamiltonian. Sessions of equal family and dtype step in one launch."""

    relativistic: bool
    rest_cooling: bool
    diagonal: bool
    power_units: int  # the metric's power in eighths
    epsilon_inside: bool
    centered: bool
    normalise_metric: bool
    metric_on_kick: bool
    normalise: bool
    lookahead: bool
    first_kick: bool
    bare_decay: bool
    thermal_decay: bool
    decoupled_decay: bool
    decay_follows_speed: bool

    @property
    def buffers(self) -> tuple[StateBuffer, ...]:
        """The (R, E) buffers a session of this family needs, apart from its parameters."""
        return (
            StateBuffer.MOMENTUM,
            *((StateBuffer.SECOND_MOMENT,) if self.diagonal else ()),
            *((StateBuffer.FIRST_MOMENT,) if self.centered else ()),
        )

    @property
    def drifts_along_momentum(self) -> bool:
        """Whether velocity and momentum are parallel: no metric and no look ahead between them."""
        return not self.lookahead and (self.metric_on_kick or not self.diagonal)

    @property
    def needs_parameters(self) -> bool:
        """Whether a step reads the parameters, so that workers cannot hold them."""
        return self.bare_decay or self.thermal_decay or self.decoupled_decay


class Coefficients(NamedTuple, Generic[T]):
    """The numbers of one session that its steps use; float64.

    Where a limit does not exist the number is NaN, and so is every energy made of it.
    """

    step_duration: T  # τ
    learning_rate: T  # η = τ/h
    action_unit: T  # h
    information_unit: T  # k
    initial_log_beta: T
    retention: T  # r
    cooling_rate: T  # γ; infinite at momentum 0
    log_beta_step: T  # γτ
    impulse_gain: T  # z
    energy_unit: T  # c² = z h/kern; NaN at momentum 0
    thermal_unit: T  # hγ; NaN at momentum 0
    loss_anchor: T  # z/(1-r) = c²/(hγ), which is ζ for an EMA force; 0 under a constant profile
    energy_anchor: T  # 1/(hγ); 0 at momentum 0 and under a constant profile
    gradient_gain: T  # ζ
    initial_unit_momentum: T  # A before the first kick, such that it weighs first_kick after it
    speed_limit: T  # χ at the initial β
    rest_cooling: T  # ν
    rest_energy: T  # ρ
    second_moment_decay: T  # ρ₂
    second_moment_gain: T  # q₂
    epsilon: T
    bare_decay: T  # λ₀
    thermal_decay: T  # λ₂
    decoupled_decay: T  # λ_d


COEFFICIENTS: tuple[str, ...] = Coefficients._fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Hamiltonian:
    """A session's dynamics and the scheme that integrates it; the defaults are plain EMA momentum.

    Attributes:
      learning_rate:    η = τ/h; positive.
      step_duration:    τ; positive. Only γτ and η are seen by the parameters.
      information_unit: k; positive. Scales energies; seen by the parameters only through bare decay.
      initial_beta:     β at the start; positive. Seen by the parameters only through bare decay.
      thermal:          the profile of β.
      kinetic:          how momentum moves the parameters.
      metric:           the geometry of parameter space.
      force:            how strongly a gradient kicks.
      weight_decay:     none unless stated.
      normalise:        drifts with (ζ/A) X, the thermal average of the gradients (Adam's bias correction).
      lookahead:        drifts with the momentum one kick ahead (torch's nesterov flag).
      first_kick:       weight of the very first gradient, or None for the same as every other. torch's dampening
                        leaves its first gradient undamped.
      integrator:       symplectic_euler is the one carried out so far.

    Raises:
      InvalidHyperparameter: a setting is out of range or contradicts another; `field` names it.
      Unsupported:           a scheme that is not carried out yet.
    """

    learning_rate: float
    step_duration: float = 1.0
    information_unit: float = 1.0
    initial_beta: float = 1.0
    thermal: ThermalProfile = field(default_factory=Exponential)
    kinetic: KineticEnergy = field(default_factory=Classical)
    metric: Metric = field(default_factory=Euclidean)
    force: Force = field(default_factory=Force)
    weight_decay: WeightDecay = field(default_factory=WeightDecay)
    normalise: bool = False
    lookahead: bool = False
    first_kick: float | None = None
    integrator: Scheme = Scheme.SYMPLECTIC_EULER

    def __post_init__(self) -> None:
        for name in ("learning_rate", "step_duration", "information_unit", "initial_beta"):
            number(name, getattr(self, name), above=0)
        if not 0 < self.action_unit < math.inf:
            raise refuse(
                "learning_rate", f"got {self.learning_rate!r}, too small: step_duration/learning_rate overflows"
            )
        if self.integrator is not Scheme.SYMPLECTIC_EULER:
            raise Unsupported(
                f"integrator {self.integrator} is not carried out by this server yet; use symplectic_euler",
                field="optimizer.hamiltonian.integrator.scheme",
            )
        self._check_force()
        self._check_momentum_zero()
        if self.first_kick is not None:
            number("first_kick", self.first_kick, above=0)
        if isinstance(self.kinetic, Relativistic):
            limit = self.kinetic.limit(self.learning_rate)
            if not (0 < limit < math.inf and limit * limit < math.inf):
                raise refuse("kinetic_energy.relativistic.limit", f"got a speed limit of {limit!r}, out of float range")
        if self.learning_rate * self.weight_decay.decoupled >= 1:
            raise refuse(
                "weight_decay.decoupled",
                f"got {self.weight_decay.decoupled!r}, which at learning_rate {self.learning_rate!r} removes the "
                "parameters in one step; wanted learning_rate * decoupled below 1",
            )

    def _check_force(self) -> None:
        thermal, mode = self.thermal_step, self.force.mode
        if mode is ForceMode.EMA and thermal.friction == 0:
            raise refuse("force.mode", "got ema under a profile without friction, where it weighs nothing; say unit")
        if mode is ForceMode.PHYSICAL and thermal.kernel == 0:
            raise refuse("force.mode", "got physical at momentum_retention 0, where it weighs nothing; say ema or unit")
        if not 0 < self.impulse_gain < math.inf:
            raise refuse(
                "force.gradient_gain", f"got {self.force.gradient_gain!r}: gradients would weigh 0 or infinity"
            )

    def _check_momentum_zero(self) -> None:
        """At momentum 0 β is infinite after one step: whatever sees β itself would be switched off in silence."""
        if self.thermal_step.retention > 0:
            return
        for name, wanted, used in (
            ("kinetic_energy.relativistic.rest_cooling", "0", self._rest_cooling > 0),
            ("weight_decay.bare", "0", self.weight_decay.bare > 0),
            ("first_kick", "none", self.first_kick is not None),
        ):
            if used:
                raise refuse(name, f"got it at momentum_retention 0, where it has no meaning; wanted {wanted}")

    @property
    def action_unit(self) -> float:
        """h = τ/η."""
        return self.step_duration / self.learning_rate

    @property
    def thermal_step(self) -> ThermalStep:
        """The profile over one step."""
        return self.thermal.over(self.step_duration)

    @property
    def impulse_gain(self) -> float:
        """z, the weight of a gradient in the momentum."""
        return self.force.impulse_gain(self.thermal_step, self.step_duration)

    @property
    def _rest_cooling(self) -> float:
        return self.kinetic.rest_cooling if isinstance(self.kinetic, Relativistic) else 0.0

    @property
    def family(self) -> Family:
        """The code path; two Hamiltonians of equal family differ in coefficients only."""
        metric = self.metric if isinstance(self.metric, Diagonal) else None
        decoupled = self.weight_decay.decoupled > 0
        return Family(
            relativistic=isinstance(self.kinetic, Relativistic),
            rest_cooling=self._rest_cooling > 0,
            diagonal=metric is not None,
            power_units=round(metric.power * POWER_UNIT) if metric else 0,
            epsilon_inside=metric is not None and metric.epsilon_inside,
            centered=metric is not None and metric.centered,
            normalise_metric=metric is not None and metric.normalise,
            metric_on_kick=metric is not None and metric.place is MetricPlace.KICK,
            normalise=self.normalise,
            lookahead=self.lookahead,
            first_kick=self.first_kick is not None,
            bare_decay=self.weight_decay.bare > 0,
            thermal_decay=self.weight_decay.thermal > 0,
            decoupled_decay=decoupled,
            decay_follows_speed=decoupled and self.weight_decay.follows_speed,
        )

    def coefficients(self) -> Coefficients[float]:
        """The numbers of `COEFFICIENTS`, in that order."""
        thermal, gain, h = self.thermal_step, self.impulse_gain, self.action_unit
        metric = self.metric if isinstance(self.metric, Diagonal) else Diagonal()
        kinetic = self.kinetic if isinstance(self.kinetic, Relativistic) else None
        forgets_all = math.isinf(thermal.cooling_rate)
        thermal_unit = math.nan if forgets_all else h * thermal.cooling_rate
        return Coefficients(
            step_duration=self.step_duration,
            learning_rate=self.learning_rate,
            action_unit=h,
            information_unit=self.information_unit,
            initial_log_beta=math.log(self.initial_beta),
            retention=thermal.retention,
            cooling_rate=thermal.cooling_rate,
            log_beta_step=thermal.cooling_rate * self.step_duration,
            impulse_gain=gain,
            energy_unit=math.nan if forgets_all else gain * h / thermal.kernel,
            thermal_unit=thermal_unit,
            loss_anchor=gain / thermal.friction if thermal.friction > 0 else 0.0,
            energy_anchor=1 / thermal_unit if thermal_unit > 0 else 0.0,
            gradient_gain=self.force.gradient_gain,
            initial_unit_momentum=0.0 if self.first_kick is None else (self.first_kick - gain) / thermal.retention,
            speed_limit=kinetic.limit(self.learning_rate) if kinetic else math.inf,
            rest_cooling=self._rest_cooling,
            rest_energy=kinetic.rest_energy if kinetic else 0.0,
            second_moment_decay=metric.second_moment_decay,
            second_moment_gain=metric.gain,
            epsilon=metric.epsilon,
            bare_decay=self.weight_decay.bare,
            thermal_decay=self.weight_decay.thermal,
            decoupled_decay=self.weight_decay.decoupled,
        )


def check_parameters_on_worker(hamiltonian: Hamiltonian) -> None:
    """Refuses a Hamiltonian whose steps read the parameters, where the workers hold them.

    Raises:
      InvalidHyperparameter: naming the weight decay that reads them.
    """
    decay = hamiltonian.weight_decay
    for name, value in (("bare", decay.bare), ("thermal", decay.thermal), ("decoupled", decay.decoupled)):
        if value > 0:
            raise InvalidHyperparameter(
                f"weight_decay.{name} is {value!r} with parameters_on WORKER, but the server then has no parameters to "
                "decay; wanted 0, or parameters_on SERVER",
                field=f"optimizer.hamiltonian.weight_decay.{name}",
            )
