"""Enumerations off the wire: unspecified becomes the default stated in the contract, unknown numbers are refused."""

import enum
from typing import TypeVar

from hermosis.wire import Dtype
from hermosis_server.errors import InvalidRequest

E = TypeVar("E", bound=enum.IntEnum)


def known(kind: type[E], number: int, *, default: E, field: str) -> E:
    """The member of that number; zero is the default."""
    if number == 0:
        return default
    try:
        return kind(number)
    except ValueError:
        names = ", ".join(f"{member.name} ({member.value})" for member in kind)
        raise InvalidRequest(f"{field} is {number}; this server knows {names}", field=field) from None


def dtype(number: int, *, field: str, default: Dtype = Dtype.FLOAT32) -> Dtype:
    """An element encoding."""
    return known(Dtype, number, default=default, field=field)
