"""The two packed messages of an Exchange stream, written and read by hand: columns stay bytes, and nothing is copied.

A packed message holds few fields and much data, so reading one is finding where its fields lie. What is read here means
what the generated code would say; a message in another form than usual (a field twice, an unknown one, a column that is
not packed) is left to the generated code, whose own bytes are in the usual form again. Standard library only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Bytes = bytes | bytearray | memoryview

_EMPTY = memoryview(b"")
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class PackedGradients(NamedTuple):
    """hermosis.v1.PackedGradients; every column in little-endian bytes, empty where it was left out."""

    number: int = 0
    handles: Bytes = _EMPTY  # uint32
    sequences: Bytes = _EMPTY  # uint64
    base_steps: Bytes = _EMPTY  # uint64
    losses: Bytes = _EMPTY  # float64
    sample_counts: Bytes = _EMPTY  # uint64
    lr_scales: Bytes = _EMPTY  # float64
    want_energies: bool = False
    without_reply: bool = False
    crc32: int = 0
    payload: Bytes = _EMPTY


class PackedResults(NamedTuple):
    """hermosis.v1.PackedResults; columns likewise, refusals as the messages they are."""

    number: int = 0
    outcomes: Bytes = _EMPTY  # uint8: a packed enumeration of small numbers is a byte each
    steps: Bytes = _EMPTY  # uint64
    reply_steps: Bytes = _EMPTY  # uint64
    stalenesses: Bytes = _EMPTY  # uint32
    contributions: Bytes = _EMPTY  # uint32
    duplicates: Bytes = _EMPTY  # uint32
    energies: Bytes = _EMPTY  # float64
    refusals: Sequence[Bytes] = ()  # each a serialized PackedRefusal
    refusal: Bytes | None = None  # a serialized Refusal
    crc32: int = 0
    payload: Bytes = _EMPTY
    durable_steps: Bytes = _EMPTY  # uint64


class _Field(NamedTuple):
    name: str
    width: int  # bytes of one entry of a column
    repeated: bool = False  # a message that may come again and again


def _tag(number: int, wire_type: int) -> int:
    return number << 3 | wire_type


_KIND = 4  # both messages are field 4 of their envelope

_GRADIENTS = {
    _tag(1, _FIXED64): _Field("number", 8),
    _tag(2, _LENGTH): _Field("handles", 4),
    _tag(3, _LENGTH): _Field("sequences", 8),
    _tag(4, _LENGTH): _Field("base_steps", 8),
    _tag(5, _LENGTH): _Field("losses", 8),
    _tag(6, _LENGTH): _Field("sample_counts", 8),
    _tag(7, _LENGTH): _Field("lr_scales", 8),
    _tag(8, _VARINT): _Field("want_energies", 1),
    _tag(9, _VARINT): _Field("without_reply", 1),
    _tag(10, _FIXED32): _Field("crc32", 4),
    _tag(11, _LENGTH): _Field("payload", 1),
}
_RESULTS = {
    _tag(1, _FIXED64): _Field("number", 8),
    _tag(2, _LENGTH): _Field("outcomes", 1),
    _tag(3, _LENGTH): _Field("steps", 8),
    _tag(4, _LENGTH): _Field("reply_steps", 8),
    _tag(5, _LENGTH): _Field("stalenesses", 4),
    _tag(6, _LENGTH): _Field("contributions", 4),
    _tag(7, _LENGTH): _Field("duplicates", 4),
    _tag(8, _LENGTH): _Field("energies", 8),
    _tag(9, _LENGTH): _Field("refusals", 1, repeated=True),
    _tag(10, _LENGTH): _Field("refusal", 1),
    _tag(11, _FIXED32): _Field("crc32", 4),
    _tag(12, _LENGTH): _Field("payload", 1),
    _tag(13, _LENGTH): _Field("durable_steps", 8),
}


def is_packed(raw: Bytes) -> bool:
    """Whether an envelope begins as one of a packed message does. Says nothing of the rest."""
    return len(raw) > 0 and raw[0] == _tag(_KIND, _LENGTH)


def write_gradients(message: PackedGradients) -> bytes:
    """The bytes of an ExchangeRequest that carries the message."""
    return _written(message, _GRADIENTS)


def write_results(message: PackedResults) -> bytes:
    """The bytes of an ExchangeResponse that carries the message."""
    return _written(message, _RESULTS)


def read_gradients(raw: bytes) -> PackedGradients | None:
    """The message in an ExchangeRequest, over its bytes; None leaves it to the generated code."""
    fields = _read(raw, _GRADIENTS)
    return None if fields is None else PackedGradients(**fields)


def read_results(raw: bytes) -> PackedResults | None:
    """The message in an ExchangeResponse, over its bytes; None leaves it to the generated code."""
    fields = _read(raw, _RESULTS)
    if fields is None or (fields.get("outcomes") and max(fields["outcomes"]) > 0x7F):
        return None
    return PackedResults(**fields)


def _written(message: PackedGradients | PackedResults, plan: Mapping[int, _Field]) -> bytes:
    parts: list[Bytes] = [b""]
    size = 0
    for tag, (name, width, repeated) in plan.items():
        value = getattr(message, name)
        for entry in value if repeated else (value,):
            if entry is None or (not repeated and not isinstance(entry, int) and not len(entry)):
                continue
            if tag & 7 == _LENGTH:
                head = bytes((tag,)) + _varint(len(entry))
                parts += (head, entry)
                size += len(head) + len(entry)
            elif entry:
                parts.append(bytes((tag,)) + int(entry).to_bytes(width, "little"))
                size += 1 + width
    parts[0] = bytes((_tag(_KIND, _LENGTH),)) + _varint(size)
    return b"".join(parts)


def _read(raw: bytes, plan: Mapping[int, _Field]) -> dict[str, Any] | None:
    view = memoryview(raw)
    if not is_packed(raw):
        return None
    length, place = _length(view, 1)
    end = len(view)
    if place + length != end:
        return None
    found: dict[str, Any] = {}
    while place < end:
        tag = view[place]
        field = plan.get(tag)
        if field is None:
            return None
        name, width, repeated = field
        kind = tag & 7
        if kind == _LENGTH:
            length, place = _length(view, place + 1)
            value: Any = view[place : place + length]
            if length % width:
                return None
        elif kind == _VARINT:
            place, length = place + 1, 1
            if place == end or view[place] > 1:
                return None
            value = view[place] == 1
        else:
            place, length = place + 1, width
            value = int.from_bytes(view[place : place + width], "little")
        place += length
        if place > end:
            return None
        if repeated:
            found.setdefault(name, []).append(value)
        elif name in found:
            return None
        else:
            found[name] = value
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _length(view: memoryview, place: int) -> tuple[int, int]:
    """A length and the place behind it; a length beyond any message where there is none in the usual form."""
    value = shift = 0
    while place < len(view) and shift <= 28:
        byte = view[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return 1 << 62, place
