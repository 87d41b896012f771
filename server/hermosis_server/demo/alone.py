"""The same training in this one process, to compare with."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hermosis_server.demo import digits
from hermosis_server.dynamics.local import Hermosis


def train_alone(recipe: str, settings: Mapping[str, Any], epochs: int) -> NDArray[np.float32]:
    """The weights (P,) after the same minibatches, each seen whole, with the same recipe."""
    torch.set_num_threads(1)
    training, _ = digits.load()
    model = digits.network()
    optimizer = Hermosis(model.named_parameters(), recipe, **settings)
    for minibatch in digits.minibatches(len(training), epochs):
        optimizer.zero_grad()
        loss = digits.loss_of(model, training, minibatch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(loss=loss.detach())
    return digits.flat_parameters(model).numpy()
