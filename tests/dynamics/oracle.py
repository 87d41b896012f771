"""The step of docs/theory.md, section 6, written once more: one session, flat NumPy vectors, β kept as it is.

It shares no line with the dynamics: energies in their textbook form, β instead of its logarithm, flows one by one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(kw_only=True)
class Bath:
    """Constants of one session: γ (0: constant profile), τ, h, k, weight z of a gradient, and what brakes."""

    gamma: float
    tau: float
    h: float
    k: float = 1.0
    z: float
    beta: float = 1.0
    chi: float = math.inf
    nu: float = 0.0
    rho: float = 0.0
    bare: float = 0.0
    thermal: float = 0.0
    decoupled: float = 0.0
    follows_speed: bool = False

    @property
    def kern(self) -> float:
        return self.tau if self.gamma == 0 else (1 - math.exp(-self.gamma * self.tau)) / self.gamma

    @property
    def c2(self) -> float:
        return self.z * self.h / self.kern


@dataclass
class Point:
    """Where the session stands, and the energies of the step that led there; all divided by β as the server's are."""

    w: Vector
    x: Vector
    u: float
    beta: float
    a: float
    s: float
    kinetic: float = math.nan
    potential: float = math.nan
    thermal: float = math.nan
    braking: float = math.nan
    defect: float = math.nan
    reference: float = math.nan


class Oracle:
    """Steps one session. `field` gives loss and gradient at a point and a step."""

    def __init__(self, bath: Bath, w: Vector, field: Callable[[Vector, int], tuple[float, Vector]]) -> None:
        self.bath, self.field = bath, field
        self.point = Point(w.copy(), np.zeros_like(w), math.nan, bath.beta, 0.0, 0.0)
        self.steps = 0

    def chi2(self, beta: float) -> float:
        return self.bath.chi**2 * math.pow(self.bath.beta / beta, 2 * self.bath.nu)

    def kappa(self, x: Vector, beta: float) -> float:
        b, s = self.bath, float(x @ x)
        if math.isinf(b.chi):
            return s / 2
        chi2 = self.chi2(beta)
        return chi2 * (math.sqrt(1 + s / chi2) - 1) + b.rho * chi2

    def braking(self, x: Vector, beta: float) -> float:
        b = self.bath
        if math.isinf(b.chi):
            return 1.0
        return 1 / math.sqrt(1 + float(x @ x) / self.chi2(beta))

    def slope(self, x: Vector, beta: float) -> float:
        """∂κ/∂lnβ at constant X: κ(χ²) by the chain rule, with dχ²/dlnβ = -2νχ²."""
        b = self.bath
        if math.isinf(b.chi):
            return 0.0
        s, chi2 = float(x @ x), self.chi2(beta)
        gamma = math.sqrt(1 + s / chi2)
        return -2 * b.nu * chi2 * ((gamma - 1) - s / (2 * chi2 * gamma) + b.rho)

    def energy(self, x: Vector, u: float, beta: float, loss: float, w: Vector) -> float:
        """H, not divided by β."""
        b = self.bath
        matter = beta / b.k * (self.kappa(x, beta) + b.c2 * loss) + b.bare / 2 * float(w @ w)
        return matter + b.h / b.k * b.gamma * beta * u

    def step(self, lr_scale: float = 1.0) -> Point:
        b, p = self.bath, self.point
        loss, gradient = self.field(p.w, self.steps)
        gradient = gradient + b.thermal * p.w
        loss = loss + b.thermal / 2 * float(p.w @ p.w)
        u, s = p.u, p.s
        if math.isnan(u):
            u = 0.0
            if b.gamma > 0:
                u = -b.k * self.energy(p.x, 0.0, p.beta, loss, p.w) / (p.beta * b.h * b.gamma)
            p.reference = self.energy(p.x, u, p.beta, loss, p.w)

        before = self.energy(p.x, u, p.beta, loss, p.w)
        beta = p.beta * math.exp(b.gamma * b.tau)
        r = p.beta / beta
        s -= b.tau * p.beta * (b.gamma * u + b.c2 * loss / b.h)
        x = r * p.x + b.z * gradient + b.k * b.bare * b.tau / (b.h * beta) * p.w
        a = r * p.a + b.z
        # Potential and thermal energy are conserved together: hγU β + c²L β is the same before and after.
        total = (b.h * b.gamma * u + b.c2 * loss) * p.beta
        u = (total / beta - b.c2 * loss) / (b.h * b.gamma) if b.gamma > 0 else u - b.z * loss
        kicked = self.energy(x, u, beta, loss, p.w)

        d, f = lr_scale * b.tau, self.braking(x, beta)
        v = f * x / b.h
        effort = self.kappa(x, beta) + self.slope(x, beta)
        u += d * (float(x @ v) - effort / b.h)
        s -= d / b.h * beta * effort
        w = p.w * (1 - d / b.h * b.decoupled * (f if b.follows_speed else 1)) - d * v
        self.steps += 1
        self.point = Point(
            w,
            x,
            u,
            beta,
            a,
            s,
            kinetic=self.kappa(x, beta) / b.k,
            potential=b.c2 * loss / b.k + b.bare * float(p.w @ p.w) / (2 * beta),
            thermal=b.h * b.gamma * u / b.k,
            braking=f,
            defect=((before + kicked) / 2 - p.reference) / beta,
            reference=p.reference,
        )
        return self.point
