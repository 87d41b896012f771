"""Mean: several gradients in wire bytes become one in float32, in one pass over them.

Sixteen elements of all of them are added up in registers, in the order given: the same bits whoever came first, however
the elements are dealt out to threads.
"""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numba import types
from numpy.typing import NDArray

from hermosis_server.dynamics.fused.compiled import jit, sources
from hermosis_server.dynamics.fused.elements import FLOAT_BYTES, read_gradient
from hermosis_server.dynamics.fused.lanes import LANES, splat, store_float32
from hermosis_server.dynamics.fused.pool import SHARED_ELEMENTS, SLICE_ELEMENTS, Pool
from hermosis_server.dynamics.fused.tables import Integers

Kernel = Callable[[Integers, Integers, NDArray[np.float32], int, int, int], None]


def mean_of(
    addresses: Sequence[int],
    dtypes: Sequence[int],
    weights: Sequence[float],
    elements: int,
    pool: Pool | None = None,
) -> NDArray[np.float32]:
    """(elements,) the sum of weight times gradient.

    Args:
      addresses: of the gradients, each packed.
      dtypes:    of each, as `Dtype` numbers them.
      weights:   of each.
      pool:      threads that share a large one, and what its owner does in between.
    """
    result = np.empty(elements, np.float32)
    add = functools.partial(
        kernel(),
        np.array(addresses, np.int64),
        np.array(dtypes, np.int64),
        np.array(weights, np.float32),
        result.ctypes.data,
    )
    if pool is None or elements < SHARED_ELEMENTS:
        add(0, elements)
        return result
    pieces = [
        functools.partial(add, first, min(first + SLICE_ELEMENTS, elements))
        for first in range(0, elements, SLICE_ELEMENTS)
    ]
    pool.run_slices(pieces[first : first + pool.threads] for first in range(0, len(pieces), pool.threads))
    return result


@functools.cache
def kernel() -> Kernel:
    """The kernel; compiled, or read from Numba's cache, by the first call."""
    version = sources()

    def add(
        addresses: Integers, dtypes: Integers, weights: NDArray[np.float32], result: int, first: int, last: int
    ) -> None:
        version  # noqa: B018  part of the key of Numba's cache
        for index in range(first, last, LANES):
            count = last - index
            total = splat(np.float32(0))
            for part in range(addresses.shape[0]):
                total = total + splat(weights[part]) * read_gradient(addresses[part], dtypes[part], index, count)
            store_float32(total, result + FLOAT_BYTES * index, count)

    integers = types.int64[::1]
    signature = types.void(integers, integers, types.float32[::1], types.int64, types.int64, types.int64)
    return cast(Kernel, jit(signature, cache=True)(add))
