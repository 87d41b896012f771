"""What Prometheus reads."""

import math

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic
from tests.sidecar.conftest import Events, Sidecar, eventually, push

from hermosis_client import Client, Session

Samples = dict[tuple[str, str], float]


def samples(sidecar: Sidecar) -> Samples:
    """Value by name of the metric and session_id or status."""
    response = sidecar.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, sample.labels.get("session_id") or sample.labels.get("status") or ""): sample.value
        for family in classic(response.text)
        for sample in family.samples
    }


def test_newest_reading_of_each_session_is_there(sidecar: Sidecar, client: Client, session: Session) -> None:
    eventually(lambda: samples(sidecar)["hermosis_server_reachable", ""] == 1, "the server to be followed")
    with Events(sidecar) as events:
        eventually(lambda: {"reachable": True} in events.named("server"), "the stream")
        push(session, 3.0, 2.0)
        told = eventually(session.telemetry, "a reading")
        key = ("hermosis_session_loss", session.session_id)
        found = eventually(lambda: (now := samples(sidecar)).get(key) == 2.0 and now, "the loss of step 2")
        assert isinstance(found, dict)
        assert found["hermosis_viewers", ""] >= 1
    assert found["hermosis_session_step", session.session_id] == 2
    assert found["hermosis_session_parameters", session.session_id] == 7
    assert found["hermosis_session_step_received_bytes", session.session_id] == 28
    for name in ("kinetic_energy", "total_energy", "log_beta", "retention", "gradient_norm"):
        value = getattr(told.energies, name)
        assert found.get((f"hermosis_session_{name}", session.session_id)) == (None if math.isnan(value) else value)
    assert found["hermosis_steps_total", ""] >= 2
    assert found["hermosis_sessions", "READY"] == sum(info.status.name == "READY" for info in client.sessions())


def test_what_is_undefined_has_no_sample(sidecar: Sidecar, session: Session) -> None:
    with Events(sidecar) as events:
        eventually(lambda: {"reachable": True} in events.named("server"), "the stream")
        push(session, None)
        key = ("hermosis_session_kinetic_energy", session.session_id)
        found = eventually(lambda: key in (now := samples(sidecar)) and now, "the reading")
    assert isinstance(found, dict)
    assert ("hermosis_session_loss", session.session_id) not in found


def test_closed_session_leaves_no_series_behind(sidecar: Sidecar, client: Client) -> None:
    with client.create_session({"w": (2,)}, "sgd") as session:
        session.initialise({"w": [1.0, 1.0]})
        push(session, 1.0)
        assert samples(sidecar)["hermosis_session_step", session.session_id] == 1
    assert not any(label == session.session_id for _, label in samples(sidecar))


def test_openmetrics_is_spoken_where_it_is_asked_for(sidecar: Sidecar, session: Session) -> None:
    push(session, 1.0)
    response = sidecar.http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert any(family.name == "hermosis_session_step" for family in openmetrics(response.text))


def test_names_are_hermosis_noun_unit_and_explained(sidecar: Sidecar, session: Session) -> None:
    push(session, 1.0)
    families = list(classic(sidecar.http.get("/metrics").text))
    ours = [family for family in families if not family.name.startswith(("process_", "python_"))]
    assert ours
    for family in ours:
        assert family.name.startswith("hermosis_")
        assert family.documentation.endswith(".")


def test_sessions_beyond_the_limit_are_counted_but_have_no_series(small_sidecar: Sidecar, session: Session) -> None:
    found = samples(small_sidecar)
    assert found["hermosis_sessions", "READY"] >= 1
    assert not any(name.startswith("hermosis_session_") for name, _ in found)
