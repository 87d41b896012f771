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

from hermosis_server.dynamics import diagnostics
from hermosis_server.dynamics.diagnostics import Potential
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
    position, momentum = state.position, state.momentum
    if position is None and family.needs_parameters:
        raise InternalError("weight decay without parameters; this is a bug in hermosis")
    c = Coefficients(*coefficients.unbind(1))
    old = Scalars(*state.scalars.unbind(1))
    dtype = momentum.dtype
    bath = _warm(c, old.log_beta, family)

    # The metric is an external field: it learns from the gradient, then stands still through kick and drift.
    force = gradient
    if family.thermal_decay and position is not None:
        force = torch.addcmul(gradient, position, *rows.spread(c.thermal_decay, dtype=dtype))
    unit_second_moment = old.unit_second_moment * c.second_moment_decay + c.second_moment_gain
    metric = _updated_metric(state, force, c, unit_second_moment, family, rows)
    impulse = raised(force, metric) if family.metric_on_kick else force
    drift_metric = None if family.metric_on_kick else metric

    # Kick, and the momentum that the drift will see.
    retention, gain = rows.spread(c.retention, c.impulse_gain, dtype=dtype)
    unit_momentum = old.unit_momentum
    if family.first_kick:
        first = old.step == 0
        unit_momentum = torch.where(first, c.initial_unit_momentum, unit_momentum)
        first_rows, unit_rows = rows.spread(first.to(torch.float64), unit_momentum, dtype=dtype)
        start_(momentum, impulse, first=first_rows, unit_momentum=unit_rows)
    square_before = _metric_squares(momentum, drift_metric)
    unit_momentum = unit_momentum * c.retention + c.impulse_gain
    cooled_kick_(momentum, impulse, retention=retention, impulse_gain=gain)
    if family.bare_decay and position is not None:
        stiffness = c.information_unit * c.bare_decay * c.step_duration / c.action_unit / bath.beta
        harmonic_kick_(momentum, position, stiffness=rows.spread(stiffness, dtype=dtype)[0])
    drifting, drifting_unit = momentum, unit_momentum
    if family.lookahead:
        drifting = (momentum * retention).addcmul_(impulse, gain)
        drifting_unit = unit_momentum * c.retention + c.impulse_gain
    direction = raised(drifting, drift_metric)

    # Norms of whole sessions.
    momentum_rows = row_squares(momentum)
    plain = direction is momentum
    gradient_square, before, momentum_square, after = rows.totals(
        row_squares(gradient),
        square_before,
        momentum_rows,
        momentum_rows if plain else row_products(drifting, direction),
    )
    position_square = torch.zeros_like(after)
    if family.needs_parameters and position is not None:
        (position_square,) = rows.totals(row_squares(position))
    scale = c.gradient_gain / drifting_unit if family.normalise else torch.ones_like(after)
    motion_before = _motion(before * scale, c, bath.heat_before, family)
    square = after * scale
    motion = _motion(square, c, bath.heat, family)

    # Drift.
    duration = lr_scale * c.step_duration
    reach = duration / c.action_unit * motion.braking * scale
    increment = drift(direction, reach=rows.spread(reach, dtype=dtype)[0])
    if family.decoupled_decay and position is not None:
        rate = lr_scale * c.learning_rate * c.decoupled_decay
        if family.decay_follows_speed:
            rate = rate * motion.braking
        decay_(increment, position, rate=rows.spread(rate, dtype=dtype)[0])
    if position is not None:
        position.add_(increment)
    peaks = [row_peaks(tensor) for tensor in (position, state.second_moment) if tensor is not None]
    increment_square, *peak_totals = rows.totals(row_squares(increment), *peaks)

    # Internal energy, entropy and the sample.
    known = loss.isfinite()
    full_loss = diagnostics.where_defined(loss + c.thermal_decay / 2 * position_square, known)
    bare = c.information_unit * c.bare_decay / 2 * position_square / bath.beta
    at_start = Potential(full_loss, bare / c.retention) if family.bare_decay else Potential(full_loss, 0.0)
    at_kick = Potential(full_loss, bare)
    unanchored = ~old.internal_energy.isfinite()
    heat_energy = torch.where(
        unanchored, diagnostics.anchored_internal_energy(c, motion_before, at_start), old.internal_energy
    )
    energy_before = diagnostics.energy(c, motion_before, at_start, heat_energy)
    entropy = torch.where(unanchored, 0.0, old.entropy)
    entropy = entropy + diagnostics.entropy_of_kick(c, bath.beta * c.retention, heat_energy, full_loss)
    entropy = entropy + diagnostics.entropy_of_drift(c, bath.beta, motion, duration)
    entropy = diagnostics.where_defined(entropy, bath.log_beta < diagnostics.LOG_BETA_LIMIT)
    reference = c.retention * torch.where(unanchored, energy_before, old.reference_energy)
    reference = diagnostics.where_defined(reference, known)
    kicked = c.retention * heat_energy - c.impulse_gain * full_loss
    energy_after = diagnostics.energy(c, motion, at_kick, kicked)
    internal_energy = kicked + diagnostics.heating(c, motion, square * motion.braking, duration)
    new = Scalars(
        step=old.step + 1,
        clock=old.clock + c.step_duration,
        log_beta=bath.log_beta,
        internal_energy=internal_energy,
        unit_momentum=unit_momentum,
        unit_second_moment=unit_second_moment,
        entropy=entropy,
        reference_energy=reference,
    )
    kinetic_energy = motion.kinetic / c.information_unit
    potential_energy = (c.energy_unit * full_loss + bare) / c.information_unit
    thermal_energy = c.thermal_unit * internal_energy / c.information_unit
    sample = diagnostics.sample_rows(
        {
            "loss": loss,
            "smoothed_loss": diagnostics.where_defined(-internal_energy / c.loss_anchor, c.loss_anchor > 0),
            "kinetic_energy": kinetic_energy,
            "potential_energy": potential_energy,
            "thermal_energy": thermal_energy,
            "total_energy": kinetic_energy + potential_energy + thermal_energy,
            "kinetic_loss": motion.kinetic / c.energy_unit,
            "kinetic_temperature": 2 * kinetic_energy / rows.parameter_counts,
            "energy_defect": (c.retention * energy_before + energy_after) / 2 - reference,
            "internal_energy": internal_energy,
            "entropy": entropy,
            "log_beta": bath.log_beta,
            "retention": c.retention,
            "cooling_rate": c.cooling_rate,
            "braking": motion.braking,
            "step_norm": increment_square.sqrt(),
            "gradient_norm": gradient_square.sqrt(),
            "momentum_norm": momentum_square.sqrt(),
            "learning_rate": c.learning_rate * lr_scale,
        }
    )
    state.scalars.copy_(torch.stack(tuple(new), dim=1))
    return Advance(
        increment=increment,
        gradient_finite=gradient_square.isfinite(),
        state_finite=sum(peak_totals, momentum_square + increment_square).isfinite(),
        sample=sample,
    )


class _Bath(NamedTuple):
    """The thermal mass over a step, each (S,): `beta` after it, clipped; `heat` (β/β₀)^ν before and after."""

    log_beta: Tensor
    beta: Tensor
    heat_before: Tensor | None
    heat: Tensor | None


def _warm(c: Coefficients[Tensor], log_beta: Tensor, family: Family) -> _Bath:
    limit = diagnostics.LOG_BETA_LIMIT
    after = log_beta + c.log_beta_step
    beta = after.clamp(-limit, limit).exp()
    if not family.rest_cooling:
        return _Bath(after, beta, None, None)
    before, heat = (
        (c.rest_cooling * (value - c.initial_log_beta)).clamp(-limit, limit).exp() for value in (log_beta, after)
    )
    return _Bath(after, beta, before, heat)


def _updated_metric(
    state: PhaseState, force: Tensor, c: Coefficients[Tensor], unit: Tensor, family: Family, rows: RowMap
) -> Tensor | None:
    if state.second_moment is None:
        return None
    decay, gain, epsilon, unit_rows = rows.spread(
        c.second_moment_decay, c.second_moment_gain, c.epsilon, unit, dtype=force.dtype
    )
    update_moments_(state.second_moment, state.first_moment, force, decay=decay, gain=gain)
    return diagonal_metric(
        state.second_moment,
        state.first_moment,
        unit_moment=unit_rows if family.normalise_metric else None,
        epsilon=epsilon,
        power_units=family.power_units,
        epsilon_inside=family.epsilon_inside,
    )


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
