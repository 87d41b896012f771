"""The hand-written codec of packed messages says what the generated code says, of any bytes."""

import struct
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from hermosis import packed
from hermosis.v1 import gradient_pb2, types_pb2

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
DOUBLES = st.lists(st.floats(), max_size=4)

gradients = st.builds(
    gradient_pb2.PackedGradients,
    number=U64,
    handles=st.lists(U32, max_size=4),
    sequences=st.lists(U64, max_size=4),
    base_steps=st.lists(U64, max_size=4),
    losses=DOUBLES,
    sample_counts=st.lists(U64, max_size=4),
    lr_scales=DOUBLES,
    want_energies=st.booleans(),
    without_reply=st.booleans(),
    crc32=U32,
    payload=st.one_of(st.binary(max_size=20), st.just(bytes(200))),
)
refusal = st.builds(types_pb2.Refusal, reason=st.text(max_size=4), retry_after_s=st.floats())
results = st.builds(
    gradient_pb2.PackedResults,
    number=U64,
    outcomes=st.lists(st.sampled_from(types_pb2.Outcome.values()), max_size=4),
    steps=st.lists(U64, max_size=4),
    reply_steps=st.lists(U64, max_size=4),
    stalenesses=st.lists(U32, max_size=4),
    contributions=st.lists(U32, max_size=4),
    duplicates=st.lists(U32, max_size=4),
    energies=DOUBLES,
    refusals=st.lists(st.builds(gradient_pb2.PackedRefusal, index=U32, refusal=refusal), max_size=3),
    refusal=st.one_of(st.none(), refusal),
    crc32=U32,
    payload=st.binary(max_size=20),
    durable_steps=st.lists(U64, max_size=4),
)
FORMATS = {
    "handles": "I", "sequences": "Q", "base_steps": "Q", "losses": "d", "sample_counts": "Q", "lr_scales": "d",
    "steps": "Q", "reply_steps": "Q", "durable_steps": "Q",
    "stalenesses": "I", "contributions": "I", "duplicates": "I", "energies": "d",
    "outcomes": "B",
}  # fmt: skip
KINDS = {
    "gradients": (packed.read_gradients, packed.write_gradients, gradient_pb2.ExchangeRequest, packed.PackedGradients),
    "results": (packed.read_results, packed.write_results, gradient_pb2.ExchangeResponse, packed.PackedResults),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def by_hand(message: Any) -> dict[str, Any]:
    """What the generated code knows, in the form of the hand-written."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name in FORMATS:
            plain[field.name] = struct.pack(f"<{len(value)}{FORMATS[field.name]}", *value)
        elif field.name == "refusals":
            plain[field.name] = [each.SerializeToString() for each in value]
        elif field.name == "refusal":
            plain[field.name] = value.SerializeToString() if message.HasField("refusal") else None
        else:
            plain[field.name] = value
    return plain


def as_bytes(message: Any) -> dict[str, Any]:
    """A hand-read message with its views made bytes."""
    plain = message._asdict()
    for name, value in plain.items():
        if isinstance(value, memoryview):
            plain[name] = bytes(value)
        elif name == "refusals":
            plain[name] = [bytes(each) for each in value]
    return plain


def agree(kind: str, raw: bytes) -> bool:
    """Whether the hand-written reader took it; then both must say the same, refused messages left in the usual form."""
    read, _, envelope, _ = KINDS[kind]
    found = read(raw)
    if found is None:
        return False
    message = envelope.FromString(raw)  # raises where the generated code would not have it
    assert message.WhichOneof("message") == "packed"
    said = by_hand(message.packed)
    mine = as_bytes(found)
    for name in ("refusals", "refusal"):
        if name in mine:
            del mine[name], said[name]
    assert mine == said
    return True


def read_refusals(message: packed.PackedResults | None) -> None:
    assert message is not None
    for raw in message.refusals:
        gradient_pb2.PackedRefusal.FromString(bytes(raw))
    if message.refusal is not None:
        types_pb2.Refusal.FromString(bytes(message.refusal))


@kinds
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_what_the_generated_code_writes_is_read_by_hand_and_the_other_way(kind: str, data: st.DataObject) -> None:
    read, write, envelope, record = KINDS[kind]
    message = data.draw(gradients if kind == "gradients" else results)
    raw = envelope(packed=message).SerializeToString()
    found = read(raw)
    assert found is not None
    assert as_bytes(found) == by_hand(message)
    written = write(record(**by_hand(message)))
    assert envelope.FromString(written).SerializeToString() == raw
    assert as_bytes(read(written)) == by_hand(message)


@kinds
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_read_as_the_generated_code_reads_them_or_left_to_it(kind: str, data: st.DataObject) -> None:
    envelope = KINDS[kind][2]
    raw = bytearray(envelope(packed=data.draw(gradients if kind == "gradients" else results)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            raw[place] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del raw[place : place + data.draw(st.integers(1, 5))]
        else:
            raw[place:place] = data.draw(st.binary(min_size=1, max_size=5))
        if not raw:
            return
    try:
        agree(kind, bytes(raw))
    except DecodeError:
        # Refusals are read when they are needed: nothing but what is inside one may be wrong in what was taken.
        assert kind == "results"
        with pytest.raises(DecodeError):
            read_refusals(packed.read_results(bytes(raw)))


@kinds
@given(raw=st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_at_all(kind: str, raw: bytes) -> None:
    agree(kind, b"\x22" + bytes((len(raw),)) + raw)
    agree(kind, raw)


@pytest.mark.parametrize(
    "unusual",
    [
        b"\x12\x04\0\0\0\0\x12\x04\1\0\0\0",  # a column in two pieces
        b"\x15\1\0\0\0",  # a column that is not packed
        b"\x40\x81\x00",  # a flag in two bytes
        b"\xf8\x07\x01",  # a field of a later version
        b"\x09" + bytes(8) + b"\x09" + bytes(8),  # a number twice
    ],
)
def test_unusual_forms_are_left_to_the_generated_code_whose_own_form_is_usual(unusual: bytes) -> None:
    raw = b"\x22" + bytes((len(unusual),)) + unusual
    assert packed.read_gradients(raw) is None
    request = gradient_pb2.ExchangeRequest.FromString(raw)
    request.DiscardUnknownFields()
    found = packed.read_gradients(request.SerializeToString())
    assert found is not None
    assert as_bytes(found) == by_hand(request.packed)
