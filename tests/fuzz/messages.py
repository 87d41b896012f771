"""Messages: strategies for any message of the contract, made from its descriptors, and for what is nearly one.

Three ways to go wrong, from wild to subtle: fields of any value (`message`), a right message of which a few fields are
changed (`mutated`), and right bytes that were cut, flipped or doubled on the way (`damaged`).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Kind = FieldDescriptor

SIGNED, WIDE = (Kind.CPPTYPE_INT32, Kind.CPPTYPE_INT64), (Kind.CPPTYPE_INT64, Kind.CPPTYPE_UINT64)
NUMBERS = (
    0.0,
    -0.0,
    1.0,
    0.5,
    0.9,
    -1.0,
    1e-3,
    1e9,
    5e-324,
    1.7e308,
    -1.7e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)

# Names that mean something to somebody: to a file system, a terminal, a header, a page token, an update mask, a recipe.
NAMES = (
    "", "w", "a", "worker", "s-0", "../../etc/passwd", "..", "/dev/zero", "C:\\con", "%00", "%s%n", "${HOME}", "a\x00b",
    "a\nb", "\x1b[2J", "\u202e", "\ufeff", "é", "e\u0301", "\U0001f9ca" * 60, "\U000e0001" * 90, "n" * 63, "n" * 257,
    "1.0 x", "nan x", "inf ", "-inf s", "1e999 s", "lr_scale", "labels", "display_name",
    "thermal_profile", "edit.lr_scale", "sgd", "adamw", "rgd", "lr", "momentum", "hermosis",
    "null", "session_id", "'; --", "<script>",
)  # fmt: skip
LONG = ("n" * 70_000, "\uffff" * 8000, "\U0001f9ca" * 8000)


def message(descriptor: Descriptor, sessions: Sequence[str] = (), *, most_fields: int = 5) -> "SearchStrategy[Message]":
    """Any message of a kind: some of its fields, each of any value.

    Args:
      sessions: ids that there are; a field of that name has often one of them.
    """
    return _message(GetMessageClass(descriptor), tuple(sessions), most_fields)


@functools.cache
def _message(kind: type[Message], sessions: tuple[str, ...], most_fields: int) -> "SearchStrategy[Message]":
    fields = tuple(kind.DESCRIPTOR.fields)

    @st.composite
    def build(draw: DrawFn) -> Message:
        made = kind()
        if fields:
            least = 1 if len(fields) <= 3 else 0  # such as a oneof of values, which is little without one
            for field in draw(
                st.lists(st.sampled_from(fields), min_size=least, max_size=most_fields, unique_by=lambda f: f.number)
            ):
                assign(made, field, draw(value(field, sessions, most_fields)))
        return made

    return build()


def value(field: FieldDescriptor, sessions: tuple[str, ...] = (), most_fields: int = 5) -> "SearchStrategy[Any]":
    """What a field may hold: a list for a repeated one, a dictionary for a map, else one value."""
    if _is_map(field):
        key, held = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_one(key, sessions, most_fields), _one(held, sessions, most_fields), max_size=3)
    if field.is_repeated:
        return st.lists(_one(field, sessions, most_fields), max_size=4)
    return _one(field, sessions, most_fields)


def assign(made: Message, field: FieldDescriptor, new: Any) -> None:
    """Sets a field, as a drawn value says."""
    made.ClearField(field.name)
    if _is_map(field):
        for key, held in new.items():
            if isinstance(held, Message):
                getattr(made, field.name)[key].CopyFrom(held)
            else:
                getattr(made, field.name)[key] = held
    elif field.is_repeated:
        getattr(made, field.name).extend(new)
    elif isinstance(new, Message):
        getattr(made, field.name).CopyFrom(new)
    else:
        setattr(made, field.name, new)


@st.composite
def mutated(draw: DrawFn, right: Message, sessions: tuple[str, ...] = (), *, most: int = 3) -> Message:
    """A right message with up to `most` of its fields, at any depth, set to anything or taken away."""
    made = type(right)()
    made.CopyFrom(right)
    # Mostly one: a second fault hides behind the first that is refused.
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, most, 0]))):
        # The message first, so that a small one deep inside is changed as often as the large one around it.
        holder = draw(st.sampled_from([part for part in messages_in(made) if part.DESCRIPTOR.fields] or [None]))
        if holder is None:
            break
        field = draw(st.sampled_from(tuple(holder.DESCRIPTOR.fields)))
        if draw(st.integers(0, 3)):
            assign(holder, field, draw(value(field, sessions)))
        else:
            holder.ClearField(field.name)
    return made


@st.composite
def damaged(draw: DrawFn, right: bytes) -> bytes:
    """Bytes of which a few were changed, cut out, put in or doubled."""
    broken = bytearray(right)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(broken)))
        match draw(st.integers(0, 4)):
            case 0 if place < len(broken):
                broken[place] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del broken[place:]
            case 2:
                del broken[place : place + draw(st.integers(1, 4))]
            case 3:
                broken[place:place] = draw(st.binary(min_size=1, max_size=4))
            case _:
                broken[place:place] = broken[place : place + draw(st.integers(1, 40))]
    return bytes(broken)


def kinds(*files: Any) -> Iterator[Descriptor]:
    """Every message that some .proto files define, nested ones included."""
    waiting = [descriptor for file in files for descriptor in file.message_types_by_name.values()]
    while waiting:
        descriptor = waiting.pop()
        waiting += descriptor.nested_types
        yield descriptor


def messages_in(whole: Message) -> Iterator[Message]:
    """A message and every message that it holds, at any depth."""
    yield whole
    for field, held in whole.ListFields():
        if field.message_type is None:
            continue
        if _is_map(field):
            parts = [part for part in held.values() if isinstance(part, Message)]
        else:
            parts = list(held) if field.is_repeated else [held]
        for part in parts:
            yield from messages_in(part)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _one(field: FieldDescriptor, sessions: tuple[str, ...], most_fields: int) -> "SearchStrategy[Any]":
    if field.message_type is not None:
        return _message(GetMessageClass(field.message_type), sessions, most_fields)
    if field.name in ("session_id", "session_ids") and sessions:
        return st.one_of(st.sampled_from(sessions), _SCALARS[Kind.CPPTYPE_STRING])
    if field.enum_type is not None:
        known = [member.number for member in field.enum_type.values]
        return st.sampled_from([*known, *known, -1, max(known) + 1, 77, 2**31 - 1, -(2**31)])
    if field.type == Kind.TYPE_BYTES:
        return _BYTES
    return _SCALARS[field.cpp_type]


def _integers(cpp_type: int) -> "SearchStrategy[int]":
    bits = 64 if cpp_type in WIDE else 32
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if cpp_type in SIGNED else (0, (1 << bits) - 1)
    edges = [0, 1, 2, 3, 5, 8, 127, 128, 1 << 14, 1 << 20, (1 << 31) - 1, high, high - 1, high >> 1, low]
    return st.one_of(st.sampled_from(edges), st.sampled_from([high, high - 1, low]), st.integers(low, high))


_BYTES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\x00" * 20, b"\xff" * 20, b"\x7f\xc0\x00\x00" * 5, b"\x00" * 70_000]),
)
_SCALARS: dict[int, SearchStrategy[Any]] = {
    **{kind: _integers(kind) for kind in (*SIGNED, Kind.CPPTYPE_UINT32, Kind.CPPTYPE_UINT64)},
    Kind.CPPTYPE_BOOL: st.booleans(),
    Kind.CPPTYPE_DOUBLE: st.one_of(st.sampled_from(NUMBERS), st.floats()),
    Kind.CPPTYPE_FLOAT: st.floats(width=32),
    Kind.CPPTYPE_STRING: st.one_of(st.sampled_from(NAMES), st.text(max_size=12), st.sampled_from(LONG)),
}
