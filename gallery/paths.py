"""Paths: sessions of one family, stepped by the functions that the server steps them with, and recorded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermosis_server.dynamics import (
    MATRIX_BUFFERS,
    SCALARS,
    Hamiltonian,
    PhaseState,
    RowMap,
    advance_,
    initial_scalars,
    publish_,
    spans_of,
    update_,
)
from hermosis_server.records import EnergySample

Array = NDArray[np.float64]
# (step, positions (S, P)) to losses (S,) and gradients (S, P).
Problem = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Paths:
    """S sessions of P parameters over N steps.

    Attributes:
      position: (N+1, S, P) w, the start included.
      momentum: (N+1, S, P) X.
      scalars:  (N+1, S, n) in the order of SCALARS.
      samples:  (N, S, n) in the order of EnergySample.
      loss:     (N, S) where each step's gradient was taken.
    """

    position: Array
    momentum: Array
    scalars: Array
    samples: Array
    loss: Array

    def scalar(self, name: str) -> Array:
        """(N+1, S) one of SCALARS."""
        values: Array = self.scalars[:, :, SCALARS.index(name)]
        return values

    def sample(self, name: str) -> Array:
        """(N, S) one field of EnergySample."""
        values: Array = self.samples[:, :, EnergySample._fields.index(name)]
        return values


def follow(
    hamiltonians: Hamiltonian | Sequence[Hamiltonian],
    problem: Problem,
    start: Array | Sequence[Sequence[float]],
    steps: int,
    *,
    momentum: Array | Sequence[Sequence[float]] | None = None,
    ends: bool = False,
    column: bool = False,
) -> Paths:
    """Steps sessions from `start`, (S, P), in float64.

    Args:
      hamiltonians: one for each session, of one family; or one for all.
      momentum:     X at the start, zero unless given; not for conformal sessions, which are half cooled there.
      ends:         records the ends of steps, where w and X belong to one moment, in place of the published points.
      column:       takes the P parameters for a matrix of one column, which has a Kronecker metric, and not a vector.
    """
    position = torch.tensor(np.asarray(start, dtype=np.float64))
    sessions, elements = position.shape
    each = [hamiltonians] * sessions if isinstance(hamiltonians, Hamiltonian) else list(hamiltonians)
    distinct = {id(one): one for one in each}.values()
    shape = (elements, 1) if column else (elements,)
    families = [one.family([shape]) for one in distinct]
    family = families[0]
    assert all(other == family for other in families), "sessions in one batch have one family"
    spans = spans_of([elements], by_tensor=family.by_tensor)
    rows = RowMap([spans] * sessions, elements)
    numbers = {id(one): (one.numbers(), initial_scalars(one)) for one in distinct}
    coefficients = torch.tensor([numbers[id(one)][0] for one in each], dtype=torch.float64)
    buffers = {
        kind: torch.zeros(sessions, sum(layout) if kind in MATRIX_BUFFERS else elements, dtype=torch.float64)
        for kind, layout in family.buffers(spans, holds_parameters=True).items()
    }
    scalars = torch.tensor([numbers[id(one)][1] for one in each], dtype=torch.float64)
    state = PhaseState.from_buffers(buffers, scalars)
    assert state.position is not None
    state.position.copy_(position)
    if momentum is not None:
        state.momentum.copy_(torch.tensor(np.asarray(momentum, dtype=np.float64)))
    lr_scale = torch.ones(sessions, dtype=torch.float64)

    record: list[tuple[Array, Array, Array]] = []
    samples, losses = [], []

    def note() -> None:
        assert state.position is not None
        record.append((state.position.numpy().copy(), state.momentum.numpy().copy(), state.scalars.numpy().copy()))

    note()
    if momentum is not None:
        publish_(state, family=family, coefficients=coefficients, lr_scale=lr_scale, rows=rows)
    for step in range(steps):
        loss, gradient = problem(step, state.position)
        act = update_ if ends else advance_
        advance = act(
            state, gradient, loss, family=family, coefficients=coefficients, lr_scale=lr_scale, rows=rows
        )  # fmt: skip
        samples.append(advance.sample.numpy())
        losses.append(loss.numpy())
        note()
        if ends:
            publish_(state, family=family, coefficients=coefficients, lr_scale=lr_scale, rows=rows)
    positions, momenta, numbers_of = (np.stack(column) for column in zip(*record, strict=True))
    return Paths(positions, momenta, numbers_of, np.stack(samples), np.stack(losses))
