"""ExchangeStream: one bidirectional stream, driven from the caller's thread."""

import queue
from collections.abc import Iterable, Iterator
from functools import partial

import grpc
from google.protobuf.message import DecodeError

from hermosis import hot
from hermosis.coding import Undecodable
from hermosis.v1 import gradient_pb2
from hermosis_client import cutoff
from hermosis_client.coded import CodedAnswers
from hermosis_client.connection import Answers, CallThreads, Connection
from hermosis_client.errors import ConnectionFailed, connection_failed
from hermosis_client.segment import Segment

# What comes: hot messages as tuples, the others as they were generated.
Message = hot.HotResponse | gradient_pb2.ExchangeResponse
_Outbox = queue.SimpleQueue[Iterable[bytes] | None]

_FAREWELL_S = 2.0


class ExchangeStream:
    """A stream of messages there and back, serialized by hot.py and by whoever sends.

    What is sent is an iterable: gRPC's own thread draws its messages as fast as the wire takes them, so that a large
    gradient is encoded chunk by chunk while earlier chunks are on their way, and never lies in memory a second time.

    Args:
      segment: memory to share with the server, which goes with the stream. No other stream has a part in it, so no late
               answer to one can land in the memory of the next.
      answers: reads those under a codec; None where there are none.
    """

    def __init__(
        self, connection: Connection, segment: Segment | None = None, answers: CodedAnswers | None = None
    ) -> None:
        connection.check_open()
        self.ended = False
        self.segment = segment
        self._answers = answers
        self._connection = connection
        self._outbox: _Outbox = queue.SimpleQueue()
        self._threads = CallThreads(release=partial(self._outbox.put, None))
        self._call: Answers[bytes] = connection.exchange(_drawn(self._outbox, self._threads))
        connection.watch_over(self._call, self._threads)

    def send(self, messages: Iterable[bytes]) -> None:
        """Queues messages, to be drawn later by another thread. Never waits."""
        self._outbox.put(messages)

    def receive(self) -> Message:
        """Waits for the next message.

        Raises:
          HermosisError: the stream has ended; ConnectionFailed where the server did not say why.
        """
        try:
            message = hot.parse_response(self.receive_bytes(), gradient_pb2.ExchangeResponse.FromString)
        except DecodeError:
            raise self.broken("bytes that are no message") from None
        if self._answers is not None:
            if isinstance(message, hot.ParametersChunk):
                return self._answers.plain(message)
            if isinstance(message, gradient_pb2.ExchangeResponse) and message.HasField("coded"):
                try:
                    return self._answers.found(message.coded)
                except Undecodable:
                    raise self.broken("a damaged answer") from None
        if isinstance(message, gradient_pb2.ExchangeResponse) and message.HasField("segment"):
            if self.segment is None:
                raise self.broken("an answer in a segment that it has not")
            return self.segment.found(message.segment)
        return message

    def receive_bytes(self) -> bytes:
        """Waits for the next message, which the caller parses; raises as `receive` does."""
        try:
            with cutoff.waiting(self._call.cancel):
                return next(self._call)
        except StopIteration:
            self._end()
            raise connection_failed(self._connection.address, "the server ended the stream") from None
        except grpc.RpcError as error:
            self._end()
            raise self._connection.typed(error) from None

    def note_thread(self) -> None:
        """Lets whoever closes the connection wait for the calling thread as well."""
        self._threads.note()

    def broken(self, what: str) -> ConnectionFailed:
        """The error for an answer that makes no sense; a new stream may do better."""
        return connection_failed(self._connection.address, what)

    def release_segment(self) -> None:
        """Lets the segment go; payload travels on the stream."""
        if self.segment is not None:
            self.segment.close()
            self.segment = None

    def cancel(self) -> None:
        """Ends the stream without waiting, whatever is under way."""
        self._end()
        self._call.cancel()

    def close(self) -> None:
        """Ends the stream when the server has seen all that was sent."""
        self._end()
        self._threads.ended.wait(_FAREWELL_S)
        self._call.cancel()

    def _end(self) -> None:
        self.ended = True
        self._threads.release()
        self.release_segment()


def _drawn(outbox: _Outbox, threads: CallThreads) -> Iterator[bytes]:
    """What gRPC's sending thread sends. Holds no stream, so that a forgotten one can go."""
    threads.note()
    while (messages := outbox.get()) is not None:
        yield from messages
