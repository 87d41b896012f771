"""GetOverview against a real server: what is counted, and who sees which sessions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermosis.v1 import gradient_pb2, telemetry_pb2
from hermosis_client import Client
from hermosis_server.access.tokens import TokenFile

SIZE = 1000


def overview(server: Any) -> telemetry_pb2.Overview:
    return server.telemetry.GetOverview(telemetry_pb2.GetOverviewRequest(), timeout=20).overview


def test_steps_and_bytes_of_single_calls_are_counted(server: Any) -> None:
    session = server.create(SIZE)
    before = overview(server)
    for sequence in (1, 2, 3):
        server.push(session, np.zeros(SIZE), sequence)
    server.gradients.Pull(gradient_pb2.PullRequest(session_id=session.session_id), timeout=20)
    after = overview(server)
    assert after.steps - before.steps == 3
    assert 3 * 4 * SIZE <= after.received_bytes - before.received_bytes <= 3 * 4 * SIZE + 2000
    assert 4 * SIZE <= after.sent_bytes - before.sent_bytes <= 4 * SIZE + 2000
    assert after.step_p50_s > 0
    assert after.uptime_s > before.uptime_s > 0
    assert after.queue_rounds == after.queue_bytes == 0
    assert after.staging_limit_bytes > 0
    (held,) = [held for held in after.devices[0].sessions if held.session_id == session.session_id]
    assert held.device_bytes >= 4 * SIZE


@pytest.mark.parametrize("shared", [False, True], ids=["over the stream", "through shared memory"])
def test_bytes_of_streams_are_counted_whichever_way_they_come(server: Any, shared: bool) -> None:
    large = 1 << 18
    with Client(server.address) as client, client.create_session({"w": (large,)}, "sgd") as session:
        session.initialise({"w": np.zeros(large, np.float32)})
        before = overview(server)
        with session.worker(shared_memory=shared) as worker:
            for _ in range(2):
                worker.exchange({"w": np.zeros(large, np.float32)})
            during = overview(server)
            assert during.streams == before.streams + 1
        after = overview(server)
    sent, received = (getattr(after, name) - getattr(before, name) for name in ("sent_bytes", "received_bytes"))
    assert 2 * 4 * large <= received <= 2 * 4 * large + 20_000
    assert 2 * 4 * large <= sent <= 2 * 4 * large + 20_000


def test_a_stream_that_ended_is_no_longer_open(server: Any, tools: Any) -> None:
    with Client(server.address) as client, client.create_session({"w": (2,)}, "sgd") as session:
        session.initialise({"w": [0.0, 0.0]})
        session.exchange({"w": [1.0, 1.0]})
        assert overview(server).streams >= 1
    tools.poll(lambda: overview(server).streams == 0)


def test_a_fleet_is_counted_by_its_sessions(server: Any) -> None:
    before = overview(server)
    with Client(server.address) as client, client.create_fleet(np.zeros((8, 4), np.float32), "sgd") as fleet:
        fleet.exchange(np.ones((8, 4), np.float32))
        after = client.overview()
    assert after.steps - before.steps == 8
    assert after.queue_rounds == 0
    assert after.batch_sessions > 1


def test_only_the_callers_sessions_are_named_and_the_rest_is_told_to_all(host: Any, tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path)
    of = {
        name: tokens.create(name, role=role, tenant=tenant, sessions=sessions)
        for name, role, tenant, sessions in (
            ("ours", "operator", "default", "*"),
            ("theirs", "operator", "acme", "*"),
            ("viewer", "viewer", "default", "*"),
            ("half", "viewer", "default", "a-*"),
        )
    }
    server = host(tmp_path, data_folder=tmp_path, require_token=True).server

    def client(who: str) -> Client:
        return Client(server.address, token=of[who])

    with client("ours") as ours, client("theirs") as theirs, client("viewer") as viewer, client("half") as half:
        for mine in ("a-1", "b-1"):
            ours.create_session({"w": (10,)}, "sgd", session_id=mine)
        theirs.create_session({"w": (10,)}, "sgd", session_id="a-1")
        theirs.create_session({"w": (10,)}, "sgd", session_id="secret")
        seen = {
            who: {held.session_id for device in each.overview().devices for held in device.sessions}
            for who, each in (("ours", ours), ("theirs", theirs), ("viewer", viewer), ("half", half))
        }
        used = {each.overview().devices[0].used_bytes for each in (ours, theirs, half)}
    assert seen == {"ours": {"a-1", "b-1"}, "theirs": {"a-1", "secret"}, "viewer": {"a-1", "b-1"}, "half": {"a-1"}}
    assert len(used) == 1


def test_a_session_that_is_set_aside_is_an_alert_to_those_who_may_see_it(host: Any, tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path)
    ours, theirs = tokens.create("ours", role="operator"), tokens.create("theirs", role="operator", tenant="acme")
    hosted = host(tmp_path, data_folder=tmp_path, require_token=True)
    with Client(hosted.server.address, token=ours) as client:
        client.create_session({"w": (2,)}, "sgd", session_id="broken").initialise({"w": [0.0, 0.0]})
        assert client.overview().alerts == ()
    hosted.stop()
    (tmp_path / "sessions" / "broken" / "session.json").write_bytes(b"damaged")
    server = host(tmp_path, data_folder=tmp_path, require_token=True).server
    with Client(server.address, token=ours) as client, Client(server.address, token=theirs) as other:
        (alert,) = client.overview().alerts
        assert (alert.severity.name, alert.rule, alert.session_id) == ("CRITICAL", "session_set_aside", "broken")
        assert other.overview().alerts == ()


def test_no_more_sessions_are_named_than_were_asked_for(server: Any) -> None:
    with Client(server.address) as client:
        sizes = {f"held-{size}": size for size in (10, 100_000, 50_000)}
        sessions = [client.create_session({"w": (size,)}, "sgd", session_id=name) for name, size in sizes.items()]
        named = [held.session_id for held in client.overview(max_sessions=2).devices[0].sessions]
        for session in sessions:
            session.close()
    assert named == ["held-100000", "held-50000"]
