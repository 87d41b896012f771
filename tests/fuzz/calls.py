"""Calls: every method of every service, asked with any message, and with bytes that are none."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import hypothesis
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from tests.fuzz import playground
from tests.fuzz.messages import damaged, message, mutated
from tests.fuzz.rig import CALL_S, Rig, judge_end, judge_response, parsed
from tests.rpc.conftest import Service

from hermosis.v1 import access_pb2, gradient_pb2, session_pb2, telemetry_pb2


class Method(NamedTuple):
    """A method as its descriptor states it."""

    service: str
    name: str
    takes: Descriptor
    gives: Descriptor
    takes_stream: bool
    gives_stream: bool


METHODS = tuple(
    Method(service.full_name, m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming)
    for file in (session_pb2, gradient_pb2, telemetry_pb2, access_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for m in service.methods
)


class Call(NamedTuple):
    """One call: a method's name, and the bytes of each message that is sent."""

    method: Method
    messages: Iterable[bytes]

    def __repr__(self) -> str:
        return f"{self.method.name}({', '.join(map(repr, self.messages))})"


@st.composite
def call(draw: DrawFn, method: Method) -> Call:
    """A call that may be right, and mostly is not."""
    sent = draw(st.one_of(_wild(method), _nearly(method), _nearly(method)))
    raw = [one.SerializeToString() for one in sent]
    if raw and draw(st.integers(0, 5)) == 4:
        place = draw(st.integers(0, len(raw) - 1))
        raw[place] = draw(st.one_of(damaged(raw[place]), st.binary(max_size=60)))
    return Call(method, raw)


def _wild(method: Method) -> "st.SearchStrategy[list[Message]]":
    most = 4 if method.takes_stream else 1
    return st.lists(message(method.takes, playground.IDS), min_size=0 if most > 1 else 1, max_size=most)


@st.composite
def _nearly(draw: DrawFn, method: Method) -> list[Message]:
    right = list(playground.right_requests(method.name)) or [[_named(method)]]
    return [draw(mutated(one, playground.IDS)) for one in draw(st.sampled_from(right))]


def _named(method: Method) -> Message:
    """The plainest request that names a session, where the method takes one."""
    plain = GetMessageClass(method.takes)()
    if "session_id" in method.takes.fields_by_name:
        plain.session_id = "play-adam"  # type: ignore[attr-defined]
    return plain


def check_call(rig: Rig, case: Call) -> None:
    """Makes a call in the playground and judges its end, its answers, and what it left."""
    kind = GetMessageClass(case.method.takes)
    for raw in case.messages:
        hypothesis.note(_text(kind, raw))
    with rig.case() as server:
        playground.lay_out(server)
        for response in made(server, case):
            judge_response(response)


def made(server: Service, case: Call) -> list[Message]:
    """The answers to a call whose end was judged."""
    method = case.method
    path, kind = f"/{method.service}/{method.name}", GetMessageClass(method.gives)
    shape = f"{'stream' if method.takes_stream else 'unary'}_{'stream' if method.gives_stream else 'unary'}"
    start = getattr(server.channel, shape)(path)
    ended = threading.Event()
    sent: Any = _sent(case.messages, ended) if method.takes_stream else next(iter(case.messages))
    if not method.gives_stream:
        future = start.future(sent, timeout=CALL_S)
        _free(server)  # a push to a session of two workers would wait for the other
        judge_end(future, method.name)
        return [parsed(kind, future.result())] if future.exception() is None else []
    running = start(sent, timeout=CALL_S)
    endless = method.name == "WatchTelemetry"
    if endless:
        running.initial_metadata()  # comes when the watch has begun, or with the refusal
        running.cancel()
    if method.takes_stream:
        if not running.add_callback(ended.set):  # it has ended already, without reading the rest
            ended.set()
        assert ended.wait(CALL_S), f"{method.name} did not read what was sent within {CALL_S} s"
        _free(server)
    answers = []
    try:
        for raw in running:
            answers.append(parsed(kind, raw))  # noqa: PERF401  what came before an error counts
    except Exception as error:
        if error is not running:  # grpc raises the call itself
            raise
    judge_end(running, method.name, cancelled=endless)
    return answers


def _sent(messages: Iterable[bytes], ended: threading.Event) -> Iterator[bytes]:
    try:
        yield from messages
    finally:
        ended.set()


def _free(server: Service) -> None:
    """Closes the session of two workers, so that whoever waits there is answered."""
    request = session_pb2.CloseSessionRequest(session_id="play-two")
    closing = server.sessions.CloseSession.future(request, timeout=CALL_S)
    if closing.exception() is not None:  # the case itself may have closed it
        judge_end(closing, "CloseSession")


def _text(kind: type[Message], raw: bytes) -> str:
    try:
        told = text_format.MessageToString(kind.FromString(raw), as_one_line=True)
    except DecodeError:
        return f"no {kind.DESCRIPTOR.name}: {raw.hex()}"
    return f"{kind.DESCRIPTOR.name}: {told[:2000]}"
