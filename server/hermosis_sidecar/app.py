"""The app: parts opened, routes hung up, the page served."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from hermosis_sidecar import metrics, problems
from hermosis_sidecar.guard import Guard
from hermosis_sidecar.hall import opened
from hermosis_sidecar.logs import Numbered
from hermosis_sidecar.routes import access, anomalies, operations, server, sessions, telemetry
from hermosis_sidecar.settings import Settings

_DASHBOARD = Path(__file__).parent / "dashboard"

_DESCRIPTION = """Sessions of a Hermosis optimization server over REST, a client of the server like any other.

Gradients and parameters travel by gRPC alone; here sessions are managed and watched. Errors are RFC 9457 problem
documents; compare their `reason`."""


def create_app(settings: Settings) -> FastAPI:
    """A sidecar for one server. Nothing is connected before the app starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with opened(settings) as hall:
            app.state.hall = hall
            app.state.metrics = metrics.registry(hall)
            yield

    app = FastAPI(
        title="Hermosis sidecar",
        version=version("hermosis"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        # Swagger and ReDoc would fetch their scripts from another host.
        docs_url=None,
        redoc_url=None,
        # What generated clients call their functions.
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    app.add_middleware(Guard, hosts=settings.answers_to(), max_body_bytes=settings.max_body_bytes)
    app.add_middleware(Numbered)
    for room in (sessions, telemetry, anomalies, access, server, operations):
        app.include_router(room.router)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_DASHBOARD / "index.html")

    app.mount("/static", StaticFiles(directory=_DASHBOARD))
    return app
