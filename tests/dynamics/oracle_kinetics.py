"""Kinetic energies of the oracle: κ, f = 2∂κ/∂s and ∂κ/∂lnβ from s, the squared momentum of each norm group."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Classical:
    """κ = s/2."""


@dataclass(frozen=True)
class Relativistic:
    """κ = χ²(Γ-1) + ρχ², Γ = √(1+s/χ²), χ = χ0 (β_ref/β)^ν."""

    chi0: float
    nu: float = 0.0
    rho: float = 0.0


@dataclass(frozen=True)
class Quartic:
    """κ = pu - u²/2 - bu⁴/4 with u + bu³ = p = √s: the Legendre transform of u²/2 + bu⁴/4."""

    b: float


@dataclass(frozen=True)
class Truncated:
    """κ = s/2 - s²/8χ² as far as it is convex, then a straight line in √s."""

    chi: float


@dataclass(frozen=True)
class Vr:
    """κ = log1p(bs)/2b as far as bs = cap, then a straight line in s."""

    b: float
    cap: float = math.inf


Kinetic = Classical | Relativistic | Quartic | Truncated | Vr


@dataclass(frozen=True, kw_only=True)
class Kinetics:
    kappa: Vector
    braking: Vector
    slope: Vector  # ∂κ/∂lnβ


def kinetics(kinetic: Kinetic, s: Vector, beta_ratio: float) -> Kinetics:
    """`beta_ratio` is β_ref/β."""
    match kinetic:
        case Classical():
            return Kinetics(kappa=s / 2, braking=np.ones_like(s), slope=np.zeros_like(s))
        case Relativistic(chi0, nu, rho):
            return relativistic(chi0 * math.pow(beta_ratio, nu), nu, rho, s)
        case Quartic(b):
            return quartic(b, s)
        case Truncated(chi):
            return truncated(chi, s)
        case Vr(b, cap):
            return vr(b, cap, s)


def relativistic(chi: float, nu: float, rho: float, s: Vector) -> Kinetics:
    gamma = np.hypot(1.0, np.sqrt(s) / chi)
    moving = s / (gamma + 1)  # χ²(Γ-1) without its cancellation
    slope = -nu * (moving * (gamma - 1) / gamma + 2 * rho * chi**2)
    return Kinetics(kappa=moving + rho * chi**2, braking=1 / gamma, slope=slope)


def quartic(b: float, s: Vector) -> Kinetics:
    p = np.sqrt(s)
    u = p.copy()
    for _ in range(200):  # Newton's steps from above the root of an increasing convex function cannot miss it
        step = (u + b * u**3 - p) / (1 + 3 * b * u**2)
        u = u - step
        if np.all(np.abs(step) <= 4e-16 * u):
            break
    f = np.divide(u, p, out=np.ones_like(p), where=p > 0)
    return Kinetics(kappa=p * u - u**2 / 2 - b * u**4 / 4, braking=f, slope=np.zeros_like(s))


def truncated(chi: float, s: Vector) -> Kinetics:
    turn = 2 * chi**2 / 3
    inner = np.minimum(s, turn)
    fastest = 2 / 3 * math.sqrt(turn)
    beyond = fastest * (np.sqrt(np.maximum(s, turn)) - math.sqrt(turn))
    f = np.where(s <= turn, 1 - inner / (2 * chi**2), fastest / np.sqrt(np.maximum(s, turn)))
    return Kinetics(kappa=inner / 2 - inner**2 / (8 * chi**2) + beyond, braking=f, slope=np.zeros_like(s))


def vr(b: float, cap: float, s: Vector) -> Kinetics:
    if b == 0:
        return Kinetics(kappa=s / 2, braking=np.ones_like(s), slope=np.zeros_like(s))
    inner = np.minimum(s, cap / b)
    kappa = np.log1p(b * inner) / (2 * b) + (s - inner) / (2 * (1 + b * inner))
    return Kinetics(kappa=kappa, braking=1 / (1 + b * inner), slope=np.zeros_like(s))
