"""What operators ask: is it alive, is it ready, how does it go?"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from hermosis_client.errors import Unauthenticated
from hermosis_sidecar.caller import is_own, token_of
from hermosis_sidecar.hall import OwnHall
from hermosis_sidecar.problems import documented
from hermosis_sidecar.schemas import Health

router = APIRouter(tags=["operations"])


# Not in the thread pool: a server that is away may hold all its threads, and the sidecar is alive all the same.
@router.get("/healthz/live")
async def alive() -> Health:
    """The sidecar itself is alive, wherever the server is."""
    return Health(status="ok")


@router.get("/healthz/ready", responses=documented())
def ready(hall: OwnHall) -> Health:
    """The server behind the sidecar answers."""
    hall.probe.capabilities()
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, hall: OwnHall) -> Response:
    """Metrics in Prometheus' text format, or in OpenMetrics' where it is asked for.

    They show what the sidecar's own token may see, so whoever asks needs the same one, unless open_metrics says not.
    """
    own_token, settings = hall.token, hall.settings
    guarded = own_token or settings.certificate
    if guarded and not settings.open_metrics and not is_own(token_of(request), own_token):
        raise Unauthenticated("metrics are for who has the sidecar's own token; send it as 'Authorization: Bearer …'")
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.metrics), media_type=media_type)
