"""Tasks of the race: small trainings on real data that comes with the installed packages.

The data never depends on the seed; the seed draws the first parameters and the minibatches. Two contestants with one
seed therefore start at the same point and meet the same minibatches. Weight decay and dropout are nowhere: what is
raced is the training objective, and what is measured is that objective on a fixed set, not smoothed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, pairwise
from pydoc_data.topics import topics

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    gelu,
    mse_loss,
    scaled_dot_product_attention,
)

CONTEXT = 32  # characters that the language model sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A model at its first parameters with the losses to train it on."""

    model: nn.Module
    losses: Iterator[Tensor]  # the next minibatch's loss at the current parameters, without end
    measured: Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A training to race on."""

    name: str
    title: str
    measured: str
    start: Callable[[int], Problem]  # from a seed


class DigitsCnn(nn.Sequential):
    """Two convolutions on 8x8 images and a linear head."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 10),
        )


class CharacterModel(nn.Module):
    """One transformer block over a window of characters; predicts the next one at every place."""

    def __init__(self, characters: int, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Embedding(CONTEXT, width)
        self.attention_norm, self.hidden_norm, self.head_norm = (nn.LayerNorm(width) for _ in range(3))
        self.mixed = nn.Linear(width, 3 * width)
        self.gathered = nn.Linear(width, width)
        self.hidden = nn.Linear(width, 4 * width)
        self.narrowed = nn.Linear(4 * width, width)
        self.head = nn.Linear(width, characters)

    def forward(self, window: Tensor) -> Tensor:
        x = self.characters(window) + self.places.weight
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.mixed(self.attention_norm(x)).chunk(3, dim=-1)
        )
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.gathered(seen.transpose(1, 2).flatten(2))
        x = x + self.narrowed(gelu(self.hidden(self.hidden_norm(x))))
        logits: Tensor = self.head(self.head_norm(x))
        return logits.transpose(1, 2)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images, grey values in [0, 1], and what they show."""
    table = load_digits()
    return torch.tensor(table.data / 16, dtype=torch.float32), torch.tensor(table.target)


@cache
def breast_cancer() -> tuple[Tensor, Tensor]:
    """569 x 30 raw columns, whose root mean squares span a factor of 2e5; that of the whole table is brought to 3."""
    table = load_breast_cancer()
    columns = torch.tensor(table.data)
    return (3 * columns / columns.square().mean().sqrt()).float(), torch.tensor(table.target, dtype=torch.float32)


@cache
def text() -> tuple[Tensor, int]:
    """The texts of Python's own help as character numbers, and how many characters there are."""
    whole = "".join(topics[name] for name in sorted(topics))
    number = {character: index for index, character in enumerate(sorted(set(whole)))}
    return torch.tensor([number[character] for character in whole]), len(number)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model whose first parameters depend on the seed alone; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def minibatches(of: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices drawn with replacement, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(of, (size,), generator=generator)


def on_digits(
    build: Callable[[], nn.Module], loss: Callable[[nn.Module, Tensor], Tensor], *, size: int, measured: int
) -> Callable[[int], Problem]:
    """A training on minibatches of digits, measured on the first few of them."""

    def start(seed: int) -> Problem:
        model = seeded(build, seed)
        chosen = minibatches(len(digits()[0]), size, seed)
        fixed = torch.arange(measured)
        return Problem(model=model, losses=(loss(model, each) for each in chosen), measured=lambda: loss(model, fixed))

    return start


def classified(model: nn.Module, chosen: Tensor) -> Tensor:
    images, shown = digits()
    return cross_entropy(model(images[chosen]), shown[chosen])


def restored(model: nn.Module, chosen: Tensor) -> Tensor:
    images = digits()[0][chosen]
    return mse_loss(model(images), images, reduction="sum") / len(chosen)


def chain(*widths: int, between: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers with something between them."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        layers += [nn.Linear(wide, narrow), between()]
    return nn.Sequential(*layers[:-1])


def start_logistic(seed: int) -> Problem:
    columns, malignant = breast_cancer()
    model = seeded(lambda: nn.Linear(columns.shape[1], 1), seed)

    def loss() -> Tensor:
        return binary_cross_entropy_with_logits(model(columns).squeeze(1), malignant)

    return Problem(model=model, losses=(loss() for _ in count()), measured=loss)


def start_characters(seed: int) -> Problem:
    sequence, characters = text()
    model = seeded(lambda: CharacterModel(characters), seed)
    places = len(sequence) - CONTEXT
    steps_on = torch.arange(CONTEXT + 1)

    def loss(first: Tensor) -> Tensor:
        windows = sequence[first[:, None] + steps_on]
        return cross_entropy(model(windows[:, :-1]), windows[:, 1:])

    fixed = torch.linspace(0, places - 1, 48).long()
    return Problem(
        model=model,
        losses=(loss(first) for first in minibatches(places, 16, seed)),
        measured=lambda: loss(fixed),
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            name="digits-mlp",
            title="Digits, MLP 64-64-64-10, minibatches of 64",
            measured="cross entropy on all 1797 training images",
            start=on_digits(lambda: chain(64, 64, 64, 10, between=nn.ReLU), classified, size=64, measured=1797),
        ),
        Task(
            name="digits-cnn",
            title="Digits, two convolutions, minibatches of 64",
            measured="cross entropy on the first 600 training images",
            start=on_digits(DigitsCnn, classified, size=64, measured=600),
        ),
        Task(
            name="logistic",
            title="Breast cancer, logistic regression on raw columns, full batch",
            measured="the objective itself: cross entropy on all 569 rows",
            start=start_logistic,
        ),
        Task(
            name="characters",
            title="Python's help texts, transformer of one block, minibatches of 16 windows",
            measured=f"cross entropy a character, nats, on 48 windows of {CONTEXT} characters spread over the text",
            start=start_characters,
        ),
        Task(
            name="autoencoder",
            title="Digits, autoencoder 64-96-32-8-32-96-64, minibatches of 128",
            measured="squared error an image (64 grey values in [0, 1]) on the first 1000 training images",
            start=on_digits(
                lambda: chain(64, 96, 32, 8, 32, 96, 64, between=nn.Tanh), restored, size=128, measured=1000
            ),
        ),
    )
}
