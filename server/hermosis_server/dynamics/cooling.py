r"""Cooling: what a thermal profile does over one stretch of time, for a batch of sessions.

A stretch of duration d, the loss held constant, is five numbers:

.. math::
    r = \frac{\beta}{\beta_+}, \qquad
    \mathrm{kern} = \frac{1}{\beta_+} \int \beta\,dt, \qquad
    U_+ = a\,U - b\,\frac{c^2}{h}L, \qquad
    \frac{\varphi}{\beta} = \frac{\dot\beta}{\beta} \text{ before and after}

r is what remains of the momentum and kern the weight of a constant force. Where the profile has no end, which is
momentum 0, kern is 0 and b/kern is 1: hence `heat_weight` is b/kern and never b.

The thermal energy is :math:`E = (h/k)\,\varphi(\beta)\,U`, for the polynomial profile the polynomial itself.

Source: Learning Dynamics v0.1.0, "Thermal energy"; docs/theory.md, section 3.
"""

import math
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from hermosis_server.dynamics.family import Coefficients, Family
from hermosis_server.dynamics.rows import row_sums
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT, ProfileKind

T = TypeVar("T")
SUBSTEPS = 8  # of the classical Runge-Kutta scheme that a feedback profile is defined by


class Bath(NamedTuple, Generic[T]):
    """Where a session's thermal state stands: ln β, the clock t, U."""

    log_beta: T
    clock: T
    internal_energy: T


class Cooling(NamedTuple):
    """One stretch of cooling, each (S,) float64.

    Attributes:
      log_beta:        ln β after it.
      gain:            growth of ln β.
      retention:       r = β before / β after; NaN where β would not stay positive.
      friction:        1 - r, computed by itself because the difference cancels.
      kernel:          kern.
      heat_retention:  a.
      heat_weight:     b/kern.
      rate:            φ/β at its beginning; infinite at momentum 0.
      rate_after:      φ/β at its end. With a table both are those of the stretch's own side of a knot.
      homogeneity:     d ln φ/d ln β, which the entropy needs; NaN where it is given up.
      internal_energy: U after, of a feedback profile; None elsewhere.
      entropy:         growth of S, of a feedback profile; None elsewhere.
      crossed:         whether it meets a knot of a table, where H jumps with d ln(β)/dt; None elsewhere.
    """

    log_beta: Tensor
    gain: Tensor
    retention: Tensor
    friction: Tensor
    kernel: Tensor
    heat_retention: Tensor
    heat_weight: Tensor
    rate: Tensor
    rate_after: Tensor
    homogeneity: Tensor
    internal_energy: Tensor | None = None
    entropy: Tensor | None = None
    crossed: Tensor | None = None


def decay_average(x: Tensor) -> Tensor:
    """(1 - e^-x)/x, the average of e^-t over 0 … x; 1 at 0, and 0 at infinity."""
    return torch.where(x == 0, 1.0, -torch.expm1(-x) / x)


def cool(
    family: Family, c: Coefficients[Tensor], table: Tensor, bath: Bath[Tensor], drive: Tensor | None = None
) -> Cooling:
    r"""One stretch of `c.cooling_duration`.

    Args:
      family: which profile.
      c:      coefficients, each (S,).
      table:  (S, n) knots and slopes, or the coefficients of a polynomial.
      bath:   where it begins.
      drive:  :math:`c^2 \tilde L/h`, which only a feedback profile asks for; None is zero: cooling by itself.

    Source: docs/theory.md, section 3.
    """
    match family.profile:
        case ProfileKind.STEADY:
            return _steady(c, bath)
        case ProfileKind.LINEAR:
            return _linear(c, bath)
        case ProfileKind.POWER:
            return _power(c, bath)
        case ProfileKind.TABULATED:
            return _tabulated(c, table, bath)
        case ProfileKind.POLYNOMIAL:
            return _polynomial(family, c, table, bath, torch.zeros_like(bath.clock) if drive is None else drive)


def thermal_energy(
    family: Family, c: Coefficients[Tensor], table: Tensor, log_beta: Tensor, rate: Tensor, internal_energy: Tensor
) -> Tensor:
    """k E/β, (S,); NaN at momentum 0, where it has no limit."""
    if family.profile is ProfileKind.POLYNOMIAL:
        beta = _beta(log_beta)
        energy, _, _ = _polynomial_at(family, table, internal_energy, beta)
        return c.information_unit * energy / beta
    return c.action_unit * torch.where(rate.isinf(), math.nan, rate) * internal_energy


def _steady(c: Coefficients[Tensor], bath: Bath[Tensor]) -> Cooling:
    one = torch.ones_like(bath.clock)
    return Cooling(
        log_beta=bath.log_beta + c.log_beta_gain,
        gain=c.log_beta_gain,
        retention=c.retention,
        friction=c.friction,
        kernel=c.kernel,
        heat_retention=c.retention,
        heat_weight=one,
        rate=c.cooling_rate,
        rate_after=c.cooling_rate,
        homogeneity=one,
    )


def _linear(c: Coefficients[Tensor], bath: Bath[Tensor]) -> Cooling:
    """β₊ = β + αd; φ = α."""
    rate = c.profile_growth * (-bath.log_beta).exp()
    growth = rate * c.cooling_duration
    growth = torch.where(growth > -1, growth, math.nan)
    retention = (1 + growth).reciprocal()
    kernel = c.cooling_duration * (1 + retention) / 2
    gain = growth.log1p()
    return Cooling(
        log_beta=bath.log_beta + gain,
        gain=gain,
        retention=retention,
        friction=growth * retention,
        kernel=kernel,
        heat_retention=torch.ones_like(rate),
        heat_weight=2 / (1 + retention),
        rate=rate,
        rate_after=rate * retention,
        homogeneity=torch.zeros_like(rate),
    )


def _power(c: Coefficients[Tensor], bath: Bath[Tensor]) -> Cooling:
    """β = β₀ (s/t₀)^p with the age s = t + t₀, which is read off β: the profile does not look at the clock."""
    p = c.profile_exponent
    age = c.profile_age * ((bath.log_beta - c.profile_log_beta) / p).exp()
    aged = (c.cooling_duration / age).log1p()  # ln(s₊/s)
    age_after = age + c.cooling_duration
    mass, heat = decay_average((p + 1) * aged), decay_average(p * aged)
    return Cooling(
        log_beta=bath.log_beta + p * aged,
        gain=p * aged,
        retention=(-p * aged).exp(),
        friction=-torch.expm1(-p * aged),
        kernel=age_after * aged * mass,
        heat_retention=(-(p - 1) * aged).exp(),
        heat_weight=heat / mass,
        rate=p / age,
        rate_after=p / age_after,
        homogeneity=(p - 1) / p,
    )


def _tabulated(c: Coefficients[Tensor], table: Tensor, bath: Bath[Tensor]) -> Cooling:
    """Pieces of constant d ln β/dt, cut at the knots; each adds to kern what the pieces after it leave of it."""
    knots = table.shape[1] // 2
    times, slopes = table[:, :knots], table[:, knots:]
    start, end = bath.clock[:, None], (bath.clock + c.cooling_duration)[:, None]
    far = torch.full_like(start, math.inf)
    begins = torch.maximum(start, torch.cat([-far, times], dim=1))
    ends = torch.minimum(end, torch.cat([times, far], dim=1))
    spent = (ends - begins).clamp(min=0)
    gains = slopes * spent
    gain = row_sums(gains)
    later = gain[:, None] - gains.cumsum(dim=1)
    retention = (-gain).exp()
    return Cooling(
        log_beta=bath.log_beta + gain,
        gain=gain,
        retention=retention,
        friction=-torch.expm1(-gain),
        kernel=row_sums((-later).exp() * spent * decay_average(gains)),
        heat_retention=retention,
        heat_weight=torch.ones_like(gain),
        rate=slopes.gather(1, (times <= start).sum(dim=1, keepdim=True)).squeeze(1),
        rate_after=slopes.gather(1, (times < end).sum(dim=1, keepdim=True)).squeeze(1),
        homogeneity=torch.full_like(gain, math.nan),
        crossed=((times < end) & (times >= start)).any(dim=1),
    )


def _polynomial(family: Family, c: Coefficients[Tensor], table: Tensor, bath: Bath[Tensor], drive: Tensor) -> Cooling:
    r"""β' = (k/h) E_U, U' = -(k/h) E_β - drive, J' = β, S' = -(k/h) β E_β - β·drive, by 8 steps of Runge-Kutta."""
    unit = c.information_unit / c.action_unit
    start = _beta(bath.log_beta)

    def slope(z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        u, beta = z[0], z[1]
        _, by_u, by_beta = _polynomial_at(family, table, u, beta)
        falling = -unit * by_beta - drive
        return falling, unit * by_u, beta, beta * falling

    zero = torch.zeros_like(start)
    z: tuple[Tensor, ...] = (bath.internal_energy, start, zero, zero)
    d = c.cooling_duration / SUBSTEPS
    for _ in range(SUBSTEPS):
        one = slope(z)
        two = slope(_moved(z, one, d / 2))
        three = slope(_moved(z, two, d / 2))
        four = slope(_moved(z, three, d))
        z = tuple(
            value + d / 6 * (a + 2 * b + 2 * e + f) for value, a, b, e, f in zip(z, one, two, three, four, strict=True)
        )
    heat, beta, mass, entropy = z
    beta = torch.where(beta > 0, beta, math.nan)
    _, rate, _ = _polynomial_at(family, table, bath.internal_energy, start)
    _, rate_after, _ = _polynomial_at(family, table, heat, beta)
    gain = (beta / start).log()
    return Cooling(
        log_beta=bath.log_beta + gain,
        gain=gain,
        retention=start / beta,
        friction=(beta - start) / beta,
        kernel=mass / beta,
        heat_retention=torch.full_like(beta, math.nan),
        heat_weight=torch.full_like(beta, math.nan),
        rate=unit * rate / start,
        rate_after=unit * rate_after / beta,
        homogeneity=torch.full_like(beta, math.nan),
        internal_energy=heat,
        entropy=entropy,
    )


def _moved(z: tuple[Tensor, ...], slope: tuple[Tensor, ...], d: Tensor) -> tuple[Tensor, ...]:
    return tuple(value + d * rate for value, rate in zip(z, slope, strict=True))


def _polynomial_at(family: Family, table: Tensor, u: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E, ∂E/∂U and ∂E/∂β, each (S,)."""
    energy, by_u, by_beta = (torch.zeros_like(u) for _ in range(3))
    u_powers = _powers(u, max(i for i, _ in family.terms))
    beta_powers = _powers(beta, max(j for _, j in family.terms))
    for coefficient, (i, j) in zip(table.unbind(1), family.terms, strict=True):
        energy = energy + coefficient * u_powers[i] * beta_powers[j]
        if i:
            by_u = by_u + coefficient * i * u_powers[i - 1] * beta_powers[j]
        if j:
            by_beta = by_beta + coefficient * j * u_powers[i] * beta_powers[j - 1]
    return energy, by_u, by_beta


def _powers(base: Tensor, highest: int) -> list[Tensor]:
    """base⁰ … base^highest, by multiplication: pow rounds by an element's place in the batch."""
    powers = [torch.ones_like(base)]
    for _ in range(highest):
        powers.append(powers[-1] * base)
    return powers


def _beta(log_beta: Tensor) -> Tensor:
    return torch.where(log_beta.abs() < LOG_BETA_LIMIT, log_beta, math.nan).exp()
