"""Phase state: where a batch of sessions stands: position, momentum, metric moments, a few numbers a session."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from hermosis_server.errors import InternalError
from hermosis_server.records import StateBuffer, StateScalars

SCALARS: tuple[str, ...] = tuple(field.name for field in fields(StateScalars))

T = TypeVar("T")


class Scalars(NamedTuple, Generic[T]):
    """The float64 numbers of a session, in the order of records.StateScalars.

    Attributes:
      step:               steps taken.
      clock:              t, the sum of step durations.
      log_beta:           ln β. β itself leaves float64 after 7,000 steps at a momentum of 0.9. Infinite at momentum 0.
      internal_energy:    U; NaN until a loss is known.
      unit_momentum:      A, the momentum of a unit gradient.
      unit_second_moment: D, the second moment of a unit gradient.
      entropy:            S since U was last anchored; NaN while undefined.
      reference_energy:   H/β that the energy defect is measured from; NaN while undefined.
    """

    step: T
    clock: T
    log_beta: T
    internal_energy: T
    unit_momentum: T
    unit_second_moment: T
    entropy: T
    reference_energy: T


@dataclass(slots=True, kw_only=True)
class PhaseState:
    """A batch of sessions, changed in place by steps.

    Attributes:
      position:      (R, E) parameters w, or None where the workers hold them.
      momentum:      (R, E) energy moment X.
      second_moment: (R, E) M of a diagonal metric.
      first_moment:  (R, E) mean gradient of a centered metric.
      scalars:       (S, len(SCALARS)) float64.
    """

    momentum: Tensor
    scalars: Tensor
    position: Tensor | None = None
    second_moment: Tensor | None = None
    first_moment: Tensor | None = None

    @classmethod
    def from_buffers(cls, buffers: Mapping[StateBuffer, Tensor], scalars: Tensor) -> "PhaseState":
        """A state over given (R, E) tensors, which it shares."""
        if StateBuffer.MOMENTUM not in buffers:
            raise InternalError("a phase state without momentum; this is a bug in hermosis")
        return cls(
            position=buffers.get(StateBuffer.PARAMETERS),
            momentum=buffers[StateBuffer.MOMENTUM],
            second_moment=buffers.get(StateBuffer.SECOND_MOMENT),
            first_moment=buffers.get(StateBuffer.FIRST_MOMENT),
            scalars=scalars,
        )

    def buffers(self) -> dict[StateBuffer, Tensor]:
        """The (R, E) tensors that exist, shared."""
        present = {
            StateBuffer.PARAMETERS: self.position,
            StateBuffer.MOMENTUM: self.momentum,
            StateBuffer.SECOND_MOMENT: self.second_moment,
            StateBuffer.FIRST_MOMENT: self.first_moment,
        }
        return {kind: tensor for kind, tensor in present.items() if tensor is not None}

    def rows(self, run: slice) -> "PhaseState":
        """A view of some rows, with the scalars of all sessions."""
        return PhaseState.from_buffers({kind: tensor[run] for kind, tensor in self.buffers().items()}, self.scalars)

    def clone(self) -> "PhaseState":
        """A copy that shares nothing."""
        return PhaseState.from_buffers(
            {kind: tensor.clone() for kind, tensor in self.buffers().items()}, self.scalars.clone()
        )
