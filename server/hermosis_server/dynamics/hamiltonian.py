r"""The Hamiltonian of a session: which optimizer it is, in physical settings.

.. math::
    H = \frac{\beta}{k}\,\kappa(s, \beta) + \frac{\beta c^2}{k}\Bigl(L + \frac{\lambda_2}{2}|w|^2\Bigr)
        + \frac{\lambda_0}{2}|w|^2 + E(U, \beta)

`Hamiltonian` is what a user states; what a step needs of it is in family.py.

Source: docs/theory.md, sections 1, 6, 8 and 11.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hermosis_server.dynamics.checks import number, refuse
from hermosis_server.dynamics.family import Coefficients, Family, Scheme
from hermosis_server.dynamics.kinetic import (
    Classical,
    KineticEnergy,
    NormKind,
    NormScope,
    Quartic,
    Relativistic,
    Truncated,
    VelocityRegularised,
    kind_of,
)
from hermosis_server.dynamics.metric import (
    POWER_UNIT,
    Diagonal,
    Euclidean,
    Full,
    Kronecker,
    Metric,
    MetricPlace,
    Moments,
    blocks_of,
)
from hermosis_server.dynamics.thermal import (
    LOG_BETA_LIMIT,
    Constant,
    Exponential,
    Force,
    ForceMode,
    Linear,
    Polynomial,
    Power,
    ThermalProfile,
    table_of,
)
from hermosis_server.errors import InvalidHyperparameter

Shapes = Sequence[tuple[int, ...]]


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
class Hamiltonian:
    """A session's dynamics and the scheme that integrates it; the defaults are plain EMA momentum.

    Attributes:
      learning_rate:    η = τ/h; positive.
      step_duration:    τ; positive. Only γτ and η are seen by the parameters.
      information_unit: k; positive. Scales energies; seen by the parameters only through bare decay and feedback.
      initial_beta:     β at the start; positive. Seen by the parameters only through bare decay, a limit that cools,
                        and profiles that are not exponential.
      thermal:          the profile of β.
      kinetic:          how momentum moves the parameters.
      norm_scope:       over what its norm is taken.
      norm_kind:        which norm that is.
      metric:           the geometry of parameter space.
      force:            how strongly a gradient kicks.
      weight_decay:     none unless stated.
      normalise:        drifts with (ζ/A) X, the thermal average of the gradients (Adam's bias correction).
      lookahead:        drifts with the momentum one kick ahead (torch's nesterov flag); symplectic Euler only.
      first_kick:       weight of the very first gradient, or None for the same as every other. torch's dampening
                        leaves its first gradient undamped.
      integrator:       the scheme.
      kept_drift:       α in [0, 1], how much of its first half drift the conformal scheme keeps.

    Raises:
      InvalidHyperparameter: a setting is out of range or contradicts another; `field` names it.
    """

    learning_rate: float
    step_duration: float = 1.0
    information_unit: float = 1.0
    initial_beta: float = 1.0
    thermal: ThermalProfile = field(default_factory=Exponential)
    kinetic: KineticEnergy = field(default_factory=Classical)
    norm_scope: NormScope = NormScope.SESSION
    norm_kind: NormKind = NormKind.METRIC
    metric: Metric = field(default_factory=Euclidean)
    force: Force = field(default_factory=Force)
    weight_decay: WeightDecay = field(default_factory=WeightDecay)
    normalise: bool = False
    lookahead: bool = False
    first_kick: float | None = None
    integrator: Scheme = Scheme.SYMPLECTIC_EULER
    kept_drift: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "step_duration", "information_unit", "initial_beta"):
            number(name, getattr(self, name), above=0)
        if not 0 < self.action_unit < math.inf:
            raise refuse(
                "learning_rate", f"got {self.learning_rate!r}, too small: step_duration/learning_rate overflows"
            )
        self._check_force()
        self._check_scheme()
        self._check_norm()
        self._check_momentum_zero()
        if self.first_kick is not None:
            number("first_kick", self.first_kick, above=0)
        for name, limit in (("relativistic.limit", self._speed_limit), ("truncated.speed_limit", self._speed_limit)):
            if self.kinetic.kind in name and not (0 < limit < math.inf and 0 < limit * limit < math.inf):
                raise refuse(f"kinetic_energy.{name}", f"got a speed limit of {limit!r}, out of float range")
        if self.learning_rate * self.weight_decay.decoupled >= 1:
            raise refuse(
                "weight_decay.decoupled",
                f"got {self.weight_decay.decoupled!r}, which at learning_rate {self.learning_rate!r} removes the "
                "parameters in one step; wanted learning_rate * decoupled below 1",
            )

    def check_bath(self, log_beta: float) -> None:
        """Refuses a profile that cannot go on from here; a session's birth and an edit of its profile ask.

        Raises:
          InvalidHyperparameter: naming the profile.
        """
        thermal = self.thermal
        if math.isinf(log_beta) and not isinstance(thermal, Constant | Exponential):
            raise refuse(
                f"thermal_profile.{thermal.kind}",
                "got it where momentum_retention 0 has made beta infinite; wanted exponential or constant",
            )
        thinned = math.exp(min(-log_beta, LOG_BETA_LIMIT))  # 1/β
        if isinstance(thermal, Linear) and thermal.growth * self.step_duration * thinned <= -1:
            raise refuse(
                "thermal_profile.linear.rate",
                f"got {thermal.growth!r}, which takes beta from exp({log_beta:g}) to zero within one step; "
                "wanted more than -beta/step_duration",
            )

    def _check_force(self) -> None:
        mode = self.force.mode
        if isinstance(self.thermal, Polynomial) and mode is not ForceMode.PHYSICAL:
            raise refuse("force.mode", f"got {mode} with a polynomial profile, wanted physical")
        if mode is ForceMode.EMA and not self.thermal.cools:
            raise refuse(
                "force.mode",
                "got ema under a profile that does not cool at every step, where gradients weigh nothing or less; "
                "say physical or unit",
            )
        if self._forgets_all and mode is ForceMode.PHYSICAL:
            raise refuse("force.mode", "got physical at momentum_retention 0, where it weighs nothing; say ema or unit")
        if self._forgets_all and mode is ForceMode.EMA and self.integrator is Scheme.CONFORMAL:
            raise refuse(
                "force.mode", "got ema at momentum_retention 0 with conformal, where it has no limit; say unit"
            )
        if isinstance(self.thermal, Exponential):
            stretch = self.thermal.rate(self.step_duration) * self._cooling_duration
            if mode is ForceMode.EMA and not self.force.gradient_gain * min(stretch, 1) >= 2.0**-1022:
                raise refuse(
                    "force.gradient_gain", f"got {self.force.gradient_gain!r}: gradients would weigh 0 under ema"
                )

    def _check_scheme(self) -> None:
        number("integrator.alpha", self.kept_drift, least=0, most=1)
        if self.kept_drift != 1 and self.integrator is not Scheme.CONFORMAL:
            raise refuse("integrator.alpha", f"got {self.kept_drift!r} with {self.integrator}, which keeps all; say 1")
        if self.lookahead and self.integrator is not Scheme.SYMPLECTIC_EULER:
            raise refuse(
                "lookahead", f"got it with {self.integrator}, wanted symplectic_euler, or conformal at alpha 0"
            )

    def _check_norm(self) -> None:
        scope, path = self.norm_scope, "kinetic_energy.norm_scope"
        if scope is NormScope.COORDINATE and isinstance(self.metric, Full | Kronecker):
            raise refuse(path, "got COORDINATE with a metric that mixes coordinates, wanted SESSION or TENSOR")
        if scope is NormScope.TENSOR and isinstance(self.metric, Full) and not self.metric.by_tensor:
            raise refuse(
                path, "got TENSOR with a full metric that mixes tensors; wanted SESSION, or metric.scope TENSOR"
            )

    def _check_momentum_zero(self) -> None:
        """At momentum 0 β is infinite after one step: whatever sees β itself would be switched off in silence."""
        if not self._forgets_all:
            return
        for name, wanted, used in (
            ("kinetic_energy.relativistic.rest_cooling", "0", self._rest_cooling > 0),
            ("weight_decay.bare", "0", self.weight_decay.bare > 0),
            ("first_kick", "none", self.first_kick is not None),
        ):
            if used:
                raise refuse(name, f"got it at momentum_retention 0, where it has no meaning; wanted {wanted}")

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is allowed, but probably not meant."""
        if self.thermal.heats:
            return ("the thermal profile heats the session: momentum grows by itself",)
        return ()

    @property
    def action_unit(self) -> float:
        """h = τ/η."""
        return self.step_duration / self.learning_rate

    @property
    def initial_log_beta(self) -> float:
        """ln β at the start."""
        return math.log(self.initial_beta)

    @property
    def _forgets_all(self) -> bool:
        return isinstance(self.thermal, Exponential) and math.isinf(self.thermal.rate(self.step_duration))

    @property
    def _cooling_duration(self) -> float:
        return self.step_duration / 2 if self.integrator is Scheme.CONFORMAL else self.step_duration

    @property
    def _rest_cooling(self) -> float:
        return self.kinetic.rest_cooling if isinstance(self.kinetic, Relativistic) else 0.0

    @property
    def _speed_limit(self) -> float:
        if isinstance(self.kinetic, Relativistic):
            return self.kinetic.limit(self.learning_rate)
        return self.kinetic.speed_limit if isinstance(self.kinetic, Truncated) else math.inf

    def family(self, shapes: Shapes) -> Family:
        """The code path for tensors of these shapes; two Hamiltonians of equal family differ in coefficients only.

        Raises:
          InvalidHyperparameter: the metric cannot be had for tensors of this size.
        """
        metric, thermal, decay = self.metric, self.thermal, self.weight_decay
        learned = metric if isinstance(metric, Moments) else None
        matrix = metric if isinstance(metric, Full | Kronecker) else None
        blocks = blocks_of(metric, shapes)
        by_tensor = isinstance(metric, Kronecker) or (isinstance(metric, Full) and metric.by_tensor)
        decoupled = decay.decoupled > 0
        kinetic = kind_of(self.kinetic)
        return Family(
            scheme=self.integrator,
            keeps_lead=self.integrator is Scheme.CONFORMAL and self.kept_drift < 1,
            profile=thermal.kind,
            table_size=len(table_of(thermal)),
            terms=tuple((term.internal_energy_power, term.beta_power) for term in thermal.terms)
            if isinstance(thermal, Polynomial)
            else (),
            force=self.force.mode,
            kinetic=kinetic,
            rest_cooling=self._rest_cooling > 0,
            norm_scope=self.norm_scope,
            euclidean_norm=self.norm_kind is NormKind.EUCLIDEAN,
            diagonal=isinstance(metric, Diagonal) or None in blocks,
            matrix=any(blocks),
            blocks=blocks,
            by_tensor=by_tensor or self.norm_scope is NormScope.TENSOR,
            refresh_steps=matrix.refresh_steps if matrix else 1,
            power_units=round(learned.power * POWER_UNIT) if learned else 0,
            epsilon_inside=learned is not None and learned.epsilon_inside,
            centered=isinstance(metric, Diagonal) and metric.centered,
            normalise_metric=learned is not None and learned.normalise,
            metric_on_kick=learned is not None and learned.place is MetricPlace.KICK,
            normalise=self.normalise,
            lookahead=self.lookahead,
            first_kick=self.first_kick is not None,
            bare_decay=decay.bare > 0,
            thermal_decay=decay.thermal > 0,
            decoupled_decay=decoupled,
            decay_follows_speed=decoupled and decay.follows_speed,
        )

    def coefficients(self) -> Coefficients[float]:
        """The numbers of `COEFFICIENTS`, in that order."""
        thermal, stretch = self.thermal, self._cooling_duration
        metric = self.metric if isinstance(self.metric, Moments) else Diagonal()
        kinetic = self.kinetic
        rate, retention = 0.0, 1.0
        if isinstance(thermal, Constant | Exponential):
            rate = thermal.rate(self.step_duration)
            retention = thermal.retention(stretch, self.step_duration)
        friction = -math.expm1(-rate * stretch)
        return Coefficients(
            step_duration=self.step_duration,
            learning_rate=self.learning_rate,
            action_unit=self.action_unit,
            information_unit=self.information_unit,
            initial_log_beta=self.initial_log_beta,
            cooling_duration=stretch,
            retention=retention,
            friction=friction,
            cooling_rate=rate,
            kernel=friction / rate if rate > 0 else stretch,
            log_beta_gain=rate * stretch,
            profile_growth=thermal.growth if isinstance(thermal, Linear) else 0.0,
            profile_exponent=thermal.exponent if isinstance(thermal, Power) else 1.0,
            profile_age=thermal.age if isinstance(thermal, Power) else 1.0,
            profile_log_beta=thermal.reference_log_beta
            if isinstance(thermal, Power) and thermal.reference_log_beta is not None
            else self.initial_log_beta,
            gradient_gain=self.force.gradient_gain,
            first_kick=0.0 if self.first_kick is None else self.first_kick,
            speed_limit=self._speed_limit,
            rest_cooling=self._rest_cooling,
            rest_energy=kinetic.rest_energy if isinstance(kinetic, Relativistic) else 0.0,
            stiffness=kinetic.stiffness if isinstance(kinetic, Quartic | VelocityRegularised) else 0.0,
            braking_cap=kinetic.cap if isinstance(kinetic, VelocityRegularised) else 0.0,
            second_moment_decay=metric.second_moment_decay,
            second_moment_gain=metric.gain,
            epsilon=metric.epsilon,
            bare_decay=self.weight_decay.bare,
            thermal_decay=self.weight_decay.thermal,
            decoupled_decay=self.weight_decay.decoupled,
            kept_drift=self.kept_drift,
        )

    def numbers(self) -> tuple[float, ...]:
        """A session's row of the table that `advance_` takes: the coefficients, then those of its profile."""
        return (*self.coefficients(), *table_of(self.thermal))


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
