"""Tokens and the audit log by REST, for operators. The server judges who asks; see docs/security.md."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from hermosis_sidecar import schemas, translate
from hermosis_sidecar.hall import HallOf
from hermosis_sidecar.problems import documented

router = APIRouter(prefix="/v1", tags=["access"])


@router.get("/tokens", responses=documented())
def list_tokens(hall: HallOf) -> schemas.TokenList:
    """The tokens of the caller's tenant, without their secrets."""
    return schemas.TokenList(tokens=[translate.token(info) for info in hall.client.tokens()])


@router.post("/tokens", status_code=201, responses=documented())
def create_token(hall: HallOf, new: schemas.NewToken, response: Response) -> schemas.MadeToken:
    """Makes a token and shows it, this once.

    A server that asks nobody for a token refuses: its first one is made on its machine by `hermosis token create`.
    """
    made = hall.client.create_token(
        new.name,
        {"VIEWER": "viewer", "WORKER": "worker", "OPERATOR": "operator"}[new.role],  # type: ignore[arg-type]
        sessions=new.sessions,
        lifetime_s=new.lifetime_s,
    )
    response.headers["Cache-Control"] = "no-store"
    return schemas.MadeToken(**dict(translate.token(made.info)), secret=made.secret)


@router.delete("/tokens/{name}", responses=documented())
def revoke_token(
    hall: HallOf, name: Annotated[str, Path(description="Of a valid token.", max_length=63)]
) -> schemas.Token:
    """Lets a token in no longer; what goes on under it ends within two seconds."""
    return translate.token(hall.client.revoke_token(name))


@router.get("/audit", responses=documented())
def audit(
    hall: HallOf, limit: Annotated[int, Query(ge=1, le=1000, description="At most this many, the newest ones.")] = 100
) -> schemas.AuditList:
    """Who managed what in the caller's tenant."""
    return schemas.AuditList(entries=[translate.audit_entry(entry) for entry in hall.client.audit(limit)])
