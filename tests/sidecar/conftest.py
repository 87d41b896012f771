"""A real server process, a real sidecar process beside it, and how to look at them."""

import contextlib
import http.client
import json
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2
import numpy as np
import pytest
import typer
from tests.forking import Forked, WarmServer

from hermosis_client import Client, Recipe, Session
from hermosis_sidecar.__main__ import main

Answer = TypeVar("Answer")


def _main() -> None:
    warnings.simplefilter("error")
    typer.run(main)


class Sidecar:
    """``python -m hermosis_sidecar`` on a free port, with further settings in its environment."""

    def __init__(self, server: str, **settings: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hermosis-history-")
        settings.setdefault("history_folder", self._folder.name)
        environment = {f"HERMOSIS_SIDECAR_{name.upper()}": value for name, value in settings.items()}
        words = ["hermosis_sidecar", "--port", "0", "--until-stdin-closes", "--server", server]
        self.process = Forked(_main, words, Path(self._folder.name) / "log", environment)
        self.address = self.process.address
        assert self.address.startswith("http://127.0.0.1:")
        self.http = httpx2.Client(base_url=self.address, timeout=30)

    def end(self) -> str:
        """Closes its standard input, waits, and gives what it logged."""
        self.http.close()
        self.process.end_input()
        ended = self.process.ended(20)
        log = self.process.tail(limit_bytes=1 << 20)
        self.process.close()
        self._folder.cleanup()
        assert ended, f"it did not end; its log:\n{log}"
        return log

    def kill(self) -> None:
        """Ends it at once, as a crash does."""
        self.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Events:
    """A live stream, read on a thread of its own."""

    def __init__(self, sidecar: Sidecar, query: str = "", token: str = "", last_event_id: int | None = None) -> None:
        self._connection = http.client.HTTPConnection(sidecar.address.removeprefix("http://"))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if last_event_id is not None:
            headers["Last-Event-ID"] = str(last_event_id)
        self._connection.request("GET", f"/v1/live{query}", headers=headers)
        self._socket = self._connection.sock
        self.response = self._connection.getresponse()
        self.ended = threading.Event()
        self._events: list[tuple[str, Any]] = []
        self.ids: list[int] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def named(self, name: str) -> list[Any]:
        """The data of all events of a name so far."""
        return [data for event, data in self._events if event == name]

    def close(self) -> None:
        """Leaves the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self.response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        event = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in self.response:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    event = value
                elif field == "id":
                    self.ids.append(int(value))
                elif field == "data":
                    self._events.append((event, json.loads(value)))
        self.ended.set()


@pytest.fixture(scope="session")
def server() -> Iterator[WarmServer]:
    with WarmServer() as server:
        yield server


@pytest.fixture(scope="session")
def client(server: WarmServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="session")
def sidecar(server: WarmServer) -> Iterator[Sidecar]:
    with Sidecar(server.address, live_interval_s="0") as sidecar:
        yield sidecar


@pytest.fixture(scope="session")
def small_sidecar(server: WarmServer) -> Iterator[Sidecar]:
    """With room for one viewer, and for no session in its metrics."""
    with Sidecar(server.address, max_viewers="1", metrics_sessions="0") as sidecar:
        yield sidecar


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    """READY, with two tensors, one of them a scalar."""
    with client.create_session(
        {"weight": (2, 3), "scale": ()}, Recipe("adamw", lr=0.01), display_name="two tensors"
    ) as session:
        session.initialise({"weight": np.ones((2, 3), np.float32), "scale": np.zeros((), np.float32)})
        yield session


def push(session: Session, *losses: float | None) -> None:
    """One step for each loss, down the slope of a parabola."""
    parameters = dict(session.pull())
    for loss in losses:
        _, replied = session.exchange(parameters, loss=loss)
        parameters = dict(replied)


def eventually(answer: Callable[[], Answer | None], what: str, limit_s: float = 30) -> Answer:
    """The first answer that is not empty."""
    deadline = time.monotonic() + limit_s
    while not (found := answer()):
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.02)
    return found
