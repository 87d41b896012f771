"""Family and coefficients: what a step must know of a Hamiltonian, its code path and its numbers."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from hermosis_server.dynamics.kinetic import KineticKind, NormScope
from hermosis_server.dynamics.matrix_metric import covariance_elements, eigenvalue_elements
from hermosis_server.dynamics.metric import Block
from hermosis_server.dynamics.rows import Spans
from hermosis_server.dynamics.thermal import ForceMode, ProfileKind
from hermosis_server.records import StateBuffer

T = TypeVar("T")


class Scheme(enum.StrEnum):
    """The order in which the exact flows are composed."""

    SYMPLECTIC_EULER = "symplectic_euler"
    LEAPFROG = "leapfrog"
    CONFORMAL = "conformal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Everything structural about a Hamiltonian. Sessions of equal family and dtype step in one launch."""

    scheme: Scheme
    keeps_lead: bool  # conformal with α < 1
    profile: ProfileKind
    table_size: int  # numbers of the profile beyond the coefficients
    terms: tuple[tuple[int, int], ...]  # powers of U and β in a polynomial profile
    force: ForceMode
    kinetic: KineticKind
    rest_cooling: bool
    norm_scope: NormScope
    euclidean_norm: bool
    diagonal: bool  # a second moment a parameter is kept, for all or for some
    matrix: bool  # a full or a Kronecker metric
    blocks: tuple[Block, ...]  # by span, of a matrix metric
    by_tensor: bool  # each tensor is a span of rows
    refresh_steps: int
    power_units: int  # the metric's power in eighths
    epsilon_inside: bool
    centered: bool
    normalise_metric: bool
    metric_on_kick: bool
    normalise: bool
    lookahead: bool
    first_kick: bool
    bare_decay: bool
    thermal_decay: bool
    decoupled_decay: bool
    decay_follows_speed: bool

    def buffers(self, spans: Spans, *, holds_parameters: bool) -> dict[StateBuffer, Spans]:
        """The buffers that a session of this family keeps, and how each is laid into rows."""
        kept = [
            (StateBuffer.PARAMETERS, holds_parameters, spans),
            (StateBuffer.MOMENTUM, True, spans),
            (StateBuffer.SECOND_MOMENT, self.diagonal, spans),
            (StateBuffer.FIRST_MOMENT, self.centered, spans),
            (StateBuffer.LEAD, self.keeps_lead, spans),
            (StateBuffer.COVARIANCE, self.matrix, (covariance_elements(self.blocks),)),
            (StateBuffer.EIGENVECTORS, self.matrix, (covariance_elements(self.blocks),)),
            (StateBuffer.EIGENVALUES, self.matrix, (eigenvalue_elements(self.blocks),)),
        ]
        return {kind: layout for kind, wanted, layout in kept if wanted}

    def matrices(self, spans: Sequence[int]) -> dict[StateBuffer, list[slice]]:
        """What of each buffer of a matrix metric belongs to some spans of elements."""
        squares = list(accumulate((covariance_elements((block,)) for block in self.blocks), initial=0))
        values = list(accumulate((eigenvalue_elements((block,)) for block in self.blocks), initial=0))
        square_runs = [slice(squares[span], squares[span + 1]) for span in spans]
        return {
            StateBuffer.COVARIANCE: square_runs,
            StateBuffer.EIGENVECTORS: square_runs,
            StateBuffer.EIGENVALUES: [slice(values[span], values[span + 1]) for span in spans],
        }

    @property
    def has_metric_on_drift(self) -> bool:
        """Whether velocity and momentum may point in different directions."""
        return (self.diagonal or self.matrix) and not self.metric_on_kick

    @property
    def needs_parameters(self) -> bool:
        """Whether a step reads the parameters, so that workers cannot hold them."""
        return self.bare_decay or self.thermal_decay or self.decoupled_decay

    @property
    def needs_loss(self) -> bool:
        """Whether a step cannot be taken without the loss: the profile answers to it."""
        return self.profile is ProfileKind.POLYNOMIAL

    @property
    def conformal(self) -> bool:
        return self.scheme is Scheme.CONFORMAL


class Coefficients(NamedTuple, Generic[T]):
    """The numbers of one session that its steps use; float64. Those its family does not use are there all the same."""

    step_duration: T  # τ
    learning_rate: T  # η = τ/h
    action_unit: T  # h
    information_unit: T  # k
    initial_log_beta: T
    cooling_duration: T  # of one stretch of cooling: τ, or half of it
    retention: T  # r of a steady profile over one stretch; likewise the next four
    friction: T  # 1 - r
    cooling_rate: T  # γ; infinite at momentum 0
    kernel: T  # kern
    log_beta_gain: T  # γ times the stretch
    profile_growth: T  # α
    profile_exponent: T  # p
    profile_age: T  # t₀
    profile_log_beta: T  # ln β at that age
    gradient_gain: T  # ζ
    first_kick: T  # weight of the very first gradient
    speed_limit: T  # χ at the initial β
    rest_cooling: T  # ν
    rest_energy: T  # ρ
    stiffness: T  # b
    braking_cap: T
    second_moment_decay: T  # ρ₂
    second_moment_gain: T  # q₂
    epsilon: T
    bare_decay: T  # λ₀
    thermal_decay: T  # λ₂
    decoupled_decay: T  # λ_d
    kept_drift: T  # α of the conformal scheme


COEFFICIENTS: tuple[str, ...] = Coefficients._fields
