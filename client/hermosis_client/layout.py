"""ParameterLayout: a model's tensors as one flat vector of P elements."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hermosis import wire
from hermosis_client.dtypes import Float32, own_dtype


@runtime_checkable
class Shaped(Protocol):
    """An array of any library."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor; `dtype` is the worker's own, for the server's information."""

    name: str
    shape: tuple[int, ...]
    dtype: wire.Dtype = wire.Dtype.FLOAT32

    @property
    def elements(self) -> int:
        """How many elements it has; a scalar has one."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterLayout:
    """Ordered tensors. The order of a mapping is the order of the flat vector."""

    tensors: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Shaped | Sequence[int]]) -> "ParameterLayout":
        """From arrays, whose values are not looked at, or from plain shapes: ``{"weight": (3, 4), "bias": (3,)}``."""
        return cls(tuple(_spec(name, tensor) for name, tensor in tensors.items()))

    @cached_property
    def parameter_count(self) -> int:
        """P, the elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 that names the layout on the wire."""
        return wire.layout_digest((tensor.name, tensor.shape, tensor.dtype) for tensor in self.tensors)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the flat vector."""
        places, start = {}, 0
        for tensor in self.tensors:
            places[tensor.name] = slice(start, start + tensor.elements)
            start += tensor.elements
        return places

    def flatten(self, arrays: Mapping[str, ArrayLike], out: Float32) -> None:
        """Copies arrays to their place in a flat vector, as float32.

        Raises:
          ValueError: a tensor is missing, is not of the layout or has another shape.
        """
        unknown = arrays.keys() - self.slices.keys()
        missing = self.slices.keys() - arrays.keys()
        if unknown or missing:
            raise ValueError(
                f"tensors differ from the session's layout: missing {sorted(missing)}, not in it {sorted(unknown)}"
            )
        for tensor in self.tensors:
            array = np.asarray(arrays[tensor.name])
            if array.shape != tensor.shape:
                raise ValueError(f"tensor {tensor.name!r} has shape {array.shape}, the session {tensor.shape}")
            out[self.slices[tensor.name]] = array.reshape(-1)

    def places(self, names: Collection[str]) -> tuple[int, ...]:
        """Where tensors stand in the layout, in ascending order; ValueError for one that is not in it."""
        unknown = sorted(set(names) - self.slices.keys())
        if unknown:
            raise ValueError(f"tensors {unknown} are not in the session's layout")
        return tuple(place for place, tensor in enumerate(self.tensors) if tensor.name in names) if names else ()

    def flat(self, arrays: "Mapping[str, ArrayLike] | Float32", *, without: Sequence[int] = ()) -> Float32:
        """A flat float32 vector of arrays by name; one that is flat already is taken as it is, without a copy.

        Args:
          without: places of tensors that a mapping leaves out; they are zero.

        Raises:
          ValueError: tensors or sizes differ from the layout.
        """
        if isinstance(arrays, Mapping):
            absent = [self.tensors[place] for place in without]
            given = [tensor.name for tensor in absent if tensor.name in arrays]
            if given:
                raise ValueError(f"tensors {given} are skipped, but a gradient of theirs was given")
            out = np.empty(self.parameter_count, np.float32)
            self.flatten({**arrays, **{tensor.name: np.zeros(tensor.shape, np.float32) for tensor in absent}}, out)
            return out
        return self.checked(arrays)

    def checked(self, flat: NDArray[np.float32]) -> Float32:
        """The same vector, known to be float32, contiguous and of P elements; ValueError otherwise."""
        wanted = (self.parameter_count,)
        if flat.shape != wanted or flat.dtype != np.float32 or not flat.flags.c_contiguous:
            raise ValueError(
                f"a flat vector of the session is a contiguous float32 array of shape {wanted}, "
                f"got {flat.dtype} of shape {flat.shape}"
            )
        return flat


class Tensors(Mapping[str, Float32]):
    """Arrays by name, each a view of one flat vector, which is `flat`."""

    def __init__(self, layout: ParameterLayout, flat: Float32) -> None:
        self.flat = flat
        self._views = {tensor.name: flat[layout.slices[tensor.name]].reshape(tensor.shape) for tensor in layout.tensors}

    def __getitem__(self, name: str) -> Float32:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"Tensors({self._views!r})"


def _spec(name: str, tensor: Shaped | Sequence[int]) -> TensorSpec:
    if isinstance(tensor, Shaped):
        return TensorSpec(name=name, shape=tuple(map(int, tensor.shape)), dtype=own_dtype(tensor.dtype))
    return TensorSpec(name=name, shape=tuple(map(int, tensor)))
