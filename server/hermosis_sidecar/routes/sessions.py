"""Sessions by REST: list, make, show, pause, resume, close."""

from collections import deque
from typing import Annotated

from fastapi import APIRouter, Path, Query

from hermosis_client import SessionInfo, SessionStatus, TelemetryReading
from hermosis_client.errors import SessionNotFound
from hermosis_sidecar import schemas, translate
from hermosis_sidecar.hall import Hall, HallOf
from hermosis_sidecar.problems import documented

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

SessionId = Annotated[str, Path(description='1 to 63 of a-z, 0-9 and "-".', max_length=63)]


@router.get("", responses=documented())
def list_sessions(
    hall: HallOf,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most this many, the newest ones.")] = 100,
    status: Annotated[schemas.StatusWord | None, Query(description="Only those in this status.")] = None,
) -> schemas.SessionList:
    """The sessions in order of creation, each with its newest reading."""
    wanted = SessionStatus[status] if status else SessionStatus.UNKNOWN
    infos = deque(hall.client.sessions(status=wanted), maxlen=limit)
    return schemas.SessionList(sessions=[translate.summary(info, _newest(hall, info)) for info in infos])


@router.post("", status_code=201, responses=documented(409, 507))
def create_session(hall: HallOf, new: schemas.NewSession) -> schemas.Session:
    """Makes a session, which then waits for a worker to upload the initial parameters by gRPC.

    Repeating the call makes another session, unless it names the session_id: an id stands for one session only.
    """
    spec = new.spec
    session = hall.client.create_session(
        translate.layout_record(spec.layout),
        translate.optimizer_record(spec.optimizer),
        session_id=new.session_id,
        workers=spec.consistency.workers,
        consistency="barrier" if spec.consistency.mode == "BARRIER" else "async",
        parameters_on="server" if spec.parameters_on == "SERVER" else "worker",
        display_name=spec.display_name,
        labels=spec.labels,
    )
    return translate.session(session.info())


@router.get("/{session_id}", responses=documented(404))
def show_session(hall: HallOf, session_id: SessionId) -> schemas.Session:
    """One session in full."""
    return translate.session(hall.client.session(session_id).info())


@router.delete("/{session_id}", responses=documented(404, 409))
def close_session(hall: HallOf, session_id: SessionId) -> schemas.Session:
    """Gives back the session's memory; its id is free again. Shows it for the last time, CLOSED."""
    return translate.session(hall.client.session(session_id).close())


@router.post("/{session_id}/pause", responses=documented(404, 409))
def pause_session(hall: HallOf, session_id: SessionId) -> schemas.Session:
    """Refuses further gradients from the next step boundary on; one that is paused already stays so."""
    return translate.session(hall.client.session(session_id).pause())


@router.post("/{session_id}/resume", responses=documented(404, 409))
def resume_session(hall: HallOf, session_id: SessionId) -> schemas.Session:
    """Takes gradients again."""
    return translate.session(hall.client.session(session_id).resume())


def _newest(hall: Hall, info: SessionInfo) -> TelemetryReading | None:
    try:
        return hall.newest.of_step(info.session_id, info.step, lambda: hall.client.session(info.session_id).telemetry())
    except SessionNotFound:
        return None  # Closed since it was listed.
