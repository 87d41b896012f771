"""A server that goes away and comes back."""

import contextlib

from tests.forking import WarmServer
from tests.sidecar.conftest import Events, Sidecar, eventually, push

from hermosis_client import Client


def test_sidecar_outlives_its_server_and_follows_the_next_one() -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(WarmServer())
        port = first.address.rpartition(":")[2]
        sidecar = stack.enter_context(
            Sidecar(first.address, timeout_s="0.5", ready_timeout_s="0.5", retry_s="0.05", live_interval_s="0")
        )
        events = stack.enter_context(Events(sidecar))

        def ready() -> int:
            return sidecar.http.get("/healthz/ready").status_code

        eventually(lambda: ready() == 200, "the sidecar to be ready")
        eventually(lambda: events.named("server")[-1:] == [{"reachable": True}], "viewers to hear of the server")
        first.close()
        eventually(lambda: events.named("server")[-1:] == [{"reachable": False}], "viewers to hear of its end")

        assert ready() == 503
        assert sidecar.http.get("/healthz/live").json() == {"status": "ok"}
        refused = sidecar.http.get("/v1/sessions")
        assert refused.status_code == 503
        assert refused.json()["reason"] == "ConnectionFailed"
        metrics = sidecar.http.get("/metrics")
        assert metrics.status_code == 200
        assert "hermosis_server_reachable 0.0" in metrics.text
        assert sidecar.http.get("/").status_code == 200

        second = stack.enter_context(WarmServer(arguments=["--port", port]))
        assert second.address == first.address
        eventually(lambda: ready() == 200, "the sidecar to be ready again")
        eventually(lambda: events.named("server")[-1:] == [{"reachable": True}], "viewers to hear of its return")
        with Client(second.address) as client, client.create_session({"w": (1,)}, "sgd") as session:
            session.initialise({"w": [1.0]})
            push(session, 1.0)
            seen = eventually(lambda: events.named("reading"), "a reading of the new server on the old stream")
            assert seen[0]["session_id"] == session.session_id
        assert not events.ended.is_set()


def test_sidecar_may_start_before_its_server_and_end_without_one() -> None:
    with Sidecar("127.0.0.1:1", ready_timeout_s="0.2") as sidecar, Events(sidecar) as events:
        assert sidecar.http.get("/healthz/live").status_code == 200
        response = sidecar.http.get("/healthz/ready")
        assert response.status_code == 503
        assert "127.0.0.1:1" in response.json()["detail"]
        assert eventually(lambda: events.named("server"), "the first word") == [{"reachable": False}]
        assert sidecar.process.stop(grace_s=8) == 0
