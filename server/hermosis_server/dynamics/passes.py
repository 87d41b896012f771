"""Passes over the rows of a batch: the kick, which measures what the scalars need, and the drift, which follows them.

Rows are independent of each other here, so a batch may be passed over in pieces; only matrix metrics want it whole.
`Passes` is what a scheme asks for; `PlainPasses` are the definition, and fused_cuda/ has the same in fewer passes.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.flows import cool_, cooled_kick_, decay_, drift_, harmonic_kick_, retrace_, start_
from hermosis_server.dynamics.geometry import Geometry, MetricColumns
from hermosis_server.dynamics.norms import Drift, Moment, Norms, Partials
from hermosis_server.dynamics.phase_state import PhaseState
from hermosis_server.dynamics.rows import RowMap, row_peaks, row_squares, tiles


class Columns(NamedTuple):
    """What the kick needs: of each session, (S,) float64; of each row's session, (R, 1) in the rows' dtype."""

    retention: Tensor
    impulse_gain: Tensor
    first: Tensor
    started: Tensor
    stiffness: Tensor
    thermal_decay: Tensor
    metric_decay: Tensor
    metric_gain: Tensor
    epsilon: Tensor
    unit_second_moment: Tensor

    @property
    def metric(self) -> MetricColumns:
        return MetricColumns(self.metric_decay, self.metric_gain, self.epsilon, self.unit_second_moment)


class Measured(NamedTuple):
    """What a kick has measured.

    Attributes:
      squares: row sums of |g|², |X|² and |w|².
      before:  what the norms measure before the kick.
      after:   likewise, of the momentum that drifts.
    """

    squares: Partials
    before: Partials
    after: Partials


class Passes(Protocol):
    """The rows of a batch on their way through one step: a kick, then a drift."""

    def kick(
        self, columns: Columns, norms: Norms, before_kick: Moment, after_kick: Moment, drift: Drift | None
    ) -> Measured:
        """Kicks all rows.

        Args:
          columns: each (S,).
          drift:   that follows, where it is known by now; None where the momentum cools in between.
        """

    def drift(self, left: Tensor, taken_back: Tensor, norms: Norms) -> tuple[Partials, Partials]:
        """Drifts all rows, and cools their momentum to what is `left`, (S,).

        Returns:
          Row sums of |Δw|² and of what is finite if the state is; then what the norms measure at the published point.
        """


class PlainPasses:
    """The flows of flows.py one after another, on pieces of the batch.

    Args:
      state:    the sessions; changed in place.
      gradient: (R, E).
      geometry: of the batch.
      rows:     which rows are whose.

    Attributes:
      increment: (R, E) Δw, after the drift.
    """

    def __init__(self, state: PhaseState, gradient: Tensor, geometry: Geometry, rows: RowMap) -> None:
        self._geometry, self._spread, self._dtype = geometry, rows.sessions.spread, gradient.dtype
        # The increment holds the direction of the drift until its length is known.
        self.increment = torch.empty_like(state.momentum)
        drifting = torch.empty_like(self.increment) if geometry.family.lookahead else state.momentum
        runs = [slice(None)] if geometry.family.matrix else tiles(self.increment)
        self._pieces = [Piece(state.rows(run), gradient[run], self.increment[run], drifting[run], run) for run in runs]

    def kick(
        self, columns: Columns, norms: Norms, before_kick: Moment, after_kick: Moment, drift: Drift | None
    ) -> Measured:
        table = self._spread(*columns, dtype=self._dtype)
        kicks = [
            kick_rows_(piece, Columns(*table[piece.run].unbind(1)), self._geometry, norms, before_kick, after_kick)
            for piece in self._pieces
        ]
        return Measured(*(joined(partials) for partials in zip(*kicks, strict=True)))

    def drift(self, left: Tensor, taken_back: Tensor, norms: Norms) -> tuple[Partials, Partials]:
        table = self._spread(left, taken_back, dtype=self._dtype)
        drifts = [drift_rows_(piece, table[piece.run], self._geometry.family, norms) for piece in self._pieces]
        return joined(plain for plain, _ in drifts), joined(partials for _, partials in drifts)


class Piece(NamedTuple):
    """Some rows of a batch: their state, gradient, increment, the momentum that drifts, and which they are."""

    state: PhaseState
    gradient: Tensor
    increment: Tensor
    drifting: Tensor
    run: slice


def kick_rows_(
    piece: Piece, columns: Columns, geometry: Geometry, norms: Norms, before_kick: Moment, after_kick: Moment
) -> Measured:
    """Kicks some rows and leaves the direction of their drift, G X, in the increment, unless it is the momentum itself.

    The metric is an external field: it learns from the gradient, then stands still through kick and drift.
    """
    state, family = piece.state, geometry.family
    position, momentum = state.position, state.momentum
    force = piece.gradient
    if family.thermal_decay and position is not None:
        force = torch.addcmul(piece.gradient, position, columns.thermal_decay)
    metric = geometry.learned(state, force, columns.metric)
    impulse = force
    if family.metric_on_kick and metric is not None:
        impulse, metric = metric.times(force), None
    if family.first_kick:
        start_(momentum, impulse, first=columns.first, unit_momentum=columns.started)

    raised = momentum if metric is None else metric.times(momentum)
    before = norms.measure(momentum, raised, piece.run, before_kick)
    cooled_kick_(momentum, impulse, retention=columns.retention, impulse_gain=columns.impulse_gain)
    if family.bare_decay and position is not None:
        harmonic_kick_(momentum, position, stiffness=columns.stiffness)
    drifting = piece.drifting
    if family.lookahead:
        drifting.copy_(momentum)
        cooled_kick_(drifting, impulse, retention=columns.retention, impulse_gain=columns.impulse_gain)
    raised = drifting if metric is None else piece.increment.copy_(metric.times(drifting))
    after = norms.measure(drifting, raised, piece.run, after_kick)
    squares = row_squares(momentum)
    weight = row_squares(position) if family.needs_parameters and position is not None else torch.zeros_like(squares)
    return Measured((row_squares(piece.gradient), squares, weight), before, after)


def drift_rows_(piece: Piece, table: Tensor, family: Family, norms: Norms) -> tuple[Partials, Partials]:
    """Drifts some rows in the direction that `kick_rows_` left, and cools their momentum; gives what `drift` gives."""
    state, increment = piece.state, piece.increment
    left, taken_back = table.unbind(1)
    direction = increment if family.has_metric_on_drift else piece.drifting
    pull, partials = norms.pull(piece.drifting, direction, piece.run)
    lead = direction * -pull.lead if state.lead is not None else None
    drift_(increment, direction, reach=pull.reach)
    if family.decoupled_decay and state.position is not None:
        base = state.position
        if state.lead is not None:
            base = base - taken_back * state.lead
        decay_(increment, base, rate=pull.decay)
    if state.lead is not None and lead is not None:
        retrace_(increment, state.lead, share=taken_back)
        state.lead.copy_(lead)
    if family.conformal:
        cool_(state.momentum, retention=left)
    square = row_squares(increment)
    peaks = torch.zeros_like(square)
    if state.position is not None:
        state.position.add_(increment)
        peaks = peaks + row_peaks(state.position)
    if state.second_moment is not None:
        peaks = peaks + state.second_moment.amax(dim=1)  # the first moment is finite where the second is
    return (square, peaks), partials


def joined(partials: Iterable[Partials]) -> Partials:
    """Row partials of all pieces, side by side."""
    return tuple(torch.cat(column) if len(column) > 1 else column[0] for column in zip(*partials, strict=True))
