"""Problems: losses with gradients, small enough to be drawn."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gallery.paths import Array, Problem

Loss = Callable[[Tensor], Tensor]


def problem_of(loss: Loss) -> Problem:
    """A loss of positions (S, P), one value a session, with the gradient that autograd finds."""

    def at(step: int, position: Tensor) -> tuple[Tensor, Tensor]:
        point = position.detach().clone().requires_grad_()
        value = loss(point)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        return value.detach(), gradient

    return at


def double_well(position: Tensor) -> Tensor:
    """Valleys at ±1 and a pass between them, in each parameter by itself."""
    return ((position.square() - 1).square() / 4).sum(dim=-1)


def pendulum(position: Tensor) -> Tensor:
    return (1 - position.cos()).sum(dim=-1)


def rosenbrock(position: Tensor) -> Tensor:
    """A narrow curved valley; its floor falls slowly to (1, 1)."""
    x, y = position.unbind(-1)
    return (1 - x).square() + 100 * (y - x.square()).square()


CURVATURES = (1.0, 100.0)
TURN = math.radians(30)


def tilted_valley(position: Tensor) -> Tensor:
    """A quadratic, a hundred times steeper across than along, turned by 30° against the axes."""
    x, y = position.unbind(-1)
    along = math.cos(TURN) * x + math.sin(TURN) * y
    across = math.cos(TURN) * y - math.sin(TURN) * x
    return (CURVATURES[0] * along.square() + CURVATURES[1] * across.square()) / 2


def landscape(loss: Loss, x: tuple[float, float], y: tuple[float, float], points: int) -> tuple[Array, Array, Array]:
    """A grid of x, y and the loss there."""
    across, up = np.meshgrid(np.linspace(*x, points), np.linspace(*y, points))
    with torch.no_grad():
        height = loss(torch.tensor(np.stack([across, up], axis=-1))).numpy()
    return across, up, height
