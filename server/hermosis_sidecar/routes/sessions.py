"""Sessions by REST: list, make, show, edit, pause, resume, close; their snapshots, forks and workers."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query

from hermosis_client import SessionInfo, SessionStatus, TelemetryReading
from hermosis_client.errors import InvalidRequest, SessionNotFound
from hermosis_sidecar import fields, schemas, translate
from hermosis_sidecar.hall import Hall, HallOf
from hermosis_sidecar.history.records import EventKind
from hermosis_sidecar.problems import documented

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

SessionId = Annotated[str, Path(description='1 to 63 of a-z, 0-9 and "-".', max_length=63)]
Sort = Literal["create_time", "-create_time", "session_id", "-session_id", "step", "-step"]


@router.get("", responses=documented())
def list_sessions(
    hall: HallOf,
    status: Annotated[schemas.StatusWord | None, Query(description="Only those in this status.")] = None,
    label: Annotated[
        Sequence[str] | None, Query(description="Only those with this label, key=value; may be given several times.")
    ] = None,
    search: Annotated[
        str, Query(description="Only those with this text in their id, name, recipe or labels, whatever the case.")
    ] = "",
    sort: Annotated[Sort, Query(description='By what; "-" before it means from the largest down.')] = "create_time",
    limit: Annotated[int, Query(ge=1, le=1000, description="Sessions of a page, at most.")] = 100,
    page_token: Annotated[str, Query(description="Of the page before, asked for with the same filters.")] = "",
) -> schemas.SessionList:
    """A page of the sessions, each with its newest reading. Sessions may come and go between pages."""
    infos, next_page_token = hall.client.session_page(
        status=SessionStatus[status] if status else SessionStatus.UNKNOWN,
        labels=_labels(label or ()),
        search=search,
        order_by=f"{sort[1:]} desc" if sort.startswith("-") else sort,
        page_size=limit,
        page_token=page_token,
    )
    shown = [translate.summary(info, _newest(hall, info)) for info in infos]
    return schemas.SessionList(sessions=shown, next_page_token=next_page_token)


@router.post("", status_code=201, responses=documented(409, 507))
def create_session(hall: HallOf, new: schemas.NewSession) -> schemas.Session:
    """Makes a session, which then waits for a worker to upload the initial parameters by gRPC.

    Repeating the call makes another session, unless it names the session_id: an id stands for one session only.
    """
    spec = new.spec
    with fields.renamed(fields.of_new_session):
        session = hall.client.create_session(
            translate.layout_record(spec.layout),
            translate.optimizer_record(spec.optimizer),
            session_id=new.session_id,
            consistency=translate.consistency_record(spec.consistency),
            aggregation=translate.aggregation_record(spec.aggregation),
            parameters_on="server" if spec.parameters_on == "SERVER" else "worker",
            durability=None if spec.durability is None else translate.durability_record(spec.durability),
            display_name=spec.display_name,
            labels=spec.labels,
        )
    return translate.session(session.info())


@router.get("/{session_id}", responses=documented(404))
def show_session(hall: HallOf, session_id: SessionId) -> schemas.Session:
    """One session in full."""
    return translate.session(hall.client.session(session_id).info())


@router.patch("/{session_id}", responses=documented(404, 409))
def edit_session(
    hall: HallOf,
    session_id: SessionId,
    edit: schemas.SessionEdit,
    if_match: Annotated[
        str, Header(description="Etag of the session that the edit is based on; left out means whatever is there.")
    ] = "",
) -> schemas.Session:
    """Edits a session between two steps. Where somebody edited it since If-Match nothing is changed: 409."""
    with fields.renamed(fields.of_edit):
        profile = None if edit.thermal_profile is None else translate.thermal_profile_record(edit.thermal_profile)
        info = hall.client.session(session_id).update(
            lr_scale=edit.lr_scale,
            thermal_profile=profile,
            display_name=edit.display_name,
            labels=edit.labels,
            consistency=None if edit.consistency is None else translate.consistency_record(edit.consistency),
            etag=_etag(if_match),
        )
    _note(hall, info, "edited", f"edited: {', '.join(sorted(edit.model_fields_set))}")
    return translate.session(info)


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


@router.post("/{session_id}/snapshot", responses=documented(404, 409, 507))
def snapshot_session(hall: HallOf, session_id: SessionId) -> schemas.Snapshot:
    """Writes the session to the server's disk now; its present step is durable then."""
    session = hall.client.session(session_id)
    snapshot = session.snapshot()
    _note(hall, session.info(), "snapshot", f"snapshot {snapshot.snapshot_id}", step=snapshot.step)
    return translate.snapshot(snapshot)


@router.get("/{session_id}/snapshots", responses=documented(404))
def list_snapshots(hall: HallOf, session_id: SessionId) -> schemas.SnapshotList:
    """What of the session is on the server's disk, newest first."""
    return translate.snapshots(hall.client.snapshots(session_id))


@router.post("/{session_id}/restore", responses=documented(404, 409, 507))
def restore_session(hall: HallOf, session_id: SessionId, asked: schemas.Restoring | None = None) -> schemas.Session:
    """Goes back to a snapshot, and raises the generation: workers are told to pull. Brings back a damaged session."""
    return translate.session(hall.client.restore(session_id, asked.snapshot_id if asked else ""))


@router.post("/{session_id}/fork", status_code=201, responses=documented(404, 409, 507))
def fork_session(hall: HallOf, session_id: SessionId, asked: schemas.Forking | None = None) -> schemas.Session:
    """Makes a session that goes on from this one's present state, with workers of its own.

    Repeating the call makes another session, unless it names the session_id.
    """
    asked = asked or schemas.Forking()
    optimizer = None if asked.optimizer is None else translate.optimizer_record(asked.optimizer)
    session = hall.client.session(session_id)
    forked = session.fork(asked.session_id, optimizer=optimizer).info()
    _note(hall, session.info(), "forked", f"forked as {forked.session_id}")
    return translate.session(forked)


@router.get("/{session_id}/workers", responses=documented(404))
def list_workers(hall: HallOf, session_id: SessionId) -> schemas.WorkerList:
    """Who contributes to the session."""
    return translate.workers(hall.client.session(session_id).workers())


def _note(hall: Hall, info: SessionInfo, kind: EventKind, text: str, *, step: int | None = None) -> None:
    """Keeps an event of a session that the sidecar's own token sees, too; another tenant may have one of that name."""
    if hall.history.lives(info.session_id, info.create_time_s):
        hall.history.note(info.session_id, kind, text, step=step)


def _newest(hall: Hall, info: SessionInfo) -> TelemetryReading | None:
    try:
        return hall.newest.of_step(info.session_id, info.step, lambda: hall.client.session(info.session_id).telemetry())
    except SessionNotFound:
        return None  # Closed since it was listed.


def _labels(asked: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for label in asked:
        key, equals, value = label.partition("=")
        if not (key and equals):
            raise InvalidRequest(f"label {label[:80]!r} is not written key=value", field="label")
        if labels.setdefault(key, value) != value:
            raise InvalidRequest(f"label {key[:80]!r} cannot have two values at once", field="label")
    return labels


def _etag(if_match: str) -> str:
    """As the server knows it, whether it came in quotes or not; "*" is whatever is there."""
    etag = if_match.strip().removeprefix("W/").strip('"')
    return "" if etag == "*" else etag
