"""Codecs on the stream, as any client may speak them: what is decoded, what is refused, and what comes back."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermosis import coding, wire
from hermosis.coding import Codec, CodecKind
from hermosis.v1 import gradient_pb2, telemetry_pb2, types_pb2

Request = gradient_pb2.ExchangeRequest
SIZE = 700_001  # more than a chunk, and no whole number of blocks
LOSSY = [CodecKind.INT8, CodecKind.TOP_K, CodecKind.RANDOM_K]
ASYNC = types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_ASYNC)


def some(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def spoken(codec: Codec) -> types_pb2.Codec:
    return types_pb2.Codec(kind=int(codec.kind), fraction=codec.fraction)  # type: ignore[arg-type]


def opening(session: Any, handle: int = 0, worker_id: str = "worker", **changed: Any) -> Request:
    fields = {"handle": handle, "session_id": session.session_id, "worker_id": worker_id}
    return Request(open=gradient_pb2.OpenSession(**fields | changed))


def coded(payload: bytes, length: int, sequence: int = 1, **changed: Any) -> Request:
    fields = {"sequence": sequence, "length": length, "crc32": wire.checksum(payload), "payload": payload}
    return Request(coded=gradient_pb2.CodedChunk(**fields | changed))


def chunks(codec: Codec, values: np.ndarray, sequence: int) -> list[Request]:
    made = []
    for offset, length in wire.spans(len(values), 4):
        piece = values[offset : offset + length]
        lossy = codec.is_lossy
        payload = coding.encode(codec, piece, seed=offset) if lossy else coding.deflate(piece.tobytes(), 4)
        made.append(coded(payload, length, sequence, offset=offset))
    return made


def decoded(codec: Codec, values: np.ndarray) -> np.ndarray:
    """What the server makes of `chunks`."""
    if not codec.is_lossy:
        return values
    out = np.empty_like(values)
    for offset, length in wire.spans(len(values), 4):
        payload = coding.encode(codec, values[offset : offset + length], seed=offset)
        coding.decode(codec.kind, payload, out[offset : offset + length])
    return out


def commit(sequence: int, **changed: Any) -> Request:
    return Request(commit=gradient_pb2.Commit(**{"sequence": sequence, "base_step": sequence - 1} | changed))


class Reader:
    """What a worker makes of the answers on one handle."""

    def __init__(self, codec: Codec, size: int = SIZE) -> None:
        self.codec = codec
        self.held = np.full(size, np.nan, np.float32)
        self.plain = self.coded = 0  # messages
        self.bytes = 0  # of payload of the last answer

    def read(self, stream: Any) -> int:
        """Takes the chunks of one answer; its step."""
        have = self.bytes = 0
        while have < len(self.held):
            message = stream.next()
            kind = message.WhichOneof("message")
            assert kind in ("chunk", "coded"), message
            chunk = getattr(message, kind)
            assert chunk.offset == have
            assert chunk.reply == gradient_pb2.REPLY_PARAMETERS
            assert wire.checksum(chunk.payload) == chunk.crc32
            self.bytes += len(chunk.payload)
            if kind == "chunk":
                self.plain += 1
                values = np.frombuffer(chunk.payload, np.float32)
                self.held[have : have + len(values)] = values
                have += len(values)
                continue
            self.coded += 1
            place = slice(have, have + chunk.length)
            if self.codec.is_lossy:
                change = np.empty(chunk.length, np.float32)
                coding.decode(self.codec.kind, chunk.payload, change)
                self.held[place] += change
            else:
                whole = coding.inflate(chunk.payload, 4, chunk.length)
                self.held[place] = np.frombuffer(whole, np.float32)
            have += chunk.length
        return chunk.step


def pulled(server: Any, session: Any) -> np.ndarray:
    return np.concatenate(list(_pull(server, session)))


def _pull(server: Any, session: Any) -> Any:
    size, have = session.parameter_count, 0
    requests = iter([opening(session, worker_id="looks"), Request(pull=gradient_pb2.PullParameters())])
    for message in server.gradients.Exchange(requests, timeout=20):
        if message.HasField("chunk"):
            values = np.frombuffer(message.chunk.payload, np.float32)
            have += len(values)
            yield values
            if have == size:
                return


@pytest.mark.parametrize("codec", [Codec(kind) for kind in CodecKind][1:], ids=lambda codec: codec.kind.name)
def test_a_coded_gradient_steps_as_what_it_decodes_to(server: Any, tools: Any, codec: Codec) -> None:
    session, plain = server.create(SIZE), server.create(SIZE)
    with tools.Dialogue(server, [opening(session, gradient_codec=spoken(codec), reply=3)]) as stream:
        stream.next()
        for step in (1, 2):
            stream.send(*reversed(chunks(codec, some(step), step)), commit(step))
            assert stream.next().result.step == step
    with tools.Dialogue(server, [opening(plain, reply=3)]) as stream:
        stream.next()
        for step in (1, 2):
            values = decoded(codec, some(step))
            for offset, length in wire.spans(SIZE, 4):
                payload = values[offset : offset + length].tobytes()
                fields = {"sequence": step, "offset": offset, "crc32": wire.checksum(payload), "payload": payload}
                stream.send(Request(chunk=gradient_pb2.GradientChunk(**fields)))
            stream.send(commit(step))
            assert stream.next().result.step == step
    assert server.digest(session) == server.digest(plain)


@pytest.mark.parametrize("dtype", [types_pb2.DTYPE_FLOAT16, types_pb2.DTYPE_BFLOAT16])
def test_deflate_takes_every_dtype(server: Any, tools: Any, dtype: int) -> None:
    session = server.create(1000)
    codec = spoken(Codec(CodecKind.DEFLATE))
    payload = coding.deflate(np.full(1000, 0x3C00 if dtype == types_pb2.DTYPE_FLOAT16 else 0x3F80, "<u2").tobytes(), 2)
    with tools.Dialogue(server, [opening(session, gradient_codec=codec, gradient_dtype=dtype)]) as stream:
        stream.next()
        stream.send(coded(payload, 1000), commit(1))
        assert stream.next().result.step == 1
        assert np.frombuffer(stream.next().chunk.payload, np.float32).tolist() == [-1.0] * 1000


def test_the_same_bytes_again_are_a_repeat_and_others_are_not(server: Any, tools: Any) -> None:
    session, codec = server.create(SIZE), Codec(CodecKind.INT8)
    first = [opening(session, gradient_codec=spoken(codec), reply=3), *chunks(codec, some(1), 1), commit(1)]
    for again in (False, True):
        with tools.Dialogue(server, list(first)) as stream:
            stream.next()
            assert (stream.next().result.step, again) == (1, again)
    other = [first[0], *chunks(codec, some(2), 1), commit(1)]
    with tools.Dialogue(server, other) as stream:
        stream.next()
        assert stream.next().refused.refusal.reason == "PayloadMismatch"


@pytest.mark.parametrize("size", [300, SIZE])
def test_telemetry_counts_what_came_and_shows_what_was_left_out(server: Any, tools: Any, size: int) -> None:
    session, codec = server.create(size), Codec(CodecKind.TOP_K, 0.1)
    pieces = chunks(codec, some(1, size), 1)
    with tools.Dialogue(server, [opening(session, gradient_codec=spoken(codec), reply=3)]) as stream:
        stream.next()
        stream.send(*pieces, pieces[0], commit(1, compression_error=0.25))  # one comes twice
        stream.next()
    request = telemetry_pb2.GetTelemetryRequest(session_id=session.session_id)
    reading = server.telemetry.GetTelemetry(request).reading
    assert reading.received_bytes == sum(len(piece.coded.payload) for piece in pieces) < 0.2 * 4 * size
    assert reading.compression_error == 0.25
    server.push(session, np.ones(size), 1, worker_id="plain", base_step=1) if size < SIZE else None
    if size < SIZE:
        assert not server.telemetry.GetTelemetry(request).reading.HasField("compression_error")


@pytest.mark.parametrize("error", [-1.0, float("nan"), float("inf")])
def test_an_error_that_is_none_is_refused(server: Any, tools: Any, error: float) -> None:
    session, codec = server.create(300), Codec(CodecKind.INT8)
    with tools.Dialogue(server, [opening(session, gradient_codec=spoken(codec))]) as stream:
        stream.next()
        stream.send(*chunks(codec, some(1, 300), 1), commit(1, compression_error=error))
        assert stream.next().refused.refusal.field == "commit.compression_error"
    assert server.inside(lambda engine: engine.session(session.session_id).step) == 0


INT8_300 = coding.encode(Codec(CodecKind.INT8), np.ones(300, np.float32))
WRONG = {
    "no elements": (coded(b"", 0), "InvalidRequest"),
    "too many elements": (coded(INT8_300, wire.MAX_CHUNK_BYTES), "InvalidRequest"),
    "elements without end": (coded(INT8_300, 2**64 - 1), "InvalidRequest"),
    "beyond the end": (coded(INT8_300, 300, offset=1), "LayoutMismatch"),
    "far beyond the end": (coded(INT8_300, 300, offset=2**64 - 1), "LayoutMismatch"),
    "another checksum": (coded(INT8_300, 300, crc32=1), "CorruptChunk"),
    "too short": (coded(INT8_300[:-1], 300), "InvalidRequest"),
    "too long": (coded(bytes(wire.MAX_CHUNK_BYTES + 5000), 300), "InvalidRequest"),
    "another length": (coded(INT8_300, 299), "InvalidRequest"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_chunk_is_refused_and_changes_nothing(server: Any, tools: Any, name: str) -> None:
    session, codec = server.create(300), Codec(CodecKind.INT8)
    wrong, reason = WRONG[name]
    before = server.inside(lambda engine: engine.budget.used_bytes)
    with tools.Dialogue(server, [opening(session, gradient_codec=spoken(codec), reply=3)]) as stream:
        stream.next()
        stream.send(wrong, commit(1))
        assert stream.next().refused.refusal.reason == reason
        assert server.inside(lambda engine: engine.budget.used_bytes) == before
        stream.send(*chunks(codec, some(1, 300), 1), commit(1))
        assert stream.next().result.step == 1


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"gradient_codec": types_pb2.Codec(kind=77)}, "gradient_codec.kind"),  # type: ignore[arg-type]
        ({"reply_codec": types_pb2.Codec(kind=77)}, "reply_codec.kind"),  # type: ignore[arg-type]
        ({"gradient_codec": types_pb2.Codec(kind=3, fraction=0.7)}, "gradient_codec.fraction"),  # type: ignore[arg-type]
        ({"reply_codec": types_pb2.Codec(kind=3, fraction=float("nan"))}, "reply_codec.fraction"),  # type: ignore[arg-type]
        ({"gradient_codec": spoken(Codec(CodecKind.INT8)), "gradient_dtype": 2}, "gradient_codec.kind"),
        ({"reply_codec": spoken(Codec(CodecKind.INT8)), "reply_dtype": 3}, "reply_codec.kind"),
        ({"reply_codec": spoken(Codec(CodecKind.INT8)), "reply": 2}, "reply_codec.kind"),
    ],
)
def test_an_opening_that_cannot_be_is_refused_by_its_field(
    server: Any, tools: Any, changed: dict[str, Any], field: str
) -> None:
    session = server.create(300)
    with tools.Dialogue(server, [opening(session, **changed)]) as stream:
        refusal = stream.next().refused.refusal
        assert (refusal.reason, refusal.field) == ("InvalidRequest", field)


def test_changes_of_parameters_that_the_worker_holds_are_refused(server: Any, tools: Any) -> None:
    session = server.create(300, parameters_on=types_pb2.PARAMETERS_ON_WORKER)
    with tools.Dialogue(server, [opening(session, reply_codec=spoken(Codec(CodecKind.INT8)))]) as stream:
        assert stream.next().refused.refusal.field == "reply_codec.kind"
    # What loses nothing is welcome: the increment itself, deflated.
    deflate = spoken(Codec(CodecKind.DEFLATE))
    with tools.Dialogue(server, [opening(session, gradient_codec=deflate, reply_codec=deflate)]) as stream:
        stream.next()
        stream.send(*chunks(Codec(CodecKind.DEFLATE), np.ones(300, np.float32), 1), commit(1))
        assert stream.next().result.step == 1
        back = stream.next().coded
        assert back.reply == gradient_pb2.REPLY_INCREMENT
        assert set(np.frombuffer(coding.inflate(back.payload, 4, 300), np.float32)) == {-1.0}


def test_what_is_coded_goes_where_it_was_agreed_only(server: Any, tools: Any) -> None:
    session = server.create(300)
    with tools.Dialogue(server, [opening(session, reply=3)]) as stream:
        stream.next()
        stream.send(coded(INT8_300, 300), commit(1))
        assert stream.next().refused.refusal.field == "coded"
    codec = spoken(Codec(CodecKind.INT8))
    for changed in ({"gradient_codec": codec}, {"reply_codec": codec}):
        with tools.Dialogue(server, [opening(session, worker_id="packs", **changed)]) as stream:
            stream.next()
            payload = bytes(1200)
            fields = {"handles": [0], "sequences": [1], "base_steps": [0], "crc32": wire.checksum(payload)}
            stream.send(Request(packed=gradient_pb2.PackedGradients(payload=payload, **fields)))
            assert stream.next().packed.refusal.field == "handles"


def test_plain_chunks_are_welcome_beside_coded_ones(server: Any, tools: Any) -> None:
    session, codec = server.create(SIZE), Codec(CodecKind.TOP_K)
    first, *rest = chunks(codec, some(1), 1)
    length = first.coded.length
    payload = some(1)[:length].tobytes()
    plain = gradient_pb2.GradientChunk(sequence=1, crc32=wire.checksum(payload), payload=payload)
    with tools.Dialogue(server, [opening(session, gradient_codec=spoken(codec), reply=3)]) as stream:
        stream.next()
        stream.send(Request(chunk=plain), *rest, commit(1))
        assert stream.next().result.step == 1
    expected = decoded(codec, some(1))
    expected[:length] = some(1)[:length]
    np.testing.assert_array_equal(pulled(server, session), -expected)


@pytest.mark.parametrize("codec", [Codec(kind, 0.2) for kind in CodecKind][1:], ids=lambda codec: codec.kind.name)
def test_a_coded_answer_follows_the_parameters(server: Any, tools: Any, codec: Codec) -> None:
    session, reader = server.create(SIZE, start=1.0), Reader(codec)
    with tools.Dialogue(server, [opening(session, reply_codec=spoken(codec))]) as stream:
        stream.next()
        for step in range(1, 5):
            stream.send(*_plain(some(step), step), commit(step))
            assert stream.next().result.step == step
            assert reader.read(stream) == step
            if step == 1:
                np.testing.assert_array_equal(reader.held, pulled(server, session))
        for _ in range(120):  # Nothing moves any more: what was left out comes after all.
            stream.send(Request(pull=gradient_pb2.PullParameters()))
            assert reader.read(stream) == 4
        assert np.abs(reader.held - pulled(server, session)).max() < 1e-5
    per_element = {CodecKind.INT8: 1.02, CodecKind.TOP_K: 1.21, CodecKind.RANDOM_K: 0.81, CodecKind.DEFLATE: 4.0}
    assert reader.bytes < per_element[codec.kind] * SIZE
    assert reader.plain == (3 if codec.is_lossy else 0)


def _plain(values: np.ndarray, sequence: int) -> list[Request]:
    made = []
    for offset, length in wire.spans(len(values), 4):
        payload = values[offset : offset + length].tobytes()
        fields = {"sequence": sequence, "offset": offset, "crc32": wire.checksum(payload), "payload": payload}
        made.append(Request(chunk=gradient_pb2.GradientChunk(**fields)))
    return made


def test_a_coded_answer_tells_what_others_did_in_between(server: Any, tools: Any) -> None:
    session, codec = server.create(500, consistency=ASYNC), Codec(CodecKind.INT8)
    mine, theirs = Reader(codec, 500), Reader(codec, 500)
    first, second = (opening(session, worker_id=name, reply_codec=spoken(codec)) for name in ("a", "b"))
    with tools.Dialogue(server, [first]) as one, tools.Dialogue(server, [second]) as other:
        one.next(), other.next()
        for turn in range(1, 30):
            for reader, stream, scale in ((mine, one, 1.0), (theirs, other, 0.5)):
                stream.send(*_plain(some(turn, 500) * np.float32(scale), turn), commit(turn, base_step=0))
                stream.next()
                reader.read(stream)
                truth = pulled(server, session)
                # A change of about one comes in steps of its largest element over 127.
                assert np.abs(reader.held - truth).max() < 0.06


def test_a_new_handle_begins_with_the_parameters_themselves(server: Any, tools: Any) -> None:
    session, codec = server.create(500), Codec(CodecKind.RANDOM_K)
    for step in (1, 2):
        reader = Reader(codec, 500)
        with tools.Dialogue(server, [opening(session, reply_codec=spoken(codec))]) as stream:
            stream.next()
            stream.send(*_plain(some(step, 500), step), commit(step))
            stream.next()
            reader.read(stream)
        np.testing.assert_array_equal(reader.held, pulled(server, session))
        assert (reader.plain, reader.coded) == (1, 0)


def test_what_is_kept_for_a_coded_answer_is_paid_and_given_back(host: Any, tools: Any) -> None:
    server = host(session_bytes=10_000_000).server
    session, codec = server.create(SIZE), spoken(Codec(CodecKind.TOP_K))  # 2.8 MB

    def used() -> Any:
        return server.inside(lambda engine: engine.session(session.session_id).budget.used_bytes)

    limit_bytes = server.inside(lambda engine: engine.session(session.session_id).budget.limit_bytes)
    room = limit_bytes // (4 * SIZE)
    requests = [opening(session, handle, f"w{handle}", reply_codec=codec) for handle in range(room + 1)]
    with tools.Dialogue(server, requests) as stream:
        answers = [stream.next() for _ in range(room + 1)]
        assert [answer.WhichOneof("message") for answer in answers] == ["opened"] * room + ["refused"]
        assert answers[-1].refused.refusal.reason == "Overloaded"
        assert used() == room * 4 * SIZE
        stream.send(Request(close=gradient_pb2.CloseHandle(handle=1)))
        tools.poll(lambda: used() == (room - 1) * 4 * SIZE)
    tools.poll(lambda: used() == 0)


def test_nothing_coded_lies_in_a_segment(server: Any, tools: Any) -> None:
    segment = pytest.importorskip("hermosis_client.segment")
    session, codec = server.create(SIZE), spoken(Codec(CodecKind.INT8))
    memory = segment.Segment(SIZE, wire.Dtype.FLOAT32, wire.Dtype.FLOAT32)
    for changed in ({"gradient_codec": codec}, {"reply_codec": codec}):
        with tools.Dialogue(server, [opening(session, segment=memory.offer, **changed)]) as stream:
            assert not stream.next().opened.segment_attached
    memory.close()


def test_what_a_journal_holds_was_decoded(host: Any, tools: Any, tmp_path: Path) -> None:
    """After a crash the same coded bytes are known again, and others are not."""
    (tmp_path / "lived").mkdir()
    server, codec = host(tmp_path / "lived").server, Codec(CodecKind.TOP_K)
    durability = types_pb2.Durability(mode=types_pb2.DURABILITY_MODE_JOURNAL)
    session = server.create(SIZE, durability=durability)
    fields = {"gradient_codec": spoken(codec), "reply": 3, "ack_level": types_pb2.ACK_LEVEL_DURABLE}
    first = [opening(session, **fields), *chunks(codec, some(1), 1), commit(1)]
    with tools.Dialogue(server, list(first)) as stream:
        stream.next()
        assert stream.next().result.durable_step == 1
    shutil.copytree(tmp_path / "lived", tmp_path / "crashed")  # what a crash would leave now
    again = host(tmp_path / "crashed").server
    assert again.digest(session) == server.digest(session)
    with tools.Dialogue(again, list(first)) as stream:
        stream.next()
        assert stream.next().result.duplicate
    with tools.Dialogue(again, [first[0], *chunks(codec, some(2), 1), commit(1)]) as stream:
        stream.next()
        assert stream.next().refused.refusal.reason == "PayloadMismatch"
