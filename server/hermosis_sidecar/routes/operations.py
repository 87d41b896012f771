"""What operators ask: is it alive, is it ready, how does it go?"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import choose_encoder

from hermosis_sidecar.hall import HallOf
from hermosis_sidecar.problems import documented
from hermosis_sidecar.schemas import Health

router = APIRouter(tags=["operations"])


# Not in the thread pool: a server that is away may hold all its threads, and the sidecar is alive all the same.
@router.get("/healthz/live")
async def live() -> Health:
    """The sidecar itself is alive, wherever the server is."""
    return Health(status="ok")


@router.get("/healthz/ready", responses=documented())
def ready(hall: HallOf) -> Health:
    """The server behind the sidecar answers."""
    hall.probe.capabilities()
    return Health(status="ok")


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format, or in OpenMetrics' where it is asked for."""
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.metrics), media_type=media_type)
