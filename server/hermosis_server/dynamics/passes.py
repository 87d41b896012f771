"""Passes over the rows of a batch: the kick, which measures what the scalars need, and the drift, which follows them.

Rows are independent of each other here, so a batch may be passed over in pieces; only matrix metrics want it whole.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.flows import cool_, cooled_kick_, decay_, drift_, harmonic_kick_, retrace_, start_
from hermosis_server.dynamics.geometry import Geometry, MetricColumns
from hermosis_server.dynamics.norms import Moment, Norms, Partials
from hermosis_server.dynamics.phase_state import PhaseState
from hermosis_server.dynamics.rows import row_peaks, row_squares


class Columns(NamedTuple):
    """What the kick needs of each row's session, each (R, 1)."""

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


class Piece(NamedTuple):
    """Some rows of a batch: their state, gradient, increment, the momentum that drifts, and which they are."""

    state: PhaseState
    gradient: Tensor
    increment: Tensor
    drifting: Tensor
    run: slice


def kick_rows_(
    piece: Piece, columns: Columns, geometry: Geometry, norms: Norms, before_kick: Moment, after_kick: Moment
) -> tuple[Partials, Partials, Partials]:
    """Kicks some rows and leaves the direction of their drift, G X, in the increment, unless it is the momentum itself.

    The metric is an external field: it learns from the gradient, then stands still through kick and drift.

    Returns:
      Row sums of |g|², |X|² and |w|²; then what the norms measure before the kick, and of the momentum that drifts.
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
    return (row_squares(piece.gradient), squares, weight), before, after


def drift_rows_(piece: Piece, table: Tensor, family: Family, norms: Norms) -> tuple[Partials, Partials]:
    """Drifts some rows in the direction that `kick_rows_` left, and cools their momentum.

    Returns:
      Row sums of |Δw|² and of what is finite if the state is; then what the norms measure at the published point.
    """
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
