"""Connection: the channel to one server, its stubs, and how calls fail."""

import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import grpc

from hermosis import allocator
from hermosis.v1 import session_pb2_grpc, telemetry_pb2_grpc
from hermosis_client.errors import HermosisError, error_from_call
from hermosis_client.retry import Patience, patiently

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_Message = TypeVar("_Message", covariant=True)

_JOIN_S = 2.0
_LOOPBACK = ("localhost", "127.", "[::1]", "unix:")


class Answers(Protocol[_Message]):
    """What gRPC gives for a streaming call: its answers, one by one. gRPC has no public name for it."""

    def __next__(self) -> _Message: ...
    def cancel(self) -> bool: ...
    def add_callback(self, callback: Callable[[], None]) -> bool: ...


@dataclass(slots=True)
class CallThreads:
    """The threads that gRPC runs for one streaming call.

    They are daemons: one that still runs Python when the interpreter goes down aborts the process. So closing waits.

    Attributes:
      release: lets a thread go that waits for something to send.
      ended:   the call has ended.
    """

    release: Callable[[], None] = lambda: None
    ended: threading.Event = field(default_factory=threading.Event)
    threads: set[threading.Thread] = field(default_factory=set)

    def note(self) -> None:
        """Called on a thread that belongs to the call."""
        self.threads.add(threading.current_thread())

    def note_end(self) -> None:
        """Called by gRPC, on its own thread, when the call has ended."""
        self.note()
        self.ended.set()

    @property
    def gone(self) -> bool:
        return self.ended.is_set() and not any(thread.is_alive() for thread in self.threads)

    def join(self) -> None:
        """Waits until the call, which was cancelled, has ended and its threads have gone."""
        self.release()
        self.ended.wait(_JOIN_S)
        for thread in self.threads - {threading.current_thread()}:
            thread.join(_JOIN_S)


class Connection:
    """A channel to one server. Nothing is sent before the first call; safe to share between threads.

    Args:
      address:   host:port.
      timeout_s: the time one call may take up, its retries included.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        if "://" in address or ":" not in address:
            raise ValueError(f"address is {address!r}; it is written host:port, as in 127.0.0.1:50051")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it is a positive number of seconds")
        self.address = address
        self.timeout_s = timeout_s
        self.shares_memory = address.startswith(_LOOPBACK) and os.environ.get("HERMOSIS_SHARED_MEMORY") != "0"
        allocator.keep_memory()
        self._channel = grpc.insecure_channel(address, options=_options(address))
        self._closed = False
        self._calls: list[CallThreads] = []
        # Also when it is forgotten, at the latest at exit, and before a server that was started before it.
        self._end = weakref.finalize(self, _close, self._channel, self._calls)
        # Its messages are serialized by whoever sends and parsed by whoever receives: see hot.py.
        self.exchange: Callable[[Iterator[bytes]], Answers[bytes]] = cast(
            Any, self._channel.stream_stream("/hermosis.v1.GradientService/Exchange")
        )
        self.sessions = session_pb2_grpc.SessionServiceStub(self._channel)
        self.telemetry = telemetry_pb2_grpc.TelemetryServiceStub(self._channel)

    def call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        """The answer of a unary call that is safe to repeat: a reading, or one with a request_id."""

        def attempt(timeout_s: float) -> _Response:
            self.check_open()
            try:
                return method(request, timeout=timeout_s)
            except grpc.RpcError as error:
                raise self.typed(error) from None

        return patiently(self.patience(), attempt)

    def watch_over(self, call: Answers[object], threads: CallThreads) -> None:
        """Lets `close` wait for the threads of a streaming call."""
        if not call.add_callback(threads.note_end):
            threads.ended.set()
        self._calls[:] = [*(other for other in self._calls if not other.gone), threads]

    def patience(self) -> Patience:
        """The patience of one piece of work."""
        return Patience(self.timeout_s)

    def typed(self, error: grpc.RpcError) -> HermosisError:
        """The typed error of a failed call."""
        return error_from_call(cast(grpc.Call, error), self.address)

    def check_open(self) -> None:
        """RuntimeError when the connection is closed."""
        if self._closed:
            raise RuntimeError("the client is closed")

    def close(self) -> None:
        """Ends all calls; further ones are refused. Harmless when repeated."""
        self._closed = True
        self._end()


def _close(channel: grpc.Channel, calls: list[CallThreads]) -> None:
    channel.close()
    for call in list(calls):
        call.join()


def new_request_id() -> str:
    """Makes one management call safe to repeat."""
    return uuid.uuid4().hex


def _options(address: str) -> list[tuple[str, int]]:
    options = [
        # A peer that vanished without a word is noticed within 40 s, also while a round waits for other workers.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC would wait up to two minutes before it looks for a restarted server again.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A page of sessions with large layouts is longer than the 4 MiB that gRPC takes by default.
        ("grpc.max_receive_message_length", 64 << 20),
        # One place decides about retries: retry.py.
        ("grpc.enable_retries", 0),
    ]
    if address.startswith(_LOOPBACK):
        options.append(("grpc.enable_http_proxy", 0))
    return options
