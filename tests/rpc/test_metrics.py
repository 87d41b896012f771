"""The server's own metrics, read as Prometheus reads them."""

import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hermosis.v1 import types_pb2
from hermosis_server.engine.alerts import RULES
from hermosis_server.errors import InvalidRequest


def samples(address: str) -> dict[tuple[str, str], float]:
    """Value by the name of the sample and its labels' values."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as response:
        text = response.read().decode()
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def metered(host: Any, tmp_path: Path) -> Any:
    """A server that keeps sessions on disk and shows its metrics."""
    return host(tmp_path, metrics_port=0, durability="journal")


def test_steps_are_counted_by_their_seconds(metered: Any) -> None:
    server, address = metered.server, metered.metrics_address
    session = server.create(8)
    for sequence in range(1, 6):
        server.push(session, np.zeros(8), sequence, ack_level=types_pb2.ACK_LEVEL_DURABLE)
    found = samples(address)
    assert found["hermosis_server_serving", ""] == 1
    assert found["hermosis_server_steps_total", ""] == 5
    assert found["hermosis_server_step_seconds_count", ""] == 5
    assert found["hermosis_server_step_seconds_bucket", "+Inf"] == 5
    assert found["hermosis_server_step_seconds_sum", ""] > 0
    counts = [value for (name, _), value in found.items() if name == "hermosis_server_step_seconds_bucket"]
    assert counts == sorted(counts)
    assert found["hermosis_server_launches_total", ""] == found["hermosis_server_launched_sessions_total", ""] == 5
    assert found["hermosis_server_received_bytes_total", ""] > 5 * 32
    assert found["hermosis_server_sessions", "READY"] == 1
    assert found["hermosis_server_journal_bytes", ""] > 0
    assert found["hermosis_server_disk_free_bytes", ""] < found["hermosis_server_disk_capacity_bytes", ""]
    devices = [key for key in found if key[0] == "hermosis_server_device_used_bytes"]
    assert devices
    assert sum(found[key] for key in devices) >= 32


def test_every_alert_has_a_series_before_it_is_one(metered: Any) -> None:
    found = samples(metered.metrics_address)
    alerts = {
        labels.split(",")[0]: value for (name, labels), value in found.items() if name == "hermosis_server_alerts"
    }
    assert alerts == dict.fromkeys(RULES, 0.0)


def test_a_server_that_recovers_says_so_and_nothing_else(metered: Any) -> None:
    metered.server.inside(lambda engine: setattr(engine, "recovering", True))
    found = samples(metered.metrics_address)
    assert found["hermosis_server_serving", ""] == 0
    assert ("hermosis_server_steps_total", "") not in found
    metered.server.inside(lambda engine: setattr(engine, "recovering", False))
    assert samples(metered.metrics_address)["hermosis_server_serving", ""] == 1


def test_no_session_and_no_tenant_is_named(metered: Any) -> None:
    with urllib.request.urlopen(f"http://{metered.metrics_address}/metrics", timeout=20) as response:
        before = response.read().decode()
    session = metered.server.create(8)
    with urllib.request.urlopen(f"http://{metered.metrics_address}/metrics", timeout=20) as response:
        text = response.read().decode()
    assert session.session_id not in text
    assert {line.split(" ")[0] for line in text.splitlines()} == {line.split(" ")[0] for line in before.splitlines()}


def test_the_page_is_gone_with_the_server(metered: Any) -> None:
    metered.stop()
    with pytest.raises(urllib.error.URLError):
        samples(metered.metrics_address)


def test_a_port_that_is_taken_is_refused_with_what_to_do(host: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidRequest, match="choose another --metrics-port"):
            host(metrics_port=taken.getsockname()[1])


def test_nothing_listens_unless_asked_to(host: Any) -> None:
    assert host().metrics_address == ""
