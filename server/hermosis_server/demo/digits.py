"""What is learned: handwritten digits, a small network, and the order in which images are seen.

Everything follows from a seed, so that separate processes agree without talking to each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SEED = 0
SIDE = 8
CLASSES = 10
HIDDEN = 128
MINIBATCH = 128
# Each training image is also shown one pixel further right, left, down and up.
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (N, 64) with ink between 0 and 1, and what they show (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load() -> tuple[Digits, Digits]:
    """Training and test images: 80 and 20 % of the 1797 that come with scikit-learn, each digit in proportion."""
    from sklearn.datasets import load_digits  # a second and more, which workers do without
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        torch.as_tensor(images, dtype=torch.float32) / 16,
        torch.as_tensor(labels),
        test_size=0.2,
        stratify=labels,
        random_state=SEED,
    )
    return Digits(shifted(parts[0]), parts[2].repeat(len(SHIFTS))), Digits(parts[1], parts[3])


def write(digits: Digits, path: Path) -> None:
    """Keeps them in a file, for `read`."""
    np.savez(path, images=digits.images.numpy(), labels=digits.labels.numpy())


def read(path: Path) -> Digits:
    """What `write` has kept."""
    with np.load(path) as arrays:
        return Digits(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))


def shifted(images: Tensor) -> Tensor:
    """The images once for each of SHIFTS, with white where paper comes in: (N, 64) to (5 N, 64)."""
    framed = nn.functional.pad(images.view(-1, SIDE, SIDE), (1, 1, 1, 1))
    pages = [framed[:, 1 + down : 1 + down + SIDE, 1 + right : 1 + right + SIDE] for down, right in SHIFTS]
    return torch.cat(pages).reshape(-1, SIDE * SIDE)


def network() -> nn.Sequential:
    """64-128-10, 9610 parameters; the same first weights in every process.

    GELU and not ReLU: at a kink, the rounding of a last bit sends two trainings different ways.
    """
    generator_state = torch.get_rng_state()
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(SIDE * SIDE, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, CLASSES))
    torch.set_rng_state(generator_state)
    return model


def steps_per_epoch(images: int) -> int:
    return max(1, images // MINIBATCH)


def minibatches(images: int, epochs: int) -> Iterator[Tensor]:
    """Indices of each minibatch, all images once an epoch in a new order; sizes differ by at most one."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        yield from torch.randperm(images, generator=generator).tensor_split(steps_per_epoch(images))


def loss_of(model: nn.Module, digits: Digits, chosen: Tensor) -> Tensor:
    """Mean cross-entropy over the chosen images."""
    return nn.functional.cross_entropy(model(digits.images[chosen]), digits.labels[chosen])


@torch.no_grad()
def accuracy(model: nn.Module, digits: Digits) -> float:
    """The part of the images that the model reads right."""
    return float((model(digits.images).argmax(1) == digits.labels).double().mean())


def flat_parameters(model: nn.Module) -> Tensor:
    """All weights as one vector, in the order of the session's layout."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def accuracy_with(model: nn.Module, weights: NDArray[np.float32], digits: Digits) -> float:
    """The accuracy of the model with these weights (P,), which it keeps."""
    nn.utils.vector_to_parameters(torch.from_numpy(weights), model.parameters())
    return accuracy(model, digits)
