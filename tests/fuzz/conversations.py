"""Conversations: what a worker says on an Exchange stream, in a wrong order, twice, or about nothing there is.

A conversation is right lines (open, the chunks of a gradient, its commit, packed and whole messages, segments), some of
them only nearly right; then lines are swapped, doubled and left out, and some are changed, field by field or in bytes.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from tests.fuzz import playground
from tests.fuzz.calls import METHODS, Call, made
from tests.fuzz.messages import damaged, mutated
from tests.fuzz.rig import Rig, judge_response
from tests.rpc.conftest import Service

from hermosis import coding, packed, wire
from hermosis.coding import Codec, CodecKind
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2
from hermosis_server.engine.engine import Engine

Request, Response = gradient_pb2.ExchangeRequest, gradient_pb2.ExchangeResponse
EXCHANGE = next(method for method in METHODS if method.name == "Exchange")
# Mostly those that were opened: a handle that never was ends the stream.
HANDLES = st.sampled_from([0] * 8 + [1] * 8 + [2] * 8 + [3] * 4 + [9, 2**32 - 1])
# The handles that most lines speak of, opened first; `worker` has contributed to the first two.
OPENED = ("play-sgd", "play-adam", "play-async", "play-two")
SEQUENCES = st.sampled_from([1, 2, 2, 2, 3, 3, 4, 0, 65, 2**63, 2**64 - 1])
STEPS = st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1])
NUMBERS = st.sampled_from([1.0, 1.0, 0.5, -2.0, 0.0, 3e38, float("nan"), float("inf")])


BREATH = b"wait for the device, so that what was sent may have been answered"


class Line(NamedTuple):
    """One message of a conversation, for a reader: what it is, and its bytes."""

    what: str
    raw: bytes

    def __repr__(self) -> str:
        return f"<{self.what}: {self.raw.hex()[:200]}>"


@st.composite
def conversation(draw: DrawFn) -> list[Line]:
    """Lines of a stream."""
    lines: list[Request | bytes] = []
    if draw(st.integers(0, 9)):
        for handle, session_id in enumerate(OPENED):
            lines += playground.opening(session_id, handle, "worker")  # type: ignore[arg-type]
    following = [2 if session_id in playground.STEPPED else 1 for session_id in OPENED]
    for _ in range(draw(st.integers(1, 12))):
        lines += draw(
            st.one_of(_gradient(following), _coded(following), _whole(following), _packed(following), _line())
        )
        lines += [BREATH] * (draw(st.integers(0, 3)) > 0)
    for _ in range(draw(st.integers(0, 3))):
        if not lines:
            break
        here, there = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        match draw(st.integers(0, 4)):
            case 0:
                lines[here], lines[there] = lines[there], lines[here]
            case 1:
                lines.insert(here, lines[there])
            case 2:
                del lines[here]
            case 3 if isinstance(line := lines[here], Request):
                lines[here] = draw(mutated(line, playground.IDS))  # type: ignore[call-overload]
            case _:
                line = lines[here]
                lines[here] = draw(damaged(line.SerializeToString() if isinstance(line, Request) else line))
    return [_told(line) for line in lines]


def check_conversation(rig: Rig, case: list[Line]) -> None:
    """Holds a conversation in the playground; judges its end, its answers and what became of the sessions."""
    hypothesis.note("\n".join(map(repr, case)))
    with rig.case() as server:
        playground.lay_out(server)
        with _shared_memory() as segment:
            answers = made(server, Call(EXCHANGE, _said(server, case, segment)))
        for answer in answers:
            judge_response(answer)
        rig.run(_counted(server.engine, sum(map(_applied, answers))))


def _said(server: Service, case: list[Line], segment: int) -> Iterator[bytes]:
    """The bytes of each line, when it is its turn."""
    for line in case:
        if line.raw == BREATH:
            server.digest(session_pb2.Session(session_id="play-adam"))
        else:
            yield _with_segment(line.raw, segment)


async def _counted(engine: Engine, told: int) -> None:
    """No step without a contribution, and none told of that was not taken."""
    sessions = [s for s in engine.sessions() if s.session_id in playground.IDS]
    before = dict.fromkeys(playground.STEPPED, 1)
    steps = sum(session.step - before.get(session.session_id, 0) for session in sessions)
    # Those that the conversation's end closed are gone, with their steps.
    gone = len(playground.IDS) - len(sessions)
    assert gone or told <= steps, f"{told} contributions were told of as applied, {steps} steps were taken"
    for session in sessions:
        numbers = [record.sequence for record in session.workers.values()]
        assert session.step <= sum(numbers), (
            f"{session.session_id}: {session.step} steps of {numbers} contributions (P3)"
        )
        assert not session.stepping, f"{session.session_id} steps for ever"


def _applied(answer: Any) -> int:
    """Contributions that an answer tells of as new and applied."""
    results = {"result": lambda: [answer.result], "whole": lambda: [answer.whole.result]}
    if answer.WhichOneof("message") == "packed":
        told = [outcome == types_pb2.OUTCOME_APPLIED for outcome in answer.packed.outcomes]
        return sum(told) - sum(told[index] for index in answer.packed.duplicates)
    return sum(
        result.outcome == types_pb2.OUTCOME_APPLIED and not result.duplicate
        for result in results.get(answer.WhichOneof("message"), list)()
    )


def _numbers(draw: DrawFn, following: list[int], handle: int) -> tuple[int, int]:
    """A sequence and a base step; mostly the next ones of a handle, which then are taken."""
    if handle >= len(following) or not draw(st.integers(0, 15)):
        return draw(SEQUENCES), draw(STEPS)
    following[handle] += 1
    sequence = following[handle] - 1
    return sequence, sequence - 1


@st.composite
def _gradient(draw: DrawFn, following: list[int]) -> list[Request | bytes]:
    """A gradient in chunks and its commit, right but for the order of the chunks and the numbers drawn."""
    handle = draw(st.integers(0, 3))
    size = playground.SIZES[OPENED[handle]]
    sequence, step = _numbers(draw, following, handle)
    vector = np.full(size, draw(NUMBERS), np.float32)
    cuts = [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=3))), size]
    pieces = draw(st.permutations(list(itertools.pairwise(cuts))))
    chunks: list[Request | bytes] = [_chunk(handle, sequence, begin, vector[begin:end]) for begin, end in pieces]
    return [*chunks, draw(_commit(handle, sequence, step))]


@st.composite
def _coded(draw: DrawFn, following: list[int]) -> list[Request | bytes]:
    """A handle opened anew with a codec, and a gradient under it that is right or nearly so."""
    handle = draw(st.integers(0, 3))
    size = playground.SIZES[OPENED[handle]]
    sequence, step = _numbers(draw, following, handle)
    kind = draw(st.sampled_from(CodecKind))
    spoken = st.sampled_from([int(kind), int(kind), 0, 77]).map(lambda number: types_pb2.Codec(kind=number))  # type: ignore[arg-type]
    vector = np.full(size, draw(NUMBERS), np.float32)
    lossy = Codec(kind).is_lossy
    payload = coding.encode(Codec(kind, 0.5), vector, seed=7) if lossy else coding.deflate(vector.tobytes(), 4)
    chunk = gradient_pb2.CodedChunk(
        handle=handle,
        sequence=sequence,
        offset=draw(st.sampled_from([0] * 8 + [1, 2**64 - 1])),
        length=draw(st.sampled_from([size] * 8 + [0, 1, 2**19 + 1, 2**64 - 1])),
        crc32=draw(st.sampled_from([wire.checksum(payload)] * 8 + [1])),
        payload=payload,
    )
    opened = playground.opening(
        OPENED[handle], handle, "worker", gradient_codec=draw(spoken), reply_codec=draw(spoken)
    )  # fmt: skip
    closed = Request(close=gradient_pb2.CloseHandle(handle=handle))
    pull = Request(pull=gradient_pb2.PullParameters(handle=handle))
    return [closed, *opened, Request(coded=chunk), draw(_commit(handle, sequence, step)), pull]  # type: ignore[list-item]


def _line() -> "st.SearchStrategy[list[Request | bytes]]":
    return st.one_of(
        _odd_chunk(), _opening(), _segment(),
        st.builds(lambda h: [Request(pull=gradient_pb2.PullParameters(handle=h))], HANDLES),
        st.builds(lambda h: [Request(close=gradient_pb2.CloseHandle(handle=h))], HANDLES),
        st.builds(
            lambda n, hs: [Request(packed_pull=gradient_pb2.PackedPull(number=n, handles=hs))],
            st.integers(0, 2**64 - 1), st.lists(HANDLES, max_size=4),
        ),
        st.tuples(HANDLES, SEQUENCES, STEPS).flatmap(lambda odd: _commit(*odd).map(lambda one: [one])),
    )  # fmt: skip


def _chunk(handle: int, sequence: int, offset: int, vector: Any, crc32: int | None = None, **more: Any) -> Request:
    payload = vector if isinstance(vector, bytes) else np.asarray(vector, np.float32).tobytes()
    crc32 = wire.checksum(payload) if crc32 is None else crc32
    chunk = gradient_pb2.GradientChunk(
        handle=handle, sequence=sequence, offset=offset, crc32=crc32, payload=payload, **more
    )
    return Request(chunk=chunk)


@st.composite
def _odd_chunk(draw: DrawFn) -> list[Request | bytes]:
    """Overlaps, ends beyond the end, lies about its size or its checksum, or is right."""
    payload = draw(
        st.one_of(st.sampled_from([4, 8, 12, 20, 32, 3, 0]).map(lambda n: b"\x00" * n), st.binary(max_size=24))
    )
    offset = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 2**32, 2**62, 2**64 - 1]))
    crc32, dtype = draw(st.sampled_from([None, None, 0, 2**32 - 1])), draw(st.sampled_from([0, 0, 1, 2, 3, 77]))
    return [_chunk(draw(HANDLES), draw(SEQUENCES), offset, payload, crc32, dtype=dtype)]


@st.composite
def _commit(draw: DrawFn, handle: int, sequence: int, step: int) -> Request:
    return Request(
        commit=gradient_pb2.Commit(
            handle=handle,
            sequence=sequence,
            base_step=step,
            loss=draw(st.sampled_from([None, 0.5, float("nan"), float("-inf")])),
            sample_count=draw(st.sampled_from([0, 1, 2**64 - 1])),
            lr_scale=draw(st.sampled_from([None] * 6 + [1.0, 0.0, -1.0, 1e300, float("nan")])),
            want_digest=draw(st.booleans()),
        )
    )


@st.composite
def _whole(draw: DrawFn, following: list[int]) -> list[Request | bytes]:
    handle = draw(HANDLES)
    size = playground.SIZES[OPENED[handle]] if handle < 4 else draw(st.integers(0, 9))
    sequence, step = _numbers(draw, following, handle)
    payload = np.full(size, draw(NUMBERS), np.float32).tobytes()
    whole = gradient_pb2.WholeGradient(
        commit=draw(_commit(handle, sequence, step)).commit,
        crc32=draw(st.sampled_from([wire.checksum(payload)] * 6 + [1])),
        dtype=draw(st.sampled_from([0] * 6 + [1, 2, -1])),  # type: ignore[arg-type]
        payload=payload,
    )
    return [Request(whole=whole)]


@st.composite
def _packed(draw: DrawFn, following: list[int]) -> list[Request | bytes]:
    """Columns that are nearly right, as the hand-written codec writes them."""
    handles = draw(st.sampled_from([[0], [0, 1], [0, 1, 2], [2, 0], [0, 1, 2, 3], [0, 0], [7], []]))
    sizes = [playground.SIZES[OPENED[handle]] if handle < 4 else 3 for handle in handles]
    payload = np.full(sum(sizes) + draw(st.sampled_from([0] * 9 + [1])), draw(NUMBERS), np.float32).tobytes()
    numbers = [_numbers(draw, following, handle) for handle in handles]

    def column(kind: str, entries: list[Any]) -> bytes:
        """A column of the right length, or rarely of none or one too long."""
        change = draw(st.sampled_from([None] * 18 + [0, 1]))
        made = entries if change is None else entries[:change] * (len(entries) + change)
        return np.array(made, kind).tobytes()

    def drawn(entries: "st.SearchStrategy[Any]") -> list[Any]:
        return [draw(entries) for _ in handles] if draw(st.booleans()) else []

    message = packed.PackedGradients(
        number=draw(st.integers(0, 2**64 - 1)),
        handles=np.array(handles, "<u4").tobytes(),
        sequences=column("<u8", [sequence for sequence, _ in numbers]),
        base_steps=column("<u8", [step for _, step in numbers]),
        losses=column("<f8", drawn(NUMBERS)),
        sample_counts=column("<u8", drawn(SEQUENCES)),
        lr_scales=column("<f8", drawn(NUMBERS)),
        want_energies=draw(st.booleans()),
        without_reply=draw(st.booleans()),
        crc32=wire.checksum(payload) ^ draw(st.sampled_from([0] * 9 + [1])),
        payload=payload,
    )
    return [packed.write_gradients(message)]


@st.composite
def _opening(draw: DrawFn) -> list[Request | bytes]:
    """One or many openings, of sessions that there are and are not, with segments that there are and are not."""

    def one() -> Any:
        session_id = draw(st.sampled_from([*playground.IDS, "nobody", "../../etc", ""]))
        (request,) = playground.opening(
            session_id, draw(HANDLES), draw(st.sampled_from(["worker", "w", "w", "", "\n", "w" * 129])),
            generation=draw(st.sampled_from([0, 0, 0, 1, 2])), reply=draw(st.sampled_from([0, 0, 1, 2, 3, 9])),
            reply_dtype=draw(st.sampled_from([0, 1, 2, 3, 9])), gradient_dtype=draw(st.sampled_from([0, 1, 2, 3, 9])),
            ack_level=draw(st.sampled_from([0, 1, 2, 3, 9])), window_bytes=draw(st.sampled_from([0, 1, 2**64 - 1])),
            layout_digest=draw(st.sampled_from([b"", b"", b"", b"x", b"x" * 32])),
            gradient_codec=draw(_codecs()), reply_codec=draw(_codecs()),
        )  # fmt: skip
        opened = request.open  # type: ignore[attr-defined]
        if draw(st.booleans()):
            opened.segment.CopyFrom(draw(_offer()))
        return opened

    if draw(st.booleans()):
        return [Request(open=one())]
    many = gradient_pb2.OpenSessions(
        close=draw(st.lists(HANDLES, max_size=2)), open=[one() for _ in range(draw(st.integers(0, 3)))]
    )
    return [Request(open_many=many)]


def _codecs() -> "st.SearchStrategy[types_pb2.Codec | None]":
    made = st.builds(types_pb2.Codec, kind=st.sampled_from([1, 2, 3, 4, 5, 9]), fraction=NUMBERS)
    return st.one_of(st.none(), made)


# A process that is written as this number is the test itself, whose segment is only there while a case runs.
_HERE = 2**32 - 7


@st.composite
def _offer(draw: DrawFn) -> gradient_pb2.SegmentOffer:
    return gradient_pb2.SegmentOffer(
        process_id=draw(st.sampled_from([_HERE, _HERE, _HERE, 0, 2**31 - 1, 2**32 - 1])),
        descriptor=draw(st.sampled_from([_HERE, _HERE, 0, 1, 2, 2**32 - 1])),
        token=draw(st.sampled_from([b"t" * 32, b"t" * 32, b"", b"x" * 32, b"t" * 33])),
    )


@st.composite
def _segment(draw: DrawFn) -> list[Request | bytes]:
    """A chunk that says it lies in shared memory."""
    chunk = gradient_pb2.SegmentChunk(
        handle=draw(HANDLES),
        sequence=draw(SEQUENCES),
        offset=draw(st.sampled_from([0, 0, 0, 1, 2**62, 2**64 - 1])),
        length=draw(st.sampled_from([5, 5, 4, 0, 1, 2**62, 2**64 - 1])),
        crc32=draw(st.sampled_from([wire.checksum(b"\x00" * 20), wire.checksum(b"\x00" * 16), 0])),
    )
    return [Request(segment=chunk)]


@contextlib.contextmanager
def _shared_memory() -> Iterator[int]:
    """A sealed anonymous file as a session of five elements would want it; its descriptor."""
    import fcntl

    size = wire.segment_places(5, 4, 4).size_bytes
    memory = os.memfd_create("hermosis-fuzz", os.MFD_ALLOW_SEALING)
    try:
        os.truncate(memory, size)
        os.pwrite(memory, b"t" * 32, 0)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield memory
    finally:
        os.close(memory)


def _with_segment(raw: bytes, descriptor: int) -> bytes:
    """The line with the process and the descriptor that are true in this run in place of their stand-ins."""
    try:
        request = Request.FromString(raw)
    except Exception:
        return raw
    offers = [opened.segment for opened in (*request.open_many.open, request.open) if opened.HasField("segment")]
    for offer in offers:
        offer.process_id = os.getpid() if offer.process_id == _HERE else offer.process_id
        offer.descriptor = descriptor if offer.descriptor == _HERE else offer.descriptor
    return request.SerializeToString() if offers else raw


def _told(line: Any) -> Line:
    if isinstance(line, bytes):
        return Line("a breath" if line == BREATH else "bytes", line)
    return Line(line.WhichOneof("message") or "nothing", line.SerializeToString())
