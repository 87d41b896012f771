r"""Schemes: flows composed into steps.

Symplectic Euler is first order: potential and thermal energy together, then the kinetic energy.

.. math::
    X \leftarrow r X + z\,y, \quad A \leftarrow r A + z, \quad U \leftarrow r U - z\tilde L, \qquad
    w \leftarrow w - d v, \quad U \leftarrow U + d\,[X\!\cdot\!v - (\kappa + \partial_{\ln\beta}\kappa)/h]

Rules that hold for every scheme:
- In place, on the tensors' device, with no look at a value from the host.
- A session's bits do not depend on the batch: element-wise arithmetic, row sums and trees of rows.py, nothing else.
- Parameters and momentum never depend on the loss or on U.
- The new position is the old one plus the increment, so a worker who adds increments has the server's bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.diagnostics import LOG_BETA_LIMIT, Passage, sample_rows, settle
from hermosis_server.dynamics.flows import cooled_kick_, decay_, drift_, harmonic_kick_, start_
from hermosis_server.dynamics.hamiltonian import Coefficients, Family, Hamiltonian
from hermosis_server.dynamics.kinetic import Motion, classical_motion, relativistic_motion
from hermosis_server.dynamics.metric import diagonal_metric, update_moments_
from hermosis_server.dynamics.phase_state import PhaseState, Scalars
from hermosis_server.dynamics.rows import RowMap, row_peaks, row_products, row_squares, tiles
from hermosis_server.errors import InternalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What one step did.

    Attributes:
      increment:       (R, E) change of the parameters, to be added to them in the same dtype.
      gradient_finite: (S,) bool: no NaN, no infinity in the gradient.
      state_finite:    (S,) bool: none in the new state or the increment.
      sample:          (S, len(EnergySample._fields)) float64; NaN means undefined.
    """

    increment: Tensor
    gradient_finite: Tensor
    state_finite: Tensor
    sample: Tensor


def advance_(
    state: PhaseState,
    gradient: Tensor,
    loss: Tensor,
    *,
    family: Family,
    coefficients: Tensor,
    lr_scale: Tensor,
    rows: RowMap,
) -> Advance:
    """One step of symplectic Euler for a batch of sessions of one family.

    Args:
      state:        the sessions; changed in place, also where a result is not finite: hand in copies.
      gradient:     (R, E) at the current position, in the dtype of the state; padding is zero.
      loss:         (S,) float64 at the current position; NaN where it is not known.
      family:       of every session in the batch.
      coefficients: (S, len(COEFFICIENTS)) float64.
      lr_scale:     (S,) float64, multiplies the duration of the drift only, so schedules leave friction alone.
      rows:         which rows are whose.

    Raises:
      InternalError: the family reads the parameters and the state has none.

    Source: docs/theory.md, section 6.
    """
    if state.position is None and family.needs_parameters:
        raise InternalError("weight decay without parameters; this is a bug in hermosis")
    c = Coefficients(*coefficients.unbind(1))
    old = Scalars(*state.scalars.unbind(1))
    bath = _bath(c, old.log_beta, family)
    dtype = state.momentum.dtype
    first = old.step == 0
    unit_momentum = torch.where(first, c.initial_unit_momentum, old.unit_momentum) * c.retention + c.impulse_gain
    unit_second_moment = old.unit_second_moment * c.second_moment_decay + c.second_moment_gain
    stiffness = c.information_unit * c.bare_decay * c.learning_rate / bath.beta

    # Kick all rows; the increment holds the direction of the drift until its length is known.
    increment = torch.empty_like(state.momentum)
    runs = tiles(increment)
    table = rows.spread(*c, first, unit_second_moment, stiffness, dtype=dtype)
    kicked = [_kick_(state.rows(run), gradient[run], increment[run], table[run], family) for run in runs]
    gradient_square, before, momentum_square, square, position_square = rows.totals(*_joined(kicked))

    # What the kinetic energy makes of the norms of whole sessions.
    pace = lr_scale * c.learning_rate
    reach = pace
    if family.normalise:
        drifting_unit = unit_momentum * c.retention + c.impulse_gain if family.lookahead else unit_momentum
        raising = c.gradient_gain / drifting_unit
        before, square, reach = before * raising, square * raising, reach * raising
    motion_before = _motion(before, c, bath.heat_before, family)
    motion = _motion(square, c, bath.heat, family)
    decay = pace * c.decoupled_decay
    if family.decay_follows_speed:
        decay = decay * motion.braking

    # Drift all rows.
    table = rows.spread(reach * motion.braking, decay, dtype=dtype)
    drifted = [_drift_(state.rows(run), increment[run], table[run], family) for run in runs]
    increment_square, peaks = rows.totals(*_joined(drifted))

    step = Passage(
        loss=loss,
        position_square=position_square,
        before=motion_before,
        after=motion,
        square=square,
        pace=pace,
        log_beta=bath.log_beta,
        beta=bath.beta,
    )
    balance = settle(c, old, step, family)
    new = Scalars(
        step=old.step + 1,
        clock=old.clock + c.step_duration,
        log_beta=bath.log_beta,
        internal_energy=balance.internal_energy,
        unit_momentum=unit_momentum,
        unit_second_moment=unit_second_moment,
        entropy=balance.entropy,
        reference_energy=balance.reference_energy,
    )
    sample = {
        **balance._asdict(),
        "loss": loss,
        "total_energy": balance.kinetic_energy + balance.potential_energy + balance.thermal_energy,
        "kinetic_temperature": 2 * balance.kinetic_energy / rows.parameter_counts,
        "log_beta": bath.log_beta,
        "retention": c.retention,
        "cooling_rate": c.cooling_rate,
        "braking": motion.braking,
        "step_norm": increment_square.sqrt(),
        "gradient_norm": gradient_square.sqrt(),
        "momentum_norm": momentum_square.sqrt(),
        "learning_rate": pace,
    }
    state.scalars.copy_(torch.stack(tuple(new), dim=1))
    return Advance(
        increment=increment,
        gradient_finite=gradient_square.isfinite(),
        state_finite=(momentum_square + increment_square + peaks).isfinite(),
        sample=sample_rows(sample),
    )


def _kick_(
    state: PhaseState, gradient: Tensor, direction: Tensor, table: Tensor, family: Family
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Kicks some rows and leaves the direction of their drift, G X, in `direction`, unless it is the momentum itself.

    The metric is an external field: it learns from the gradient, then stands still through kick and drift.

    Args:
      table: (R, n, 1) coefficients by row, then `first`, `unit_second_moment` and the stiffness of bare decay.

    Returns:
      Row sums of |g|², X·GX before the kick, |X|² after it, X·GX of the momentum that drifts, and |w|².
    """
    *columns, first, unit_second_moment, stiffness = table.unbind(1)
    c = Coefficients(*columns)
    position, momentum = state.position, state.momentum
    force = gradient
    if family.thermal_decay and position is not None:
        force = torch.addcmul(gradient, position, c.thermal_decay)
    metric: Tensor | None = None
    if state.second_moment is not None:
        update_moments_(
            state.second_moment, state.first_moment, force, decay=c.second_moment_decay, gain=c.second_moment_gain
        )
        metric = diagonal_metric(
            state.second_moment,
            state.first_moment,
            unit_moment=unit_second_moment if family.normalise_metric else None,
            epsilon=c.epsilon,
            power_units=family.power_units,
            epsilon_inside=family.epsilon_inside,
        )
    impulse = force
    if family.metric_on_kick and metric is not None:
        impulse, metric = force / metric, None
    if family.first_kick:
        start_(momentum, impulse, first=first, unit_momentum=c.initial_unit_momentum)

    before = row_squares(momentum) if metric is None else row_products(momentum, momentum / metric)
    cooled_kick_(momentum, impulse, retention=c.retention, impulse_gain=c.impulse_gain)
    if family.bare_decay and position is not None:
        harmonic_kick_(momentum, position, stiffness=stiffness)
    after = row_squares(momentum)

    drifting, square = momentum, after
    if family.lookahead:
        drifting = direction.copy_(momentum)
        cooled_kick_(drifting, impulse, retention=c.retention, impulse_gain=c.impulse_gain)
    if metric is not None:
        velocity = drifting / metric
        square = row_products(drifting, velocity)
        direction.copy_(velocity)
    elif family.lookahead:
        square = row_squares(drifting)
    weight = row_squares(position) if family.needs_parameters and position is not None else torch.zeros_like(after)
    return row_squares(gradient), before, after, square, weight


def _drift_(state: PhaseState, increment: Tensor, table: Tensor, family: Family) -> tuple[Tensor, Tensor]:
    """Drifts some rows, in the direction that `_kick_` left; row sums of |Δw|² and of what is finite if they are."""
    reach, decay = table.unbind(1)
    drift_(increment, state.momentum if family.drifts_along_momentum else increment, reach=reach)
    if family.decoupled_decay and state.position is not None:
        decay_(increment, state.position, rate=decay)
    square = row_squares(increment)
    peaks = torch.zeros_like(square)
    if state.position is not None:
        state.position.add_(increment)
        peaks = peaks + row_peaks(state.position)
    if state.second_moment is not None:
        peaks = peaks + state.second_moment.amax(dim=1)  # the first moment is finite where the second is
    return square, peaks


def _joined(partials: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(column) if len(column) > 1 else column[0] for column in zip(*partials, strict=True)]


class _Bath(NamedTuple):
    """The thermal mass over a step, each (S,): `beta` after it, clipped; `heat` (β/β₀)^ν before and after."""

    log_beta: Tensor
    beta: Tensor
    heat_before: Tensor | None
    heat: Tensor | None


def _bath(c: Coefficients[Tensor], log_beta: Tensor, family: Family) -> _Bath:
    limit = LOG_BETA_LIMIT
    after = log_beta + c.log_beta_step
    beta = after.clamp(-limit, limit).exp()
    if not family.rest_cooling:
        return _Bath(after, beta, None, None)
    before, heat = (
        (c.rest_cooling * (value - c.initial_log_beta)).clamp(-limit, limit).exp() for value in (log_beta, after)
    )
    return _Bath(after, beta, before, heat)


def _motion(square: Tensor, c: Coefficients[Tensor], heat: Tensor | None, family: Family) -> Motion:
    if not family.relativistic:
        return classical_motion(square)
    return relativistic_motion(
        square, speed_limit=c.speed_limit, rest_cooling=c.rest_cooling, rest_energy=c.rest_energy, heat=heat
    )


def initial_scalars(hamiltonian: Hamiltonian) -> Scalars[float]:
    """The scalars of a session before its first step, in the order of `SCALARS`."""
    undefined = float("nan")
    return Scalars(
        step=0.0,
        clock=0.0,
        log_beta=hamiltonian.coefficients().initial_log_beta,
        internal_energy=undefined,
        unit_momentum=0.0,
        unit_second_moment=0.0,
        entropy=undefined,
        reference_energy=undefined,
    )
