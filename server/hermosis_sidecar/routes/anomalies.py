"""Anomalies by REST: what looks wrong with a session now."""

import time

from fastapi import APIRouter

from hermosis_client import Session, SessionStatus, TelemetryReading
from hermosis_sidecar import anomalies, schemas_anomalies
from hermosis_sidecar.hall import HallOf
from hermosis_sidecar.problems import documented
from hermosis_sidecar.routes.sessions import SessionId

router = APIRouter(prefix="/v1", tags=["telemetry"])

_NEWEST_STEPS = 500  # that are looked at one by one
_OLDER_READINGS = 500  # that stand for the run before them


@router.get("/sessions/{session_id}/anomalies", responses=documented(404, 409))
def list_anomalies(hall: HallOf, session_id: SessionId) -> schemas_anomalies.AnomalyList:
    """What looks wrong with a session now, the gravest first. docs/dashboard.md has the rules."""
    session = hall.client.session(session_id)
    info = session.info()
    situation = anomalies.Situation(
        now_s=time.time(),
        is_ready=info.status is SessionStatus.READY,
        connected_workers=sum(worker.connected for worker in session.workers()),
        expected_workers=info.consistency.workers,
    )
    found = anomalies.anomalies(_readings(session, info.step), situation)
    return schemas_anomalies.AnomalyList(
        anomalies=[schemas_anomalies.Anomaly.model_validate(anomaly) for anomaly in found]
    )


def _readings(session: Session, step: int) -> list[TelemetryReading]:
    newest = session.history(after_step=max(0, step - _NEWEST_STEPS), max_readings=_NEWEST_STEPS)
    if step <= _NEWEST_STEPS or not newest:
        return newest
    run = session.history(max_readings=_OLDER_READINGS)
    return [reading for reading in run if reading.step < newest[0].step] + newest
