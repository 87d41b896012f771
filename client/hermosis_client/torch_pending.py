"""PendingParameter: a parameter whose new values are on their way; whoever reads it waits for them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What may be asked of a tensor without reading its values: a training loop does so between a step and the next forward.
_ASKED = ("grad", "requires_grad", "shape", "dtype", "device", "layout", "is_leaf", "is_sparse")
_BLIND = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in _ASKED),
        *(getattr(Tensor.grad, act) for act in ("__set__", "__delete__")),
        *(Tensor.is_floating_point, Tensor.numel, Tensor.size, Tensor.dim),
    }
)


class PendingParameter(nn.Parameter):
    """What a parameter is from a step until its values have landed.

    The class of a tensor may change while it lives; torch does so with parameters of unknown shape. Every function of
    torch that is given a tensor of this class comes here first, so each waits for what it reads and for nothing else,
    whichever module the tensor is in.
    """

    _arrive: Callable[[], None]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _BLIND:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        for tensor in _pending_in((args, kwargs)):
            tensor._arrive()
        return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._arrive()
        return copy.deepcopy(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._arrive()
        return self.__reduce_ex__(protocol)


def can_wait(tensor: Tensor) -> bool:
    """Whether readers of this tensor can be made to wait: a parameter of torch's own class."""
    return type(tensor) is nn.Parameter


def expect(tensor: Tensor, arrive: Callable[[], None]) -> None:
    """Makes a parameter pending.

    Args:
      arrive: called by whoever reads it, from any thread; calls `arrived` or raises.
    """
    tensor.__class__ = PendingParameter
    tensor._arrive = arrive  # type: ignore[attr-defined]


def arrived(tensor: Tensor) -> None:
    """Makes a parameter what it was before."""
    if isinstance(tensor, PendingParameter):
        del tensor._arrive
        tensor.__class__ = nn.Parameter  # type: ignore[assignment]


def _pending_in(thing: Any) -> Iterator[PendingParameter]:
    if isinstance(thing, PendingParameter):
        yield thing
    elif isinstance(thing, Mapping):
        yield from _pending_in(list(thing.values()))
    elif isinstance(thing, tuple | list):
        for part in thing:
            yield from _pending_in(part)
