"""What the server is and how it does: capabilities, recipes, overview."""

from typing import Annotated

from fastapi import APIRouter, Query

from hermosis_sidecar import schemas, schemas_overview, translate
from hermosis_sidecar.hall import HallOf
from hermosis_sidecar.problems import documented

router = APIRouter(prefix="/v1", tags=["server"])


@router.get("/capabilities", responses=documented())
def capabilities(hall: HallOf) -> schemas.Capabilities:
    """What the server is and what it allows."""
    return translate.capabilities(hall.client.capabilities())


@router.get("/recipes", responses=documented())
def recipes(hall: HallOf) -> schemas.RecipeList:
    """The named optimizers, and what their parameters mean."""
    return translate.recipes(hall.client.recipes())


@router.get("/overview", responses=documented())
def overview(
    hall: HallOf,
    max_sessions: Annotated[
        int, Query(ge=1, le=10_000, description="Sessions of each device to name, those with the most memory first.")
    ] = 100,
) -> schemas_overview.Overview:
    """How the whole server does: pace, queue, memory, and what somebody should look at."""
    return schemas_overview.overview(hall.client.overview(max_sessions=max_sessions))
