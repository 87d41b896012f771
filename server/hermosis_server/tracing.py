"""Tracing: spans of calls, streams and launches, for OpenTelemetry. Off, nothing of it is imported.

A call is a child of the caller's span. A launch is one of the span that its contributions came by, where that is one;
it is linked to all of them in any case.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from hermosis_server.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

SERVICE: Final = "hermosis-server"
MAX_NAMED: Final = 16  # sessions of a launch
_TRACE_CONTEXT: Final = ("traceparent", "tracestate")


class Launch(Protocol):
    """When a batch was stepped, in monotonic seconds, and with how many sessions."""

    @property
    def started_s(self) -> float: ...
    @property
    def device_s(self) -> float: ...
    @property
    def sessions(self) -> int: ...


@dataclass(slots=True)
class _Noted:
    """What was told of one launch."""

    launch: Launch
    applied: list[str] = field(default_factory=list)  # ids of sessions
    origins: list[object] = field(default_factory=list)


class Tracing:
    """Makes spans. Used from the rpc thread.

    Args:
      provider: where they go; ended by `close`.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("hermosis")
        # Not the baggage, which could be anything: who calls may say which trace it is, and no more.
        self._propagator = TraceContextTextMapPropagator()
        self._noted: _Noted | None = None

    @contextmanager
    def call(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator["Span"]:
        """The span of a call or stream, current until it ends.

        Args:
          method: its path, as in /hermosis.v1.GradientService/Push.
        """
        carrier = {key: value for key, value in metadata if key in _TRACE_CONTEXT and isinstance(value, str)}
        service, _, name = method.lstrip("/").partition("/")
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        ) as span:
            yield span

    def here(self) -> "SpanContext":
        """The span that is current, for a contribution to remember where it came by."""
        return self._trace.get_current_span().get_span_context()

    def stepped(self, launch: Launch, session_ids: Sequence[str], origins: Iterable[object]) -> None:
        """Steps of a launch were applied. Those of one launch are told of one after another.

        Only noted here, and made a span of later: whatever goes wrong with that is none of the workers' trouble.
        """
        noted = self._noted
        if noted is None or noted.launch is not launch:
            noted = self._noted = _Noted(launch)
            asyncio.get_running_loop().call_soon(self._make_span, noted)
        noted.applied.extend(session_ids)
        noted.origins.extend(origins)

    def _make_span(self, noted: "_Noted") -> None:
        launch, origins = noted.launch, self._distinct(noted.origins)
        began_ns = time.time_ns() - round((time.monotonic() - launch.started_s) * 1e9)
        span = self._tracer.start_span(
            "hermosis.launch",
            context=self._parent(origins),
            links=[self._trace.Link(origin) for origin in origins],
            attributes={
                "hermosis.launch.sessions": launch.sessions,
                "hermosis.launch.steps": len(noted.applied),
                "hermosis.session_ids": noted.applied[:MAX_NAMED],
            },
            start_time=began_ns,
        )
        span.end(began_ns + round(launch.device_s * 1e9))

    def close(self) -> None:
        """Sends what has not been sent; may take some seconds where nobody takes it."""
        self._provider.shutdown()

    def _distinct(self, origins: Iterable[object]) -> list["SpanContext"]:
        valid = [each for each in origins if isinstance(each, self._trace.SpanContext) and each.is_valid]
        return list({(each.trace_id, each.span_id): each for each in valid}.values())

    def _parent(self, origins: Sequence["SpanContext"]) -> "Context":
        from opentelemetry.context import Context

        if len(origins) != 1:
            return Context()
        return self._trace.set_span_in_context(self._trace.NonRecordingSpan(origins[0]), Context())


def configured(version: str) -> Tracing:
    """Spans go to where OpenTelemetry's own settings (OTEL_…) say, by OTLP over gRPC.

    Raises:
      InvalidRequest: the packages are not there.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidRequest(
            f"tracing needs packages that are not there ({error.name}); install hermosis[otel], or leave --otel out",
            field="otel",
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": version}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
