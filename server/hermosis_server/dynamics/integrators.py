r"""Schemes: flows composed into steps.

.. math::
    \text{symplectic Euler} &\quad B(\tau)\;K(\tau) \\
    \text{leapfrog}         &\quad K(\tau/2)\;B(\tau)\;K(\tau/2) \\
    \text{conformal}        &\quad E(\tau/2)\;K(\tau/2)\;V(\tau)\;K(\tau/2)\;E(\tau/2)

B is potential and thermal energy together, V the potential alone, E the thermal energy alone, K the kinetic energy. A
gradient belongs to the point that is reached just before B or V. So a step has two acts: `publish_` goes from the end
of a step to that point, `update_` from there to the end of the step. A session rests where it is published. `advance_`
updates and publishes the next point at once: both half drifts go in the same direction, and one pass does both.

Rules that hold for every scheme:
- In place, on the tensors' device, with no look at a value from the host (but for matrix metrics).
- A session's bits do not depend on the batch: element-wise arithmetic, row sums and trees of rows.py, nothing else.
- Parameters and momentum never depend on the loss or on U (but under a profile that feeds the loss back).
- The new position is the old one plus the increment, so a worker who adds increments has the server's bits.

Source: docs/theory.md, section 6.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.cooling import cool
from hermosis_server.dynamics.diagnostics import (
    Heat,
    Kick,
    Setting,
    anchored,
    cooled,
    drifted,
    energies,
    kicked,
    known_loss,
    sample_rows,
)
from hermosis_server.dynamics.family import Family, Scheme
from hermosis_server.dynamics.flows import cool_, drift_
from hermosis_server.dynamics.geometry import Geometry, MetricColumns
from hermosis_server.dynamics.hamiltonian import Hamiltonian
from hermosis_server.dynamics.matrix_metric import MatrixNumbers
from hermosis_server.dynamics.norms import Drift, Norms, norms_of
from hermosis_server.dynamics.opening import learned_unit, open_step, taken_apart
from hermosis_server.dynamics.passes import Columns, Passes, PlainPasses
from hermosis_server.dynamics.phase_state import PhaseState, Scalars
from hermosis_server.dynamics.rows import RowMap, row_squares
from hermosis_server.errors import InternalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What one step did.

    Attributes:
      increment:       (R, E) change of the published parameters, to be added to them in the same dtype.
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
    publish: bool = True,
) -> Advance:
    """`update_` and `publish_` in one pass over the rows, for a batch of sessions of one family.

    Args:
      state:        the sessions, as published; changed in place, also where a result is not finite: hand in copies.
      gradient:     (R, E) at the published position, in the dtype of the state; padding is zero.
      loss:         (S,) float64 at the published position; NaN where it is not known.
      family:       of every session in the batch.
      coefficients: (S, n) float64, each row what `Hamiltonian.numbers` gives.
      lr_scale:     (S,) float64, multiplies the duration of the drifts only, so schedules leave friction alone.
      rows:         which rows are whose.
      publish:      False stops at the end of the step: that is `update_`.

    Raises:
      InternalError: the family reads the parameters and the state has none.

    Source: docs/theory.md, section 6.
    """
    if state.position is None and family.needs_parameters:
        raise InternalError("weight decay without parameters; this is a bug in hermosis")
    batch = Batch.of(state.scalars, family, coefficients, rows, gradient.dtype)
    geometry = batch.geometry(state, learned_unit(batch.setting, batch.old), renew=True)
    passes = PlainPasses(state, gradient, geometry, rows)
    taken = take_step(batch, passes, loss, lr_scale, position=state.position, publish=publish)
    check = taken.check if state.matrices is None else taken.check + state.matrices.peaks()
    return Advance(
        increment=passes.increment,
        gradient_finite=taken.gradient_square.isfinite(),
        state_finite=check.isfinite(),
        sample=taken.sample,
    )


# Ends the step that a gradient belongs to, from where it was published; `publish_` then begins the next.
update_ = functools.partial(advance_, publish=False)


class Taken(NamedTuple):
    """What `take_step` found, a line a session.

    Attributes:
      sample:          (S, len(EnergySample._fields)) float64.
      gradient_square: (S,) |g|².
      check:           (S,) finite if the new state is.
    """

    sample: Tensor
    gradient_square: Tensor
    check: Tensor


def take_step(
    batch: "Batch", passes: Passes, loss: Tensor, lr_scale: Tensor, *, position: Tensor | None, publish: bool
) -> Taken:
    """A step as the scalars see it; `passes` take the rows along. `position` is for profiles that feed the loss back.

    Nothing here looks at a value from the host.
    """
    setting, c, old, norms, rows = batch.setting, batch.setting.c, batch.old, batch.norms, batch.rows
    family = setting.family

    opening = open_step(setting, old, lr_scale, drive=batch.drive(loss, position), publish=publish)
    cooling, gain, raising, paces = opening.cooling, opening.impulse_gain, opening.raising, opening.paces
    drift, again = opening.drift, opening.again

    # Kick all rows.
    columns = Columns(
        cooling.retention, gain, opening.first.to(gain.dtype), opening.started, opening.stiffness, c.thermal_decay,
        c.second_moment_decay, c.second_moment_gain, c.epsilon, opening.unit_second_moment,
    )  # fmt: skip
    before_kick, after_kick = norms.moment(raising, old.log_beta), norms.moment(raising, cooling.log_beta)
    measured = passes.kick(columns, norms, before_kick, after_kick, None if family.conformal else paces)
    first_square, momentum_square, position_square = rows.sessions.totals(*measured.squares)

    # The thermal numbers, up to the end of the step.
    before, after = norms.carried(measured.before, before_kick), norms.carried(measured.after, after_kick)
    kick = Kick(
        cooling=cooling,
        impulse_gain=gain,
        energy_unit=torch.where(cooling.kernel > 0, gain * c.action_unit / cooling.kernel, torch.nan),
        loss=known_loss(c, loss, position_square),
        position_square=position_square,
    )
    heat, energy = anchored(setting, batch.heat(cooling.rate), kick, before.kinetic)
    heat, defect = kicked(setting, heat, kick, energy, after.kinetic)
    heat = drifted(heat, after, drift)
    left = torch.ones_like(gain)
    if family.conformal:
        heat, cooled_by = cooled(setting, heat)
        left = left * cooled_by.retention
    # Without cooling in between, all moments after the kick are one.
    at_end, end = heat, after_kick
    if family.conformal:
        end = norms.moment(raising, heat.log_beta, left=left)
    sample = {
        "loss": loss,
        "energy_defect": defect,
        "retention": (-old.published_cooling).exp() * cooling.retention * left,
        "braking": after.braking,
        "gradient_norm": first_square.sqrt(),
        "momentum_norm": momentum_square.sqrt() * left,
        "learning_rate": opening.pace,
    }

    # Publishing drifts in the same direction once more, after the momentum has cooled.
    published_cooling = torch.zeros_like(gain)
    if publish and family.conformal:
        heat, cooled_by = cooled(setting, heat)
        left, published_cooling = left * cooled_by.retention, cooled_by.gain
    if not family.normalise:
        paces = paces._replace(pace_again=paces.pace_again * left)
    next_moment = norms.moment(raising, heat.log_beta, left=left) if family.conformal else after_kick
    norms.prepare(end, next_moment, paces)

    # Drift all rows.
    squares, partials = passes.drift(left, 1 - c.kept_drift, norms)
    increment_square, peaks = rows.sessions.totals(*squares)
    ended, published = norms.later(partials)
    heat = drifted(heat, published, again)
    sample |= energies(setting, at_end, kick, ended, rows.parameter_counts) | {"step_norm": increment_square.sqrt()}

    batch.keep(
        heat,
        step=old.step + 1,
        unit_momentum=opening.unit_momentum * left,
        unit_second_moment=opening.unit_second_moment,
        published_cooling=published_cooling,
    )
    check = momentum_square + increment_square + peaks + 0 * left
    if family.needs_loss:
        check = check + heat.internal_energy
    return Taken(sample_rows(sample), first_square, check)


def publish_(state: PhaseState, *, family: Family, coefficients: Tensor, lr_scale: Tensor, rows: RowMap) -> Tensor:
    """Goes from the end of a step to the point that the next gradient belongs to.

    Args:
      state: the sessions as `update_` leaves them; changed in place.
      The others as for `advance_`.

    Returns:
      (R, E) the change of the parameters.
    """
    increment = torch.zeros_like(state.momentum)
    if family.scheme is Scheme.SYMPLECTIC_EULER:
        return increment
    batch = Batch.of(state.scalars, family, coefficients, rows, state.momentum.dtype)
    setting, c, old, norms = batch.setting, batch.setting.c, batch.old, batch.norms
    heat = batch.heat(cool(family, c, setting.table, old.bath).rate)
    left = torch.ones_like(old.clock)
    if family.conformal:
        heat, cooling = cooled(setting, heat)
        left = cooling.retention
        cool_(state.momentum, retention=rows.sessions.spread(left, dtype=increment.dtype)[:, 0])
    unit_momentum = old.unit_momentum * left
    raising = torch.ones_like(left)
    if family.normalise:  # a session that has not stepped has no momentum to raise
        raising = torch.where(unit_momentum == 0, 1.0, c.gradient_gain / unit_momentum)
    unit_second_moment = torch.where(old.unit_second_moment == 0, 1.0, old.unit_second_moment)

    direction = state.momentum
    if family.has_metric_on_drift:
        table = rows.sessions.spread(
            c.second_moment_decay, c.second_moment_gain, c.epsilon, unit_second_moment, dtype=increment.dtype
        )
        geometry = batch.geometry(state, unit_second_moment, renew=False)
        inverse = geometry.held(state, MetricColumns(*table.unbind(1)))
        direction = direction if inverse is None else inverse.times(direction)
    moment, pace = norms.moment(raising, heat.log_beta), lr_scale * c.learning_rate / 2
    norms.carried(norms.measure(state.momentum, direction, EVERYTHING, moment), moment)
    norms.prepare(moment, moment, Drift(0 * pace, pace * raising, 0 * pace))
    pull, partials = norms.pull(state.momentum, direction, EVERYTHING)
    drift_(increment, direction, reach=pull.lead)
    _, published = norms.later(partials)
    heat = drifted(heat, published, pace)
    if state.lead is not None:
        state.lead.copy_(increment)
    if state.position is not None:
        state.position.add_(increment)
    batch.keep(heat, unit_momentum=unit_momentum, published_cooling=heat.log_beta - old.log_beta)
    return increment


def initial_scalars(hamiltonian: Hamiltonian) -> Scalars[float]:
    """The scalars of a session that is published for the first time, in the order of `SCALARS`.

    Raises:
      InvalidHyperparameter: the profile cannot begin at the initial β.
    """
    hamiltonian.check_bath(hamiltonian.initial_log_beta)
    undefined = float("nan")
    family = hamiltonian.family(())
    log_beta = hamiltonian.initial_log_beta
    scalars = Scalars(
        step=0.0,
        clock=0.0,
        log_beta=log_beta,
        internal_energy=0.0 if family.needs_loss else undefined,
        unit_momentum=0.0,
        unit_second_moment=0.0,
        entropy=undefined,
        reference_energy=undefined,
        published_cooling=0.0,
    )
    if not family.conformal:
        return scalars
    # Momentum is zero, so publishing is half a cooling and no drift.
    one = Scalars(*torch.tensor([scalars], dtype=torch.float64).unbind(1))
    c, table = taken_apart(torch.tensor([hamiltonian.numbers()], dtype=torch.float64))
    cooling = cool(family, c, table, one.bath)
    return scalars._replace(
        clock=float(c.cooling_duration),
        log_beta=float(cooling.log_beta),
        internal_energy=scalars.internal_energy if cooling.internal_energy is None else float(cooling.internal_energy),
        published_cooling=float(cooling.gain),
    )


EVERYTHING = slice(None)


@dataclass(frozen=True, slots=True)
class Batch:
    """The numbers of a batch, taken apart.

    Attributes:
      scalars: (S, len(SCALARS)) float64; `keep` changes them.
      setting: the dynamics.
      old:     the scalars before the step.
      rows:    which rows are whose.
      norms:   how they are taken.
    """

    scalars: Tensor
    setting: Setting
    old: Scalars[Tensor]
    rows: RowMap
    norms: Norms

    @classmethod
    def of(cls, scalars: Tensor, family: Family, coefficients: Tensor, rows: RowMap, dtype: torch.dtype) -> "Batch":
        """A batch of one family; `dtype` is that of its rows."""
        c, table = taken_apart(coefficients)
        norms = norms_of(family, c, rows, dtype)
        return cls(scalars, Setting(family, c, table), Scalars(*scalars.unbind(1)), rows, norms)

    def drive(self, loss: Tensor, position: Tensor | None) -> Tensor | None:
        """c²L̃/h, which a feedback profile answers to; None elsewhere."""
        family, c = self.setting.family, self.setting.c
        if not family.needs_loss:
            return None
        square = torch.zeros_like(loss)
        if family.thermal_decay and position is not None:
            (square,) = self.rows.sessions.totals(row_squares(position))
        return c.gradient_gain / c.step_duration * known_loss(c, loss, square)

    def heat(self, rate: Tensor) -> Heat:
        """The thermal numbers as they stand, at a rate φ/β."""
        old = self.old
        return Heat(*old.bath, old.entropy, old.reference_energy, rate)

    def geometry(self, state: PhaseState, unit_second_moment: Tensor, *, renew: bool) -> Geometry:
        """Which metric the batch has at this D; `renew` where it learns now."""
        family, c = self.setting.family, self.setting.c
        due = [False] * len(self.rows.spans)
        if renew and family.matrix:
            # At first a covariance has seen few directions, and would brake none of the others.
            steps, every = (int(step) for step in self.old.step.tolist()), family.refresh_steps
            due = [step < every or step % every == 0 for step in steps]
        numbers = MatrixNumbers(
            decay=c.second_moment_decay,
            gain=c.second_moment_gain,
            epsilon=c.epsilon,
            unit_moment=unit_second_moment if family.normalise_metric else None,
            power_units=family.power_units,
            epsilon_inside=family.epsilon_inside,
        )
        return Geometry(family, self.rows, numbers, state.matrices if family.matrix else None, due)

    def keep(self, heat: Heat, **changed: Tensor) -> None:
        """Writes the scalars back."""
        new = self.old._replace(
            clock=heat.clock,
            log_beta=heat.log_beta,
            internal_energy=heat.internal_energy,
            entropy=heat.known_entropy,
            reference_energy=heat.reference_energy,
            **changed,
        )
        self.scalars.copy_(torch.stack(tuple(new), dim=1))
