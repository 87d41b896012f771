"""What is proven to stay finite does, and ordinary sessions are proven."""

import itertools
import math

import pytest
import torch
from tests.dynamics.batches import SHAPES, Batch, batch_of, draw, roster
from torch import Tensor

from hermosis_server.dynamics import fused_cuda
from hermosis_server.dynamics.fused_cuda.bounds import stays_finite
from hermosis_server.dynamics.kinetic import KineticKind

ROSTER = {name: one for name, one in roster().items() if fused_cuda.covers(one.family(SHAPES))}
SIZE = sum(math.prod(shape) for shape in SHAPES)
SCALES = (0.0, 1e-30, 1.0, 1e12, 1e18, 1e19, 1e25, 1e31, 1e36)
LR_SCALES = (1.0, 1e12)
CPU = torch.device("cpu")


def proven(batch: Batch, gradient: Tensor, lr_scale: list[float]) -> Tensor:
    """(S,) bool."""

    def peaks(*rows: Tensor) -> Tensor:
        return batch.rows.sessions.largest(torch.stack([each.abs().amax(dim=1) for each in rows]).amax(dim=0).double())

    return stays_finite(
        batch.family,
        coefficients=batch.coefficients,
        scalars=batch.state.scalars,
        lr_scale=torch.tensor(lr_scale, dtype=torch.float64),
        peak=peaks(gradient),
        largest=peaks(*batch.state.buffers().values()),
    )


@pytest.mark.parametrize("name", ROSTER)
def test_what_is_proven_stays_finite(name: str) -> None:
    """Sessions of every mixture of magnitudes, in their first step and in a later one."""
    mixtures = list(itertools.product(SCALES, SCALES, LR_SCALES))
    found = 0
    for steps in (0, 2):
        (start,) = draw(1, SIZE, dtype=torch.float32, device=CPU)
        batch = batch_of(ROSTER[name], [start] * len(mixtures), shapes=SHAPES)
        for number in range(steps):
            batch.step(batch.rows_of(draw(number, *[SIZE] * len(mixtures), dtype=torch.float32, device=CPU)))
        rows = batch.rows.sessions.spread(torch.tensor(mixtures, dtype=torch.float64)[:, 0], dtype=torch.float32)[:, 0]
        for buffer in batch.state.buffers().values():
            buffer.mul_(rows)
        (direction,) = draw(9, SIZE, dtype=torch.float32, device=CPU)
        gradient = batch.rows_of([direction * scale for _, scale, _ in mixtures])
        lr_scale = [one for *_, one in mixtures]
        certain = proven(batch, gradient, lr_scale)
        advance = batch.step(gradient, lr_scale=lr_scale)
        finite = advance.state_finite & advance.gradient_finite
        assert not (certain & ~finite).any(), [mixtures[i] for i in (certain & ~finite).nonzero().flatten().tolist()]
        assert certain[mixtures.index((1.0, 1.0, 1.0))], "an ordinary session is proven"
        assert certain[mixtures.index((0.0, 0.0, 1.0))]
        assert not certain[mixtures.index((1e36, 1e36, 1e12))]
        found += int((~finite).sum())
    limited = batch.family.kinetic is not KineticKind.CLASSICAL
    assert found or limited, "nothing overflowed, so this test shows nothing"


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_known_is_not_proven(bad: float) -> None:
    batch = batch_of(ROSTER["sgd"], draw(1, SIZE, dtype=torch.float32, device=CPU))
    one, unknown = torch.ones(1, dtype=torch.float64), torch.full((1,), bad, dtype=torch.float64)
    for peak, largest, lr_scale in ((unknown, one, one), (one, unknown, one), (one, one, unknown)):
        assert not stays_finite(
            batch.family,
            coefficients=batch.coefficients,
            scalars=batch.state.scalars,
            lr_scale=lr_scale,
            peak=peak,
            largest=largest,
        ).any()
