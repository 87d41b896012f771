"""A real server on a real socket, its event loop in a thread of this process so that tests can look inside."""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from hermosis import wire
from hermosis.v1 import (
    dynamics_pb2,
    gradient_pb2,
    gradient_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    telemetry_pb2_grpc,
    types_pb2,
)
from hermosis_server.app import Running, running
from hermosis_server.engine.engine import Engine
from hermosis_server.settings import Settings
from hermosis_server.tracing import Tracing

DEADLINE_S = 20.0


class Service:
    """A server and how to talk to it."""

    def __init__(self, address: str, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.address = address
        self.engine = engine
        self.loop = loop
        self.channel = grpc.insecure_channel(address)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.gradients = gradient_pb2_grpc.GradientServiceStub(self.channel)
        self.telemetry = telemetry_pb2_grpc.TelemetryServiceStub(self.channel)

    def create(self, size: int = 5, recipe: str = "sgd", start: float = 0.0, **spec: Any) -> session_pb2.Session:
        """A READY session of one tensor, all elements alike."""
        parameters = spec.pop("parameters", {"lr": 1.0})
        message = session_pb2.SessionSpec(
            layout=types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[size])]),
            optimizer=recipe_message(recipe, **parameters),
            **spec,
        )
        request = session_pb2.CreateSessionRequest(spec=message)
        session = self.sessions.CreateSession(request, timeout=DEADLINE_S).session
        if message.parameters_on != types_pb2.PARAMETERS_ON_WORKER:
            uploads = []
            for offset, length in wire.spans(size, 4):
                chunk = np.full(length, start, np.float32).tobytes()
                fields = {"session_id": session.session_id, "offset": offset, "crc32": wire.checksum(chunk)}
                uploads.append(session_pb2.InitialiseParametersRequest(**fields, payload=chunk))
            session = self.sessions.InitialiseParameters(iter(uploads), timeout=DEADLINE_S).session
        return session

    def digest(self, session: session_pb2.Session) -> bytes:
        request = session_pb2.GetSessionRequest(session_id=session.session_id, want_digest=True)
        return self.sessions.GetSession(request, timeout=DEADLINE_S).state_digest

    def push(self, session: session_pb2.Session, values: Any, sequence: int, /, **changed: Any) -> Any:
        request = push_request(session.session_id, values, sequence, **changed)
        return self.gradients.Push(request, timeout=DEADLINE_S).result

    def inside(self, look: Callable[[Engine], Any]) -> Any:
        """Looks at the engine from its own thread."""

        async def there() -> Any:
            return look(self.engine)

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(DEADLINE_S)


def recipe_message(name: str, **parameters: float) -> dynamics_pb2.Optimizer:
    values = {key: dynamics_pb2.ParameterValue(number=value) for key, value in parameters.items()}
    return dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name=name, parameters=values))


def push_request(
    session_id: str,
    values: Any,
    sequence: int,
    /,
    *,
    base_step: int | None = None,
    loss: float | None = None,
    **changed: Any,
) -> gradient_pb2.PushRequest:
    payload = np.asarray(values, np.float32).tobytes()
    base_step = sequence - 1 if base_step is None else base_step
    commit = gradient_pb2.Commit(sequence=sequence, base_step=base_step, loss=loss)
    gradient = gradient_pb2.WholeGradient(commit=commit, crc32=wire.checksum(payload), payload=payload)
    fields = {"session_id": session_id, "worker_id": "worker", "gradient": gradient}
    return gradient_pb2.PushRequest(**fields | changed)


def details_of(error: grpc.RpcError) -> status_pb2.Status:
    """google.rpc.Status of a failed call."""
    trailing = dict(error.trailing_metadata() or ())  # type: ignore[attr-defined]
    return status_pb2.Status.FromString(trailing["grpc-status-details-bin"])


def reason_of(error: grpc.RpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert details_of(error).details[0].Unpack(info)
    assert info.domain == "hermosis"
    return info.reason


class _Hosted:
    """Runs `running` in a thread until told to stop."""

    def __init__(self, settings: Settings, folder: Path | None = None, tracing: Tracing | None = None) -> None:
        self._scrap = tempfile.TemporaryDirectory(prefix="hermosis-")
        if "data_folder" not in settings.model_fields_set:
            settings = settings.model_copy(update={"data_folder": folder or Path(self._scrap.name)})
        self._settings = settings
        self._folder = folder
        self._tracing = tracing
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self.server: Service
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Service:
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        if self._failure:
            self._scrap.cleanup()
            raise self._failure
        return self.server

    def stop(self) -> None:
        self.server.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the server did not stop"
        self.server.channel.close()
        self._scrap.cleanup()

    def _run(self) -> None:
        async def whole() -> None:
            self._stop = asyncio.Event()
            async with running(self._settings, self._folder, tracing=self._tracing) as server:
                self._announce(server)
                await self._stop.wait()

        try:
            asyncio.run(whole())
        except BaseException as error:
            self._failure = error
            self._ready.set()

    def _announce(self, server: Running) -> None:
        self.server = Service(server.address, server.engine, asyncio.get_running_loop())
        self.metrics_address = server.metrics_address
        self._ready.set()


class Dialogue:
    """An Exchange stream that a test speaks on line by line."""

    def __init__(
        self,
        server: Any,
        opening: list[gradient_pb2.ExchangeRequest],
        channel: grpc.Channel | None = None,
        *,
        deadline_s: float = 20,
    ) -> None:
        self._pending = opening
        self._more = threading.Condition()
        self._ended = False
        stub = server.gradients if channel is None else type(server.gradients)(channel)
        self._call = stub.Exchange(self._requests(), timeout=deadline_s)

    def send(self, *requests: gradient_pb2.ExchangeRequest) -> None:
        with self._more:
            self._pending.extend(requests)
            self._more.notify()

    def next(self) -> gradient_pb2.ExchangeResponse:
        return next(self._call)

    def __enter__(self) -> "Dialogue":
        return self

    def __exit__(self, *error: object) -> None:
        with self._more:
            self._ended = True
            self._more.notify()
        self._call.cancel()

    def _requests(self) -> Iterator[gradient_pb2.ExchangeRequest]:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._pending or self._ended)
                if not self._pending:
                    return
                request = self._pending.pop(0)
            yield request


def poll(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        pause.wait(0.01)


@pytest.fixture
def host() -> Iterator[Callable[..., Any]]:
    """Starts servers with settings of their own."""
    hosted: list[_Hosted] = []

    def start(folder: Path | None = None, *, tracing: Tracing | None = None, **settings: Any) -> _Hosted:
        defaults = {"port": 0, "device": "auto", "grace_s": 1.0}
        hosted.append(_Hosted(Settings(**defaults | settings), folder, tracing))
        hosted[-1].start()
        return hosted[-1]

    yield start
    for each in hosted:
        if each._thread.is_alive():
            each.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """One server for the tests of a module."""
    hosted = _Hosted(Settings(port=0, grace_s=1.0))
    yield hosted.start()
    hosted.stop()


@contextlib.contextmanager
def _hosting(**settings: Any) -> Iterator[Service]:
    hosted = _Hosted(Settings(**{"port": 0, "grace_s": 1.0} | settings))
    server = hosted.start()
    try:
        yield server
    finally:
        hosted.stop()


@pytest.fixture(scope="session")
def hosting() -> Callable[..., Any]:
    """Servers with settings of their own, as context managers, for fixtures of a wider scope."""
    return _hosting


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests, which cannot import this file."""

    class Tools:
        Dialogue = Dialogue
        poll = staticmethod(poll)
        reason_of = staticmethod(reason_of)
        details_of = staticmethod(details_of)
        push_request = staticmethod(push_request)
        recipe_message = staticmethod(recipe_message)

    return Tools
