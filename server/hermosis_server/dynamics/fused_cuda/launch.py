"""Launch: a step on the rows of a device, in one pass over them where nobody's norm is asked for, else in two."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.integrators import Batch, take_step
from hermosis_server.dynamics.kinetic import KineticKind, NormScope
from hermosis_server.dynamics.norms import CoordinateNorms, Drift, Moment, Norms, Partials
from hermosis_server.dynamics.passes import Columns, Measured
from hermosis_server.dynamics.rows import GROUP_ROWS, Grouping, RowMap

# Elements for each group of 32 threads: 16 bytes a thread where a row is short, more where it is long.
WARP_ELEMENTS, MOST_WARPS = 128, 8


class Groups(Grouping):
    """Sums over rows with one launch for each level of the tree, in place of one for each addition."""

    def _gathered(self, table: Tensor, gather: Tensor) -> Tensor:
        from hermosis_server.dynamics.fused_cuda import kernels  # Only who steps needs Triton.

        (groups, width), columns = gather.shape, table.shape[1]
        sums = table.new_empty(groups, columns)
        kernel: Callable[..., None] = kernels.sum_items[(groups, columns)]
        kernel(table, gather, sums, len(table), width, WIDTH=GROUP_ROWS, num_warps=1)
        return sums


class Rows(NamedTuple):
    """The rows of a batch, on their device.

    Attributes:
      of:        which rows are whose, in `Groups`.
      elements:  E, a power of two.
      addresses: (R, 8) int64: addresses of each row of position, momentum, second moment, first moment and lead, zero
                 for what the family does not keep; the first element of the row in its session's vector; nothing;
                 elements that are not padding.
    """

    of: RowMap
    elements: int
    addresses: Tensor


class Stepped(NamedTuple):
    """What a step found, a line a session.

    Attributes:
      sample:  (S, len(EnergySample._fields)) float64.
      largest: (S,) float64 the largest magnitude in the new state.
    """

    sample: Tensor
    largest: Tensor


@functools.cache
def available() -> bool:
    """Whether Triton is installed; it comes with the CUDA builds of torch."""
    return importlib.util.find_spec("triton") is not None


def covers(family: Family) -> bool:
    """Whether the kernels know the family's rows, and a step can be foreseen, since the profile does not feed back."""
    if family.matrix or family.needs_loss:
        return False
    if family.norm_scope is not NormScope.COORDINATE:
        return True
    known = family.kinetic in (KineticKind.CLASSICAL, KineticKind.RELATIVISTIC)
    return known and not family.conformal


def step(
    family: Family,
    *,
    rows: Rows,
    holds_parameters: bool,
    wires: Tensor,
    loss: Tensor,
    lr_scale: Tensor,
    coefficients: Tensor,
    scalars: Tensor,
) -> Stepped:
    """One step of sessions of a family that `covers` names, in place. Whoever calls has proven that it stays finite.

    It only queues work, so a CUDA graph may capture it.

    Args:
      rows:             the sessions' rows.
      holds_parameters: whether they have positions.
      wires:            (S, 5) int64: address and Dtype of the gradient, in elements that lie side by side; address of
                        the reply or zero, Reply, Dtype of the reply.
      loss, lr_scale:   (S,) float64, as for `advance_`.
      coefficients:     (S, n) float64 likewise.
      scalars:          (S, len(SCALARS)) float64; changed in place.
    """
    passes = _Passes(family, rows, holds_parameters, wires)
    batch = Batch.of(scalars, family, coefficients, rows.of, torch.float32)
    taken = take_step(batch, passes, loss, lr_scale, position=None, publish=True)
    return Stepped(taken.sample, passes.largest())


class _Passes:
    """The passes of passes.py by the kernel."""

    def __init__(self, family: Family, rows: Rows, holds_parameters: bool, wires: Tensor) -> None:
        from hermosis_server.dynamics.fused_cuda import kernels  # as above

        self._kernels = kernels
        self._family, self._rows, self._wires = family, rows, wires
        count = len(rows.addresses)
        self._found = torch.zeros((kernels.FOUND.value, count), dtype=torch.float64, device=wires.device)
        self._kicks, self._nothing = torch.empty(0), rows.addresses  # any pointer will do for what is not read
        self._at_once = False
        self._coordinate = family.norm_scope is NormScope.COORDINATE
        self._flags = {
            "HAS_POSITION": holds_parameters,
            "WEIGH": family.needs_parameters,
            "HAS_SECOND": family.diagonal,
            "HAS_FIRST": family.centered,
            "HAS_LEAD": family.keeps_lead,
            "ON_KICK": family.metric_on_kick,
            "NORMALISE": family.normalise_metric,
            "POWER_UNITS": family.power_units,
            "INSIDE": family.epsilon_inside,
            "START": family.first_kick,
            "LOOKAHEAD": family.lookahead,
            "THERMAL": family.thermal_decay,
            "BARE": family.bare_decay,
            "DECOUPLED": family.decoupled_decay,
            "FOLLOWS": family.decay_follows_speed,
            "CONFORMAL": family.conformal,
            "EUCLIDEAN": family.euclidean_norm,
            "COORDINATE": self._coordinate,
            "RELATIVISTIC": family.kinetic is KineticKind.RELATIVISTIC,
            "WARM": family.rest_cooling,
        }

    def kick(
        self, columns: Columns, norms: Norms, before_kick: Moment, after_kick: Moment, drift: Drift | None
    ) -> Measured:
        """As passes.Passes has it; also drifts, where nothing that is measured here has a say in that."""
        self._kicks = self._rows.of.sessions.spread(*columns, dtype=torch.float32)
        self._at_once = drift is not None and (self._coordinate or self._family.kinetic is KineticKind.CLASSICAL)
        if drift is not None and self._at_once:
            norms.foresee(after_kick, drift)
        before = after = pulls = self._nothing
        if isinstance(norms, CoordinateNorms):
            before, after, pulls = norms.columns(before_kick), norms.after, norms.drifts
        elif self._at_once:
            pulls = norms.pulls
        self._launch(pulls, self._nothing, before, after, KICK=True, DRIFT=self._at_once)
        squares = self._of(self._kernels.GRADIENT_SQUARE, 3)
        measured = 4 if self._coordinate else 2
        return Measured(squares, self._of(self._kernels.BEFORE, measured), self._of(self._kernels.AFTER, measured))

    def drift(self, left: Tensor, taken_back: Tensor, norms: Norms) -> tuple[Partials, Partials]:
        """As passes.Passes has it."""
        if not self._at_once:
            assert not isinstance(norms, CoordinateNorms)
            cools = self._rows.of.sessions.spread(left, taken_back, dtype=torch.float32)
            self._launch(norms.pulls, cools, self._nothing, self._nothing, KICK=False, DRIFT=True)
        # Where each coordinate has its norm nothing cools after the kick, so the later moments are the one after it.
        later = self._of(self._kernels.AFTER, 4) * 2 if self._coordinate else ()
        return self._of(self._kernels.STEP_SQUARE, 2), later

    def largest(self) -> Tensor:
        """(S,) the largest magnitude in the new state."""
        return self._rows.of.sessions.largest(self._found[self._kernels.PEAK.value])

    def _of(self, first: Any, count: int) -> Partials:
        return self._found[first.value : first.value + count].unbind(0)

    def _launch(self, pulls: Tensor, cools: Tensor, before: Tensor, after: Tensor, **acts: bool) -> None:
        count, elements = len(self._rows.addresses), self._rows.elements
        kernel: Callable[..., None] = self._kernels.step_rows[(count,)]
        kernel(
            self._rows.addresses, self._rows.of.sessions.group, self._wires, self._kicks, pulls, cools, before, after,
            self._found, count, E=elements, **acts, **self._flags,
            num_warps=max(1, min(MOST_WARPS, elements // WARP_ELEMENTS)), enable_fp_fusion=False,
        )  # fmt: skip
