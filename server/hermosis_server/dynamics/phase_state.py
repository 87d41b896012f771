"""Phase state: where a batch of sessions stands: position, momentum, metric moments, a few numbers a session.

A session rests where it is published: at the point that its workers compute their next gradient at. For symplectic
Euler that is the end of a step. Leapfrog and conformal publish the end of the next step's first half drift.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from hermosis_server.dynamics.cooling import Bath
from hermosis_server.dynamics.matrix_metric import MatrixState
from hermosis_server.errors import InternalError
from hermosis_server.records import StateBuffer, StateScalars

SCALARS: tuple[str, ...] = tuple(field.name for field in fields(StateScalars))

T = TypeVar("T")


class Scalars(NamedTuple, Generic[T]):
    """The float64 numbers of a session, in the order of records.StateScalars.

    Attributes:
      step:               steps taken.
      clock:              t, the sum of the durations of cooling.
      log_beta:           ln β. β itself leaves float64 after 7,000 steps at a momentum of 0.9. Infinite at momentum 0.
      internal_energy:    U; NaN until a loss is known.
      unit_momentum:      A, the momentum of a unit gradient.
      unit_second_moment: D, the second moment of a unit gradient.
      entropy:            S since U was last anchored; NaN while undefined.
      reference_energy:   H/β that the energy defect is measured from; NaN while undefined.
      published_cooling:  growth of ln β since the last step ended: the half cooling that conformal publishes after.
    """

    step: T
    clock: T
    log_beta: T
    internal_energy: T
    unit_momentum: T
    unit_second_moment: T
    entropy: T
    reference_energy: T
    published_cooling: T

    @property
    def bath(self) -> Bath[T]:
        return Bath(self.log_beta, self.clock, self.internal_energy)


_FIELDS = {
    StateBuffer.PARAMETERS: "position",
    StateBuffer.MOMENTUM: "momentum",
    StateBuffer.SECOND_MOMENT: "second_moment",
    StateBuffer.FIRST_MOMENT: "first_moment",
    StateBuffer.LEAD: "lead",
    StateBuffer.COVARIANCE: "covariance",
    StateBuffer.EIGENVECTORS: "eigenvectors",
    StateBuffer.EIGENVALUES: "eigenvalues",
}
MATRIX_BUFFERS = (StateBuffer.COVARIANCE, StateBuffer.EIGENVECTORS, StateBuffer.EIGENVALUES)


@dataclass(slots=True, kw_only=True)
class PhaseState:
    """A batch of sessions, changed in place by steps.

    Attributes:
      position:      (R, E) parameters w, or None where the workers hold them.
      momentum:      (R, E) energy moment X.
      second_moment: (R, E) M of a diagonal metric.
      first_moment:  (R, E) mean gradient of a centered metric.
      lead:          (R, E) how far the published position is ahead of the end of the last step, where it must be known.
      covariance:    (S, N) factors of a matrix metric.
      eigenvectors:  (S, N) of the factors.
      eigenvalues:   (S, M) of the factors.
      scalars:       (S, len(SCALARS)) float64.
    """

    momentum: Tensor
    scalars: Tensor
    position: Tensor | None = None
    second_moment: Tensor | None = None
    first_moment: Tensor | None = None
    lead: Tensor | None = None
    covariance: Tensor | None = None
    eigenvectors: Tensor | None = None
    eigenvalues: Tensor | None = None

    @classmethod
    def from_buffers(cls, buffers: Mapping[StateBuffer, Tensor], scalars: Tensor) -> "PhaseState":
        """A state over given tensors, which it shares."""
        if StateBuffer.MOMENTUM not in buffers:
            raise InternalError("a phase state without momentum; this is a bug in hermosis")
        return cls(scalars=scalars, **{_FIELDS[kind]: tensor for kind, tensor in buffers.items()})

    def buffers(self) -> dict[StateBuffer, Tensor]:
        """The tensors that exist, shared."""
        present = {kind: getattr(self, name) for kind, name in _FIELDS.items()}
        return {kind: tensor for kind, tensor in present.items() if tensor is not None}

    def rows(self, run: slice) -> "PhaseState":
        """A view of some rows of what has rows, with the scalars of all sessions."""
        kept = {kind: tensor[run] for kind, tensor in self.buffers().items() if kind not in MATRIX_BUFFERS}
        return PhaseState.from_buffers(kept, self.scalars)

    @property
    def matrices(self) -> MatrixState | None:
        """What a matrix metric remembers, shared."""
        if self.covariance is None or self.eigenvectors is None or self.eigenvalues is None:
            return None
        return MatrixState(self.covariance, self.eigenvectors, self.eigenvalues)

    def clone(self) -> "PhaseState":
        """A copy that shares nothing."""
        return PhaseState.from_buffers(
            {kind: tensor.clone() for kind, tensor in self.buffers().items()}, self.scalars.clone()
        )
