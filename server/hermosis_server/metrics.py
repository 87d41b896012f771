"""Metrics: how the whole server does, for Prometheus, at a port of its own. No session and no tenant is named.

The page is made on a thread of its own; what it shows is put together on the event loop when it is asked for.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from hermosis_server.engine.alerts import RULES
from hermosis_server.engine.engine import Engine
from hermosis_server.engine.overview import BOUNDS
from hermosis_server.engine.survey import survey
from hermosis_server.errors import HermosisError, InvalidRequest
from hermosis_server.records import Overview, SessionStatus
from hermosis_server.storage.disk import DiskUse

PATIENCE_S: Final = 4.0  # Prometheus waits five to ten


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What one page shows."""

    overview: Overview
    launches: int
    launched_sessions: int
    step_counts: Sequence[int]
    step_s: float
    statuses: Mapping[SessionStatus, int]
    set_aside: int
    disk: DiskUse | None
    journal_bytes: int | None


async def read(engine: Engine) -> Read:
    """All of it as of one moment, on the engine's event loop. Raises ServerStopping, Recovering."""
    overview = await survey(engine, sees=lambda _: True, max_sessions=0)
    keeper, disk = engine.keeper, None
    if keeper is not None:
        with contextlib.suppress(OSError):
            disk = await keeper.disk_use()
    activity = engine.activity
    return Read(
        overview=overview,
        launches=activity.launches,
        launched_sessions=activity.launched_sessions,
        step_counts=tuple(activity.step_counts),
        step_s=activity.step_s,
        statuses=Counter(session.status for session in engine.sessions()),
        set_aside=len(engine.quarantined),
        disk=disk,
        journal_bytes=None if keeper is None else keeper.journal.size_bytes,
    )


class Exporter:
    """The page, from now until `close`.

    Args:
      engine: to tell of; lives on the running event loop.
      host:   to listen on. Whoever reaches it reads the page: it asks nobody who they are, and speaks clear text.
      port:   zero takes a free one.

    Attributes:
      address: host:port that it listens on.

    Raises:
      InvalidRequest: the port cannot be opened.
    """

    def __init__(self, engine: Engine, *, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(_Server(engine, asyncio.get_running_loop()))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise InvalidRequest(
                f"port {port} on {host} cannot be opened for metrics ({error.strerror}); choose another "
                "--metrics-port, or 0 for a free one",
                field="metrics_port",
            ) from error
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    async def close(self) -> None:
        """Shows the page no longer."""

        def end() -> None:
            self._server.shutdown()  # waits for the thread, which looks up twice a second
            self._server.server_close()
            self._thread.join()

        await asyncio.to_thread(end)


class _Server(Collector):
    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        found = self._read()
        yield GaugeMetricFamily(
            "hermosis_server_serving",
            "1 while the server takes work, 0 while it recovers or stops.",
            float(bool(found)),
        )
        if found is not None:
            yield from _of_work(found)
            yield from _of_room(found)
            yield from _of_sessions(found)

    def _read(self) -> Read | None:
        future = asyncio.run_coroutine_threadsafe(read(self._engine), self._loop)
        try:
            return future.result(PATIENCE_S)
        except (HermosisError, TimeoutError):
            future.cancel()
            return None


def _of_work(found: Read) -> Iterator[Metric]:
    seen = found.overview
    yield GaugeMetricFamily("hermosis_server_uptime_seconds", "Since the server started.", seen.uptime_s)
    yield CounterMetricFamily("hermosis_server_steps", "Steps applied, of all sessions.", seen.steps)
    yield CounterMetricFamily("hermosis_server_launches", "Batches that the devices stepped.", found.launches)
    yield CounterMetricFamily(
        "hermosis_server_launched_sessions", "Sessions in those batches, each time counted.", found.launched_sessions
    )
    yield _histogram(found)
    yield CounterMetricFamily(
        "hermosis_server_received_bytes", "Received, in messages and through shared memory.", seen.received_bytes
    )
    yield CounterMetricFamily(
        "hermosis_server_sent_bytes", "Sent, in messages and through shared memory.", seen.sent_bytes
    )
    yield GaugeMetricFamily(
        "hermosis_server_queue_rounds", "Complete rounds that wait for a device or are with it.", seen.queue_rounds
    )
    yield GaugeMetricFamily("hermosis_server_queue_bytes", "Gradients of those rounds.", seen.queue_bytes)
    yield GaugeMetricFamily("hermosis_server_streams", "Streams of workers that are open.", seen.streams)


def _histogram(found: Read) -> Metric:
    below, buckets = 0, []
    for bound, count in zip((*map(repr, BOUNDS), "+Inf"), found.step_counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    return HistogramMetricFamily(
        "hermosis_server_step_seconds",
        "From a round's last contribution to the end of its step.",
        buckets=buckets,
        sum_value=found.step_s,
    )


def _of_room(found: Read) -> Iterator[Metric]:
    seen = found.overview
    yield GaugeMetricFamily(
        "hermosis_server_staging_bytes", "Host memory for gradients and answers on their way.", seen.staging_bytes
    )
    yield GaugeMetricFamily("hermosis_server_staging_limit_bytes", "The most of it.", seen.staging_limit_bytes)
    capacity = GaugeMetricFamily(
        "hermosis_server_device_capacity_bytes", "Device memory that sessions may hold.", labels=("device",)
    )
    used = GaugeMetricFamily(
        "hermosis_server_device_used_bytes", "Device memory that sessions hold.", labels=("device",)
    )
    for device in seen.devices:
        capacity.add_metric((device.name,), device.capacity_bytes)
        used.add_metric((device.name,), device.used_bytes)
    yield capacity
    yield used
    if found.disk is not None:
        yield GaugeMetricFamily(
            "hermosis_server_disk_capacity_bytes", "Of the data folder's disk.", found.disk.capacity_bytes
        )
        yield GaugeMetricFamily("hermosis_server_disk_free_bytes", "Free on that disk.", found.disk.free_bytes)
    if found.journal_bytes is not None:
        yield GaugeMetricFamily("hermosis_server_journal_bytes", "Length of the journal.", found.journal_bytes)


def _of_sessions(found: Read) -> Iterator[Metric]:
    sessions = GaugeMetricFamily("hermosis_server_sessions", "Sessions of all tenants.", labels=("status",))
    for status in SessionStatus:
        sessions.add_metric((status.name,), found.statuses.get(status, 0))
    yield sessions
    yield GaugeMetricFamily(
        "hermosis_server_set_aside_sessions", "Sessions on disk that were found damaged.", found.set_aside
    )
    counted = Counter(alert.rule for alert in found.overview.alerts)
    alerts = GaugeMetricFamily(
        "hermosis_server_alerts", "What the server's own rules find now.", labels=("rule", "severity")
    )
    for rule, severity in RULES.items():
        alerts.add_metric((rule, severity.name), counted[rule])
    yield alerts
