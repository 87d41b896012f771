"""The flat vector of a layout."""

import numpy as np
import pytest
import torch

from hermosis import wire
from hermosis_client import ParameterLayout, Tensors

SHAPES = {"scalar": (), "weight": (3, 4), "empty": (0, 5), "one": (1,), "deep": (2, 3, 2)}


def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def test_layout_of_arrays_and_of_shapes_is_the_same() -> None:
    layout = ParameterLayout.of(SHAPES)
    assert layout == ParameterLayout.of({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    assert layout == ParameterLayout.of({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    assert layout.parameter_count == 1 + 12 + 0 + 1 + 12


def test_digest_is_that_of_the_wire() -> None:
    expected = wire.layout_digest((name, shape, wire.Dtype.FLOAT32) for name, shape in SHAPES.items())
    assert ParameterLayout.of(SHAPES).digest == expected
    assert ParameterLayout.of(dict(reversed(SHAPES.items()))).digest != expected


def test_flatten_and_views_are_inverse_for_odd_shapes() -> None:
    layout = ParameterLayout.of(SHAPES)
    given = arrays()
    flat = layout.flat(given)
    assert flat.dtype == np.float32
    assert np.array_equal(flat, np.concatenate([array.reshape(-1) for array in given.values()]).astype(np.float32))
    views = Tensors(layout, flat)
    assert list(views) == list(SHAPES)
    for name, array in given.items():
        assert views[name].shape == array.shape
        assert np.array_equal(views[name], array.astype(np.float32))


def test_views_share_the_flat_vector() -> None:
    flat = np.zeros(26, np.float32)
    views = Tensors(ParameterLayout.of(SHAPES), flat)
    flat[1] = 3.0
    assert views["weight"][0, 0] == 3.0


def test_arrays_in_another_memory_order_are_flattened_in_logical_order() -> None:
    layout = ParameterLayout.of({"w": (2, 3)})
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert layout.flat({"w": array}).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_flat_vector_is_taken_without_a_copy() -> None:
    flat = np.zeros(26, np.float32)
    assert ParameterLayout.of(SHAPES).flat(flat) is flat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given.pop("weight"), r"missing \['weight'\]"),
        (lambda given: given.update(extra=np.zeros(1)), r"not in it \['extra'\]"),
        (lambda given: given.update(weight=np.zeros((4, 3))), r"'weight' has shape \(4, 3\), the session \(3, 4\)"),
    ],
)
def test_arrays_of_another_layout_are_refused_by_name(change, message: str) -> None:
    given = arrays()
    change(given)
    with pytest.raises(ValueError, match=message):
        ParameterLayout.of(SHAPES).flat(given)


@pytest.mark.parametrize(
    "flat", [np.zeros(25, np.float32), np.zeros(26), np.zeros((26, 1), np.float32), np.zeros(52, np.float32)[::2]]
)
def test_a_flat_vector_of_another_kind_is_refused(flat: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"contiguous float32 array of shape \(26,\)"):
        ParameterLayout.of(SHAPES).flat(flat)
