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

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.diagnostics import LOG_BETA_LIMIT, Passage, sample_rows, settle
from hermosis_server.dynamics.flows import cooled_kick_, decay_, drift, harmonic_kick_, start_
from hermosis_server.dynamics.hamiltonian import Coefficients, Family, Hamiltonian
from hermosis_server.dynamics.kinetic import Motion, classical_motion, relativistic_motion
from hermosis_server.dynamics.metric import diagonal_metric, raised, update_moments_
from hermosis_server.dynamics.phase_state import PhaseState, Scalars
from hermosis_server.dynamics.rows import RowMap, row_peaks, row_products, row_squares
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
    position, momentum, dtype = state.position, state.momentum, state.momentum.dtype
    c = Coefficients(*coefficients.unbind(1))
    on_rows = Coefficients(*rows.spread(coefficients, dtype=dtype))
    old = Scalars(*state.scalars.unbind(1))
    bath = _bath(c, old.log_beta, family)

    # The metric is an external field: it learns from the gradient, then stands still through kick and drift.
    force = gradient
    if family.thermal_decay and position is not None:
        force = torch.addcmul(gradient, position, on_rows.thermal_decay)
    unit_second_moment = old.unit_second_moment * c.second_moment_decay + c.second_moment_gain
    metric: Tensor | None = None
    if state.second_moment is not None:
        update_moments_(
            state.second_moment,
            state.first_moment,
            force,
            decay=on_rows.second_moment_decay,
            gain=on_rows.second_moment_gain,
        )
        metric = diagonal_metric(
            state.second_moment,
            state.first_moment,
            unit_moment=rows.spread(unit_second_moment, dtype=dtype)[0] if family.normalise_metric else None,
            epsilon=on_rows.epsilon,
            power_units=family.power_units,
            epsilon_inside=family.epsilon_inside,
        )
    impulse, drift_metric = (raised(force, metric), None) if family.metric_on_kick else (force, metric)

    # Kick, and the momentum that the drift will see.
    unit_momentum = old.unit_momentum
    if family.first_kick:
        first = old.step == 0
        unit_momentum = torch.where(first, c.initial_unit_momentum, unit_momentum)
        start_(momentum, impulse, first=rows.spread(first, dtype=dtype)[0], unit_momentum=on_rows.initial_unit_momentum)
    squares_before = _metric_squares(momentum, drift_metric)
    cooled_kick_(momentum, impulse, retention=on_rows.retention, impulse_gain=on_rows.impulse_gain)
    unit_momentum = unit_momentum * c.retention + c.impulse_gain
    if family.bare_decay and position is not None:
        stiffness = c.information_unit * c.bare_decay * c.learning_rate / bath.beta
        harmonic_kick_(momentum, position, stiffness=rows.spread(stiffness, dtype=dtype)[0])
    drifting, drifting_unit = momentum, unit_momentum
    if family.lookahead:
        drifting = (momentum * on_rows.retention).addcmul_(impulse, on_rows.impulse_gain)
        drifting_unit = unit_momentum * c.retention + c.impulse_gain
    direction = raised(drifting, drift_metric)

    # Norms of whole sessions, and what the kinetic energy makes of them.
    momentum_squares = row_squares(momentum)
    gradient_square, before, momentum_square, square, *position_square = rows.totals(
        row_squares(gradient),
        squares_before,
        momentum_squares,
        momentum_squares if direction is momentum else row_products(drifting, direction),
        *([row_squares(position)] if family.needs_parameters and position is not None else []),
    )
    pace = lr_scale * c.learning_rate
    reach = pace
    if family.normalise:
        unit_drift = c.gradient_gain / drifting_unit
        before, square, reach = before * unit_drift, square * unit_drift, reach * unit_drift
    motion_before = _motion(before, c, bath.heat_before, family)
    motion = _motion(square, c, bath.heat, family)
    reach = reach * motion.braking

    # Drift.
    increment = drift(direction, reach=rows.spread(reach, dtype=dtype)[0])
    if family.decoupled_decay and position is not None:
        rate = pace * c.decoupled_decay
        if family.decay_follows_speed:
            rate = rate * motion.braking
        decay_(increment, position, rate=rows.spread(rate, dtype=dtype)[0])
    if position is not None:
        position.add_(increment)
    peaks = [row_peaks(tensor) for tensor in (position, state.second_moment) if tensor is not None]
    increment_square, *peak_totals = rows.totals(row_squares(increment), *peaks)

    balance = settle(
        c,
        old,
        Passage(
            loss=loss,
            position_square=position_square[0] if position_square else None,
            before=motion_before,
            after=motion,
            square=square,
            pace=pace,
            log_beta=bath.log_beta,
            beta=bath.beta,
        ),
        family,
    )
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
        state_finite=sum(peak_totals, momentum_square + increment_square).isfinite(),
        sample=sample_rows(sample),
    )


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


def _metric_squares(momentum: Tensor, metric: Tensor | None) -> Tensor:
    """(R,) X·GX by rows."""
    return row_squares(momentum) if metric is None else row_products(momentum, raised(momentum, metric))


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
