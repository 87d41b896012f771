"""Watch: telemetry as it comes."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType

import grpc

from hermosis.v1 import telemetry_pb2
from hermosis_client import codec
from hermosis_client.connection import Answers, CallThreads, Connection
from hermosis_client.errors import HermosisError, connection_failed
from hermosis_client.records import TelemetryReading
from hermosis_client.retry import Patience


class Watch(Iterator[TelemetryReading]):
    """Readings of sessions as their steps are applied, until `close`, which any thread may call.

    A broken connection is opened again as patiently as any call; readings of the time between are missing (`history`
    has them). A slow reader loses the oldest readings, never delays a step.
    """

    def __init__(self, connection: Connection, session_ids: Sequence[str], min_interval_s: float) -> None:
        self._connection = connection
        self._request = telemetry_pb2.WatchTelemetryRequest(session_ids=session_ids, min_interval_s=min_interval_s)
        self._patience: Patience | None = None  # while there is trouble
        self._lock = threading.Lock()
        self._closed = False
        self._call: Answers[telemetry_pb2.WatchTelemetryResponse] | None = None
        self._pending: deque[TelemetryReading] = deque()
        self._open()  # Now, so that the steps from here on are seen.

    def __next__(self) -> TelemetryReading:
        while not self._pending:
            try:
                bundle = self._receive()
            except HermosisError as error:
                self._patience = self._patience or self._connection.patience()
                self._patience.wait_after(error)
                continue
            if bundle is None:
                raise StopIteration
            self._patience = None
            self._pending.extend(map(codec.telemetry_reading, bundle.readings))
        return self._pending.popleft()

    def close(self) -> None:
        """Ends the watch; the iterator stops. Harmless when repeated."""
        with self._lock:
            self._closed = True
            if self._call is not None:
                self._call.cancel()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Answers[telemetry_pb2.WatchTelemetryResponse] | None:
        """The call, opened anew if need be; None when closed. Does not wait."""
        with self._lock:
            if self._closed:
                return None
            if self._call is None:
                self._connection.check_open()
                self._call = self._connection.telemetry.WatchTelemetry(
                    self._request, metadata=self._connection.metadata
                )
                self._connection.watch_over(self._call, CallThreads())
            return self._call

    def _receive(self) -> telemetry_pb2.WatchTelemetryResponse | None:
        call = self._open()
        if call is None:
            return None
        try:
            return next(call)
        except (grpc.RpcError, StopIteration) as error:
            self._call = None
            if self._closed:
                return None
            if isinstance(error, StopIteration):
                raise connection_failed(self._connection.address, "the server ended the watch") from None
            raise self._connection.typed(error) from None
