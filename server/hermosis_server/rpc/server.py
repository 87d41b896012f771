"""Server: the gRPC server with its services, health and reflection."""

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hermosis.v1 import (
    access_pb2,
    access_pb2_grpc,
    gradient_pb2,
    gradient_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from hermosis_server.access.audit import AuditLog
from hermosis_server.access.desk import Desk
from hermosis_server.access.gatekeeper import Gatekeeper
from hermosis_server.engine.engine import Engine
from hermosis_server.rpc.access_servicer import AccessServicer
from hermosis_server.rpc.gate import Gate
from hermosis_server.rpc.gradient_servicer import GradientServicer
from hermosis_server.rpc.interceptor import Door
from hermosis_server.rpc.session_servicer import SessionServicer
from hermosis_server.rpc.telemetry_servicer import TelemetryServicer

SERVICES = (
    session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
    gradient_pb2.DESCRIPTOR.services_by_name["GradientService"].full_name,
    telemetry_pb2.DESCRIPTOR.services_by_name["TelemetryService"].full_name,
    access_pb2.DESCRIPTOR.services_by_name["AccessService"].full_name,
)
MAX_METADATA_BYTES = 16 << 10  # a token of an identity provider takes up to 8 KiB


class RpcServer:
    """Listens as soon as it is started, and says through grpc.health.v1 whether it serves.

    Args:
      engine:      what the services talk to.
      gatekeeper:  knows who somebody is.
      desk:        where operators deal with tokens and the audit log.
      device_name: told in GetCapabilities.
      address:     host:port; port 0 takes a free one.
      credentials: for TLS; None speaks clear text.
      audit:       notes management calls.
    """

    def __init__(
        self,
        engine: Engine,
        gatekeeper: Gatekeeper,
        desk: Desk,
        *,
        device_name: str,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._gate = Gate(gatekeeper, audit=audit, quotas=engine.quotas)
        self._server = grpc.aio.server(
            interceptors=[Door(self._gate, engine.activity, engine.tracing)],
            options=[
                ("grpc.max_receive_message_length", engine.limits.max_message_bytes),
                # One process, one port: two servers that share it without knowing would split their workers.
                ("grpc.so_reuseport", 0),
                # Any number of pings. A client's gRPC sends them by itself, to measure the line while a vector comes in
                # and after a cancelled call; where the server had nothing to send meanwhile, the third closed the line.
                ("grpc.http2.max_ping_strikes", 0),
                # Both, or gRPC refuses ever more of what lies between them.
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
                # Tensors do not get shorter, and what unfolds in memory before it is measured is a way in.
                ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
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
        access_pb2_grpc.add_AccessServiceServicer_to_server(AccessServicer(desk), self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self) -> int:
        """Begins to listen, NOT_SERVING; returns the port. Raises RuntimeError when the address is taken."""
        if self._credentials is None:
            port = self._server.add_insecure_port(self._address)
        else:
            port = self._server.add_secure_port(self._address, self._credentials)
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        self._watch = asyncio.ensure_future(self._streams.watch())
        self._gate.start()
        return int(port)

    async def serve(self) -> None:
        """Tells everybody who watches the health that this server serves."""
        await self._set(health_pb2.HealthCheckResponse.SERVING)

    async def refuse(self) -> None:
        """Tells everybody who watches the health that this server is going."""
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Ends calls that go on after the grace."""
        if self._watch is not None:
            self._watch.cancel()
        await self._server.stop(grace_s)
        self._gate.stop()

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *SERVICES):
            await self._health.set(service, status)
