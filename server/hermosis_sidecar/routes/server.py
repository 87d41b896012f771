"""What the server is: capabilities and recipes."""

from fastapi import APIRouter

from hermosis_sidecar import schemas, translate
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
