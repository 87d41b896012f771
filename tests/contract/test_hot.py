"""The hand-written codec of the hot messages and the generated one say the same, on good bytes and on any others."""

import math
import os
import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from hermosis import energies, hot
from hermosis.v1 import gradient_pb2, types_pb2

Request, Response = gradient_pb2.ExchangeRequest, gradient_pb2.ExchangeResponse
# The long form: HERMOSIS_FUZZ_SECONDS=60 python3 run.py test tests/contract/test_hot.py
MUTATIONS = 4_000 * int(os.environ.get("HERMOSIS_FUZZ_SECONDS", "1"))

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ENUM = st.integers(0, 2**31 - 1)
SMALL = st.binary(max_size=300)
NUMBER = st.floats(width=64, allow_nan=False)
# Zero and the usual sizes must come often; hypothesis draws edges of the whole range by itself.
COUNT = st.one_of(st.just(0), st.integers(0, 300), U64)

NUMBERS = st.lists(st.one_of(st.integers(0, 300), U32), max_size=5).map(tuple)
COMMIT = st.builds(
    hot.Commit, U32, COUNT, COUNT, st.none() | NUMBER, COUNT, st.none() | NUMBER, st.booleans(), NUMBERS,
    st.none() | NUMBER, st.none() | NUMBER,
)  # fmt: skip
CHUNK = st.builds(hot.GradientChunk, U32, COUNT, COUNT, ENUM, U32, SMALL)
WHOLE = st.builds(hot.WholeGradient, COMMIT, ENUM, U32, SMALL)
SAMPLE = st.tuples(
    *(NUMBER if place in energies.WITHOUT_PRESENCE else NUMBER | st.just(math.nan) for place in range(energies.COUNT))
)
RESULT = st.builds(
    hot.StepResult, U32, COUNT, ENUM, COUNT, COUNT, COUNT, st.booleans(), COUNT, U32, st.none() | SAMPLE, SMALL
)
PARAMETERS = st.builds(hot.ParametersChunk, U32, COUNT, COUNT, ENUM, COUNT, ENUM, U32, SMALL)
ANSWER = st.builds(hot.WholeAnswer, RESULT, PARAMETERS)
REQUESTS, RESPONSES = CHUNK | COMMIT | WHOLE, PARAMETERS | RESULT | ANSWER

FIELD = {
    hot.Commit: "commit", hot.GradientChunk: "chunk", hot.WholeGradient: "whole",
    hot.StepResult: "result", hot.ParametersChunk: "chunk", hot.WholeAnswer: "whole",
}  # fmt: skip


def generated(message: Any) -> Any:
    """The generated message of a tuple, by the names of its fields."""
    kinds = {
        hot.Commit: gradient_pb2.Commit, hot.GradientChunk: gradient_pb2.GradientChunk,
        hot.WholeGradient: gradient_pb2.WholeGradient, hot.StepResult: gradient_pb2.StepResult,
        hot.ParametersChunk: gradient_pb2.ParametersChunk, hot.WholeAnswer: gradient_pb2.WholeAnswer,
    }  # fmt: skip
    values = {}
    for name, value in message._asdict().items():
        if type(value) in kinds:
            value = generated(value)
        elif name == "energies" and value is not None:
            names = [field.name for field in types_pb2.EnergySample.DESCRIPTOR.fields]
            value = types_pb2.EnergySample(**{n: v for n, v in zip(names, value, strict=True) if not math.isnan(v)})
        elif isinstance(value, memoryview):
            value = bytes(value)
        values[name] = value
    return kinds[type(message)](**values)


def same(value: Any) -> Any:
    """Something that compares equal where tuples mean the same: NaN equals NaN, a view its bytes."""
    if isinstance(value, tuple):
        return (type(value).__name__, *map(same, value))
    if isinstance(value, float):
        return "nan" if math.isnan(value) else (value, math.copysign(1.0, value))
    return bytes(value) if isinstance(value, memoryview) else value


def never(raw: bytes) -> Any:
    raise AssertionError("the usual form was left to the generated code")


def unfit(number: Any) -> bool:
    """Whether a number takes ten bytes, which the fast parser leaves alone."""
    return any(unfit(n) for n in number) if isinstance(number, tuple) else isinstance(number, int) and number >= 2**63


@pytest.mark.parametrize(
    ("messages", "outer", "write", "parse"),
    [(REQUESTS, Request, hot.write_request, hot.parse_request),
     (RESPONSES, Response, hot.write_response, hot.parse_response)],
    ids=["requests", "responses"],
)  # fmt: skip
def test_each_codec_reads_what_the_other_writes(messages: Any, outer: Any, write: Any, parse: Any) -> None:
    @settings(max_examples=400, deadline=None)
    @given(messages)
    def check(message: Any) -> None:
        expected = outer(**{FIELD[type(message)]: generated(message)})
        written = write(message)
        assert outer.FromString(written) == expected
        theirs = expected.SerializeToString()
        slow = outer.FromString if unfit(message) else never
        assert same(parse(written, slow)) == same(message)
        assert same(parse(theirs, slow)) == same(message)
        if not (sample := getattr(getattr(message, "result", message), "energies", None)) or 0.0 not in sample:
            assert written == theirs, "byte for byte, but for energies that are zero"

    check()


def outcome(parse: Any, raw: bytes) -> Any:
    try:
        return parse(raw)
    except DecodeError:
        return "no message"


def by_generated_code(raw: bytes, outer: Any, kinds: dict[str, Any]) -> Any:
    """What the generated code makes of bytes: a tuple through an independent path, the message, or no message."""
    message = outer.FromString(raw)
    name = message.WhichOneof("message")
    return hot._tuple_of(kinds[name], getattr(message, name)) if name in kinds else message


@pytest.mark.parametrize("direction", ["requests", "responses"])
def test_on_any_bytes_both_codecs_agree(direction: str) -> None:
    if direction == "requests":
        outer: Any = Request
        parse, kinds = hot.parse_request, {"chunk": hot.GradientChunk, "commit": hot.Commit, "whole": hot.WholeGradient}
    else:
        outer = Response
        parse = hot.parse_response
        kinds = {"chunk": hot.ParametersChunk, "result": hot.StepResult, "whole": hot.WholeAnswer}
    rng = random.Random(int.from_bytes(os.urandom(4), "big"))
    seed = rng.getrandbits(32)
    rng.seed(seed)
    fast = unusual = refused = 0
    for _ in range(MUTATIONS):
        raw = mutated(rng, direction)
        left = False

        def slow(raw: bytes) -> Any:
            nonlocal left
            left = True
            return outer.FromString(raw)

        ours = outcome(lambda raw: parse(raw, slow), raw)
        theirs = outcome(lambda raw: by_generated_code(raw, outer, kinds), raw)
        assert same(ours) == same(theirs), f"seed {seed}: {raw.hex()}"
        fast, unusual = fast + (not left), unusual + left
        refused += ours == "no message"
    # The test means something only while all three happen.
    assert min(fast, unusual, refused) > MUTATIONS / 50


def mutated(rng: random.Random, direction: str) -> bytes:
    """A plausible message with some bytes changed, cut, doubled or put in."""
    raw = bytearray(plausible(rng, direction))
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        place = rng.randrange(len(raw) + 1)
        kind = rng.randrange(6)
        if kind == 0 and raw:
            raw[place % len(raw)] = rng.randrange(256)
        elif kind == 1 and raw:
            raw[place % len(raw)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del raw[place : place + rng.randrange(4)]
        elif kind == 3:
            raw[place:place] = rng.randbytes(rng.randrange(1, 4))
        elif kind == 4:
            raw += plausible(rng, direction)
        else:
            piece = raw[place : place + rng.randrange(20)]
            raw[place:place] = piece
    return bytes(raw)


def plausible(rng: random.Random, direction: str) -> bytes:
    """A message of any kind, hot or not, with numbers of all lengths; some with a field that nobody knows."""

    def number(bits: int = 64) -> int:
        return rng.getrandbits(rng.choice((0, 1, 7, 8, 14, 32, bits))) % (1 << bits)

    def sample() -> types_pb2.EnergySample:
        fields = [field.name for field in types_pb2.EnergySample.DESCRIPTOR.fields]
        return types_pb2.EnergySample(**{n: rng.choice((0.0, 1.5, -2e300)) for n in fields if rng.random() < 0.8})

    commit = gradient_pb2.Commit(
        handle=number(32), sequence=number(), base_step=number(), loss=rng.choice((None, 0.0, math.inf)),
        sample_count=number(), lr_scale=rng.choice((None, 1.0)), want_digest=rng.random() < 0.5,
        skipped=[number(32) for _ in range(rng.choice((0, 0, 1, 3)))], loss_scale=rng.choice((None, 65536.0)),
        compression_error=rng.choice((None, 0.0, 0.25)),
    )  # fmt: skip
    payload = rng.randbytes(rng.choice((0, 4, 200)))
    if direction == "requests":
        chunk = gradient_pb2.GradientChunk(
            handle=number(32), sequence=number(), offset=number(), dtype=number(31), crc32=number(32), payload=payload
        )
        whole = gradient_pb2.WholeGradient(commit=commit, dtype=number(31), crc32=number(32), payload=payload)
        open_ = gradient_pb2.OpenSession(handle=number(32), session_id="s")
        message: Any = Request(**dict([rng.choice(
            [("chunk", chunk), ("commit", commit), ("whole", whole), ("open", open_)])]))  # fmt: skip
    else:
        result = gradient_pb2.StepResult(
            handle=number(32), sequence=number(), outcome=number(31), step=number(), duplicate=rng.random() < 0.5,
            contributions=number(32), energies=sample() if rng.random() < 0.5 else None, state_digest=payload[:32],
        )  # fmt: skip
        chunk = gradient_pb2.ParametersChunk(
            handle=number(32), sequence=number(), step=number(), reply=number(31), offset=number(), dtype=number(31),
            crc32=number(32), payload=payload,
        )  # fmt: skip
        answer = gradient_pb2.WholeAnswer(result=result, chunk=chunk)
        refused = gradient_pb2.StreamRefusal(handle=number(32))
        message = Response(**dict([rng.choice(
            [("chunk", chunk), ("result", result), ("whole", answer), ("refused", refused)])]))  # fmt: skip
    raw = message.SerializeToString()
    if rng.random() < 0.1:  # two submessages in one, which protobuf merges
        body = getattr(message, message.WhichOneof("message")).SerializeToString() * 2
        raw = raw[:1] + hot.varint(len(body)) + body
    return raw + b"\xc0\x3e\x05" if rng.random() < 0.05 else raw


def test_which_energies_have_presence_is_what_the_contract_says() -> None:
    fields = types_pb2.EnergySample.DESCRIPTOR.fields
    assert [field.number for field in fields] == list(range(1, energies.COUNT + 1))
    assert {f.number - 1 for f in fields if not f.has_presence} == energies.WITHOUT_PRESENCE


@pytest.mark.parametrize(
    "kind", [hot.Commit, hot.GradientChunk, hot.WholeGradient, hot.StepResult, hot.ParametersChunk, hot.WholeAnswer]
)
def test_the_tuples_have_the_fields_of_their_messages(kind: Any) -> None:
    assert kind._fields == tuple(getattr(gradient_pb2, kind.__name__).DESCRIPTOR.fields_by_name)
