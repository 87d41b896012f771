"""Telemetry by REST: the newest reading, the history, and readings as they come."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from hermosis_client import Overview, errors
from hermosis_sidecar import schemas, schemas_overview, translate
from hermosis_sidecar.caller import under_token
from hermosis_sidecar.hall import Hall, HallOf
from hermosis_sidecar.live import Viewer
from hermosis_sidecar.overviews import together
from hermosis_sidecar.problems import documented
from hermosis_sidecar.routes.sessions import SessionId

router = APIRouter(prefix="/v1", tags=["telemetry"])


@router.get("/sessions/{session_id}/telemetry", responses=documented(404))
def newest_reading(hall: HallOf, session_id: SessionId) -> schemas.Telemetry:
    """The newest reading of a session."""
    reading = hall.client.session(session_id).telemetry()
    return schemas.Telemetry(reading=None if reading is None else translate.telemetry(reading))


@router.get("/sessions/{session_id}/telemetry/history", responses=documented(404))
def history(
    hall: HallOf,
    session_id: SessionId,
    after_step: Annotated[int, Query(ge=0, lt=2**63, description="Leaves out readings up to this step.")] = 0,
    max_readings: Annotated[
        int, Query(ge=1, le=10_000, description="At most this many, thinned evenly if there are more.")
    ] = 1000,
) -> schemas.History:
    """The readings of a session that the server still holds."""
    found = hall.client.session(session_id).history(after_step=after_step, max_readings=max_readings)
    return schemas.History(readings=[translate.telemetry(reading) for reading in found])


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
    overview: Annotated[bool, Query(description="Whether to tell how the whole server does, too.")] = False,
) -> AsyncIterator[ServerSentEvent]:
    """Readings as steps are applied, as server-sent events.

    Event `server` comes first and whenever it changes: `{"reachable": true}`. Event `reading` holds a TelemetryReading.
    Readings of one session come at most every live_interval_s; a slow reader loses the oldest. With `overview`, event
    `overview` holds an Overview, every overview_interval_s while the server is there.
    """
    events = viewer.events()
    async for event in together(events, hall.overviews.follow(hall.token)) if overview else events:
        if isinstance(event, Overview):
            yield ServerSentEvent(event="overview", data=schemas_overview.overview(event))
        elif isinstance(event, bool):
            yield ServerSentEvent(event="server", data={"reachable": event})
        else:
            yield ServerSentEvent(event="reading", data=translate.telemetry(event))
