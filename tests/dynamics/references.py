"""Published optimizers and exact solutions, each as its own paper or code writes it, in its own letters.

Each optimizer gives the points it visits, the start included; `gradient(point, n)` is asked once a step.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import jv

Vector = NDArray[np.float64]
Gradient = Callable[[Vector, int], Vector]


def relativistic_gradient_descent(
    gradient: Gradient, x: Vector, steps: int, *, epsilon: float, mu: float, delta: float, alpha: float
) -> list[Vector]:
    """RGD, França et al. 1903.04100, as `relativistic2` of their repository has it: α = 1 leapfrog, α = 0 Nesterov."""
    points, v, root = [x], np.zeros_like(x), math.sqrt(mu)
    for n in range(steps):
        x_half = x + root * v / math.sqrt(1 + delta * mu * float(v @ v))
        v_half = root * v - epsilon * gradient(x_half, n)
        x = alpha * x_half + (1 - alpha) * x + v_half / math.sqrt(1 + delta * float(v_half @ v_half))
        v = root * v_half
        points.append(x)
    return points


def relativistic_gradient_descent_first_form(
    gradient: Gradient, x: Vector, steps: int, *, epsilon: float, mu: float, delta: float
) -> list[Vector]:
    """RGD as the first arXiv version has it."""
    points, v = [x], np.zeros_like(x)
    for n in range(steps):
        v = mu * v - epsilon * gradient(x, n)
        x = x + v / math.sqrt(1 + delta * float(v @ v))
        points.append(x)
    return points


def vradam(
    gradient: Gradient,
    x: Vector,
    steps: int,
    *,
    eta: float,
    beta1: float,
    beta2: float,
    beta3: float,
    lr_cutoff: float,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    sizes: Sequence[int] | None = None,
    rates: Sequence[float] | None = None,
) -> list[Vector]:
    """VRAdam, 2505.13196, authors' code with normgrad off: the biased m slows every step, decay included.

    `sizes` gives each stretch of the vector its own norm, as one parameter group per tensor does; `rates` scale η.
    """
    cuts = np.cumsum(sizes or [x.size])[:-1]
    points, m, v = [x], np.zeros_like(x), np.zeros_like(x)
    for n in range(steps):
        g = gradient(x, n)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1 ** (n + 1)), v / (1 - beta2 ** (n + 1))
        lr = np.concatenate(
            [np.full(part.size, eta / (1 + min(beta3 * float(part @ part), lr_cutoff))) for part in np.split(m, cuts)]
        )
        lr = lr * (rates[n] if rates else 1.0)
        x = x * (1 - weight_decay * lr) - lr * m_hat / (np.sqrt(v_hat) + eps)
        points.append(x)
    return points


def covariant_descent_diagonal(
    gradient: Gradient, q: Vector, steps: int, *, rate: float, window1: float, window2: float, eps: float
) -> list[Vector]:
    """CGD, Guskov and Vanchurin 2504.05279, with the diagonal of the gradients' second moment as metric."""
    points, force, moment = [q], np.zeros_like(q), np.zeros_like(q)
    for n in range(steps):
        f = gradient(q, n)
        force = (f + window1 * force) / (1 + window1)
        moment = (f**2 + window2 * moment) / (1 + window2)
        q = q - rate * force / (np.sqrt(moment) + eps)
        points.append(q)
    return points


def covariant_descent_full(
    gradient: Gradient, q: Vector, steps: int, *, rate: float, window1: float, window2: float, eps: float
) -> list[Vector]:
    """The same with the whole second moment; its root by SVD of the weighted gradients, never of their covariance."""
    points, force, seen = [q], np.zeros_like(q), np.zeros((q.size, 0))
    for n in range(steps):
        f = gradient(q, n)
        force = (f + window1 * force) / (1 + window1)
        fresh = f[:, None] / math.sqrt(1 + window2)
        seen = np.hstack([math.sqrt(window2 / (1 + window2)) * seen, fresh])
        axes, sigma, _ = np.linalg.svd(seen, full_matrices=True)
        roots = np.zeros(q.size)
        roots[: sigma.size] = sigma
        q = q - rate * axes @ ((axes.T @ force) / (roots + eps))
        points.append(q)
    return points


def nesterov_1983(gradient: Gradient, x: Vector, steps: int, *, step_size: float) -> list[Vector]:
    """Nesterov's scheme for convex functions, with the weights (k-1)/(k+2) of Su, Boyd and Candès."""
    points, y = [x], x
    for k in range(1, steps + 1):
        x_next = y - step_size * gradient(y, k - 1)
        y = x_next + (k - 1) / (k + 2) * (x_next - x)
        x = x_next
        points.append(x)
    return points


def su_boyd_candes(t: float, w0: Vector, stiffness: Vector, p: float) -> tuple[Vector, Vector]:
    """w and w' of w'' + (p/t)w' + λw = 0, w(0) = w0, w'(0) = 0, for t > 0.

    w = w0 2^ν Γ(ν+1) J_ν(x)/x^ν with x = √λ t and ν = (p-1)/2; its derivative follows from (J_ν/x^ν)' = -J_{ν+1}/x^ν.
    """
    nu, root = (p - 1) / 2, np.sqrt(stiffness)
    x = root * t
    scale = w0 * 2**nu * math.gamma(nu + 1) / x**nu
    return scale * jv(nu, x), -root * scale * jv(nu + 1, x)
