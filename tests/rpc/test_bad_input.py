"""Bad input: each is answered by its typed error, and the state digest is the same before and after."""

import contextlib
import socket
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from hermosis import wire
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2

ONES = np.ones(5, np.float32)
Request = gradient_pb2.ExchangeRequest


@pytest.fixture
def session(server: Any) -> session_pb2.Session:
    """A session that has taken one step."""
    made = server.create(5, "adam")
    server.push(made, ONES, 1)
    return made


def gradient(values: Any = ONES, sequence: int = 2, base_step: int = 1, **changed: Any) -> gradient_pb2.WholeGradient:
    payload = np.asarray(values, np.float32).tobytes()
    fields = {
        "commit": gradient_pb2.Commit(sequence=sequence, base_step=base_step),
        "crc32": wire.checksum(payload),
        "payload": payload,
    }
    return gradient_pb2.WholeGradient(**fields | changed)


BAD_PUSHES: list[tuple[str, dict[str, Any], str, grpc.StatusCode]] = [
    ("too few elements", {"gradient": gradient(ONES[:4])}, "LayoutMismatch", grpc.StatusCode.INVALID_ARGUMENT),
    ("too many elements", {"gradient": gradient(np.ones(6))}, "LayoutMismatch", grpc.StatusCode.INVALID_ARGUMENT),
    ("half an element", {"gradient": gradient(payload=b"123456")}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("no bytes", {"gradient": gradient(payload=b"")}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("an unknown dtype", {"gradient": gradient(dtype=77)}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("float16 bytes for float32", {"gradient": gradient(dtype=2)}, "LayoutMismatch", grpc.StatusCode.INVALID_ARGUMENT),
    ("a wrong checksum", {"gradient": gradient(crc32=1)}, "CorruptChunk", grpc.StatusCode.INVALID_ARGUMENT),
    ("another layout", {"layout_digest": b"x" * 32}, "LayoutMismatch", grpc.StatusCode.INVALID_ARGUMENT),
    ("an unknown session", {"session_id": "nobody"}, "SessionNotFound", grpc.StatusCode.NOT_FOUND),
    ("a path for a session", {"session_id": "../../etc"}, "SessionNotFound", grpc.StatusCode.NOT_FOUND),
    ("a skipped number", {"gradient": gradient(sequence=3)}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("number zero", {"gradient": gradient(sequence=0)}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    (
        "a used number with other bytes",
        {"gradient": gradient(2 * ONES, sequence=1)},
        "PayloadMismatch",
        grpc.StatusCode.ABORTED,
    ),
    ("old parameters", {"gradient": gradient(base_step=0)}, "StaleGradient", grpc.StatusCode.FAILED_PRECONDITION),
    (
        "parameters of the future",
        {"gradient": gradient(base_step=9)},
        "InvalidRequest",
        grpc.StatusCode.INVALID_ARGUMENT,
    ),
    ("an old generation", {"generation": 9}, "StaleGeneration", grpc.StatusCode.FAILED_PRECONDITION),
    ("no worker", {"worker_id": ""}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("a worker with control characters", {"worker_id": "a\nb"}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("a worker name without end", {"worker_id": "a" * 129}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("a promise that cannot be kept", {"ack_level": 3}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
    ("an unknown promise", {"ack_level": 9}, "InvalidRequest", grpc.StatusCode.INVALID_ARGUMENT),
]


@pytest.mark.parametrize(("changed", "reason", "code"), [row[1:] for row in BAD_PUSHES], ids=[r[0] for r in BAD_PUSHES])
def test_a_bad_push_is_refused_and_changes_nothing(
    server: Any, tools: Any, session: Any, changed: dict[str, Any], reason: str, code: grpc.StatusCode
) -> None:
    before = server.digest(session)
    fields = {"gradient": gradient(), **changed}
    with pytest.raises(grpc.RpcError) as caught:
        server.push(session, ONES, 2, **fields)
    assert (caught.value.code(), tools.reason_of(caught.value)) == (code, reason)
    assert server.digest(session) == before
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
    assert server.push(session, ONES, 2).step == 2, "the session goes on"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_a_typed_outcome(server: Any, session: Any, value: float) -> None:
    before = server.digest(session)
    poison = ONES.copy()
    poison[2] = value
    result = server.push(session, poison, 2)
    assert result.outcome == types_pb2.OUTCOME_NON_FINITE_GRADIENT
    assert result.step == 1
    assert not result.HasField("energies")
    assert server.digest(session) == before


def test_a_repeat_is_a_duplicate_and_changes_nothing(server: Any, session: Any) -> None:
    before = server.digest(session)
    result = server.push(session, ONES, 1)
    assert result.duplicate
    assert result.step == 1
    assert server.digest(session) == before


def test_a_message_over_the_limit_never_reaches_the_engine(server: Any, session: Any) -> None:
    before = server.digest(session)
    with pytest.raises(grpc.RpcError) as caught:
        server.push(session, ONES, 2, gradient=gradient(payload=bytes(5 << 20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.digest(session) == before


def test_garbage_on_the_port_leaves_the_server_well(server: Any, session: Any) -> None:
    before = server.digest(session)
    address, _, port = server.address.rpartition(":")
    noise = np.random.default_rng(1)
    for payload in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096, b"\0", None):
        # The server may hang up at any point of this; it may not fall.
        with contextlib.suppress(OSError), socket.create_connection((address, int(port)), timeout=10) as connection:
            connection.sendall(noise.bytes(65536) if payload is None else payload)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert server.digest(session) == before
    assert server.push(session, ONES, 2).step == 2


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2, on the connection itself."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


def test_pings_close_no_connection_and_who_reads_no_answer_is_not_read(server: Any, session: Any) -> None:
    """A client's gRPC sends some by itself while it takes a vector in; a flood of them fills no memory."""
    address, _, port = server.address.rpartition(":")
    ping, answer = frame(6, bytes(8)), b"\x00\x00\x08\x06\x01" + bytes(12)
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4))
        heard = b""
        for count in range(1, 21):
            connection.sendall(ping)
            while heard.count(answer) < count:
                piece = connection.recv(65536)
                assert piece, "it has hung up"
                heard += piece
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # it waits until somebody takes its answers
            connection.sendall(ping * (4 << 20))
    assert server.push(session, ONES, 2).step == 2


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x0f", bytes(range(256))])
def test_a_request_that_is_no_message_is_refused(server: Any, tools: Any, payload: bytes) -> None:
    call = server.channel.unary_unary(
        "/hermosis.v1.GradientService/Push", request_serializer=lambda raw: raw, response_deserializer=lambda raw: raw
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(payload, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert tools.reason_of(caught.value) == "InvalidRequest"


def opening(session: Any, handle: int = 1, **changed: Any) -> Request:
    fields = {"handle": handle, "session_id": session.session_id, "worker_id": "worker"}
    return Request(open=gradient_pb2.OpenSession(**fields | changed))


def chunk(values: Any, sequence: int = 2, offset: int = 0, handle: int = 1, **changed: Any) -> Request:
    payload = np.asarray(values, np.float32).tobytes()
    fields = {
        "handle": handle,
        "sequence": sequence,
        "offset": offset,
        "crc32": wire.checksum(payload),
        "payload": payload,
    }
    return Request(chunk=gradient_pb2.GradientChunk(**fields | changed))


def commit(sequence: int = 2, base_step: int = 1, handle: int = 1) -> Request:
    return Request(commit=gradient_pb2.Commit(handle=handle, sequence=sequence, base_step=base_step))


BAD_CHUNKS: list[tuple[str, list[Request], str]] = [
    ("beyond the end", [chunk(ONES, offset=1)], "LayoutMismatch"),
    ("an offset of terabytes", [chunk(ONES, offset=1 << 60)], "LayoutMismatch"),
    ("another dtype", [chunk(ONES, dtype=3)], "InvalidRequest"),
    ("a wrong checksum", [chunk(ONES, crc32=5)], "CorruptChunk"),
    ("an overlap", [chunk(ONES[:3]), chunk(ONES[:2], offset=2)], "InvalidRequest"),
    ("the same elements otherwise", [chunk(ONES[:3]), chunk(2 * ONES[:3])], "PayloadMismatch"),
    ("a skipped number", [chunk(ONES, sequence=3)], "InvalidRequest"),
    ("missing elements", [chunk(ONES[:3])], "LayoutMismatch"),
    ("nothing but the commit", [], "InvalidRequest"),
]


@pytest.mark.parametrize(("sent", "reason"), [row[1:] for row in BAD_CHUNKS], ids=[row[0] for row in BAD_CHUNKS])
def test_a_bad_gradient_is_refused_once_and_the_stream_goes_on(
    server: Any, tools: Any, session: Any, sent: list[Request], reason: str
) -> None:
    before = server.digest(session)
    sequence = sent[0].chunk.sequence if sent else 2
    with tools.Dialogue(server, [opening(session)]) as stream:
        assert stream.next().opened.next_sequence == 2
        stream.send(*sent, commit(sequence))
        refused = stream.next().refused
        assert (refused.refusal.reason, refused.sequence) == (reason, sequence)
        assert refused.refusal.message
        assert server.digest(session) == before
        stream.send(chunk(ONES), commit())
        assert stream.next().result.step == 2
        assert stream.next().chunk.step == 2


BAD_OPENINGS: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown session", {"session_id": "nobody"}, "SessionNotFound"),
    ("another layout", {"layout_digest": b"?"}, "LayoutMismatch"),
    ("an old generation", {"generation": 4}, "StaleGeneration"),
    ("an unknown dtype", {"gradient_dtype": 50}, "InvalidRequest"),
    ("an unknown reply", {"reply": 50}, "InvalidRequest"),
    ("a promise that cannot be kept", {"ack_level": 3}, "InvalidRequest"),
]


@pytest.mark.parametrize(("changed", "reason"), [row[1:] for row in BAD_OPENINGS], ids=[row[0] for row in BAD_OPENINGS])
def test_a_bad_opening_is_refused_once_whatever_follows_it(
    server: Any, tools: Any, session: Any, changed: dict[str, Any], reason: str
) -> None:
    with tools.Dialogue(server, [opening(session, **changed), chunk(ONES), chunk(ONES), commit()]) as stream:
        assert stream.next().refused.refusal.reason == reason
        stream.send(opening(session))
        assert stream.next().opened.step == 1, "and nothing was said of the chunks in between"


@pytest.mark.parametrize(
    "bad", [Request(), chunk(ONES, handle=9), commit(handle=9)], ids=["no kind", "unopened chunk", "unopened commit"]
)
def test_a_stream_that_makes_no_sense_is_ended_with_a_typed_status(
    server: Any, tools: Any, session: Any, bad: Request
) -> None:
    with tools.Dialogue(server, [opening(session), bad]) as stream:
        assert stream.next().opened.handle == 1
        with pytest.raises(grpc.RpcError) as caught:
            stream.next()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert tools.reason_of(caught.value) == "InvalidRequest"


def test_a_worker_that_vanishes_mid_gradient_leaves_nothing_behind(server: Any, tools: Any, session: Any) -> None:
    before = server.digest(session)
    channel = grpc.insecure_channel(server.address)
    with tools.Dialogue(server, [opening(session), chunk(ONES[:3])], channel=channel) as stream:
        stream.next()
        tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) >= 20)
        channel.close()
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
    assert server.digest(session) == before
    assert server.push(session, ONES, 2).step == 2


def test_announcing_terabytes_takes_no_memory(server: Any, tools: Any) -> None:
    huge = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[1 << 30, 1 << 20])])
    wide = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[1 << 33])])
    for layout, reason in ((huge, "QuotaExceeded"), (wide, "OutOfDeviceMemory")):
        spec = session_pb2.SessionSpec(layout=layout, optimizer=tools.recipe_message("sgd"))
        with pytest.raises(grpc.RpcError) as caught:
            server.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=spec), timeout=10)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert tools.reason_of(caught.value) == reason
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)


def tensor(**fields: Any) -> types_pb2.ParameterLayout:
    return types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(**{"name": "w", "shape": [3]} | fields)])


BAD_SPECS: list[tuple[str, dict[str, Any], str, str]] = [
    ("no tensors", {"layout": types_pb2.ParameterLayout()}, "InvalidRequest", "spec.layout.tensors"),
    ("no elements", {"layout": tensor(shape=[0])}, "InvalidRequest", "spec.layout"),
    ("a negative axis", {"layout": tensor(shape=[-1])}, "InvalidRequest", "spec.layout.tensors[0].shape"),
    ("too many axes", {"layout": tensor(shape=[1] * 17)}, "InvalidRequest", "spec.layout.tensors[0].shape"),
    ("no name", {"layout": tensor(name="")}, "InvalidRequest", "spec.layout.tensors[0].name"),
    ("a name with a line break", {"layout": tensor(name="a\nb")}, "InvalidRequest", "spec.layout.tensors[0].name"),
    (
        "the same name twice",
        {"layout": types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w")] * 2)},
        "InvalidRequest",
        "spec.layout.tensors[1].name",
    ),
    ("an unknown dtype", {"layout": tensor(dtype=9)}, "InvalidRequest", "spec.layout.tensors[0].dtype"),
    (
        "too many workers",
        {"consistency": types_pb2.Consistency(workers=9999)},
        "InvalidRequest",
        "spec.consistency.workers",
    ),
    (
        "a disk there is not",
        {"durability": types_pb2.Durability(mode=3)},
        "InvalidRequest",
        "spec.durability.mode",
    ),
    ("an unknown place", {"parameters_on": 7}, "InvalidRequest", "spec.parameters_on"),
    ("a label of nothing", {"labels": {"": "x"}}, "InvalidRequest", "labels"),
]


@pytest.mark.parametrize(
    ("changed", "reason", "field"), [row[1:] for row in BAD_SPECS], ids=[row[0] for row in BAD_SPECS]
)
def test_a_bad_spec_is_refused_and_names_the_field(
    server: Any, tools: Any, changed: dict[str, Any], reason: str, field: str
) -> None:
    fields = {"layout": tensor(), "optimizer": tools.recipe_message("sgd")}
    spec = session_pb2.SessionSpec(**fields | changed)
    held = server.inside(lambda engine: len(list(engine.sessions())))
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=spec), timeout=10)
    assert tools.reason_of(caught.value) == reason
    violation = next(
        found
        for detail in tools.details_of(caught.value).details
        if detail.Unpack(found := error_details_pb2.BadRequest())
    )
    assert violation.field_violations[0].field == field
    assert server.inside(lambda engine: len(list(engine.sessions()))) == held


@pytest.mark.parametrize("name", ["n" * 100_000, "\N{ICE CUBE}" * 2_000], ids=["long", "long and not of Latin letters"])
def test_a_refusal_that_quotes_a_long_name_still_fits_the_headers(server: Any, tools: Any, name: str) -> None:
    made = server.create(3)
    spec = session_pb2.SessionSpec(layout=tensor(), optimizer=tools.recipe_message("sgd", **{name: 1.0}))
    update = session_pb2.UpdateSessionRequest(session_id=made.session_id)
    update.update_mask.paths.append(name)
    for call, request in (
        (server.sessions.CreateSession, session_pb2.CreateSessionRequest(spec=spec)),
        (server.sessions.UpdateSession, update),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10)
        # By chance between 8 and 16 KiB: so the size itself is looked at.
        carried = sum(len(value) for _, value in caught.value.trailing_metadata())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert tools.reason_of(caught.value) in ("InvalidRequest", "InvalidHyperparameter")
        assert carried + 3 * len(caught.value.details().encode()) < 8_000
