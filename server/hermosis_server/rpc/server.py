"""Server: the gRPC server with its services, health and reflection."""

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hermosis.v1 import (
    gradient_pb2,
    gradient_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from hermosis_server.engine.engine import Engine
from hermosis_server.rpc.gradient_servicer import GradientServicer
from hermosis_server.rpc.interceptor import TypedErrors
from hermosis_server.rpc.session_servicer import SessionServicer
from hermosis_server.rpc.telemetry_servicer import TelemetryServicer

SERVICES = (
    session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
    gradient_pb2.DESCRIPTOR.services_by_name["GradientService"].full_name,
    telemetry_pb2.DESCRIPTOR.services_by_name["TelemetryService"].full_name,
)
MIN_PING_INTERVAL_MS = 30_000


class RpcServer:
    """Listens as soon as it is started, and says so through grpc.health.v1.

    Args:
      engine:      what the services talk to.
      device_name: told in GetCapabilities.
      address:     host:port; port 0 takes a free one.
    """

    def __init__(self, engine: Engine, *, device_name: str, address: str) -> None:
        self._address = address
        self._server = grpc.aio.server(
            interceptors=[TypedErrors()],
            options=[
                ("grpc.max_receive_message_length", engine.limits.max_message_bytes),
                # One process, one port: two servers that share it without knowing would split their workers.
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                # What gRPC takes in of a stream before it is read: one message. By itself it would take more the faster
                # a client sends, fourteen megabytes of a stream on this machine.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", engine.limits.max_message_bytes),
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(
            SessionServicer(engine, device_name=device_name), self._server
        )
        gradients = GradientServicer(engine)
        self._streams = gradients.streams
        self._watch: asyncio.Task[None] | None = None
        gradient_pb2_grpc.add_GradientServiceServicer_to_server(gradients, self._server)
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(TelemetryServicer(engine), self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> int:
        """Begins to serve; returns the port. Raises RuntimeError when the address is taken."""
        port = self._server.add_insecure_port(self._address)
        await self._server.start()
        self._watch = asyncio.ensure_future(self._streams.watch())
        await self._set(health_pb2.HealthCheckResponse.SERVING)
        return int(port)

    async def refuse(self) -> None:
        """Tells everybody who watches the health that this server is going."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Ends calls that go on after the grace."""
        if self._watch is not None:
            self._watch.cancel()
        await self._server.stop(grace_s)

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, status)
