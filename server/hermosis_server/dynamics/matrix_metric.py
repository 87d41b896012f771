r"""Matrix metrics: full and Kronecker. A full metric is a Kronecker one of a matrix with a single column.

For a tensor seen as an m × n matrix G of gradients,

.. math::
    L \leftarrow \rho_2 L + q_2\,G G^T, \qquad R \leftarrow \rho_2 R + q_2\,G^T G, \qquad
    X \mapsto Q_L\Bigl[(Q_L^T X Q_R) \circ \frac{1}{(\lambda_i\mu_j/\operatorname{tr}\hat L)^a + \varepsilon}\Bigr]Q_R^T

with :math:`L/D = Q_L\lambda Q_L^T` and :math:`R/D = Q_R\mu Q_R^T`. That is the full second moment to the power -a
exactly, where the latter is a Kronecker product. With n = 1, R is the trace of L and drops out: the full metric.

Everything between two roundings to the dtype of the rows is float64. Each matrix is worked on by itself, because the
bits of a batched product or decomposition depend on the batch. Unlike the other flows this one looks at numbers from
the host: the step, and whether a covariance is finite.

Source: docs/theory.md, section 5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hermosis_server.dynamics.metric import Block, root_power_
from hermosis_server.dynamics.rows import RowMap

# An eigenvalue carries an error of the order of the largest one times the dtype's rounding, so directions far below the
# largest are noise: epsilon is never less than what an eigenvalue of this part of the largest would give.
RELATIVE_EPSILON = {torch.float64: 1e-12, torch.float32: 1e-6}


def covariance_elements(blocks: Sequence[Block]) -> int:
    """Numbers in the factors of a session; its eigenvectors have as many."""
    return sum(side * side for block in blocks for side in _sides(block))


def eigenvalue_elements(blocks: Sequence[Block]) -> int:
    """Eigenvalues of a session."""
    return sum(side for block in blocks for side in _sides(block))


def _sides(block: Block) -> tuple[int, ...]:
    """The sides that have a factor."""
    if block is None:
        return ()
    return block if block[1] > 1 else block[:1]


@dataclass(frozen=True, slots=True)
class MatrixState:
    """What a matrix metric remembers: (S, N) factors, (S, N) their eigenvectors, (S, M) their eigenvalues."""

    covariance: Tensor
    eigenvectors: Tensor
    eigenvalues: Tensor

    def peaks(self) -> Tensor:
        """(S,) float64, finite exactly where all is."""
        parts = (self.covariance, self.eigenvectors, self.eigenvalues)
        return sum((part.amax(dim=1) + part.amin(dim=1)).to(torch.float64) for part in parts)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class MatrixNumbers:
    """The coefficients of a matrix metric; tensors are (S,) float64."""

    decay: Tensor
    gain: Tensor
    epsilon: Tensor
    unit_moment: Tensor | None  # D, where the moments are divided by it
    power_units: int
    epsilon_inside: bool


def learn_(
    state: MatrixState,
    force: Tensor,
    rows: RowMap,
    blocks: Sequence[Block],
    numbers: MatrixNumbers,
    *,
    renew: Sequence[bool],
) -> None:
    """Averages the gradients' products into the factors, and decomposes them anew where it is time.

    Args:
      state: changed in place; NaN where a factor is not finite or cannot be decomposed.
      force: (R, E) gradients.
      renew: of each session, whether to decompose.
    """
    for session, spans in enumerate(rows.pieces(force)):
        cut = _Cut(state, session)
        for block, span in zip(blocks, spans, strict=True):
            if block is None:
                continue
            gradient = _matrix(span, block)
            for position, side in enumerate(_sides(block)):
                covariance, vectors, values = cut.next(side)
                product = gradient.T @ gradient if position else gradient @ gradient.T
                covariance.copy_(covariance * numbers.decay[session] + product * numbers.gain[session])
                if renew[session]:
                    unit = None if numbers.unit_moment is None else numbers.unit_moment[session]
                    _decompose_(covariance, vectors, values, unit)


def _matrix(elements: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A float64 copy as a matrix: a product's last bits may depend on where its factors lie in memory."""
    return elements.to(torch.float64, copy=True).view(shape)


def _decompose_(covariance: Tensor, vectors: Tensor, values: Tensor, unit_moment: Tensor | None) -> None:
    matrix = covariance.to(torch.float64)
    if unit_moment is not None:
        matrix = matrix / unit_moment
    try:
        # What LAPACK makes of NaN is its own affair: zero in its place, and NaN in what comes out.
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix.nan_to_num(0.0, 0.0, 0.0))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # no convergence
        eigenvalues, eigenvectors = torch.full_like(values, math.nan), torch.full_like(vectors, math.nan)
    vectors.copy_(eigenvectors)
    # One bad element spoils all: the session's step is then refused as not finite.
    values.copy_(eigenvalues.clamp(min=0) + 0 * matrix.sum())


class _Cut:
    """Walks through the factors of one session."""

    def __init__(self, state: MatrixState, session: int) -> None:
        self._state, self._session = state, session
        self._matrix, self._value = 0, 0

    def next(self, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the next factor, its eigenvectors and its eigenvalues."""
        square, line = slice(self._matrix, self._matrix + side * side), slice(self._value, self._value + side)
        self._matrix, self._value = square.stop, line.stop
        return (
            self._state.covariance[self._session, square].view(side, side),
            self._state.eigenvectors[self._session, square].view(side, side),
            self._state.eigenvalues[self._session, line],
        )


@dataclass(frozen=True, slots=True)
class MatrixInverse:
    """G of a matrix metric; `scale` (R, E) is the diagonal metric of tensors that have no matrix, if there are any."""

    state: MatrixState
    rows: RowMap
    blocks: tuple[Block, ...]
    numbers: MatrixNumbers
    scale: Tensor | None

    def times(self, rows: Tensor) -> Tensor:
        """G applied to (R, E) rows, as new rows."""
        raised = torch.zeros_like(rows) if self.scale is None else rows / self.scale
        pairs = zip(self.rows.pieces(rows), self.rows.pieces(raised), strict=True)
        for session, (sources, targets) in enumerate(pairs):
            cut = _Cut(self.state, session)
            for block, source, target in zip(self.blocks, sources, targets, strict=True):
                if block is not None:
                    target.copy_(self._raise(_matrix(source, block), block, cut, session).reshape(-1))
        return raised

    def _raise(self, matrix: Tensor, block: tuple[int, int], cut: _Cut, session: int) -> Tensor:
        left, *right = [_Factor.of(cut.next(side)) for side in _sides(block)]
        turned = left.vectors.T @ matrix
        scale = left.values[:, None]
        if not right:
            return left.vectors @ (turned / self._regular(scale, session))
        (other,) = right
        trace = left.values.sum()
        scale = torch.where(trace > 0, scale / trace, 0) * other.values
        return left.vectors @ (turned @ other.vectors / self._regular(scale, session)) @ other.vectors.T

    def _regular(self, scale: Tensor, session: int) -> Tensor:
        """scale^a + ε, or (scale + ε)^a."""
        numbers = self.numbers
        least = RELATIVE_EPSILON[self.state.covariance.dtype] * scale.amax()
        epsilon = numbers.epsilon[session]
        if numbers.epsilon_inside:
            return root_power_(scale + epsilon.maximum(least), numbers.power_units)
        return root_power_(scale.clone(), numbers.power_units) + epsilon.maximum(
            root_power_(least, numbers.power_units)
        )


@dataclass(frozen=True, slots=True)
class _Factor:
    """A decomposed factor, float64."""

    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, parts: tuple[Tensor, Tensor, Tensor]) -> "_Factor":
        _, vectors, values = parts
        return cls(_matrix(vectors, tuple(vectors.shape)), values.to(torch.float64))
