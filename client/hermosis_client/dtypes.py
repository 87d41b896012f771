"""Element encodings of the wire over NumPy, which knows no bfloat16. The client's own numbers are always float32."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype

Float32 = NDArray[np.float32]

_NAMES = {"float32": Dtype.FLOAT32, "float16": Dtype.FLOAT16, "bfloat16": Dtype.BFLOAT16}


def dtype_named(name: str) -> Dtype:
    """The wire dtype of that name; ValueError lists the names there are."""
    try:
        return _NAMES[name]
    except KeyError:
        raise ValueError(f"dtype is {name!r}; the wire carries {', '.join(_NAMES)}") from None


def own_dtype(dtype: object) -> Dtype:
    """The wire's word for the dtype of a NumPy array or torch tensor; FLOAT32 where the wire has none for it."""
    return _NAMES.get(str(dtype).rpartition(".")[2], Dtype.FLOAT32)


def encode(values: Float32, dtype: Dtype) -> memoryview:
    """Little-endian bytes of a 1-D contiguous float32 array; its own memory where they lie there already.

    Beyond float16's range a value becomes infinite.
    """
    if dtype is Dtype.FLOAT32:
        return _bytes_of(values.astype("<f4", copy=False))
    if dtype is Dtype.FLOAT16:
        with np.errstate(over="ignore"):
            return _bytes_of(values.astype("<f2"))
    return _bytes_of(_to_bfloat16(values).astype("<u2", copy=False))


def decode_into(payload: bytes | bytearray | memoryview, dtype: Dtype, out: Float32) -> None:
    """Lands wire bytes in a contiguous float32 array of as many elements, with one copy."""
    if dtype is Dtype.FLOAT32 and sys.byteorder == "little":
        _bytes_of(out)[:] = payload
    elif dtype is Dtype.FLOAT32:
        out[:] = np.frombuffer(payload, "<f4")
    elif dtype is Dtype.FLOAT16:
        out[:] = np.frombuffer(payload, "<f2")
    else:
        bits = out.view(np.uint32)
        bits[:] = np.frombuffer(payload, "<u2")
        bits <<= 16


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of a 1-D contiguous array."""
    return array.data.cast("B") if array.size else memoryview(b"")


def _to_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """The upper half of each binary32, rounded to nearest, ties to even.

    Adding 0x7FFF plus the lowest kept bit carries into the upper half exactly when rounding goes up. NaNs are kept
    apart: the carry could turn one into an infinity or a zero.
    """
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> 16) | 0x0040  # Quiet, with sign and the upper payload bits.
    return rounded.astype(np.uint16)
