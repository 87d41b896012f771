"""Log lines of a real sidecar, and the numbers of requests."""

import json
import logging
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient
from tests.forking import WarmServer
from tests.sidecar.conftest import Sidecar, eventually

from hermosis.lines import Lines, as_json
from hermosis_sidecar import logs
from hermosis_sidecar.app import create_app
from hermosis_sidecar.settings import Settings


def test_an_answer_bears_a_number_and_whoever_sends_one_keeps_theirs(sidecar: Sidecar) -> None:
    first, second = (sidecar.http.get("/v1/recipes").headers["x-request-id"] for _ in range(2))
    assert len(first) == len(second) == 12
    assert first != second
    assert sidecar.http.get("/v1/recipes", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    given = sidecar.http.get("/v1/recipes", headers={"x-request-id": "no good\x0bone"[:7]}).headers["x-request-id"]
    assert given != "no good"
    assert "x-request-id" in sidecar.http.get("/nowhere").headers


def test_lines_are_json_where_nobody_watches() -> None:
    server = WarmServer()
    sidecar = Sidecar(server.address, retry_s="0.05", ready_timeout_s="0.5")
    with sidecar:
        eventually(lambda: sidecar.http.get("/healthz/ready").status_code == 200, "the server")
        server.close()
        eventually(lambda: sidecar.http.get("/healthz/ready").status_code == 503, "the server to be away")
        eventually(lambda: "server_away" in sidecar.process.tail(), "the line of it")  # another task finds out, later
        log = sidecar.end()
    lines = [json.loads(line) for line in log.splitlines()]
    (away,) = [line for line in lines if line["event"] == "server_away"]
    assert list(away) == ["event", "server", "problem", "level", "logger", "timestamp"]
    assert away["server"] == server.address


def test_a_line_of_a_request_bears_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, object]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(json.loads(Lines(as_json, ids()).format(record)))

    def ids() -> Callable[[], dict[str, object]]:
        return lambda: {"request": logs._request.get()}

    app = create_app(Settings(server="127.0.0.1:1", ready_timeout_s=0.1, timeout_s=0.1))

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("a bug")

    logger = logging.getLogger("hermosis_sidecar")
    handler = Kept()
    logger.addHandler(handler)
    try:
        with TestClient(app, base_url="http://127.0.0.1") as client:
            answer = client.get("/broken", headers={"x-request-id": "mine-2"})
    finally:
        logger.removeHandler(handler)
    assert answer.status_code == 500
    (line,) = [line for line in kept if line["event"] == "internal_error"]
    assert line["request"] == "mine-2"
    assert str(line["incident"]) in answer.json()["detail"]
