r"""Norms: what the kinetic energy makes of a batch of momenta, whether it looks at sessions, tensors or coordinates.

With the inverse metric G and the raising factor a = ζ/A of a normalised momentum (a = 1 elsewhere),

.. math::
    s = a\,X\!\cdot\!G X \;\text{(metric)} \quad\text{or}\quad X\!\cdot\!X \;\text{(euclidean)}, \qquad
    \text{work} = a\,X\!\cdot\!G X, \qquad \text{power} = f\cdot\text{work} = h\,X\!\cdot\!v

`GroupNorms` sums over rows first, then asks for the motion of each sum. `CoordinateNorms` asks for the motion of each
element, in float64, and sums what it gets. Both take a step's norms at up to four moments: before the kick, after it,
at the end of the step, and where the next point is published; momentum and mass cool in between.

Source: docs/theory.md, section 4.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.family import Coefficients, Family
from hermosis_server.dynamics.kinetic import Limits, Motion, NormScope, motion
from hermosis_server.dynamics.rows import RowMap, row_products, row_squares, row_sums
from hermosis_server.dynamics.thermal import LOG_BETA_LIMIT

Partials = tuple[Tensor, ...]  # (R,) float64 sums of each row


class Carried(NamedTuple):
    """What the kinetic energy makes of a session's momentum, each (S,) float64.

    Attributes:
      kinetic: κ, summed over norm groups.
      slope:   ∂κ/∂lnβ, likewise.
      power:   h X·v, the momentum times its velocity.
      braking: f; its mean over the session where groups have each their own.
    """

    kinetic: Tensor
    slope: Tensor
    power: Tensor
    braking: Tensor

    @property
    def effort(self) -> Tensor:
        """κ + ∂κ/∂lnβ."""
        return self.kinetic + self.slope


class Moment(NamedTuple):
    """When norms are taken: factors of s and of work, and (β/β₀)^ν or None; each (S,)."""

    square_factor: Tensor
    work_factor: Tensor
    heat: Tensor | None


class Drift(NamedTuple):
    """Lengths of the drifts of a step over learning rate and lr_scale, each (S,) float64.

    Attributes:
      pace:       d/h of the drift that ends the step, with the raising factor.
      pace_again: that of the drift that publishes, likewise, as a factor of the direction before cooling.
      decay:      of the parameters, without braking.
    """

    pace: Tensor
    pace_again: Tensor
    decay: Tensor


class Pull(NamedTuple):
    """How far rows go along their direction, (R, 1) or (R, E) in the rows' dtype: in all, the published part, decay."""

    reach: Tensor
    lead: Tensor
    decay: Tensor


class _Norms:
    def __init__(self, family: Family, c: Coefficients[Tensor], rows: RowMap, dtype: torch.dtype) -> None:
        self._family, self._c, self._rows, self._dtype = family, c, rows, dtype
        self._limits = (c.speed_limit, c.rest_cooling, c.rest_energy, c.stiffness, c.braking_cap)

    def moment(self, raising: Tensor, log_beta: Tensor, *, left: Tensor | None = None) -> Moment:
        """The moment at which ln β is this.

        Args:
          raising: (S,) a.
          left:    (S,) what cooling has left of the momentum since its norms were summed.
        """
        heat: Tensor | None = None
        if self._family.rest_cooling:
            grown = self._c.rest_cooling * (log_beta - self._c.initial_log_beta)
            heat = grown.clamp(-LOG_BETA_LIMIT, LOG_BETA_LIMIT).exp()
        one = torch.ones_like(log_beta)
        remaining = one if left is None else left.square()
        # A normalised momentum X/A does not change when both cool.
        work = raising * (one if left is None else left if self._family.normalise else remaining)
        return Moment(remaining if self._family.euclidean_norm else work, work, heat)


class GroupNorms(_Norms):
    """Norms over sessions or over tensors.

    Attributes:
      pulls: (R, 3, 1) reach, lead and decay of each row in the rows' dtype, once that is known.
    """

    pulls: Tensor

    def __init__(self, family: Family, c: Coefficients[Tensor], rows: RowMap, dtype: torch.dtype) -> None:
        super().__init__(family, c, rows, dtype)
        self._by_tensor = family.norm_scope is NormScope.TENSOR
        self._groups = rows.tensors if self._by_tensor else rows.sessions

    def measure(self, momentum: Tensor, raised: Tensor, run: slice, moment: Moment) -> Partials:
        """(R,) X·X or X·GX, whichever the norm is, and X·GX."""
        if raised is momentum:
            square = row_squares(momentum)
            return square, square
        work = row_products(momentum, raised)
        return (row_squares(momentum) if self._family.euclidean_norm else work), work

    def carried(self, partials: Partials, moment: Moment) -> Carried:
        """What sessions carry; the last moment that is asked for is the one that `prepare` goes on from."""
        self._after, self._totals = moment, self._groups.totals(*partials)
        self._found = self._carried(self._totals, moment)
        return self._found[0]

    def prepare(self, end: Moment, again: Moment, drift: Drift) -> None:
        """Gets ready to pull: all later norms are known from those after the kick."""
        carried, braking = self._found
        self._end = carried if end is self._after else self._carried(self._totals, end)[0]
        self._again, braking_again = self._found if again is self._after else self._carried(self._totals, again)
        self.pulls = self._lengths(drift, braking, braking_again)

    def foresee(self, after: Moment, drift: Drift) -> None:
        """Gets ready to pull before the kick, where nothing brakes."""
        self.pulls = self._lengths(drift, 1.0, 1.0)

    def _lengths(self, drift: Drift, braking: Tensor | float, braking_again: Tensor | float) -> Tensor:
        lead = self._of_group(drift.pace_again) * braking_again
        decay = self._of_group(drift.decay)
        if self._family.decay_follows_speed:
            decay = decay * braking
        reach = self._of_group(drift.pace) * braking + lead
        return self._groups.spread(reach, lead, decay, dtype=self._dtype)

    def pull(self, momentum: Tensor, raised: Tensor, run: slice) -> tuple[Pull, Partials]:
        """How far some rows go, and what the later moments still have to sum: nothing."""
        return Pull(*self.pulls[run].unbind(1)), ()

    def later(self, partials: Partials) -> tuple[Carried, Carried]:
        """What sessions carry at the end of the step, and as the next point is published."""
        return self._end, self._again

    def _carried(self, totals: tuple[Tensor, ...], moment: Moment) -> tuple[Carried, Tensor]:
        square, work = totals
        square = square * self._of_group(moment.square_factor)
        work = work * self._of_group(moment.work_factor)
        limits = Limits(*(self._of_group(limit) for limit in self._limits))
        heat = None if moment.heat is None else self._of_group(moment.heat)
        moving = motion(self._family.kinetic, square, limits, heat)
        slope = torch.zeros_like(work) if moving.beta_slope is None else moving.beta_slope
        sums = (moving.kinetic, slope, moving.braking * work)
        if not self._by_tensor:
            return Carried(*sums, moving.braking), moving.braking
        kinetic, slope, braked, work = self._rows.tensors_of.totals(*sums, work)
        return Carried(kinetic, slope, braked, _mean_braking(braked, work)), moving.braking

    def _of_group(self, value: Tensor) -> Tensor:
        return self._rows.tensors_of.each(value) if self._by_tensor else value


class CoordinateNorms(_Norms):
    """Each element by itself. Rest energy is left out of the elements and added to their sums.

    Attributes:
      after:  (R, n, 1) float64 `columns` after the kick, and
      drifts: (R, 3, 1) float64 `Drift` of each row, once they are known.
    """

    after: Tensor
    drifts: Tensor

    def measure(self, momentum: Tensor, raised: Tensor, run: slice, moment: Moment) -> Partials:
        """(R,) sums of κ, ∂κ/∂lnβ, power and work."""
        return self._sums(*self._motion(momentum, raised, self.columns(moment)[run]))

    def carried(self, partials: Partials, moment: Moment) -> Carried:
        """What sessions carry, as above. Rest energy is that of every parameter, and not of the padding."""
        self._moment = moment
        kinetic, slope, power, work = self._rows.sessions.totals(*partials)
        at_rest = motion(self._family.kinetic, torch.zeros_like(work), Limits(*self._limits), moment.heat)
        kinetic = kinetic + self._rows.parameter_counts * at_rest.kinetic
        if at_rest.beta_slope is not None:
            slope = slope + self._rows.parameter_counts * at_rest.beta_slope
        return Carried(kinetic, slope, power, _mean_braking(power, work))

    def prepare(self, end: Moment, again: Moment, drift: Drift) -> None:
        """Gets ready to pull."""
        after = self._moment
        self._moments = end, again
        self._at_end, self._at_again = (None if each is after else self.columns(each) for each in (end, again))
        self.foresee(after, drift)

    def foresee(self, after: Moment, drift: Drift) -> None:
        """Gets ready to pull before the kick, where nothing cools after it."""
        self.after = self.columns(after)
        self.drifts = self._rows.sessions.spread(*drift, dtype=torch.float64)

    def pull(self, momentum: Tensor, raised: Tensor, run: slice) -> tuple[Pull, Partials]:
        """How far some rows go, and what the later moments sum."""
        after = self._motion(momentum, raised, self.after[run])
        end = after if self._at_end is None else self._motion(momentum, raised, self._at_end[run])
        later = after if self._at_again is None else self._motion(momentum, raised, self._at_again[run])
        moving, again = after[0], later[0]
        drift = Drift(*self.drifts[run].unbind(1))
        lead = drift.pace_again * again.braking
        decay = drift.decay * moving.braking if self._family.decay_follows_speed else drift.decay
        pull = Pull(drift.pace * moving.braking + lead, lead, decay)
        return Pull(*(part.to(self._dtype) for part in pull)), (*self._sums(*end), *self._sums(*later))

    def later(self, partials: Partials) -> tuple[Carried, Carried]:
        """What sessions carry at the end of the step, and as the next point is published."""
        end, again = self._moments
        return self.carried(partials[:4], end), self.carried(partials[4:], again)

    def columns(self, moment: Moment) -> Tensor:
        """(R, n, 1) float64: the numbers of each row's session."""
        heat = torch.ones_like(moment.work_factor) if moment.heat is None else moment.heat
        limits = Limits(*self._limits)._replace(rest_energy=torch.zeros_like(heat))
        return self._rows.sessions.spread(moment.square_factor, moment.work_factor, heat, *limits, dtype=torch.float64)

    def _motion(self, momentum: Tensor, raised: Tensor, columns: Tensor) -> tuple[Motion, Tensor]:
        """(R, E) the motion of each element, and its work."""
        square_factor, work_factor, heat, *limits = columns.unbind(1)
        wide = momentum.to(torch.float64)
        product = wide * raised.to(torch.float64)
        square = wide.square() if self._family.euclidean_norm else product
        warm = heat if self._family.rest_cooling else None
        return motion(self._family.kinetic, square * square_factor, Limits(*limits), warm), product * work_factor

    @staticmethod
    def _sums(moving: Motion, work: Tensor) -> Partials:
        slope = torch.zeros_like(work) if moving.beta_slope is None else moving.beta_slope
        power = moving.braking * work
        return row_sums(moving.kinetic), row_sums(slope), row_sums(power), row_sums(work)


Norms = GroupNorms | CoordinateNorms


def norms_of(family: Family, c: Coefficients[Tensor], rows: RowMap, dtype: torch.dtype) -> Norms:
    """How a batch takes its norms; `dtype` is that of its rows."""
    kind = CoordinateNorms if family.norm_scope is NormScope.COORDINATE else GroupNorms
    return kind(family, c, rows, dtype)


def _mean_braking(power: Tensor, work: Tensor) -> Tensor:
    """Braking over a session, weighed by what each group would do unbraked; 1 at rest."""
    return torch.where(work > 0, power / work, 1.0)
