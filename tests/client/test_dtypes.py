"""Element encodings, with torch's own conversions as the oracle."""

import numpy as np
import pytest
import torch

from hermosis.wire import Dtype
from hermosis_client.dtypes import decode_into, dtype_named, encode, own_dtype

TORCH = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}


def any_bits(count: int = 1 << 18) -> np.ndarray:
    """float32 values of random bits: every magnitude, subnormals, infinities and NaNs among them."""
    return np.random.default_rng(7).integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)


def as_torch_encodes(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    words = torch.int32 if dtype is Dtype.FLOAT32 else torch.int16
    return torch.from_numpy(values).to(TORCH[dtype]).view(words).numpy()


@pytest.mark.parametrize("dtype", list(Dtype), ids=lambda dtype: dtype.name)
def test_encoding_is_torchs_for_values_of_every_kind(dtype: Dtype) -> None:
    values = any_bits()
    values = values[~np.isnan(values)]
    expected = as_torch_encodes(values, dtype)
    assert np.array_equal(np.frombuffer(encode(values, dtype), expected.dtype), expected)


def test_bfloat16_rounds_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0xFF800000, 0x80000000], np.uint32)
    encoded = np.frombuffer(encode(bits.view(np.float32), Dtype.BFLOAT16), np.uint16)
    #                           tie, stays even  tie, goes up  above  below   overflows  -inf    -0
    assert encoded.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0x7F80, 0xFF80, 0x8000]


@pytest.mark.parametrize("dtype", list(Dtype), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF], ids=hex)
def test_nan_stays_nan_on_every_wire(dtype: Dtype, bits: int) -> None:
    landed = np.zeros(1, np.float32)
    decode_into(encode(np.array([bits], np.uint32).view(np.float32), dtype), dtype, landed)
    assert np.isnan(landed).all()


@pytest.mark.parametrize("dtype", list(Dtype), ids=lambda dtype: dtype.name)
def test_what_has_been_decoded_encodes_to_the_same_bytes(dtype: Dtype) -> None:
    values = any_bits()
    payload = encode(values[~np.isnan(values)], dtype)
    landed = np.full(len(payload) // dtype.itemsize, np.nan, np.float32)
    decode_into(payload, dtype, landed)
    assert encode(landed, dtype) == payload


def test_decoding_lands_in_a_slice_and_nowhere_else() -> None:
    landed = np.full(6, 9.0, np.float32)
    decode_into(encode(np.array([1.5, -2.0], np.float32), Dtype.BFLOAT16), Dtype.BFLOAT16, landed[2:4])
    assert landed.tolist() == [9.0, 9.0, 1.5, -2.0, 9.0, 9.0]


def test_dtype_names_are_those_of_the_wire() -> None:
    assert dtype_named("bfloat16") is Dtype.BFLOAT16
    with pytest.raises(ValueError, match=r"float64.*float32, float16, bfloat16"):
        dtype_named("float64")


def test_own_dtype_reads_arrays_of_any_library() -> None:
    assert own_dtype(np.zeros(1, np.float16).dtype) is Dtype.FLOAT16
    assert own_dtype(torch.bfloat16) is Dtype.BFLOAT16
    assert own_dtype(np.zeros(1).dtype) is Dtype.FLOAT32  # float64 has no word on the wire
