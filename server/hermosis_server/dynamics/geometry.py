"""Geometry: the inverse metric of a batch, learned from its gradients and held through a step."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.matrix_metric import MatrixInverse, MatrixNumbers, MatrixState, learn_
from hermosis_server.dynamics.metric import DiagonalInverse, InverseMetric, diagonal_metric, update_moments_
from hermosis_server.dynamics.phase_state import PhaseState
from hermosis_server.dynamics.rows import RowMap


class MetricColumns(NamedTuple):
    """What the metric needs of each row's session, each (R, 1)."""

    decay: Tensor  # ρ₂
    gain: Tensor  # q₂
    epsilon: Tensor
    unit_moment: Tensor  # D


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which metric a batch has.

    Attributes:
      family:  of the batch.
      rows:    which rows are whose.
      numbers: of a matrix metric, (S,).
      matrix:  what it remembers; None where there is none, and the rows may then be worked on piece by piece.
      renew:   of each session, whether its matrices are decomposed in this step.
    """

    family: Family
    rows: RowMap
    numbers: MatrixNumbers
    matrix: MatrixState | None
    renew: list[bool]

    def learned(self, state: PhaseState, force: Tensor, columns: MetricColumns) -> InverseMetric | None:
        """Learns from some rows of gradients, and gives G of those rows; None is euclidean."""
        if state.second_moment is not None:
            update_moments_(state.second_moment, state.first_moment, force, decay=columns.decay, gain=columns.gain)
        if self.matrix is not None:
            learn_(self.matrix, force, self.rows, self.family.blocks, self.numbers, renew=self.renew)
        return self.held(state, columns)

    def held(self, state: PhaseState, columns: MetricColumns) -> InverseMetric | None:
        """G of some rows as it was learned; None is euclidean."""
        scale: Tensor | None = None
        if state.second_moment is not None:
            scale = diagonal_metric(
                state.second_moment,
                state.first_moment,
                unit_moment=columns.unit_moment if self.family.normalise_metric else None,
                epsilon=columns.epsilon,
                power_units=self.family.power_units,
                epsilon_inside=self.family.epsilon_inside,
            )
        if self.matrix is not None:
            return MatrixInverse(self.matrix, self.rows, self.family.blocks, self.numbers, scale)
        return None if scale is None else DiagonalInverse(scale)
