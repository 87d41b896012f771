"""``hermosis up``: server and page live and end together."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[..., Any]

pytestmark = pytest.mark.slow


def started(start: Start) -> tuple[Any, str, str]:
    """The running command and the addresses of server and page."""
    up = start("up", "--port", "0", "--page-port", "0")
    server = up.line_with("server ").split()[1]
    page = up.line_with("page ").split()[1]
    return up, server, page


def process(up: Any, words: str) -> int:
    family: dict[int, str] = up.family()
    (number,) = [number for number, line in family.items() if words in line]
    return number


def test_up_serves_both_until_ctrl_c(start: Start) -> None:
    up, server, page = started(start)
    health = start("health", "--address", server)
    assert health.wait() == 0
    assert health.output() == "SERVING"
    with urllib.request.urlopen(f"{page}/v1/sessions", timeout=30) as answer:
        assert json.load(answer)["sessions"] == []
    os.kill(up.process.pid, signal.SIGINT)
    assert up.wait() == 0
    up.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("words", "name"), [("hermosis_server serve", "server"), ("hermosis_sidecar", "sidecar")], ids=["server", "sidecar"]
)
def test_the_end_of_one_is_told_and_stops_the_other(start: Start, words: str, name: str) -> None:
    up, _, _ = started(start)
    os.kill(process(up, words), signal.SIGKILL)
    assert up.wait() == 1
    assert f"hermosis: the {name} ended with status -9" in up.errors()
    up.assert_nothing_is_left()


def test_kill_9_of_up_leaves_no_process(start: Start) -> None:
    up, _, _ = started(start)
    assert len(up.family()) == 3
    os.kill(up.process.pid, signal.SIGKILL)
    up.assert_nothing_is_left()


def test_a_taken_port_is_told_and_leaves_no_process(start: Start) -> None:
    _, server, _ = started(start)
    second = start("up", "--port", server.partition(":")[2], "--page-port", "0")
    assert second.wait() == 1
    assert "cannot be opened" in second.errors()
    second.assert_nothing_is_left()
