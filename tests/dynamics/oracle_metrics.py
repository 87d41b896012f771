"""Metrics of the oracle: what the gradients have taught, and the inverse metric G of it (docs/theory.md, section 5)."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Diagonal:
    """G = 1/(v̂^a + ε); q2 = None is 1 - ρ₂."""

    rho2: float = 0.999
    q2: float | None = None
    eps: float = 1e-8
    power: float = 0.5
    eps_inside: bool = False
    centered: bool = False
    normalise: bool = True


@dataclass(frozen=True, kw_only=True)
class Full:
    """G = Q diag(1/(λ^a + ε)) Qᵀ of the covariance of the session, or of each tensor."""

    scope: Literal["session", "tensor"] = "session"
    rho2: float = 0.999
    q2: float | None = None
    eps: float = 1e-8
    power: float = 0.5
    eps_inside: bool = False
    normalise: bool = True
    refresh: int = 1


@dataclass(frozen=True, kw_only=True)
class Kronecker:
    """G from the covariances of a tensor's rows and columns; a vector or too long a side falls to Diagonal."""

    rho2: float = 0.999
    q2: float | None = None
    eps: float = 1e-8
    power: float = 0.5
    eps_inside: bool = False
    normalise: bool = True
    refresh: int = 1
    max_side: int = 1024


Metric = Diagonal | Full | Kronecker


def inverse_power(m: Matrix, metric: Metric, guard: bool) -> Matrix:
    """1/(m^a + ε) or (m + ε)^{-a}, with an ε that eigenvalues of finite precision can bear."""
    top = float(m.max(initial=0.0))
    if metric.eps_inside:
        eps = max(metric.eps, 1e-12 * top) if guard else metric.eps
        return (m + eps) ** -metric.power
    eps = max(metric.eps, math.pow(1e-12 * top, metric.power)) if guard else metric.eps
    return 1 / (m**metric.power + eps)


class Learner:
    """M ← ρ₂M + q₂·sample for each moment, and D ← ρ₂D + q₂."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.q2 = 1 - metric.rho2 if metric.q2 is None else metric.q2
        self.moments: dict[str, Matrix] = {}
        self.weight = 0.0

    def average(self, **samples: Matrix) -> None:
        for name, sample in samples.items():
            self.moments[name] = self.metric.rho2 * self.moments[name] + self.q2 * sample
        self.weight = self.metric.rho2 * self.weight + self.q2

    def mean(self, name: str) -> Matrix:
        return self.moments[name] / self.weight if self.metric.normalise else self.moments[name]


class DiagonalMemory(Learner):
    def __init__(self, metric: Diagonal | Kronecker, size: int) -> None:
        super().__init__(metric)
        self.centered = isinstance(metric, Diagonal) and metric.centered
        self.moments = {"square": np.zeros(size)} | ({"mean": np.zeros(size)} if self.centered else {})

    def learn(self, g: Vector, n: int) -> None:
        self.average(square=g**2, **({"mean": g} if self.centered else {}))

    def apply(self, x: Vector) -> Vector:
        v = self.mean("square")
        if self.centered:
            v = np.maximum(v - self.mean("mean") ** 2, 0.0)
        return inverse_power(v, self.metric, guard=False) * x


class FullMemory(Learner):
    def __init__(self, metric: Full, size: int) -> None:
        super().__init__(metric)
        self.refresh = metric.refresh
        self.moments = {"covariance": np.zeros((size, size))}
        self.inverse = np.eye(size)

    def learn(self, g: Vector, n: int) -> None:
        self.average(covariance=np.outer(g, g))
        if n < self.refresh or n % self.refresh == 0:
            values, q = np.linalg.eigh(self.mean("covariance"))
            self.inverse = q @ np.diag(inverse_power(np.maximum(values, 0.0), self.metric, guard=True)) @ q.T

    def apply(self, x: Vector) -> Vector:
        return self.inverse @ x


class KroneckerMemory(Learner):
    def __init__(self, metric: Kronecker, rows: int, columns: int) -> None:
        super().__init__(metric)
        self.refresh = metric.refresh
        self.shape = (rows, columns)
        self.moments = {"left": np.zeros((rows, rows)), "right": np.zeros((columns, columns))}
        self.left, self.right = np.eye(rows), np.eye(columns)
        self.factors = np.ones(self.shape)

    def learn(self, g: Vector, n: int) -> None:
        matrix = g.reshape(self.shape)
        self.average(left=matrix @ matrix.T, right=matrix.T @ matrix)
        if n < self.refresh or n % self.refresh == 0:
            left, self.left = np.linalg.eigh(self.mean("left"))
            right, self.right = np.linalg.eigh(self.mean("right"))
            trace = float(np.trace(self.mean("left")))
            product = np.outer(np.maximum(left, 0.0), np.maximum(right, 0.0))
            self.factors = inverse_power(product / trace if trace > 0 else product, self.metric, guard=True)

    def apply(self, x: Vector) -> Vector:
        inside = self.left.T @ x.reshape(self.shape) @ self.right
        return (self.left @ (inside * self.factors) @ self.right.T).ravel()


class MetricMemory:
    """G of the whole session, block by block; before its first gradient it is the identity."""

    def __init__(self, metric: Metric | None, shapes: list[tuple[int, ...]]) -> None:
        sizes = [math.prod(shape) for shape in shapes]
        ends = np.cumsum(sizes).tolist()
        self.slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.blocks: list[DiagonalMemory | FullMemory | KroneckerMemory] = []
        self.taught = False
        match metric:
            case Diagonal():
                self.blocks = [DiagonalMemory(metric, size) for size in sizes]
            case Full(scope="session"):
                self.slices = [slice(0, sum(sizes))]
                self.blocks = [FullMemory(metric, sum(sizes))]
            case Full():
                self.blocks = [FullMemory(metric, size) for size in sizes]
            case Kronecker():
                self.blocks = [kronecker_block(metric, shape) for shape in shapes]

    def learn(self, g: Vector, n: int) -> None:
        for block, where in zip(self.blocks, self.slices, strict=False):
            block.learn(g[where], n)
        self.taught = True

    def apply(self, x: Vector) -> Vector:
        if not (self.blocks and self.taught):
            return x
        return np.concatenate([block.apply(x[where]) for block, where in zip(self.blocks, self.slices, strict=True)])


def kronecker_block(metric: Kronecker, shape: tuple[int, ...]) -> KroneckerMemory | DiagonalMemory:
    size = math.prod(shape)
    if len(shape) < 2 or size == 0:
        return DiagonalMemory(metric, size)
    rows, columns = shape[0], size // shape[0]
    if max(rows, columns) > metric.max_side:
        return DiagonalMemory(metric, size)
    return KroneckerMemory(metric, rows, columns)
