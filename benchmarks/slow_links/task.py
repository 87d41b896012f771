"""The task: handwritten digits and a network of 50,826 parameters, so that a gradient is a fifth of a megabyte.

The same first weights and the same minibatches everywhere; each worker sees its share of every minibatch.
"""

from collections.abc import Iterator
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

MINIBATCH = 256  # of all workers together
LR = 4e-3
SEED = 0


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images (N, 64) with ink between 0 and 1, and what they show."""
    table = load_digits()
    return torch.tensor(table.data / 16, dtype=torch.float32), torch.tensor(table.target)


def network() -> nn.Sequential:
    """64-256-128-10, with GELU: at a kink, the rounding of a last bit sends two trainings different ways."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))


def shares(place: int, workers: int, begin: int = 0) -> Iterator[Tensor]:
    """One worker's part of each minibatch, without end.

    Args:
      place: of the worker, from 0.
      begin: the first minibatch; a worker that joins late goes on where the others are.
    """
    for number in range(begin, 1 << 30):
        generator = torch.Generator().manual_seed(SEED + number)
        yield torch.randint(len(digits()[0]), (MINIBATCH,), generator=generator)[place::workers]


def loss_of(model: nn.Module, chosen: Tensor) -> Tensor:
    """Mean cross-entropy over the chosen images."""
    images, shown = digits()
    return cross_entropy(model(images[chosen]), shown[chosen])


@torch.no_grad()
def measured(model: nn.Module) -> float:
    """Mean cross-entropy over all images, which is what a run is judged by."""
    return float(loss_of(model, torch.arange(len(digits()[0]))))


def alone(steps: int) -> float:
    """What one process comes to with torch.optim.AdamW and the whole minibatch."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for _, chosen in zip(range(steps), shares(0, 1), strict=False):
        optimizer.zero_grad()
        loss_of(model, chosen).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return measured(model)
