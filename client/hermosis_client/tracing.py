"""Tracing: the caller's trace goes along with calls and streams, where OpenTelemetry is in use in this process."""

import sys


def trace_context() -> tuple[tuple[str, str], ...]:
    """Metadata that names the span that is current here, as W3C Trace Context; nothing where there is none."""
    if "opentelemetry.trace" not in sys.modules:  # whoever has spans has imported it
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
