"""Telemetry by REST: the newest reading, the history, events, and readings as they come."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from hermosis_client import Overview, TelemetryReading, errors
from hermosis_sidecar import schemas, schemas_overview, schemas_telemetry, translate
from hermosis_sidecar.caller import under_token
from hermosis_sidecar.hall import Hall, HallOf
from hermosis_sidecar.history import Life, Steps
from hermosis_sidecar.history.export import as_csv, as_parquet
from hermosis_sidecar.live import Heard, Viewer
from hermosis_sidecar.overviews import together
from hermosis_sidecar.problems import documented
from hermosis_sidecar.routes.sessions import SessionId

router = APIRouter(prefix="/v1", tags=["telemetry"])

_MOST_HELD = 10_000  # readings that the server gives at a time

AfterStep = Annotated[int, Query(ge=0, lt=2**63, description="Leaves out readings up to this step.")]
BeforeStep = Annotated[
    int | None, Query(ge=0, lt=2**63, description="Leaves out readings from this step on; none leaves out nothing.")
]


@router.get("/sessions/{session_id}/telemetry", responses=documented(404))
def newest_reading(hall: HallOf, session_id: SessionId) -> schemas.Telemetry:
    """The newest reading of a session."""
    reading = hall.client.session(session_id).telemetry()
    return schemas.Telemetry(reading=None if reading is None else translate.telemetry(reading))


@router.get("/sessions/{session_id}/telemetry/history", responses=documented(404, 409))
def history(
    hall: HallOf,
    session_id: SessionId,
    after_step: AfterStep = 0,
    before_step: BeforeStep = None,
    max_readings: Annotated[
        int,
        Query(ge=1, le=10_000, description="At most this many, thinned by the shape of the loss if there are more."),
    ] = 1000,
) -> schemas_telemetry.History:
    """The readings of a session: those that the server still holds, and before them those that the sidecar kept.

    One that is closed is shown to who brings the sidecar's own token, or to anybody where it has none.
    """
    lives, held = _measured(hall, session_id, after_step)
    steps = Steps(after_step=after_step, before_step=before_step)
    found, thinned = hall.history.thinned(lives, held, steps, max_readings)
    return schemas_telemetry.History(readings=list(map(translate.telemetry, found)), thinned=thinned)


@router.get(
    "/sessions/{session_id}/telemetry/export",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/csv": {}, "application/vnd.apache.parquet": {}}},
        **documented(404, 409, 501),
    },
)
def export(
    hall: HallOf,
    session_id: SessionId,
    format: Annotated[Literal["csv", "parquet"], Query(description="Of the file.")] = "csv",
    after_step: AfterStep = 0,
    before_step: BeforeStep = None,
) -> StreamingResponse:
    """All readings of a session as a file, none thinned away now.

    Where one reading stands for all of its minute, minute_readings says for how many, and the loss of all is given by
    its least, its largest and its mean.
    """
    lives, held = _measured(hall, session_id, after_step)
    readings = hall.history.readings(lives, held, Steps(after_step=after_step, before_step=before_step))
    pieces: Iterator[str | bytes] = as_csv(readings) if format == "csv" else as_parquet(readings)
    # Before the head of the answer goes out, so that a store that fails is a problem and not half a file.
    first = list(itertools.islice(pieces, 2))
    return StreamingResponse(
        itertools.chain(first, pieces),
        media_type="text/csv" if format == "csv" else "application/vnd.apache.parquet",
        headers={"Content-Disposition": f'attachment; filename="{session_id}.{format}"'},
    )


@router.get("/sessions/{session_id}/events", responses=documented(404, 409))
def events(hall: HallOf, session_id: SessionId) -> schemas_telemetry.EventList:
    """What happened to a session, as far as the sidecar noticed or was told."""
    lives, _ = _known(hall, session_id, list)
    found = hall.history.events(lives)
    return schemas_telemetry.EventList(events=[schemas_telemetry.Event.model_validate(each) for each in found])


def _measured(hall: Hall, session_id: str, after_step: int) -> tuple[list[Life], list[TelemetryReading]]:
    return _known(
        hall,
        session_id,
        lambda: hall.client.session(session_id).history(after_step=after_step, max_readings=_MOST_HELD),
    )


def _known(
    hall: Hall, session_id: str, held: Callable[[], list[TelemetryReading]]
) -> tuple[list[Life], list[TelemetryReading]]:
    """Lives of the session that the server lets the caller see, with what it holds of it.

    Where it is closed, damaged or the server is away, who may see whatever the sidecar has seen still sees that.
    """
    try:
        info = hall.client.session(session_id).info()
        return hall.history.lives(session_id, info.create_time_s), held()
    except (errors.Unauthenticated, errors.PermissionDenied, errors.InvalidRequest):
        raise
    except errors.HermosisError:
        lives = hall.history.lives(session_id) if hall.trusts_the_caller else []
        if not lives:
            raise
        return lives, []


async def _viewer(
    hall: HallOf,
    session_id: Annotated[
        frozenset[str] | None, Query(description="Sessions to see; may be given several times; none means all.")
    ] = None,
) -> AsyncIterator[Viewer]:
    await run_in_threadpool(_require_permission, hall)
    viewer = hall.followings.view(hall.token, session_id or frozenset())
    try:
        yield viewer
    finally:
        hall.followings.leave(hall.token, viewer)


def _require_permission(hall: Hall) -> None:
    """Raises where the server refuses the caller, as it would the stream later. One that is away is waited for."""
    try:
        under_token(hall.probe, hall.token).capabilities()
    except (errors.Unauthenticated, errors.PermissionDenied):
        raise
    except errors.HermosisError:
        return


@router.get("/live", response_class=EventSourceResponse, responses=documented())
async def live(
    hall: HallOf,
    viewer: Annotated[Viewer, Depends(_viewer)],
    last_event_id: Annotated[
        int | None, Header(ge=0, lt=2**63, description="Of the last reading or event that came; what followed is sent.")
    ] = None,
    overview: Annotated[bool, Query(description="Whether to tell how the whole server does, too.")] = False,
) -> AsyncIterator[ServerSentEvent]:
    """Readings as steps are applied and events as they happen, as server-sent events.

    Event `server` comes first and whenever it changes: `{"reachable": true}`. Event `reading` holds a TelemetryReading,
    event `event` an Event; both have an id, and who comes back with it as Last-Event-ID gets from the history what came
    meanwhile. Readings of one session come at most every live_interval_s; a slow reader loses the oldest. With
    `overview`, event `overview` holds an Overview, every overview_interval_s while the server is there.
    """
    told: set[int] = set()
    missed = None if last_event_id is None else _missed(hall, viewer, last_event_id, told)
    events = viewer.events(missed, told)
    async for event in together(events, hall.overviews.follow(hall.token)) if overview else events:
        if isinstance(event, Overview):
            yield ServerSentEvent(event="overview", data=schemas_overview.overview(event))
        elif isinstance(event, bool):
            yield ServerSentEvent(event="server", data={"reachable": event})
        elif isinstance(event.said, TelemetryReading):
            yield ServerSentEvent(event="reading", id=str(event.id), data=translate.telemetry(event.said))
        else:
            shown = schemas_telemetry.Event.model_validate(event.said)
            yield ServerSentEvent(event="event", id=str(event.id), data=shown)


async def _missed(hall: Hall, viewer: Viewer, after_id: int, told: set[int]) -> AsyncIterator[Heard]:
    def visible() -> set[tuple[str, float]]:
        try:
            return {(info.session_id, info.create_time_s) for info in hall.client.sessions()}
        except errors.HermosisError:
            return set()

    seen = set() if hall.trusts_the_caller else await run_in_threadpool(visible)

    def sees(life: Life) -> bool:
        return viewer.wants(life.session_id) and (
            hall.trusts_the_caller or (life.session_id, life.create_time_s) in seen
        )

    async for identifier, said in hall.history.missed(after_id, sees, told, viewer.forget):
        yield Heard(identifier, said)
