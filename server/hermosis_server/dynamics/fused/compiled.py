"""How functions here are compiled: without the interpreter lock, division as IEEE has it, and nothing reordered."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from numba import njit

from hermosis import wire
from hermosis_server import records

F = TypeVar("F", bound=Callable[..., object])


def jit(*signature: object, **options: bool) -> Callable[[F], F]:
    """Numba's decorator.

    Without its runtime nothing is allocated, and views of arrays are not counted: counting took half of a small step.
    """
    decorator = cast(Callable[..., Callable[[F], F]], njit)
    return decorator(*signature, nogil=True, error_model="numpy", _nrt=False, **options)


def compiled(function: F) -> F:
    """A function that compiled code calls; it is compiled with its callers."""
    return jit()(function)


def inlined(function: F) -> F:
    """Likewise, and always part of its caller: what it is given stays in registers."""
    return jit(forceinline=True)(function)


@functools.cache
def sources() -> str:
    """A digest of all that is compiled together, and of all that its constants come from.

    Numba keeps machine code by the source of the outermost function alone; with this in its closure, by all of it.
    """
    dynamics = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=16)
    for path in (*sorted(dynamics.rglob("*.py")), Path(records.__file__), Path(wire.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
