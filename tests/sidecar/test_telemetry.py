"""Telemetry by REST after real gradients."""

import json
import math

import pytest
from tests.sidecar.conftest import Sidecar, push

from hermosis_client import Client, Session
from hermosis_sidecar import schemas, translate


def strict(text: str) -> object:
    """JSON as the standard has it, without Python's NaN and Infinity."""

    def refuse(constant: str) -> object:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_newest_reading_is_null_before_the_first_step(sidecar: Sidecar, session: Session) -> None:
    assert sidecar.http.get(f"/v1/sessions/{session.session_id}/telemetry").json() == {"reading": None}


def test_newest_reading_is_the_clients(sidecar: Sidecar, session: Session) -> None:
    push(session, 4.0, 2.0)
    shown = sidecar.http.get(f"/v1/sessions/{session.session_id}/telemetry").json()["reading"]
    told = session.telemetry()
    assert told is not None
    assert shown["step"] == told.step == 2
    assert shown["received_bytes"] == told.received_bytes == 7 * 4
    assert shown["contributions"] == 1
    assert shown["energies"]["loss"] == 2.0
    for name, value in shown["energies"].items():
        expected = getattr(told.energies, name)
        assert value == expected if math.isfinite(expected) else value is None, name


def test_history_is_the_clients(sidecar: Sidecar, session: Session) -> None:
    push(session, 5.0, 4.0, 3.0, 2.0, 1.0)
    path = f"/v1/sessions/{session.session_id}/telemetry/history"
    whole = sidecar.http.get(path).json()["readings"]
    assert [reading["step"] for reading in whole] == [1, 2, 3, 4, 5]
    assert [reading["energies"]["loss"] for reading in whole] == [5.0, 4.0, 3.0, 2.0, 1.0]
    later = sidecar.http.get(path, params={"after_step": 3}).json()["readings"]
    assert [reading["step"] for reading in later] == [4, 5]
    assert len(sidecar.http.get(path, params={"max_readings": 2}).json()["readings"]) == 2


def test_what_is_undefined_goes_out_as_null(sidecar: Sidecar, session: Session) -> None:
    push(session, None)
    for path in ("", "/history"):
        response = sidecar.http.get(f"/v1/sessions/{session.session_id}/telemetry{path}")
        assert response.status_code == 200
        strict(response.text)
    reading = sidecar.http.get(f"/v1/sessions/{session.session_id}/telemetry").json()["reading"]
    assert reading["energies"]["loss"] is None
    assert reading["energies"]["kinetic_energy"] is not None


@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_reading_breaks_json(undefined: float, session: Session) -> None:
    push(session, 1.0)
    told = session.telemetry()
    assert told is not None
    energies = dict.fromkeys(schemas.EnergySample.model_fields, undefined)
    broken = type(told)(
        **{name: getattr(told, name) for name in told.__dataclass_fields__ if name not in ("energies", "wait_s")},
        energies=type(told.energies)(**energies),
        wait_s=undefined,
    )
    shown = strict(translate.telemetry(broken).model_dump_json())
    assert isinstance(shown, dict)
    assert set(shown["energies"].values()) == {None}
    assert shown["wait_s"] is None


@pytest.mark.parametrize("path", ["telemetry", "telemetry/history"])
def test_telemetry_of_an_unknown_session_is_not_found(sidecar: Sidecar, client: Client, path: str) -> None:
    response = sidecar.http.get(f"/v1/sessions/nobody/{path}")
    assert response.status_code == 404
    assert response.json()["reason"] == "SessionNotFound"
