"""Log lines of a real server bear the call or stream that they are about."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from hermosis.lines import Lines, as_json
from hermosis.v1 import gradient_pb2, session_pb2
from hermosis_server import bound

DEADLINE_S = 20.0


class Kept(logging.Handler):
    """Keeps lines as a server would write them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Lines(as_json, bound.ids))
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler, logger = Kept(), logging.getLogger("hermosis_server")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("a bug")


def test_a_line_of_a_call_names_it_and_what_it_is_about(host: Any, kept: Kept) -> None:
    server = host().server
    server.inside(lambda engine: setattr(engine, "pause_session", broken))
    request = session_pb2.PauseSessionRequest(session_id="a-session", request_id="again-1")
    with pytest.raises(grpc.RpcError):
        server.sessions.PauseSession(request, timeout=DEADLINE_S)
    (line,) = [line for line in kept.lines if line["event"] == "internal_error"]
    assert list(line)[:6] == ["call", "request", "subject", "session", "incident", "event"]
    assert (line["request"], line["subject"], line["session"]) == ("again-1", "local", "a-session")
    assert len(line["call"]) == 12


def test_lines_of_one_stream_have_one_id_and_those_of_another_have_another(host: Any, tools: Any, kept: Kept) -> None:
    server = host().server
    session = server.create()
    server.inside(lambda engine: setattr(engine, "pull", broken))
    opening = gradient_pb2.OpenSession(handle=1, session_id=session.session_id, worker_id="w")
    for _ in range(2):
        requests = [gradient_pb2.ExchangeRequest(open=opening)]
        with tools.Dialogue(server, requests) as stream:
            assert stream.next().HasField("opened")
            for _ in range(2):
                stream.send(gradient_pb2.ExchangeRequest(pull=gradient_pb2.PullParameters(handle=1)))
                assert stream.next().HasField("refused")
    ids = [line["call"] for line in kept.lines if line["event"] == "internal_error"]
    assert len(ids) == 4
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_what_the_server_does_of_its_own_accord_names_no_call(host: Any, kept: Kept) -> None:
    hosted = host()
    hosted.server.create()
    logging.getLogger("hermosis_server").setLevel(logging.INFO)
    try:
        hosted.stop()
    finally:
        logging.getLogger("hermosis_server").setLevel(logging.NOTSET)
    (line,) = [line for line in kept.lines if line["event"] == "stopped"]
    assert "call" not in line
