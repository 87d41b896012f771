"""Hot: the messages of the stream that carry payload, written and parsed without the protobuf runtime.

A payload is joined behind its header and read as a view of the message, so it is copied once on either side; and the
numbers around it become plain tuples. Only the form that serializers really write is parsed here. Whatever is unusual
(unknown fields, split submessages, numbers of ten bytes, damage) is left to the generated code, which knows all rules;
so any bytes mean here what they mean there. Standard library only.

Field numbers and types are those of gradient.proto and types.proto; a contract test compares both codecs.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from hermosis import energies
from hermosis.energies import Unusual

Payload = bytes | bytearray | memoryview


class Commit(NamedTuple):
    """The message of that name; None where an optional number is absent."""

    handle: int = 0
    sequence: int = 0
    base_step: int = 0
    loss: float | None = None
    sample_count: int = 0
    lr_scale: float | None = None
    want_digest: bool = False
    skipped: tuple[int, ...] = ()
    loss_scale: float | None = None
    compression_error: float | None = None


class GradientChunk(NamedTuple):
    """The message of that name."""

    handle: int = 0
    sequence: int = 0
    offset: int = 0
    dtype: int = 0
    crc32: int = 0
    payload: Payload = b""


class WholeGradient(NamedTuple):
    """The message of that name."""

    commit: Commit = Commit()
    dtype: int = 0
    crc32: int = 0
    payload: Payload = b""


class StepResult(NamedTuple):
    """The message of that name.

    Attributes:
      energies: in the order of EnergySample's fields, NaN where one is absent; None where the whole sample is.
    """

    handle: int = 0
    sequence: int = 0
    outcome: int = 0
    step: int = 0
    durable_step: int = 0
    generation: int = 0
    duplicate: bool = False
    staleness: int = 0
    contributions: int = 0
    energies: tuple[float, ...] | None = None
    state_digest: bytes = b""


class ParametersChunk(NamedTuple):
    """The message of that name."""

    handle: int = 0
    sequence: int = 0
    step: int = 0
    reply: int = 0
    offset: int = 0
    dtype: int = 0
    crc32: int = 0
    payload: Payload = b""


class WholeAnswer(NamedTuple):
    """The message of that name."""

    result: StepResult = StepResult()
    chunk: ParametersChunk = ParametersChunk()


HotRequest = GradientChunk | Commit | WholeGradient
HotResponse = ParametersChunk | StepResult | WholeAnswer


# Writing. Fields in the order of their numbers, zeros left out, as the generated code writes them.


def write_request(message: HotRequest) -> bytes:
    """ExchangeRequest of one kind. Numbers must be in the range of their field; this is not checked."""
    if type(message) is WholeGradient:
        commit = _commit_body(message.commit)
        head = b"".join((b"\x0a", varint(len(commit)), commit, _number(b"\x10", message.dtype), _crc(b"\x1d", message)))
        return _sealed(b"\x3a", head, b"\x22", message.payload)
    if type(message) is GradientChunk:
        handle, sequence, offset, dtype, _, payload = message
        head = b"".join(
            (
                _number(b"\x08", handle),
                _number(b"\x10", sequence),
                _number(b"\x18", offset),
                _number(b"\x20", dtype),
                _crc(b"\x2d", message),
            )
        )
        return _sealed(b"\x12", head, b"\x32", payload)
    assert type(message) is Commit
    body = _commit_body(message)
    return b"".join((b"\x1a", varint(len(body)), body))


def write_response(message: HotResponse) -> bytes:
    """ExchangeResponse of one kind. Numbers must be in the range of their field; this is not checked."""
    if type(message) is WholeAnswer:
        result, head = _result_body(message.result), _parameters_head(message.chunk)
        payload = message.chunk.payload
        place = _payload_head(b"\x42", payload)
        inner = b"".join((b"\x0a", varint(len(result)), result, b"\x12", varint(_length(head, place, payload)), head))
        return b"".join((b"\x32", varint(_length(inner, place, payload)), inner, place, payload))
    if type(message) is ParametersChunk:
        return _sealed(b"\x12", _parameters_head(message), b"\x42", message.payload)
    assert type(message) is StepResult
    body = _result_body(message)
    return b"".join((b"\x1a", varint(len(body)), body))


_SHORT = [bytes([value]) for value in range(128)]


def varint(value: int) -> bytes:
    """A number of at least zero in protobuf's base 128."""
    if value < 128:
        return _SHORT[value]
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if value < 1 << 21:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


# Small numbers behind their tags, by tag and number; zeros are left out.
_TAGGED = {bytes([tag]): [b"", *(bytes((tag, value)) for value in range(1, 128))] for tag in range(8, 128, 8)}


def _number(tag: bytes, value: int) -> bytes:
    return _TAGGED[tag][value] if value < 128 else tag + varint(value)


_UINT32 = struct.Struct("<I")
_FLOAT64 = struct.Struct("<d")


def _crc(tag: bytes, message: GradientChunk | WholeGradient | ParametersChunk) -> bytes:
    return tag + _UINT32.pack(message.crc32) if message.crc32 else b""


def _payload_head(tag: bytes, payload: Payload) -> bytes:
    return tag + varint(len(payload)) if payload else b""


def _length(head: bytes, place: bytes, payload: Payload) -> int:
    return len(head) + len(place) + len(payload)


def _sealed(outer: bytes, head: bytes, tag: bytes, payload: Payload) -> bytes:
    """The message around a submessage that ends with its payload: the one copy of it."""
    place = _payload_head(tag, payload)
    return b"".join((outer, varint(_length(head, place, payload)), head, place, payload))


def _commit_body(commit: Commit) -> bytes:
    handle, sequence, base_step, loss, sample_count, lr_scale, want_digest, skipped, loss_scale, error = commit
    return b"".join(
        (
            _number(b"\x08", handle),
            _number(b"\x10", sequence),
            _number(b"\x18", base_step),
            b"" if loss is None else b"\x21" + _FLOAT64.pack(loss),
            _number(b"\x28", sample_count),
            b"" if lr_scale is None else b"\x31" + _FLOAT64.pack(lr_scale),
            b"\x38\x01" if want_digest else b"",
            _numbers(b"\x42", skipped) if skipped else b"",
            b"" if loss_scale is None else b"\x49" + _FLOAT64.pack(loss_scale),
            b"" if error is None else b"\x51" + _FLOAT64.pack(error),
        )
    )


def _numbers(tag: bytes, values: tuple[int, ...]) -> bytes:
    body = b"".join(map(varint, values))
    return tag + varint(len(body)) + body


def _result_body(result: StepResult) -> bytes:
    sample = b"" if result.energies is None else energies.write(result.energies)
    return b"".join(
        (
            _number(b"\x08", result.handle),
            _number(b"\x10", result.sequence),
            _number(b"\x18", result.outcome),
            _number(b"\x20", result.step),
            _number(b"\x28", result.durable_step),
            _number(b"\x30", result.generation),
            b"\x38\x01" if result.duplicate else b"",
            _number(b"\x40", result.staleness),
            _number(b"\x48", result.contributions),
            b"" if result.energies is None else b"\x52" + varint(len(sample)) + sample,
            b"\x5a" + varint(len(result.state_digest)) + result.state_digest if result.state_digest else b"",
        )
    )


def _parameters_head(chunk: ParametersChunk) -> bytes:
    handle, sequence, step, reply, offset, dtype, _, _ = chunk
    return b"".join(
        (
            _number(b"\x08", handle),
            _number(b"\x10", sequence),
            _number(b"\x18", step),
            _number(b"\x20", reply),
            _number(b"\x28", offset),
            _number(b"\x30", dtype),
            _crc(b"\x3d", chunk),
        )
    )


# Parsing.


class _Field(NamedTuple):
    place: int  # in the tuple
    kind: int
    limit: int = 1 << 63  # first number that is left to the generated code
    form: "_Form | None" = None  # of a submessage


class _Form(NamedTuple):
    """How a message is read: its fields by the one byte of their tags, and the tuple of one that has none."""

    fields: dict[int, _Field]
    empty: Any


_NUMBER, _FLAG, _FIXED32, _DOUBLE, _PAYLOAD, _BYTES, _ENERGIES, _MESSAGE, _NUMBERS = range(9)
_U32, _I31 = 1 << 32, 1 << 31


def _form(empty: Any, *fields: tuple[int, int] | tuple[int, int, Any]) -> _Form:
    """From (tag, kind, limit or form) of each field, in the order of the tuple."""
    made = {}
    for place, (tag, kind, *detail) in enumerate(fields):
        made[tag] = _Field(place, kind, **{"form" if kind == _MESSAGE else "limit": each for each in detail})
    return _Form(made, empty)


_COMMIT = _form(
    Commit(), (0x08, _NUMBER, _U32), (0x10, _NUMBER), (0x18, _NUMBER), (0x21, _DOUBLE), (0x28, _NUMBER),
    (0x31, _DOUBLE), (0x38, _FLAG), (0x42, _NUMBERS, _U32), (0x49, _DOUBLE), (0x51, _DOUBLE),
)  # fmt: skip
_CHUNK = _form(
    GradientChunk(), (0x08, _NUMBER, _U32), (0x10, _NUMBER), (0x18, _NUMBER), (0x20, _NUMBER, _I31), (0x2D, _FIXED32),
    (0x32, _PAYLOAD),
)  # fmt: skip
_WHOLE = _form(
    WholeGradient(), (0x0A, _MESSAGE, _COMMIT), (0x10, _NUMBER, _I31), (0x1D, _FIXED32), (0x22, _PAYLOAD)
)  # fmt: skip
_RESULT = _form(
    StepResult(), (0x08, _NUMBER, _U32), (0x10, _NUMBER), (0x18, _NUMBER, _I31), (0x20, _NUMBER), (0x28, _NUMBER),
    (0x30, _NUMBER), (0x38, _FLAG), (0x40, _NUMBER), (0x48, _NUMBER, _U32), (0x52, _ENERGIES), (0x5A, _BYTES),
)  # fmt: skip
_PARAMETERS = _form(
    ParametersChunk(), (0x08, _NUMBER, _U32), (0x10, _NUMBER), (0x18, _NUMBER), (0x20, _NUMBER, _I31), (0x28, _NUMBER),
    (0x30, _NUMBER, _I31), (0x3D, _FIXED32), (0x42, _PAYLOAD),
)  # fmt: skip
_ANSWER = _form(WholeAnswer(), (0x0A, _MESSAGE, _RESULT), (0x12, _MESSAGE, _PARAMETERS))
_REQUESTS = {0x12: _CHUNK, 0x1A: _COMMIT, 0x3A: _WHOLE}
_RESPONSES = {0x12: _PARAMETERS, 0x1A: _RESULT, 0x32: _ANSWER}

Generated = TypeVar("Generated")


def parse_request(raw: bytes, generated: Callable[[bytes], Generated]) -> HotRequest | Generated:
    """ExchangeRequest: a tuple of the three kinds above, or what `generated` makes of any other.

    Raises:
      Exception: whatever `generated` raises for bytes that are no message.
    """
    found: HotRequest | None = _parsed_alone(raw, _REQUESTS)
    if found is not None:
        return found
    message = generated(raw)
    return _hot_of(message, _REQUEST_KINDS) or message


def parse_response(raw: bytes, generated: Callable[[bytes], Generated]) -> HotResponse | Generated:
    """ExchangeResponse, as `parse_request`."""
    found: HotResponse | None = _parsed_alone(raw, _RESPONSES)
    if found is not None:
        return found
    message = generated(raw)
    return _hot_of(message, _RESPONSE_KINDS) or message


_REQUEST_KINDS: dict[str, Any] = {"chunk": GradientChunk, "commit": Commit, "whole": WholeGradient}
_RESPONSE_KINDS: dict[str, Any] = {"chunk": ParametersChunk, "result": StepResult, "whole": WholeAnswer}


def _parsed_alone(raw: bytes, forms: dict[int, _Form]) -> Any:
    """The message where it is a single field of one of these forms; None where it must be left."""
    try:
        form = forms[raw[0]]
        length, at = raw[1], 2
        if length > 127:
            length, at = _long(raw, at, length)
        end = at + length
        return _message(form, raw, at, end) if end == len(raw) else None
    except (Unusual, KeyError, IndexError, struct.error):
        return None


def _long(raw: bytes, at: int, value: int) -> tuple[int, int]:
    """The rest of a number whose first byte says that more follow; and where it ends."""
    value &= 127
    byte = raw[at]
    if byte < 128:
        return value | byte << 7, at + 1
    for shift in range(7, 63, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise Unusual


def _message(form: _Form, raw: bytes, at: int, end: int) -> Any:
    fields, empty = form
    values = list(empty)
    while at < end:
        place, kind, limit, inner = fields[raw[at]]
        if kind == _FIXED32:
            (values[place],) = _UINT32.unpack_from(raw, at + 1)
            at += 5
            continue
        if kind == _DOUBLE:
            (values[place],) = _FLOAT64.unpack_from(raw, at + 1)
            at += 9
            continue
        number = raw[at + 1]
        at += 2
        if number > 127:
            number, at = _long(raw, at, number)
        if kind == _NUMBER:
            if number >= limit:
                raise Unusual
            values[place] = number
            continue
        if kind == _FLAG:
            values[place] = number != 0
            continue
        stop = at + number  # beyond the end is found below
        if kind == _PAYLOAD:
            values[place] = memoryview(raw)[at:stop]
        elif kind == _BYTES:
            values[place] = raw[at:stop]
        elif values[place] is not empty[place]:
            raise Unusual  # the parts of a submessage or a list that comes twice are merged
        elif kind == _NUMBERS:
            values[place] = _read_numbers(raw, at, stop, limit)
        elif inner is None:
            values[place] = energies.parse(raw, at, stop)
        else:
            values[place] = _message(inner, raw, at, stop)
        at = stop
    if at != end:
        raise Unusual
    return empty._make(values)


def _read_numbers(raw: bytes, at: int, end: int, limit: int) -> tuple[int, ...]:
    values = list[int]()
    while at < end:
        number = raw[at]
        at += 1
        if number > 127:
            number, at = _long(raw, at, number)
        if number >= limit:
            raise Unusual
        values.append(number)
    if at != end:
        raise Unusual
    return tuple(values)


def whole_gradient_of(message: Any) -> WholeGradient:
    """The tuple of a generated WholeGradient, such as unary calls bring."""
    made: WholeGradient = _tuple_of(WholeGradient, message)
    return made


def _hot_of(message: Any, kinds: dict[str, Any]) -> Any:
    """The tuple of a generated message of a hot kind; None for any other."""
    name = message.WhichOneof("message")
    return _tuple_of(kinds[name], getattr(message, name)) if name in kinds else None


def _tuple_of(kind: Any, message: Any) -> Any:
    """The tuple of a generated message."""
    values = {name: getattr(message, name) for name in kind._fields}
    if kind is Commit:
        values["skipped"] = tuple(message.skipped)
        optional = ("loss", "lr_scale", "loss_scale", "compression_error")
        values |= {name: None for name in optional if not message.HasField(name)}
    elif kind is WholeGradient:
        values["commit"] = _tuple_of(Commit, message.commit)
    elif kind is StepResult:
        values["energies"] = _sample_of(message.energies) if message.HasField("energies") else None
    elif kind is WholeAnswer:
        values = {
            "result": _tuple_of(StepResult, message.result),
            "chunk": _tuple_of(ParametersChunk, message.chunk),
        }
    return kind(**values)


def _sample_of(message: Any) -> tuple[float, ...]:
    sample = list(energies.ABSENT)
    for field, value in message.ListFields():
        sample[field.number - 1] = value
    return tuple(sample)
