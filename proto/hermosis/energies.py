"""Energies: the message EnergySample as a tuple of its 19 doubles; part of the codec in hot.py. Standard library only.

Fields without presence are zero when absent, the others undefined, which is NaN here. All samples of a session have the
same fields, as a rule; so the bytes of each set of fields that occurs are known as one struct.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple


class Unusual(Exception):
    """This message is left to the generated code."""


def _tag(number: int) -> bytes:
    """The key of a field of doubles, in protobuf's base 128."""
    key = number << 3 | 1
    return bytes([key]) if key < 128 else bytes([key & 127 | 128, key >> 7])


COUNT = 19
WITHOUT_PRESENCE = frozenset({2, 7, 11, 12, 13, 14, 15, 16, 17, 18})  # by place
_TAGS = [_tag(number) for number in range(1, COUNT + 1)]
ABSENT = tuple(0.0 if place in WITHOUT_PRESENCE else math.nan for place in range(COUNT))


class _Form(NamedTuple):
    """Samples that have the same fields: all steps of a session, as a rule."""

    layout: struct.Struct
    tags: list[bytes]
    places: list[int]


def _form(places: list[int]) -> _Form:
    tags = [_TAGS[place] for place in places]
    return _Form(struct.Struct("<" + "".join(f"{len(tag)}sd" for tag in tags)), tags, places)


_MAX_FORMS = 64
_written: dict[tuple[bool, ...], _Form] = {}  # by which are NaN
_parsed: dict[int, _Form] = {}  # by length in bytes; the last one that was seen


def write(energies: Sequence[float]) -> bytes:
    undefined = tuple(map(math.isnan, energies))
    form = _written.get(undefined)
    if form is None:
        if len(_written) >= _MAX_FORMS:
            _written.clear()
        there = [place for place in range(COUNT) if not undefined[place] or place in WITHOUT_PRESENCE]
        form = _written[undefined] = _form(there)
    parts: list[bytes | float] = [0.0] * (2 * len(form.tags))
    parts[::2] = form.tags
    parts[1::2] = energies if len(form.tags) == COUNT else [energies[place] for place in form.places]
    return form.layout.pack(*parts)


def parse(raw: bytes, at: int, end: int) -> tuple[float, ...]:
    form = _parsed.get(end - at)
    values = None if form is None else _by_form(raw, at, form)
    if form is None or values is None:
        form = _form(_places(raw, at, end))
        values = _by_form(raw, at, form) or []
        _parsed[end - at] = form
    if len(form.tags) == COUNT:
        return tuple(values)
    sample = list(ABSENT)
    for place, value in zip(form.places, values, strict=True):
        sample[place] = value
    return tuple(sample)


def _by_form(raw: bytes, at: int, form: _Form) -> list[float] | None:
    parts: list[Any] = list(form.layout.unpack_from(raw, at))
    return parts[1::2] if parts[::2] == form.tags else None


def _places(raw: bytes, at: int, end: int) -> list[int]:
    """Which fields there are, if they stand in the order that every serializer writes them."""
    places: list[int] = []
    for place, tag in enumerate(_TAGS):
        if raw.startswith(tag, at, end):
            places.append(place)
            at += len(tag) + 8
    if at != end:
        raise Unusual
    return places
