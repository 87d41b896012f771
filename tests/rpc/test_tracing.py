"""Traces from a worker's span over the server's to the launch, with real servers; and nothing of it while it is off."""

import subprocess
import sys
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from threading import Thread
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from hermosis_client import Client, errors
from hermosis_client.local_server import LocalServer
from hermosis_server.tracing import Tracing

EXCHANGE = "hermosis.v1.GradientService/Exchange"


class Traced:
    """A server whose spans stay in memory, and a tracer of workers."""

    def __init__(self, server: Any, exporter: InMemorySpanExporter, poll: Callable[..., None]) -> None:
        self.server = server
        self._exporter = exporter
        self._poll = poll
        self.tracer: Tracer = TracerProvider().get_tracer("worker")

    def spans(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """All spans of a name, once there are so many."""

        def found() -> list[ReadableSpan]:
            return [span for span in self._exporter.get_finished_spans() if span.name == name]

        self._poll(lambda: len(found()) >= count)
        return found()


@pytest.fixture
def traced(host: Any, tools: Any) -> Traced:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traced(host(tracing=Tracing(provider)).server, exporter, tools.poll)


def test_a_launch_is_in_the_trace_of_the_stream_that_it_came_by_and_that_in_the_workers(traced: Traced) -> None:
    with traced.tracer.start_as_current_span("training") as training, Client(traced.server.address) as client:
        session = client.create_session({"w": (2,)}, "sgd", session_id="traced")
        session.initialise({"w": [0.0, 0.0]})
        session.exchange({"w": [1.0, 1.0]})
        session.exchange({"w": [1.0, 1.0]})
    (stream,) = traced.spans(EXCHANGE)
    context = training.get_span_context()
    assert stream.parent is not None
    assert (stream.parent.trace_id, stream.parent.span_id) == (context.trace_id, context.span_id)
    assert stream.kind is SpanKind.SERVER
    for launch in traced.spans("hermosis.launch", 2):
        assert launch.parent is not None
        assert launch.parent.span_id == stream.context.span_id
        assert [link.context.span_id for link in launch.links] == [stream.context.span_id]
        assert launch.context.trace_id == context.trace_id
        assert launch.attributes is not None
        assert launch.attributes["hermosis.session_ids"] == ("traced",)
        assert launch.attributes["hermosis.launch.steps"] == launch.attributes["hermosis.launch.sessions"] == 1
        assert stream.start_time < launch.start_time <= launch.end_time < stream.end_time
    (created,) = traced.spans("hermosis.v1.SessionService/CreateSession")
    assert created.parent is not None
    assert created.parent.span_id == context.span_id
    assert created.attributes is not None
    assert created.attributes["hermosis.session_id"] == "traced"


def test_a_launch_for_workers_of_several_traces_is_linked_to_each(traced: Traced) -> None:
    with Client(traced.server.address) as client:
        session = client.create_session({"w": (2,)}, "sgd", workers=2)
        session.initialise({"w": [0.0, 0.0]})

        def work(name: str) -> None:
            with traced.tracer.start_as_current_span(name), session.worker(name) as worker:
                worker.exchange({"w": [1.0, 1.0]})

        threads = [Thread(target=work, args=(name,)) for name in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    streams = traced.spans(EXCHANGE, 2)
    (launch,) = traced.spans("hermosis.launch")
    assert launch.parent is None
    assert {link.context.span_id for link in launch.links} == {stream.context.span_id for stream in streams}
    assert len({stream.context.trace_id for stream in streams}) == 2


def test_a_fleet_that_steps_in_one_launch_makes_one_span(traced: Traced) -> None:
    with Client(traced.server.address) as client, client.create_fleet(np.zeros((8, 4), np.float32), "sgd") as fleet:
        fleet.exchange(np.ones((8, 4), np.float32))
    (stream,) = traced.spans(EXCHANGE)
    (launch,) = traced.spans("hermosis.launch")
    assert launch.attributes is not None
    assert launch.attributes["hermosis.launch.steps"] == 8
    assert [link.context for link in launch.links] == [stream.context]


def test_a_call_that_is_refused_says_so_and_one_without_a_trace_begins_its_own(traced: Traced) -> None:
    with Client(traced.server.address) as client, pytest.raises(errors.SessionNotFound):
        client.session("nobody")
    (refused,) = traced.spans("hermosis.v1.SessionService/GetSession")
    assert refused.status.status_code is StatusCode.ERROR
    assert refused.parent is None


@pytest.mark.parametrize("parent", ["", "00-0-0-01", "ff" * 200, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_parent_that_is_none_is_none(traced: Traced, parent: str) -> None:
    from hermosis.v1 import session_pb2

    request = session_pb2.GetRecipesRequest()
    traced.server.sessions.GetRecipes(request, metadata=(("traceparent", parent),), timeout=20)
    (span,) = traced.spans("hermosis.v1.SessionService/GetRecipes")
    assert span.parent is None


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans from other processes."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            self.services |= {each.value.string_value for each in resource.resource.attributes if "name" in each.key}
            self.spans.extend(span for scope in resource.scope_spans for span in scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_server_process_that_is_told_to_sends_its_spans_to_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    receiver = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    monkeypatch.setenv("HERMOSIS_OTEL", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    tracer = TracerProvider().get_tracer("worker")
    with LocalServer() as server, Client(server.address) as client, tracer.start_as_current_span("training") as span:
        session = client.create_session({"w": (2,)}, "sgd")
        session.initialise({"w": [0.0, 0.0]})
        session.exchange({"w": [1.0, 1.0]})
    receiver.stop(None).wait()
    trace_id = span.get_span_context().trace_id.to_bytes(16, "big")
    assert {each.name for each in collector.spans if each.trace_id == trace_id} >= {EXCHANGE, "hermosis.launch"}
    assert "hermosis-server" in collector.services


def test_nothing_of_opentelemetry_is_imported_while_it_is_off(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from pathlib import Path
from hermosis_client import Client
from hermosis_server.app import running
from hermosis_server.settings import Settings
async def main():
    async with running(Settings(port=0, device="cpu", data_folder=Path({str(tmp_path)!r}))) as server:
        with Client(server.address) as client:
            await asyncio.to_thread(client.recipes)
asyncio.run(main())
assert "opentelemetry" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
