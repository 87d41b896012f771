"""hermosis top: rates between two looks, one table in a pipe, a live one on a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tests.forking import WarmServer

from hermosis_client import Client, Session
from hermosis_server.cli.top import COLUMNS, Looks, facts

LIMIT_S = 30


@pytest.fixture(scope="module")
def server() -> Iterator[WarmServer]:
    with WarmServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: WarmServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture
def pair(client: Client) -> Iterator[tuple[Session, Session]]:
    """Two READY sessions; the first is the older."""
    sessions = [client.create_session({"w": (2,)}, "hermosis", session_id=name) for name in ("older", "newer")]
    for session in sessions:
        session.initialise({"w": np.ones(2, np.float32)})
    yield sessions[0], sessions[1]
    for info in list(client.sessions()):
        client.session(info.session_id).close()


def steps(session: Session, count: int) -> None:
    for _ in range(count):
        session.exchange({"w": np.ones(2, np.float32)}, loss=2.0)


def test_rates_are_steps_between_two_looks_and_the_fastest_comes_first(
    client: Client, pair: tuple[Session, Session]
) -> None:
    older, newer = pair
    times = iter([100.0, 104.0, 106.0])
    looks = Looks(client, lambda: next(times))
    first = looks.look(10)
    assert [(line.info.session_id, line.steps_per_s, line.reading) for line in first] == [
        ("newer", None, None),
        ("older", None, None),
    ]
    steps(older, 6)
    steps(newer, 2)
    second = looks.look(10)
    assert [(line.info.session_id, line.steps_per_s) for line in second] == [("older", 1.5), ("newer", 0.5)]
    assert second[0].reading is not None
    assert second[0].bytes_per_s == 1.5 * (second[0].reading.received_bytes + second[0].reading.sent_bytes)
    shown = facts(second[0])
    assert (shown["loss"], shown["step"], shown["workers"]) == (2.0, 6, 1)
    assert np.isfinite([shown["smoothed_loss"], shown["log_beta"], shown["energy_defect"]]).all()
    [only] = looks.look(1)
    assert (only.info.session_id, only.steps_per_s) == ("newer", 0.0)


def test_a_session_that_is_another_than_before_has_no_rate(client: Client, pair: tuple[Session, Session]) -> None:
    older, newer = pair
    steps(older, 3)
    steps(newer, 1)
    times = iter([1.0, 2.0])
    looks = Looks(client, lambda: next(times))
    looks.look(10)
    newer.import_state(older.export_state())
    older.close()
    with client.create_session({"w": (2,)}, "hermosis", session_id="older"):
        assert {line.info.session_id: line.steps_per_s for line in looks.look(10)} == {"older": None, "newer": None}


def command(server: WarmServer, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "hermosis_server", "top", "--interval-s", "0.1"]
    return [*program, "--address", server.address, *arguments]


def test_in_a_pipe_it_shows_one_table_and_ends(server: WarmServer, pair: tuple[Session, Session]) -> None:
    done = subprocess.run(command(server), capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    head, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == list(COLUMNS)
    assert [line[0] for line in lines] == ["newer", "older"]
    assert lines[0][COLUMNS.index("loss")] == "-"


def test_as_json_it_shows_a_line_a_look(server: WarmServer, pair: tuple[Session, Session]) -> None:
    once = subprocess.run(command(server, "--json", "--once"), capture_output=True, text=True, timeout=LIMIT_S)
    [line] = once.stdout.splitlines()
    assert [each["session_id"] for each in json.loads(line)] == ["newer", "older"]
    assert json.loads(line)[0]["steps_per_s"] == 0
    with subprocess.Popen(command(server, "--json"), stdout=subprocess.PIPE, text=True) as going_on:
        assert going_on.stdout is not None
        for _ in range(3):
            assert len(json.loads(going_on.stdout.readline())) == 2
        going_on.send_signal(signal.SIGINT)
        going_on.communicate(timeout=LIMIT_S)
    assert going_on.returncode == 0


@pytest.mark.parametrize("key", ["q", "Ctrl-C"])
def test_on_a_terminal_it_follows_until_a_key_and_leaves_the_terminal_as_it_was(
    server: WarmServer, pair: tuple[Session, Session], key: str
) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (12, 140))
    before = termios.tcgetattr(theirs)
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(command(server), stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        assert b"older" in read_until(ours, b"newer") + read_until(ours, b"1/1", meanwhile=lambda: steps(pair[0], 1))
        if key == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGINT)
        while process.poll() is None:  # what it says at last must go somewhere
            read_some(ours)
        assert process.returncode == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def read_some(terminal: int) -> bytes:
    return os.read(terminal, 65536) if select.select([terminal], [], [], 0.05)[0] else b""


def read_until(terminal: int, text: bytes, meanwhile: Callable[[], None] = lambda: None) -> bytes:
    meanwhile()
    seen = b""
    end = time.monotonic() + LIMIT_S
    while text not in seen:
        assert time.monotonic() < end, seen
        seen += read_some(terminal)
    return seen
