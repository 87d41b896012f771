"""Batches of sessions for tests: states from a seed, sliced and stepped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hermosis_server.dynamics import (
    RECIPES,
    Advance,
    Constant,
    Diagonal,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    MetricPlace,
    PhaseState,
    Relativistic,
    RowMap,
    WeightDecay,
    advance_,
    initial_scalars,
    resolve,
)
from hermosis_server.records import EnergySample, StateBuffer


@dataclass
class Batch:
    """Sessions of one family in rows of `row_elements`."""

    hamiltonians: list[Hamiltonian]
    sizes: list[int]
    row_elements: int
    state: PhaseState
    coefficients: Tensor
    rows: RowMap

    @property
    def row_counts(self) -> list[int]:
        return [-(-size // self.row_elements) for size in self.sizes]

    def rows_of(self, vectors: Sequence[Tensor]) -> Tensor:
        """Flat vectors, one a session, laid into zero-padded rows."""
        like = self.state.momentum
        flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        offset = 0
        for vector, count in zip(vectors, self.row_counts, strict=True):
            flat[offset : offset + vector.numel()] = vector
            offset += count * self.row_elements
        return flat.view(-1, self.row_elements)

    def vectors_of(self, rows: Tensor) -> list[Tensor]:
        """The inverse of rows_of."""
        pieces = torch.split(rows, self.row_counts)
        return [piece.reshape(-1)[:size] for piece, size in zip(pieces, self.sizes, strict=True)]

    def step(
        self, gradient: Tensor, loss: Sequence[float] | None = None, lr_scale: Sequence[float] | None = None
    ) -> Advance:
        def numbers(values: Sequence[float] | None, default: float) -> Tensor:
            values = [default] * len(self.sizes) if values is None else list(values)
            return torch.tensor(values, dtype=torch.float64, device=gradient.device)

        return advance_(
            self.state,
            gradient,
            numbers(loss, math.nan),
            family=self.hamiltonians[0].family,
            coefficients=self.coefficients,
            lr_scale=numbers(lr_scale, 1.0),
            rows=self.rows,
        )


def batch_of(
    hamiltonians: Hamiltonian | list[Hamiltonian],
    positions: Sequence[Tensor],
    *,
    row_elements: int = 64,
    on_worker: bool = False,
) -> Batch:
    """Fresh sessions at the given flat positions."""
    if isinstance(hamiltonians, Hamiltonian):
        hamiltonians = [hamiltonians] * len(positions)
    sizes = [position.numel() for position in positions]
    row_counts = [-(-size // row_elements) for size in sizes]
    device, dtype = positions[0].device, positions[0].dtype
    family = hamiltonians[0].family
    assert all(hamiltonian.family == family for hamiltonian in hamiltonians)

    def table(rows: list[Sequence[float]]) -> Tensor:
        return torch.tensor([list(row) for row in rows], dtype=torch.float64, device=device)

    kinds = [*family.buffers, *([] if on_worker else [StateBuffer.PARAMETERS])]
    buffers = {kind: torch.zeros(sum(row_counts), row_elements, dtype=dtype, device=device) for kind in kinds}
    batch = Batch(
        hamiltonians=hamiltonians,
        sizes=sizes,
        row_elements=row_elements,
        state=PhaseState.from_buffers(buffers, table([initial_scalars(each) for each in hamiltonians])),
        coefficients=table([each.coefficients() for each in hamiltonians]),
        rows=RowMap(row_counts, sizes, device),
    )
    if batch.state.position is not None:
        batch.state.position.copy_(batch.rows_of(positions))
    return batch


def sample_of(advance: Advance, session: int = 0) -> EnergySample:
    return EnergySample(*advance.sample[session].tolist())


def draw(seed: int, *sizes: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Random flat vectors, the same for every dtype and device."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=source).to(device, dtype) for size in sizes]


def roster() -> dict[str, Hamiltonian]:
    """One Hamiltonian of every structure that the step can take, by name."""
    members = {name: resolve(name, {}) for name in RECIPES}
    return members | {
        "nesterov": resolve("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        "dampened": resolve("sgd", {"momentum": 0.9, "dampening": 0.5}),
        "rmsprop centered": resolve("rmsprop", {"momentum": 0.9, "centered": True}),
        "cooling limit": Hamiltonian(
            learning_rate=0.1,
            initial_beta=2.0,
            kinetic=Relativistic(speed_limit=0.5, rest_cooling=0.5, rest_energy=1.0),
            weight_decay=WeightDecay(decoupled=0.1, follows_speed=True),
        ),
        "constant": Hamiltonian(
            learning_rate=0.01,
            thermal=Constant(),
            force=Force(mode=ForceMode.PHYSICAL),
            weight_decay=WeightDecay(bare=0.1),
        ),
        "relativistic adam": Hamiltonian(
            learning_rate=0.01,
            thermal=Exponential(cooling_rate=0.3),
            kinetic=Relativistic(max_step=0.1),
            metric=Diagonal(normalise=True, centered=True, epsilon_inside=True, power=0.375),
            normalise=True,
            lookahead=True,
            first_kick=1.0,
        ),
        "adagrad": Hamiltonian(
            learning_rate=0.01,
            thermal=Exponential(momentum_retention=0.0),
            metric=Diagonal(second_moment_decay=1.0, second_moment_gain=1.0, power=1.0, place=MetricPlace.KICK),
        ),
    }
