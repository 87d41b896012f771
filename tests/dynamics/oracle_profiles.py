"""Thermal profiles of the oracle: how β grows, what a gradient weighs, what becomes of U (docs/theory.md, section 3).

Every formula is the primitive of β itself, not the rearranged form that stays exact at extreme ages.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SUBSTEPS = 8  # of classical RK4 in each thermal flow under feedback: part of the definition


@dataclass(frozen=True)
class Constant:
    """β' = 0."""


@dataclass(frozen=True)
class Exponential:
    """β' = γβ. γ = math.inf is a retention of zero: no memory at all."""

    gamma: float


@dataclass(frozen=True)
class Linear:
    """β' = α."""

    alpha: float


@dataclass(frozen=True)
class Power:
    """β = β_ref (1 + t/t0)^p."""

    p: float
    t0: float


@dataclass(frozen=True)
class Tabulated:
    """ln β is linear between the knots (t, β) and constant outside them."""

    knots: tuple[tuple[float, float], ...]

    def log_beta(self, t: float) -> float:
        return float(np.interp(t, [knot[0] for knot in self.knots], [math.log(knot[1]) for knot in self.knots]))

    def slope(self, t: float, towards: float) -> float:
        """dℓ/dt at t; on a knot, that of the piece on the side of `towards`."""
        for (t0, beta0), (t1, beta1) in itertools.pairwise(self.knots):
            if t0 < t < t1 or (t == t0 and towards > 0) or (t == t1 and towards < 0):
                return math.log(beta1 / beta0) / (t1 - t0)
        return 0.0


@dataclass(frozen=True)
class Polynomial:
    """E(U, β) = Σ c U^i β^j over the terms (c, i, j), to the letter: a factor h/k belongs into c."""

    terms: tuple[tuple[float, int, int], ...]

    def energy(self, u: float, beta: float) -> float:
        return sum(c * u**i * beta**j for c, i, j in self.terms)

    def by_u(self, u: float, beta: float) -> float:
        return sum(c * i * u ** (i - 1) * beta**j for c, i, j in self.terms if i)

    def by_beta(self, u: float, beta: float) -> float:
        return sum(c * u**i * j * beta ** (j - 1) for c, i, j in self.terms if j)


Profile = Constant | Exponential | Linear | Power | Tabulated | Polynomial


@dataclass(frozen=True, kw_only=True)
class Bath:
    """What a thermal flow needs of the session: h, k and β_ref."""

    profile: Profile
    h: float
    k: float
    beta_ref: float


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time: r = β/β₊, kern = ∫β dt/β₊, and U₊ = aU - share·(c²/h) kern L."""

    log_beta: float
    r: float
    kern: float
    a: float
    share: float = 1.0  # b/kern


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """A stretch of time in which U governs β."""

    log_beta: float
    r: float
    kern: float
    u: float
    entropy: float


def exp(x: float) -> float:
    """e^x, infinite where float64 ends."""
    return math.exp(x) if x < 709.0 else math.inf


def growth_average(x: float) -> float:
    """(e^x - 1)/x, the mean of e^{tx} over 0 < t < 1."""
    return math.expm1(x) / x if x else 1.0


def cooling_rate(bath: Bath, log_beta: float, t: float, u: float, towards: float) -> float:
    """φ/β = dℓ/dt."""
    match bath.profile:
        case Constant():
            return 0.0
        case Exponential(gamma):
            return gamma
        case Linear(alpha):
            return alpha / exp(log_beta)
        case Power(p, t0):
            return p / age(bath, p, t0, log_beta)
        case Tabulated():
            return bath.profile.slope(t, towards)
        case Polynomial():
            beta = exp(log_beta)
            return bath.k / bath.h * bath.profile.by_u(u, beta) / beta


def thermal_energy(bath: Bath, log_beta: float, t: float, u: float, towards: float) -> float:
    """E(U, β)/β."""
    if isinstance(bath.profile, Polynomial):
        beta = exp(log_beta)
        return bath.profile.energy(u, beta) / beta
    return bath.h / bath.k * cooling_rate(bath, log_beta, t, u, towards) * u


def age(bath: Bath, p: float, t0: float, log_beta: float) -> float:
    """s = t0 (β/β_ref)^{1/p} = t0 + t; read from β, so that a perturbed β is followed."""
    return t0 * math.exp((log_beta - math.log(bath.beta_ref)) / p)


def span(bath: Bath, log_beta: float, t: float, duration: float) -> Span:
    """Any profile but feedback, over `duration`."""
    match bath.profile:
        case Constant():
            return Span(log_beta=log_beta, r=1.0, kern=duration, a=1.0)
        case Exponential(gamma):
            if math.isinf(gamma):
                return Span(log_beta=math.inf, r=0.0, kern=0.0, a=0.0)
            r = math.exp(-gamma * duration)
            return Span(
                log_beta=log_beta + gamma * duration, r=r, kern=duration * growth_average(-gamma * duration), a=r
            )
        case Linear(alpha):
            before = math.exp(log_beta)
            after = before + alpha * duration
            if after <= 0:
                raise ValueError(f"beta would reach {after} within the step")
            kern = duration * (before + after) / (2 * after)
            return Span(log_beta=math.log(after), r=before / after, kern=kern, a=1.0, share=duration / kern)
        case Power(p, t0):
            young = age(bath, p, t0, log_beta)
            old = young + duration
            if old <= 0:
                raise ValueError(f"age would reach {old} within the step")
            r = math.pow(young / old, p)
            kern = mean_power(young, old, p)
            share = mean_power(young, old, p - 1) / kern
            log_after = math.log(bath.beta_ref) + p * math.log(old / t0)
            return Span(log_beta=log_after, r=r, kern=kern, a=math.pow(young / old, p - 1), share=share)
        case Tabulated():
            return tabulated_span(bath.profile, log_beta, t, duration)
        case Polynomial():
            raise TypeError("U governs β: use feedback")


def mean_power(young: float, old: float, p: float) -> float:
    """∫ (σ/old)^p dσ from young to old."""
    if p == -1:
        return old * math.log(old / young)
    return old * (1 - math.pow(young / old, p + 1)) / (p + 1)


def tabulated_span(table: Tabulated, log_beta: float, t: float, duration: float) -> Span:
    end = t + duration
    inside = sorted(knot[0] for knot in table.knots if min(t, end) < knot[0] < max(t, end))
    corners = [t, *(inside if duration > 0 else inside[::-1]), end]
    last = table.log_beta(end)
    kern = 0.0
    for left, right in itertools.pairwise(corners):
        a, b = table.log_beta(left), table.log_beta(right)
        kern += (right - left) * math.exp(a - last) * growth_average(b - a)
    r = math.exp(table.log_beta(t) - last)
    return Span(log_beta=log_beta + last - table.log_beta(t), r=r, kern=kern, a=r)


def span_entropy(
    bath: Bath, stretch: Span, *, log_beta: float, t: float, u: float, u_after: float, push: float, duration: float
) -> float:
    """ΔS = ∫β dU of a joint flow of V and E, or of E alone with push = 0; push = c²L/h.

    β'U = φU is known at every instant, because hφU + βc²L stays as it is.
    """
    if isinstance(bath.profile, Tabulated) or max(log_beta, stretch.log_beta) >= 700:
        return math.nan
    before, after = math.exp(log_beta), math.exp(stretch.log_beta)
    conserved = before * (cooling_rate(bath, log_beta, t, u, duration) * u + push)
    return after * u_after - before * u - (duration * conserved - push * stretch.kern * after)


def feedback(bath: Bath, log_beta: float, u: float, duration: float, push: float) -> Feedback:
    """β' = (k/h)E_U, U' = -(k/h)E_β - push, J' = β and S' = βU' by classical RK4."""
    profile = bath.profile
    assert isinstance(profile, Polynomial)
    rate = bath.k / bath.h

    def slope(y: NDArray[np.float64]) -> NDArray[np.float64]:
        beta, energy = float(y[0]), float(y[1])
        u_slope = -rate * profile.by_beta(energy, beta) - push
        return np.array([rate * profile.by_u(energy, beta), u_slope, beta, beta * u_slope])

    before = math.exp(log_beta)
    beta, u_after, area, entropy = runge_kutta(slope, np.array([before, u, 0.0, 0.0]), duration)
    if not (math.isfinite(beta) and math.isfinite(u_after) and beta > 0):
        raise ValueError(f"the bath left its range: beta {beta}, U {u_after}")
    return Feedback(log_beta=math.log(beta), r=before / beta, kern=area / beta, u=u_after, entropy=entropy)


def runge_kutta(
    slope: Callable[[NDArray[np.float64]], NDArray[np.float64]], y: NDArray[np.float64], duration: float
) -> list[float]:
    step = duration / SUBSTEPS
    for _ in range(SUBSTEPS):
        k1 = slope(y)
        k2 = slope(y + step / 2 * k1)
        k3 = slope(y + step / 2 * k2)
        k4 = slope(y + step * k3)
        y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return [float(value) for value in y]
