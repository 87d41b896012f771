"""TelemetryService: one method a call. Translate in, ask the engine, translate out."""

from collections.abc import AsyncIterator
from typing import Any

from hermosis.v1 import telemetry_pb2, telemetry_pb2_grpc
from hermosis_server.engine.engine import Engine
from hermosis_server.rpc.codec import telemetry as telemetry_codec
from hermosis_server.rpc.reach import Reach

DEFAULT_READINGS = 1000
MAX_READINGS = 10_000
DEFAULT_SESSIONS = 100
MAX_SESSIONS = 10_000


class TelemetryServicer(telemetry_pb2_grpc.TelemetryServiceServicer):
    """TelemetryService over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def GetTelemetry(
        self, request: telemetry_pb2.GetTelemetryRequest, context: Any
    ) -> telemetry_pb2.GetTelemetryResponse:
        latest = Reach(self._engine, context.identity).session(request.session_id).telemetry.latest
        return telemetry_pb2.GetTelemetryResponse(reading=telemetry_codec.reading(latest) if latest else None)

    async def ListTelemetry(
        self, request: telemetry_pb2.ListTelemetryRequest, context: Any
    ) -> telemetry_pb2.ListTelemetryResponse:
        ring = Reach(self._engine, context.identity).session(request.session_id).telemetry
        wanted = min(request.max_readings or DEFAULT_READINGS, MAX_READINGS)
        history = ring.history(after_step=request.after_step, max_readings=wanted)
        return telemetry_pb2.ListTelemetryResponse(
            readings=map(telemetry_codec.reading, history), oldest_step=ring.oldest_step
        )

    async def WatchTelemetry(
        self, request: telemetry_pb2.WatchTelemetryRequest, context: Any
    ) -> AsyncIterator[telemetry_pb2.WatchTelemetryResponse]:
        reach = Reach(self._engine, context.identity)
        watch = reach.watch(request.session_ids, min_interval_s=request.min_interval_s)
        try:
            # At once, so that the watcher knows that nothing will be missed from here on.
            await context.send_initial_metadata(())
            while readings := await watch.next():
                yield telemetry_pb2.WatchTelemetryResponse(readings=map(telemetry_codec.reading, readings))
        finally:
            self._engine.unwatch(watch)

    async def GetOverview(
        self, request: telemetry_pb2.GetOverviewRequest, context: Any
    ) -> telemetry_pb2.GetOverviewResponse:
        wanted = min(request.max_sessions or DEFAULT_SESSIONS, MAX_SESSIONS)
        overview = await Reach(self._engine, context.identity).overview(max_sessions=wanted)
        return telemetry_pb2.GetOverviewResponse(overview=telemetry_codec.overview(overview))
