"""How far each recipe is from its torch.optim twin: `python -m tests.dynamics.equality_table` prints the table.

The twin and the recipe minimise the same smooth problem over tensors of odd shapes, from the same start. The reference
is the twin in float64, in float32 too: torch's own rounding is printed beside ours. The difference is the largest over
all steps and elements, in units of 1 + |parameter|.
"""

import argparse
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from hermosis_server.dynamics import Hermosis
from hermosis_server.dynamics.parameters import Value

STEPS = 300
FLOAT32_STEPS = 200
SEEDS = (2024, 7, 99)
SHAPES = ((), (0,), (1,), (3, 5, 7), (33,), (0, 4), (2, 1, 64))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe with settings, and its twin. The twin's names are the recipe's, save Adam's pair of betas."""

    recipe: str
    twin: type[Optimizer]
    settings: Mapping[str, Value] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return " ".join([self.recipe, *(f"{name}={value}" for name, value in self.settings.items())])

    def build_twin(self, params: list[Tensor]) -> Optimizer:
        settings: dict[str, Any] = dict(self.settings)
        if "beta1" in settings or "beta2" in settings:
            settings["betas"] = (settings.pop("beta1", 0.9), settings.pop("beta2", 0.999))
        if self.recipe == "nesterov":
            settings["nesterov"] = True
        return self.twin(params, **settings)


def case(recipe: str, twin: type[Optimizer], **settings: Value) -> Case:
    return Case(recipe=recipe, twin=twin, settings=settings)


CASES = (
    case("sgd", SGD),
    case("sgd", SGD, lr=0.05, weight_decay=0.1),
    case("sgd", SGD, lr=0.05, dampening=0.5),
    case("sgd", SGD, lr=0.02, momentum=0.9),
    case("sgd", SGD, lr=0.05, momentum=0.9, dampening=0.5),
    case("sgd", SGD, lr=0.05, momentum=0.9, dampening=0.9),
    case("sgd", SGD, lr=0.05, momentum=0.9, dampening=0.9, weight_decay=0.1),
    case("sgd", SGD, lr=0.02, momentum=0.9, nesterov=True),
    case("sgd", SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    case("nesterov", SGD, lr=0.02, momentum=0.9),
    case("nesterov", SGD, lr=0.02, momentum=0.8, weight_decay=0.1),
    case("adam", Adam),
    case("adam", Adam, lr=0.05, beta1=0.8, beta2=0.95, weight_decay=0.1),
    case("adam", Adam, lr=0.05, beta1=0.0, eps=1e-4),
    case("adamw", AdamW),
    case("adamw", AdamW, lr=0.05, beta2=0.99, weight_decay=0.2),
    case("rmsprop", RMSprop),
    case("rmsprop", RMSprop, weight_decay=0.1),
    case("rmsprop", RMSprop, lr=2e-3, momentum=0.9),
    case("rmsprop", RMSprop, lr=2e-3, centered=True, eps=1e-4),
    case("rmsprop", RMSprop, lr=2e-3, momentum=0.9, centered=True, weight_decay=0.1, alpha=0.9, eps=1e-4),
    case("adagrad", Adagrad, lr=0.3),
    case("adagrad", Adagrad, lr=0.3, eps=1e-3, weight_decay=0.1),
)


class Problem:
    """A smooth, non-quadratic, coupled function of tensors of odd shapes, seen through another minibatch each step.

    The noise matters: an adaptive optimizer at rest divides one rounding error by another, and correct programs part.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        count = sum(math.prod(shape) for shape in SHAPES)

        def draw(*shape: int) -> Tensor:  # in float32, so that both dtypes see the same numbers
            return torch.randn(shape, generator=source).to(device, dtype)

        self.flat = draw(count)
        self._stiffness = draw(count).abs() + 0.5
        self._targets = draw(STEPS, count) * 1.5
        pieces = torch.split(self.flat, [math.prod(shape) for shape in SHAPES])
        self.params = [piece.view(shape).requires_grad_() for piece, shape in zip(pieces, SHAPES, strict=True)]

    def set_gradients(self, step: int) -> None:
        gap = self.flat - self._targets[step]
        gradient = self._stiffness * gap + gap.square() * gap / 25 + self.flat.sum() / 250
        for p, piece in zip(self.params, torch.split(gradient, [p.numel() for p in self.params]), strict=True):
            p.grad = piece.view(p.shape)


@functools.cache
def trajectory(
    case: Case, dtype: torch.dtype, *, ours: bool, scheduled: bool, seed: int, steps: int, device: torch.device
) -> Tensor:
    """(steps, P) float64 parameters after each step."""
    problem = Problem(dtype, device, seed)
    optimizer: Optimizer
    if ours:
        optimizer = Hermosis(problem.params, case.recipe, row_elements=64, **case.settings)
    else:
        optimizer = case.build_twin(problem.params)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=STEPS // 4) if scheduled else None
    points = []
    for step in range(steps):
        problem.set_gradients(step)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        points.append(problem.flat.to(torch.float64, copy=True))
    return torch.stack(points)


def difference(
    case: Case,
    dtype: torch.dtype,
    *,
    ours: bool = True,
    scheduled: bool = False,
    seed: int = SEEDS[0],
    device: torch.device,
) -> float:
    """From the float64 twin, over all steps and elements, in units of 1 + |parameter|."""
    steps = STEPS if dtype is torch.float64 else FLOAT32_STEPS
    points = trajectory(case, dtype, ours=ours, scheduled=scheduled, seed=seed, steps=steps, device=device)
    truth = trajectory(case, torch.float64, ours=False, scheduled=scheduled, seed=seed, steps=STEPS, device=device)[
        :steps
    ]
    return float(((points - truth).abs() / (1 + truth.abs())).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="torch device to step on; default cpu")
    device = torch.device(parser.parse_args().device)
    print(f"Largest difference from torch.optim {torch.__version__} in float64: {STEPS} steps, {len(SEEDS)} seeds")
    print(f"in float32: {FLOAT32_STEPS} steps, one seed; torch's own float32 beside it")
    print(f"{'recipe':<88}{'constant':>10}{'schedule':>10}{'float32':>10}{'torch':>10}")
    for each in CASES:
        cells = [
            max(difference(each, torch.float64, seed=seed, device=device) for seed in SEEDS),
            max(difference(each, torch.float64, scheduled=True, seed=seed, device=device) for seed in SEEDS),
            difference(each, torch.float32, device=device),
            difference(each, torch.float32, ours=False, device=device),
        ]
        print(f"{each!s:<88}" + "".join(f"{cell:10.1e}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
