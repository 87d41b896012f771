"""ExchangeStream: one bidirectional stream, driven from the caller's thread."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import grpc
from hermosis.v1 import gradient_pb2

from hermosis_client.connection import Connection
from hermosis_client.errors import ConnectionFailed, connection_failed

_Request = gradient_pb2.ExchangeRequest
_Response = gradient_pb2.ExchangeResponse

_Message = TypeVar("_Message", covariant=True)

_FAREWELL_S = 2.0


class Answers(Protocol[_Message]):
    """What gRPC gives for a streaming call: its answers, one by one. gRPC has no public name for it."""

    def __next__(self) -> _Message: ...
    def cancel(self) -> bool: ...
    def add_callback(self, callback: Callable[[], None]) -> bool: ...


class ExchangeStream:
    """A stream of messages there and back.

    What is sent is an iterable: gRPC's own thread draws its messages as fast as the wire takes them, so that a large
    gradient is encoded chunk by chunk while earlier chunks are on their way, and never lies in memory a second time.
    """

    def __init__(self, connection: Connection) -> None:
        connection.check_open()
        self._connection = connection
        self._outbox: queue.SimpleQueue[Iterable[_Request] | None] = queue.SimpleQueue()
        self._finished = threading.Event()
        self.ended = False
        self._call: Answers[_Response] = connection.gradients.Exchange(self._drawn())
        if not self._call.add_callback(self._finished.set):
            self._finished.set()

    def send(self, messages: Iterable[_Request]) -> None:
        """Queues messages, to be drawn later by another thread. Never waits."""
        self._outbox.put(messages)

    def receive(self) -> _Response:
        """Waits for the next message.

        Raises:
          HermosisError: the stream has ended; ConnectionFailed where the server did not say why.
        """
        try:
            return next(self._call)
        except StopIteration:
            self._end()
            raise connection_failed(self._connection.address, "the server ended the stream") from None
        except grpc.RpcError as error:
            self._end()
            raise self._connection.typed(error) from None

    def broken(self, what: str) -> ConnectionFailed:
        """The error for an answer that makes no sense; a new stream may do better."""
        return connection_failed(self._connection.address, what)

    def cancel(self) -> None:
        """Ends the stream without waiting, whatever is under way."""
        self._end()
        self._call.cancel()

    def close(self) -> None:
        """Ends the stream when the server has seen all that was sent."""
        self._end()
        self._finished.wait(_FAREWELL_S)
        self._call.cancel()

    def _end(self) -> None:
        self.ended = True
        self._outbox.put(None)  # Lets gRPC's sending thread go.

    def _drawn(self) -> Iterator[_Request]:
        while (messages := self._outbox.get()) is not None:
            yield from messages
