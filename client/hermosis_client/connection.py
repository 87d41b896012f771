"""Connection: the channel to one server, its stubs, and how calls fail."""

import copy
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, cast

import grpc

from hermosis import allocator
from hermosis.v1 import access_pb2_grpc, session_pb2_grpc, telemetry_pb2_grpc
from hermosis_client.access import Access, is_loopback
from hermosis_client.errors import ConnectionFailed, HermosisError, TlsFailed, error_from_call
from hermosis_client.retry import Patience, patiently
from hermosis_client.tls_trouble import tls_trouble
from hermosis_client.tracing import trace_context

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_Message = TypeVar("_Message", covariant=True)

_JOIN_S = 2.0


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
      access:    what is shown to the server, and asked of it.
    """

    def __init__(self, address: str, timeout_s: float, access: Access | None = None) -> None:
        if "://" in address or ":" not in address:
            raise ValueError(f"address is {address!r}; it is written host:port, as in 127.0.0.1:50051")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it is a positive number of seconds")
        self.address = address
        self.timeout_s = timeout_s
        self.access = access or Access()
        self._metadata = self.access.metadata(address)
        self.shares_memory = is_loopback(address) and os.environ.get("HERMOSIS_SHARED_MEMORY") != "0"
        allocator.keep_memory()
        self._channel = self.access.channel(address, _options(address))
        self._closed = False
        self._lender: Connection | None = None
        self._calls: list[CallThreads] = []
        # Also when it is forgotten, at the latest at exit, and before a server that was started before it.
        self._end = weakref.finalize(self, _close, self._channel, self._calls)
        self._exchange: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            "/hermosis.v1.GradientService/Exchange"
        )
        self.sessions = session_pb2_grpc.SessionServiceStub(self._channel)
        self.telemetry = telemetry_pb2_grpc.TelemetryServiceStub(self._channel)
        self.access_service = access_pb2_grpc.AccessServiceStub(self._channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries: who calls, and the trace that it is a part of."""
        return (*self._metadata, *trace_context())

    def sharing(self, token: str) -> "Connection":
        """The same connection, which this one does not end, under another token; empty for none."""
        other = copy.copy(self)
        other.access = replace(self.access, token=token)
        other._metadata = other.access.metadata(self.address)
        other._lender = self
        return other

    def exchange(self, requests: Iterator[bytes]) -> Answers[bytes]:
        """Opens a worker's stream. Its messages are serialized by whoever sends and parsed by whoever receives."""
        return cast(Answers[bytes], self._exchange(requests, metadata=self.metadata))

    def call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request) -> _Response:
        """The answer of a unary call that is safe to repeat: a reading, or one with a request_id."""

        def attempt(timeout_s: float) -> _Response:
            self.check_open()
            try:
                return method(request, timeout=timeout_s, metadata=self.metadata)
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
        call = cast(grpc.Call, error)
        typed = error_from_call(call, self.address)
        if isinstance(typed, ConnectionFailed) and call.code() is grpc.StatusCode.UNAVAILABLE:
            trouble = tls_trouble(self.address, self.access, call.details() or "")
            if trouble:
                return TlsFailed(f"no connection to the server at {self.address}: {trouble}", metadata=typed.metadata)
        return typed

    def check_open(self) -> None:
        """RuntimeError when the connection is closed."""
        if self._closed or (self._lender is not None and self._lender._closed):
            raise RuntimeError("the client is closed")

    def close(self) -> None:
        """Ends all calls; further ones are refused. Harmless when repeated, and on one that was lent."""
        self._closed = True
        if self._lender is None:
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
    if is_loopback(address):
        options.append(("grpc.enable_http_proxy", 0))
    return options
