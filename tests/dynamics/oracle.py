"""The step of docs/theory.md, section 6, written once more: one session, flat float64 vectors, flow by flow.

It shares no line with the dynamics, and prefers the textbook form of a formula to the fast one.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .oracle_kinetics import Classical, Kinetic, kinetics
from .oracle_metrics import Full, Kronecker, Metric, MetricMemory
from .oracle_profiles import (
    Bath,
    Exponential,
    Feedback,
    Polynomial,
    Profile,
    Span,
    Tabulated,
    cooling_rate,
    exp,
    feedback,
    span,
    span_entropy,
    thermal_energy,
)

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One session's dynamics; h = τ/η. Unless said otherwise: heavy ball with μ = 0.9, ζ = 1."""

    eta: float
    tau: float = 1.0
    k: float = 1.0
    beta0: float = 1.0
    profile: Profile = field(default_factory=lambda: Exponential(-math.log(0.9)))
    force: Literal["ema", "unit", "physical"] = "unit"
    zeta: float = 1.0
    kinetic: Kinetic = field(default_factory=Classical)
    norm_over: Literal["session", "tensor", "coordinate"] = "session"
    norm: Literal["metric", "euclid"] = "metric"
    metric: Metric | None = None
    metric_on: Literal["drift", "kick"] = "drift"
    integrator: Literal["euler", "leapfrog", "conformal"] = "euler"
    alpha: float = 1.0
    lookahead: bool = False
    normalise: bool = False
    x_first: float | None = None
    lam0: float = 0.0
    lam2: float = 0.0
    lam_d: float = 0.0
    follows_speed: bool = False

    def __post_init__(self) -> None:
        """Refuses what has no meaning rather than guess."""
        euler, memoryless = self.integrator == "euler", self.profile == Exponential(math.inf)
        if isinstance(self.profile, Polynomial) and self.force != "physical":
            raise ValueError("feedback needs the physical force: kern is known only after the kick")
        if memoryless and (self.force == "physical" or (self.force == "ema" and self.integrator == "conformal")):
            raise ValueError("at μ = 0 the kernel is empty and the weight of a gradient undefined")
        if self.lookahead and not euler:
            raise ValueError("lookahead belongs to euler")
        if isinstance(self.metric, Full | Kronecker) and self.norm_over == "coordinate":
            raise ValueError("a norm per coordinate needs a diagonal metric")
        if isinstance(self.metric, Full) and self.metric.scope == "session" and self.norm_over == "tensor":
            raise ValueError("a norm per tensor needs a metric of one block per tensor")

    @property
    def h(self) -> float:
        return self.tau / self.eta


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The velocity at a momentum, and the energies of it; κ and ∂κ/∂lnβ are summed over the groups."""

    v: Vector
    s: Vector  # per group
    braking: Vector  # f per group
    braking_of_each: Vector  # f per element
    kappa: float
    slope: float


@dataclass(frozen=True, kw_only=True)
class StepEnergies:
    """Energies of the last step, all as H/β. The kick is B, or V at mid-step for conformal; L̃ is that at q.

    `before` and `after` are 𝓔 around the kick in the metric that has learned this gradient; `kinetic_carried` is κ/k
    before the kick in the metric of the last drift, for whoever prefers it in `mid`.
    """

    c2: float
    retention: float  # of the kick: 1 for conformal
    impulse_gain: float
    loss: float  # L̃
    before: float
    after: float
    mid: float  # H_mid/β₊ = ½ (r·before + after)
    reference: float  # H₀/β₊, H₀ being H just before the first kick; the defect is mid - reference
    drift: float  # mid less that of the first kick, over β₊: of second order whatever the start and the scheme
    kinetic_before: float
    kinetic_carried: float
    kinetic: float  # after the kick, at X itself even under lookahead; so are the next two
    potential: float  # c²L̃/k and the bare term
    thermal: float
    kinetic_end: float = math.nan  # at the end of the step, after the closing half cooling of conformal
    braking: Vector = field(default_factory=lambda: np.empty(0))  # f per group, in the drift after the kick
    smoothed_loss: float = (
        math.nan
    )  # -U/ζ for ema: minus the thermal energy at the end of the step, in units of the loss


class Oracle:
    """Steps one session: w, x (energy momenta), ell (ln β), u, a, t, n and s (entropy since the first kick)."""

    def __init__(self, settings: Settings, shapes: list[tuple[int, ...]], w: Vector) -> None:
        self.settings = settings
        self.sizes = [math.prod(shape) for shape in shapes if math.prod(shape)]  # an empty tensor is no norm group
        if sum(self.sizes) != w.size:
            raise ValueError(f"shapes hold {sum(self.sizes)} elements, w has {w.size}")
        self.w = np.array(w, dtype=np.float64)
        self.x = np.zeros_like(self.w)
        self.bath = Bath(profile=settings.profile, h=settings.h, k=settings.k, beta_ref=settings.beta0)
        table = settings.profile
        self.ell = table.log_beta(0.0) if isinstance(table, Tabulated) else math.log(settings.beta0)
        self.u = 0.0 if isinstance(settings.profile, Polynomial) else math.nan
        self.a = 0.0
        self.t = 0.0
        self.n = 0
        self.s = math.nan if isinstance(settings.profile, Tabulated) else 0.0
        self.metric = MetricMemory(settings.metric, shapes)
        self.energies: StepEnergies | None = None
        self._published: Vector | None = None
        self._half_retention = math.nan  # r of the first half step of conformal
        self._reference: tuple[float, float] | None = None  # H₀/β and ln β at the first kick with a loss
        self._first_mid: tuple[float, float] | None = None  # H_mid/β and ln β there
        self._carried = math.nan

    @property
    def moments(self) -> list[dict[str, Vector]]:
        """Each metric block's averages, by name."""
        return [block.moments for block in self.metric.blocks]

    # --- one step ---

    def publish(self, lr_scale: float = 1.0) -> Vector:
        """The point q at which the gradient is wanted; asking twice moves nothing twice."""
        if self._published is None:
            q = self.w.copy()
            if self.settings.integrator == "conformal":
                self._half_retention = self._cool(self.settings.tau / 2)
            if self.settings.integrator != "euler":
                motion = self.motion(self.x, self.a)
                self._carried = motion.kappa / self.settings.k
                q -= self._drift(motion, self.x, lr_scale * self.settings.tau / 2)
            self._published = q
        return self._published.copy()

    def update(self, g: Vector, loss: float, lr_scale: float = 1.0) -> None:
        """One whole step with gradient and loss at the published point; loss = nan is a missing one."""
        o = self.settings
        q = self.publish(lr_scale)
        g = g + o.lam2 * q
        loss = loss + o.lam2 / 2 * float(q @ q)
        self.metric.learn(g, self.n)
        y = self.metric.apply(g) if o.metric_on == "kick" else g
        r, z = self._kick(q, y, loss)

        x, a = (r * self.x + z * y, r * self.a + z) if o.lookahead else (self.x, self.a)
        motion = self.motion(x, a)
        step = self._drift(motion, x, lr_scale * (o.tau if o.integrator == "euler" else o.tau / 2))
        base = o.alpha * q + (1 - o.alpha) * self.w if o.integrator == "conformal" else q
        speed = motion.braking_of_each if o.follows_speed else 1.0
        self.w = base * (1 - lr_scale * o.eta * o.lam_d * speed) - step
        self._carried = motion.kappa / o.k
        if o.integrator == "conformal":
            self._cool(o.tau / 2)
        self.n += 1
        self._published = None
        self._finish(motion)

    # --- flows ---

    def _drift(self, motion: Motion, x: Vector, duration: float) -> Vector:
        """K: gives d·v and feeds U with what the momenta do along it."""
        o = self.settings
        effort = motion.kappa + motion.slope
        self.u += duration * (float(x @ motion.v) - effort / o.h)
        self._gain_entropy(-duration / o.h * effort * exp(self.ell) if effort else 0.0)
        return duration * motion.v

    def _cool(self, duration: float) -> float:
        """E alone; gives r."""
        if isinstance(self.settings.profile, Polynomial):
            flow = feedback(self.bath, self.ell, self.u, duration, push=0.0)
            r, self.ell, self.u = flow.r, flow.log_beta, flow.u
            self._gain_entropy(flow.entropy)
        else:
            stretch = span(self.bath, self.ell, self.t, duration)
            u = stretch.a * self.u
            self._gain_entropy(self._entropy_of(stretch, duration, u, push=0.0))
            r, self.ell, self.u = stretch.r, stretch.log_beta, u
        self.x = r * self.x
        self.a *= r
        self.t += duration
        return r

    def _kick(self, q: Vector, y: Vector, loss: float) -> tuple[float, float]:
        """V at mid-step for conformal, else B; with the energies around it. Gives r and z of it."""
        o = self.settings
        tau, conformal = o.tau, o.integrator == "conformal"
        flow: Feedback | None = None
        if isinstance(o.profile, Polynomial):
            if not math.isfinite(loss):
                raise ValueError("feedback needs the loss of every step")
            if not conformal:
                flow = feedback(self.bath, self.ell, self.u, tau, push=o.zeta / tau * loss)
        if conformal:
            stretch = Span(log_beta=self.ell, r=1.0, kern=tau, a=1.0)
        elif flow:
            stretch = Span(log_beta=flow.log_beta, r=flow.r, kern=flow.kern, a=math.nan)
        else:
            stretch = span(self.bath, self.ell, self.t, tau)
        r, z = stretch.r, self._gradient_weight(stretch)
        c2 = z * o.h / stretch.kern if stretch.kern else math.inf

        if self.n == 0 and o.x_first is not None and r:
            # As if X and A had been such that this kick leaves x_first·y and x_first behind.
            self.x, self.a = (o.x_first - z) / r * y, (o.x_first - z) / r
        # The fields, A among them, are those of after the gradient on both sides of the kick (decision 0013).
        field = r * self.a + z
        kappa_before = self.motion(self.x, r * field + z if o.lookahead else field).kappa
        if math.isnan(self.u) and math.isfinite(loss):
            self._anchor(q, loss, c2, kappa_before)
        before = self.energy(kappa_before, q, loss, c2, towards=tau)
        if self._reference is None and math.isfinite(before):
            self._reference = (before, self.ell)

        if conformal:
            u, entropy = self.u - z * loss, -z * exp(self.ell) * loss
        elif flow:
            u, entropy = flow.u, flow.entropy
        else:
            u = stretch.a * self.u - stretch.share * z * loss
            entropy = self._entropy_of(stretch, tau, u, push=c2 * loss / o.h)
        self._gain_entropy(entropy)
        self.x, self.a = r * self.x + z * y, r * self.a + z
        if self.n == 0 and o.x_first is not None and not r:
            self.x, self.a = o.x_first * y, o.x_first
        if o.lam0:
            self.x = self.x + o.k * o.lam0 * tau / o.h * exp(-stretch.log_beta) * q
        self.u, self.ell = u, stretch.log_beta
        self.t += 0.0 if conformal else tau

        kappa = self.motion(self.x, self.a).kappa
        towards = tau if conformal else -tau
        after = self.energy(kappa, q, loss, c2, towards=towards)
        mid = (r * before + after) / 2
        if self._first_mid is None and math.isfinite(mid):
            self._first_mid = (mid, self.ell)
        self.energies = StepEnergies(
            c2=c2,
            retention=r,
            impulse_gain=z,
            loss=loss,
            before=before,
            after=after,
            mid=mid,
            reference=self._scaled(self._reference),
            drift=mid - self._scaled(self._first_mid),
            kinetic_before=kappa_before / o.k,
            kinetic_carried=self._carried if self.n else kappa_before / o.k,
            kinetic=kappa / o.k,
            potential=self._potential(q, loss, c2),
            thermal=thermal_energy(self.bath, self.ell, self.t, self.u, towards),
        )
        return r, z

    def _gradient_weight(self, stretch: Span) -> float:
        """z of this kick."""
        o = self.settings
        if o.force == "physical":
            return o.zeta * stretch.kern / o.tau
        if o.force == "unit":
            return o.zeta
        z = -2 * o.zeta * math.log(self._half_retention) if o.integrator == "conformal" else o.zeta * (1 - stretch.r)
        if z == 0.0:
            raise ValueError("the ema force needs a β that changes")
        return z

    def _anchor(self, q: Vector, loss: float, c2: float, kappa: float) -> None:
        """U such that H = 0, where any U can do that; the entropy counts from here."""
        rate = cooling_rate(self.bath, self.ell, self.t, 0.0, self.settings.tau)
        self.u = 0.0
        if rate and math.isfinite(rate):
            self.u = -(kappa + self.settings.k * self._potential(q, loss, c2)) / (self.settings.h * rate)
        self.s = math.nan if isinstance(self.settings.profile, Tabulated) else 0.0
        self._reference = self._first_mid = None

    def _scaled(self, energy: tuple[float, float] | None) -> float:
        """An energy H/β of an earlier β, over the present β."""
        return energy[0] * exp(energy[1] - self.ell) if energy else math.nan

    def _entropy_of(self, stretch: Span, duration: float, u_after: float, push: float) -> float:
        return span_entropy(
            self.bath, stretch, log_beta=self.ell, t=self.t, u=self.u, u_after=u_after, push=push, duration=duration
        )

    def _gain_entropy(self, change: float) -> None:
        if not math.isnan(self.u):
            self.s = self.s + change if self.ell < 700 else math.nan

    def _finish(self, motion: Motion) -> None:
        assert self.energies is not None
        if math.isnan(self.u):
            self.s = math.nan
        end = self.motion(self.x, self.a).kappa / self.settings.k
        if self.settings.profile == Exponential(math.inf):
            smoothed = -self.u / self.energies.impulse_gain
        else:
            thermal = thermal_energy(self.bath, self.ell, self.t, self.u, -self.settings.tau)
            smoothed = -self.settings.k * thermal / self.energies.c2 if thermal else math.nan
        self.energies = replace(self.energies, braking=motion.braking, smoothed_loss=smoothed, kinetic_end=end)

    # --- energies ---

    def motion(self, x: Vector, a: float) -> Motion:
        """v = f G̃x/h at the present β and metric; G̃ = (ζ/a)G when normalised, G = 1 if the metric is on the kick."""
        o = self.settings
        scale = o.zeta / a if o.normalise and a else 1.0
        moved = scale * (x if o.metric_on == "kick" else self.metric.apply(x))
        s = np.maximum(self._per_group(x * (x if o.norm == "euclid" else moved)), 0.0)
        found = kinetics(o.kinetic, s, exp(math.log(o.beta0) - self.ell))
        f = self._per_element(found.braking)
        return Motion(
            v=f * moved / o.h,
            s=s,
            braking=found.braking,
            braking_of_each=f,
            kappa=float(found.kappa.sum()),
            slope=float(found.slope.sum()),
        )

    def energy(self, kappa: float, q: Vector, loss: float, c2: float, *, towards: float) -> float:
        """𝓔 = H/β; undefined at μ = 0. `towards` picks the side of a tabulated profile's knot."""
        if not (math.isfinite(c2) and math.isfinite(self.ell)):
            return math.nan
        thermal = thermal_energy(self.bath, self.ell, self.t, self.u, towards)
        return kappa / self.settings.k + self._potential(q, loss, c2) + thermal

    def _potential(self, q: Vector, loss: float, c2: float) -> float:
        bare = self.settings.lam0 * float(q @ q) / 2 * exp(-self.ell)
        return c2 * loss / self.settings.k + bare

    def _per_group(self, products: Vector) -> Vector:
        match self.settings.norm_over:
            case "session":
                return np.array([products.sum()])
            case "tensor":
                return np.array([part.sum() for part in np.split(products, np.cumsum(self.sizes)[:-1])])
            case "coordinate":
                return products

    def _per_element(self, values: Vector) -> Vector:
        match self.settings.norm_over:
            case "session":
                return np.full(self.w.size, values[0])
            case "tensor":
                return np.repeat(values, self.sizes)
            case "coordinate":
                return values
