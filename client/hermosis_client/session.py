"""Session: one optimizer with its parameters, as a client sees it."""

import threading
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Literal

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from numpy.typing import ArrayLike

from hermosis import wire
from hermosis.v1 import dynamics_pb2, session_pb2, telemetry_pb2
from hermosis_client import codec, kept, state
from hermosis_client.coded import Codec, CodecName, codec_named
from hermosis_client.connection import Connection, new_request_id
from hermosis_client.dtypes import Float32, dtype_named, encode
from hermosis_client.errors import HermosisError, SessionNotReady
from hermosis_client.exchange import Worker, WorkerSettings
from hermosis_client.layout import ParameterLayout, Tensors
from hermosis_client.records import (
    AckLevel,
    Consistency,
    Optimizer,
    ParametersOn,
    Recipe,
    Reply,
    SessionInfo,
    SessionStatus,
    Snapshot,
    SnapshotInfo,
    StepResult,
    TelemetryReading,
    WorkerInfo,
)
from hermosis_client.retry import patiently
from hermosis_client.state import ExportedState
from hermosis_client.watch import Watch

WireDtype = Literal["float32", "float16", "bfloat16"]
LR = "lr"  # what every recipe calls its learning rate


class Session:
    """A session on the server; made by `Client.create_session` or `Client.session`.

    As a context manager it closes the session on the server at the end where this object created it, and only
    disconnects where it attached to one.

    Attributes:
      session_id:    unique on the server.
      layout:        order and shapes of the tensors.
      parameters_on: who keeps the weights.
    """

    def __init__(self, connection: Connection, info: SessionInfo, *, created: bool) -> None:
        self.session_id = info.session_id
        self.layout: ParameterLayout = info.layout
        self.parameters_on = info.parameters_on
        self._connection = connection
        self._created = created
        self._lock = threading.RLock()
        self._workers: list[Worker] = []
        self._default_worker: Worker | None = None

    # Life

    def info(self) -> SessionInfo:
        """The session as the server sees it now."""
        request = session_pb2.GetSessionRequest(session_id=self.session_id)
        return codec.session_info(self._connection.call(self._connection.sessions.GetSession, request).session)

    def learning_rate(self) -> float:
        """The learning rate that the session was made with, which every lr_scale multiplies."""
        optimizer = self.info().optimizer
        if not isinstance(optimizer, Recipe):
            return optimizer.learning_rate
        given = optimizer.parameters.get(LR)
        if given is None:
            response = self._connection.call(self._connection.sessions.GetRecipes, session_pb2.GetRecipesRequest())
            recipe = next(recipe for recipe in response.recipes if recipe.name == optimizer.name)
            described = codec.recipe_description(recipe).parameters
            given = next(parameter.default for parameter in described if parameter.name == LR)
        return float(given or 0.0)

    def initialise(self, arrays: Mapping[str, ArrayLike] | Float32) -> SessionInfo:
        """Uploads the initial parameters; the session is then READY.

        Args:
          arrays: by name as in the layout, or the flat vector (P,) itself.

        Raises:
          SessionNotReady: it has its parameters already; pull them instead.
          InvalidRequest:  they hold NaN or infinity.
        """
        flat = self.layout.flat(arrays)
        uncertain = False

        def attempt(_: float) -> SessionInfo:
            nonlocal uncertain
            try:
                response = self._connection.sessions.InitialiseParameters(
                    self._upload(flat), metadata=self._connection.metadata
                )
            except grpc.RpcError as failure:
                error = self._connection.typed(failure)
            else:
                return codec.session_info(response.session)
            if uncertain and isinstance(error, SessionNotReady):
                info = self.info()
                if info.status is SessionStatus.READY:  # It was the answer that got lost, not the upload.
                    return info
            uncertain = True
            raise error

        return patiently(self._connection.patience(), attempt)

    def snapshot(self) -> Snapshot:
        """Writes the session to the server's disk now; its present step is durable when this returns."""
        request = session_pb2.SnapshotSessionRequest(request_id=new_request_id(), session_id=self.session_id)
        response = self._connection.call(self._connection.sessions.SnapshotSession, request)
        return Snapshot(snapshot_id=response.snapshot_id, step=response.step, state_digest=response.state_digest)

    def restore(self, snapshot_id: str = "") -> SessionInfo:
        """Goes back to a snapshot on the server's disk, the newest if none is named.

        Raises the generation: workers that know the old one are refused as StaleGeneration until they pull.
        """
        return kept.restore(self._connection, self.session_id, snapshot_id)

    def snapshots(self) -> list[SnapshotInfo]:
        """What of the session is on the server's disk, newest first."""
        return kept.snapshots(self._connection, self.session_id)

    def fork(self, session_id: str = "", *, optimizer: Optimizer | str | None = None) -> "Session":
        """A new session that continues from this one's present state, with workers of its own.

        Args:
          session_id: of the new session; the server chooses when empty.
          optimizer:  of the new session, which must keep the same vectors; None means the same.
        """
        request = session_pb2.ForkSessionRequest(
            request_id=new_request_id(),
            session_id=self.session_id,
            fork_session_id=session_id,
            optimizer=None if optimizer is None else codec.optimizer_message(optimizer),
        )
        response = self._connection.call(self._connection.sessions.ForkSession, request)
        return Session(self._connection, codec.session_info(response.session), created=True)

    def pause(self) -> SessionInfo:
        """Refuses further gradients from the next step boundary on."""
        request = session_pb2.PauseSessionRequest(request_id=new_request_id(), session_id=self.session_id)
        return codec.session_info(self._connection.call(self._connection.sessions.PauseSession, request).session)

    def resume(self) -> SessionInfo:
        """Takes gradients again."""
        request = session_pb2.ResumeSessionRequest(request_id=new_request_id(), session_id=self.session_id)
        return codec.session_info(self._connection.call(self._connection.sessions.ResumeSession, request).session)

    def update(
        self,
        *,
        lr_scale: float | None = None,
        thermal_profile: dynamics_pb2.ThermalProfile | None = None,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        consistency: Consistency | None = None,
        etag: str = "",
    ) -> SessionInfo:
        """Edits the running session at a step boundary; what is None stays as it is.

        Args:
          lr_scale:        multiplies the learning rate; positive.
          thermal_profile: to go on with from the present beta; a hermosis.v1 message.
          display_name:    for people.
          labels:          for filters; they replace all that were there.
          consistency:     from the next step on; what has come for the round in the making stays in it.
          etag:            of the `SessionInfo` the edit is based on; empty means whatever is there.
        """
        edit = session_pb2.SessionEdit(
            lr_scale=lr_scale or 0.0,
            thermal_profile=thermal_profile,
            display_name=display_name or "",
            labels=labels,
            consistency=None if consistency is None else codec.consistency_message(consistency),
        )
        values = {
            "lr_scale": lr_scale,
            "thermal_profile": thermal_profile,
            "display_name": display_name,
            "labels": labels,
            "consistency": consistency,
        }
        request = session_pb2.UpdateSessionRequest(
            request_id=new_request_id(),
            session_id=self.session_id,
            edit=edit,
            update_mask=FieldMask(paths=[name for name, value in values.items() if value is not None]),
            etag=etag,
        )
        return codec.session_info(self._connection.call(self._connection.sessions.UpdateSession, request).session)

    def close(self) -> SessionInfo:
        """Closes the session on the server, which gives its memory back, and disconnects from it."""
        self.disconnect()
        request = session_pb2.CloseSessionRequest(request_id=new_request_id(), session_id=self.session_id)
        return codec.session_info(self._connection.call(self._connection.sessions.CloseSession, request).session)

    def disconnect(self) -> None:
        """Ends this object's own streams; the session lives on. Harmless when repeated."""
        with self._lock:
            workers, self._workers, self._default_worker = self._workers, [], None
        for worker in workers:
            worker.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._created:
            self.disconnect()
            return
        try:
            self.close()
        except HermosisError:
            if error is None:  # What went wrong inside matters more than that the server cannot be told.
                raise

    # Gradients

    def worker(
        self,
        worker_id: str = "",
        *,
        gradient_dtype: WireDtype = "float32",
        reply_dtype: WireDtype = "float32",
        reply: Literal["default", "parameters", "increment", "none"] = "default",
        ack_level: Literal["received", "applied", "durable"] = "applied",
        shared_memory: bool = True,
        codec: Codec | CodecName = "plain",
        reply_codec: Codec | CodecName = "plain",
    ) -> Worker:
        """A contributor to this session with a stream of its own, which opens at its first call.

        Args:
          worker_id:      numbers its contributions; a random one when empty. Rounds are summed in the order of
                          worker ids, so name them where runs shall be equal to the bit.
          gradient_dtype: of gradients on the wire.
          reply_dtype:    of parameters or increments on the wire; what the client hands out is always float32.
          reply:          what `Worker.exchange` takes back; "default" is the parameters, or the increment where the
                          workers hold them.
          ack_level:      what an answer promises: that the gradient is counted, that its step was taken, or that its
                          step survives a crash of the server. "durable" needs a session that is kept on disk.
          shared_memory:  lets large payload travel through memory shared with a server on this machine, where that
                          can be; False, or HERMOSIS_SHARED_MEMORY=0 in the environment, keeps it on the stream.
          codec:          makes gradients smaller: "int8", "top_k", "random_k" or "deflate", or a Codec. What it leaves
                          out of one goes with the next. Payload then travels on the stream.
          reply_codec:    the same for the parameters that come back: what the server sends is how they have changed,
                          and `Worker.exchange` gives them as far as that is known; `Worker.pull` gives them exactly.
        """
        wanted = Reply.UNKNOWN if reply == "default" else Reply[reply.upper()]
        if wanted is Reply.UNKNOWN:
            wanted = Reply.INCREMENT if self.parameters_on is ParametersOn.WORKER else Reply.PARAMETERS
        settings = WorkerSettings(
            worker_id=worker_id or f"worker-{uuid.uuid4().hex[:12]}",
            gradient_dtype=dtype_named(gradient_dtype),
            reply_dtype=dtype_named(reply_dtype),
            reply=wanted,
            ack_level=AckLevel[ack_level.upper()],
            shared_memory=shared_memory,
            codec=codec_named(codec),
            reply_codec=codec_named(reply_codec),
        )
        worker = Worker(self._connection, self.session_id, self.layout, settings)
        with self._lock:
            self._workers.append(worker)
        return worker

    def exchange(
        self,
        gradients: Mapping[str, ArrayLike] | Float32,
        *,
        loss: float | None = None,
        sample_count: int = 0,
        lr_scale: float | None = None,
    ) -> tuple[StepResult, Tensors]:
        """`Worker.exchange` of this object's own worker."""
        return self._own_worker().exchange(gradients, loss=loss, sample_count=sample_count, lr_scale=lr_scale)

    def push(
        self,
        gradients: Mapping[str, ArrayLike] | Float32,
        *,
        loss: float | None = None,
        sample_count: int = 0,
        lr_scale: float | None = None,
    ) -> StepResult:
        """`Worker.push` of this object's own worker."""
        return self._own_worker().push(gradients, loss=loss, sample_count=sample_count, lr_scale=lr_scale)

    def pull(self) -> Tensors:
        """The parameters now, by this object's own worker."""
        return self._own_worker().pull()

    def workers(self) -> list[WorkerInfo]:
        """Who contributes, as the server sees it."""
        request = session_pb2.ListWorkersRequest(session_id=self.session_id)
        response = self._connection.call(self._connection.sessions.ListWorkers, request)
        return [codec.worker_info(worker) for worker in response.workers]

    # Readings

    def telemetry(self) -> TelemetryReading | None:
        """The newest reading; None before the first step."""
        request = telemetry_pb2.GetTelemetryRequest(session_id=self.session_id)
        response = self._connection.call(self._connection.telemetry.GetTelemetry, request)
        return codec.telemetry_reading(response.reading) if response.HasField("reading") else None

    def watch(self, *, min_interval_s: float = 0.0) -> Watch:
        """Readings of this session as its steps are applied.

        Args:
          min_interval_s: between two readings; zero means every step.
        """
        return Watch(self._connection, [self.session_id], min_interval_s)

    def history(self, after_step: int = 0, max_readings: int = 1000) -> list[TelemetryReading]:
        """Readings that the server still holds, by step.

        Args:
          after_step:   leaves out readings up to and including this step.
          max_readings: the most to answer with, thinned evenly if there are more.
        """
        request = telemetry_pb2.ListTelemetryRequest(
            session_id=self.session_id, after_step=after_step, max_readings=max_readings
        )
        response = self._connection.call(self._connection.telemetry.ListTelemetry, request)
        return [codec.telemetry_reading(reading) for reading in response.readings]

    # State

    def digest(self) -> bytes:
        """SHA-256 over the whole optimizer state."""
        request = session_pb2.GetSessionRequest(session_id=self.session_id, want_digest=True)
        return self._connection.call(self._connection.sessions.GetSession, request).state_digest

    def export_state(self) -> ExportedState:
        """The whole optimizer state, for a checkpoint of one's own."""

        def attempt(_: float) -> ExportedState:
            request = session_pb2.ExportSessionRequest(session_id=self.session_id)
            try:
                return state.received(
                    self._connection.sessions.ExportSession(request, metadata=self._connection.metadata)
                )
            except grpc.RpcError as error:
                raise self._connection.typed(error) from None

        return patiently(self._connection.patience(), attempt)

    def import_state(self, exported: ExportedState) -> SessionInfo:
        """Replaces the whole optimizer state by an exported one; the session goes on as if from there.

        Raises the generation: workers of this object follow, workers elsewhere are refused as StaleGeneration until
        they pull.
        """

        def attempt(_: float) -> SessionInfo:
            messages = state.sent(exported, self.session_id, wire.DEFAULT_CHUNK_BYTES)
            try:
                response = self._connection.sessions.ImportSession(messages, metadata=self._connection.metadata)
            except grpc.RpcError as error:
                raise self._connection.typed(error) from None
            return codec.session_info(response.session)

        info = patiently(self._connection.patience(), attempt)
        with self._lock:
            workers = list(self._workers)
        for worker in workers:
            worker.resync()
        return info

    # Inside

    def _own_worker(self) -> Worker:
        with self._lock:
            if self._default_worker is None:
                self._default_worker = self.worker()
            return self._default_worker

    def _upload(self, flat: Float32) -> Iterator[session_pb2.InitialiseParametersRequest]:
        session_id = self.session_id
        for offset, length in wire.spans(flat.size, 4):
            payload = bytes(encode(flat[offset : offset + length], wire.Dtype.FLOAT32))
            yield session_pb2.InitialiseParametersRequest(
                session_id=session_id, offset=offset, crc32=wire.checksum(payload), payload=payload
            )
            session_id = ""  # Said once.
