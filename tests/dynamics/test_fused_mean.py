"""The mean of several gradients, against the same sum written out in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.dynamics import fused

DTYPES = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}


def gradients(dtypes: list[Dtype], elements: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(elements)
    return [torch.randn(elements, generator=generator).to(DTYPES[dtype]) for dtype in dtypes]


def mean_of(vectors: list[torch.Tensor], dtypes: list[Dtype], weights: list[float], pool: fused.Pool | None = None):
    return fused.mean_of([each.data_ptr() for each in vectors], dtypes, weights, len(vectors[0]), pool)


def written_out(vectors: list[torch.Tensor], weights: list[float]) -> NDArray[np.float32]:
    total = np.zeros(len(vectors[0]), np.float32)
    for vector, weight in zip(vectors, weights, strict=True):
        total = total + np.float32(weight) * vector.float().numpy()
    return total


@pytest.mark.parametrize("elements", [1, 15, 16, 17, 1000, 4099])
@pytest.mark.parametrize("dtypes", [[each] * 3 for each in DTYPES] + [list(DTYPES)], ids=str)
def test_mean_has_the_bits_of_the_sum_in_order(dtypes: list[Dtype], elements: int) -> None:
    vectors, weights = gradients(dtypes, elements), [0.5, 0.2, 0.3]
    assert mean_of(vectors, dtypes, weights).tobytes() == written_out(vectors, weights).tobytes()


def test_mean_does_not_depend_on_how_it_is_dealt_out() -> None:
    elements = 3 * fused.SHARED_ELEMENTS + 5
    dtypes, weights = [Dtype.FLOAT32, Dtype.BFLOAT16], [0.25, 0.75]
    vectors, calls = gradients(dtypes, elements), list[int]()
    alone = mean_of(vectors, dtypes, weights)
    for threads, between in ((1, lambda: calls.append(1)), (2, None), (3, None)):
        pool = fused.Pool(threads, between)
        try:
            assert mean_of(vectors, dtypes, weights, pool).tobytes() == alone.tobytes()
        finally:
            pool.close()
    assert calls  # somebody else had a turn meanwhile


def test_mean_depends_on_the_order_it_is_given() -> None:
    """Which is why workers are summed by their ids."""
    vectors, weights = gradients([Dtype.FLOAT32] * 3, 1000), [1 / 3] * 3
    forth = mean_of(vectors, [Dtype.FLOAT32] * 3, weights)
    back = mean_of(vectors[::-1], [Dtype.FLOAT32] * 3, weights)
    assert forth.tobytes() != back.tobytes()
