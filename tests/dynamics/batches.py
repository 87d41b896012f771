"""Batches of sessions for tests: states from a seed, sliced and stepped."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hermosis_server.dynamics import (
    MATRIX_BUFFERS,
    RECIPES,
    SCALARS,
    Advance,
    Constant,
    Diagonal,
    Exponential,
    Family,
    Force,
    ForceMode,
    Full,
    Hamiltonian,
    Kronecker,
    Linear,
    MetricPlace,
    NormKind,
    NormScope,
    PhaseState,
    Polynomial,
    Power,
    Quartic,
    Relativistic,
    RowMap,
    Scheme,
    Tabulated,
    Term,
    Truncated,
    VelocityRegularised,
    WeightDecay,
    advance_,
    initial_scalars,
    publish_,
    resolve,
    spans_of,
)
from hermosis_server.records import EnergySample

Shapes = Sequence[tuple[int, ...]]


@dataclass
class Batch:
    """Sessions of one family in rows of `row_elements`."""

    hamiltonians: list[Hamiltonian]
    family: Family
    state: PhaseState
    coefficients: Tensor
    rows: RowMap

    def rows_of(self, vectors: Sequence[Tensor]) -> Tensor:
        """Flat vectors, one a session, laid into zero-padded rows."""
        rows = torch.zeros_like(self.state.momentum)
        for vector, places, spans in zip(vectors, self.rows.pieces(rows), self.rows.spans, strict=True):
            for place, part in zip(places, vector.split(list(spans)), strict=True):
                place.copy_(part)
        return rows

    def vectors_of(self, rows: Tensor) -> list[Tensor]:
        """The inverse of rows_of."""
        return [torch.cat(places) for places in self.rows.pieces(rows)]

    def position(self, session: int = 0) -> Tensor:
        """(P,) what one session publishes."""
        assert self.state.position is not None
        return self.vectors_of(self.state.position)[session]

    def scalar(self, name: str, session: int = 0) -> float:
        return float(self.state.scalars[session, SCALARS.index(name)])

    def step(
        self,
        gradient: Tensor,
        loss: Sequence[float] | None = None,
        lr_scale: Sequence[float] | None = None,
        *,
        act: Callable[..., Advance] = advance_,
    ) -> Advance:
        """One act of a step; `update_` in place of `advance_` leaves out publishing."""

        def numbers(values: Sequence[float] | None, default: float) -> Tensor:
            values = [default] * len(self.hamiltonians) if values is None else list(values)
            return torch.tensor(values, dtype=torch.float64, device=gradient.device)

        return act(
            self.state,
            gradient,
            numbers(loss, math.nan),
            family=self.family,
            coefficients=self.coefficients,
            lr_scale=numbers(lr_scale, 1.0),
            rows=self.rows,
        )

    def publish(self, lr_scale: float = 1.0) -> Tensor:
        scales = torch.full_like(self.state.scalars[:, 0], lr_scale)
        return publish_(self.state, family=self.family, coefficients=self.coefficients, lr_scale=scales, rows=self.rows)


def batch_of(
    hamiltonians: Hamiltonian | list[Hamiltonian],
    positions: Sequence[Tensor],
    *,
    row_elements: int = 64,
    on_worker: bool = False,
    shapes: Shapes | None = None,
) -> Batch:
    """Fresh sessions at the given flat positions; each is one vector unless `shapes`, which all of them have."""
    if isinstance(hamiltonians, Hamiltonian):
        hamiltonians = [hamiltonians] * len(positions)
    device, dtype = positions[0].device, positions[0].dtype
    each_shapes = [shapes or [(position.numel(),)] for position in positions]
    family = hamiltonians[0].family(each_shapes[0])
    assert all(
        hamiltonian.family(shapes) == family for hamiltonian, shapes in zip(hamiltonians, each_shapes, strict=True)
    )
    spans = [spans_of([math.prod(shape) for shape in shapes], by_tensor=family.by_tensor) for shapes in each_shapes]

    def table(rows: list[Sequence[float]]) -> Tensor:
        return torch.tensor([list(row) for row in rows], dtype=torch.float64, device=device)

    rows = RowMap(spans, row_elements, device)
    buffers = {
        kind: torch.zeros(len(spans), sum(layout), dtype=dtype, device=device)
        if kind in MATRIX_BUFFERS
        else torch.zeros(sum(rows.row_counts), row_elements, dtype=dtype, device=device)
        for kind, layout in family.buffers(spans[0], holds_parameters=not on_worker).items()
    }
    batch = Batch(
        hamiltonians=hamiltonians,
        family=family,
        state=PhaseState.from_buffers(buffers, table([initial_scalars(each) for each in hamiltonians])),
        coefficients=table([each.numbers() for each in hamiltonians]),
        rows=rows,
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
    """One Hamiltonian of every structure that the step can take, by name; none keeps matrices."""
    members = {name: resolve(name, {}) for name in RECIPES if name != "hermosis"}
    return members | {
        "hermosis euclidean": resolve("hermosis", {"metric": "euclidean"}),
        "hermosis diagonal": resolve("hermosis", {"metric": "diagonal"}),
        "sgd nesterov": resolve("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        "dampened": resolve("sgd", {"momentum": 0.9, "dampening": 0.5}),
        "rmsprop centered": resolve("rmsprop", {"momentum": 0.9, "centered": True}),
        "rgd euler": resolve("rgd", {"form": "euler"}),
        "rgd nesterov": resolve("rgd", {"alpha": 0.0, "delta": 3.0}),
        "vradam tensor": resolve("vradam", {"norm": "tensor", "weight_decay": 0.1}),
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
        "adagrad on the kick": Hamiltonian(
            learning_rate=0.01,
            thermal=Exponential(momentum_retention=0.0),
            metric=Diagonal(second_moment_decay=1.0, second_moment_gain=1.0, power=1.0, place=MetricPlace.KICK),
        ),
        "linear leapfrog": Hamiltonian(
            learning_rate=0.05,
            thermal=Linear(growth=0.2),
            integrator=Scheme.LEAPFROG,
            weight_decay=WeightDecay(bare=0.1),
        ),
        "power by coordinate": Hamiltonian(
            learning_rate=0.05,
            thermal=Power(exponent=2.5, age=3.0),
            force=Force(mode=ForceMode.PHYSICAL),
            kinetic=Truncated(speed_limit=0.7),
            norm_scope=NormScope.COORDINATE,
            integrator=Scheme.CONFORMAL,
            kept_drift=0.3,
            weight_decay=WeightDecay(decoupled=0.2, thermal=0.1, follows_speed=True),
        ),
        "tabulated by tensor": Hamiltonian(
            learning_rate=0.05,
            thermal=Tabulated(knots=((0.0, 1.0), (1.5, 2.0), (3.25, 2.0), (4.0, 5.0))),
            force=Force(mode=ForceMode.PHYSICAL),
            kinetic=Quartic(stiffness=2.0),
            norm_scope=NormScope.TENSOR,
            metric=Diagonal(normalise=True),
            normalise=True,
            integrator=Scheme.LEAPFROG,
        ),
        "feedback": Hamiltonian(
            learning_rate=0.05,
            thermal=FEEDBACK,
            force=Force(mode=ForceMode.PHYSICAL),
            weight_decay=WeightDecay(thermal=0.1),
        ),
        "feedback conformal by coordinate": Hamiltonian(
            learning_rate=0.05,
            thermal=FEEDBACK,
            force=Force(mode=ForceMode.PHYSICAL),
            kinetic=VelocityRegularised(stiffness=0.5, cap=3.0),
            norm_scope=NormScope.COORDINATE,
            norm_kind=NormKind.EUCLIDEAN,
            metric=Diagonal(),
            integrator=Scheme.CONFORMAL,
        ),
        "lookahead by coordinate": Hamiltonian(
            learning_rate=0.05,
            kinetic=Relativistic(speed_limit=0.5, rest_cooling=0.3),
            norm_scope=NormScope.COORDINATE,
            metric=Diagonal(normalise=True),
            lookahead=True,
        ),
    }


# It cools faster while U is below zero, while the loss outweighs the kinetic energy; weak enough for large sessions.
FEEDBACK = Polynomial(
    terms=(
        Term(coefficient=4.0, internal_energy_power=1, beta_power=1),
        Term(coefficient=-1e-4, internal_energy_power=2),
    )
)
SHAPES = ((3, 4), (5,), (), (2, 2, 3), (0, 2), (70,))


def matrix_roster() -> dict[str, Hamiltonian]:
    """One Hamiltonian of every structure that keeps matrices; for sessions of one shape."""
    return {
        "cgd full": resolve("cgd", {"metric": "full"}),
        "hermosis kronecker": resolve("hermosis", {"eps": 0.1, "refresh_steps": 2}),
        "full by tensor, conformal": Hamiltonian(
            learning_rate=0.02,
            kinetic=Relativistic(max_step=0.1),
            norm_scope=NormScope.TENSOR,
            metric=Full(by_tensor=True, normalise=True, epsilon=0.1, refresh_steps=3),
            normalise=True,
            integrator=Scheme.CONFORMAL,
            kept_drift=0.5,
        ),
        "kronecker": Hamiltonian(
            learning_rate=0.02,
            metric=Kronecker(normalise=True, epsilon=0.1, second_moment_decay=0.9, refresh_steps=2),
            normalise=True,
            weight_decay=WeightDecay(decoupled=0.1),
        ),
        "kronecker on the kick": Hamiltonian(
            learning_rate=0.02,
            thermal=Exponential(momentum_retention=0.8),
            kinetic=Relativistic(speed_limit=2.0),
            norm_scope=NormScope.TENSOR,
            metric=Kronecker(epsilon=1e-2, epsilon_inside=True, place=MetricPlace.KICK, max_side=4),
            integrator=Scheme.LEAPFROG,
        ),
    }
