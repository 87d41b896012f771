"""Permissions: the least role for each method, as one table. What is not in it nobody may call."""

from typing import Final

from hermosis_server.errors import PermissionDenied
from hermosis_server.identity import Identity, Role

_VIEWER, _WORKER, _OPERATOR = Role.VIEWER, Role.WORKER, Role.OPERATOR

LEAST_ROLE: Final = {
    # Readings and descriptions.
    "/hermosis.v1.SessionService/GetSession": _VIEWER,
    "/hermosis.v1.SessionService/ListSessions": _VIEWER,
    "/hermosis.v1.SessionService/ListWorkers": _VIEWER,
    "/hermosis.v1.SessionService/ListSnapshots": _VIEWER,
    "/hermosis.v1.SessionService/GetCapabilities": _VIEWER,
    "/hermosis.v1.SessionService/GetRecipes": _VIEWER,
    "/hermosis.v1.TelemetryService/GetTelemetry": _VIEWER,
    "/hermosis.v1.TelemetryService/ListTelemetry": _VIEWER,
    "/hermosis.v1.TelemetryService/WatchTelemetry": _VIEWER,
    "/hermosis.v1.TelemetryService/GetOverview": _VIEWER,
    # Work on sessions that somebody has made. Weights are of value, so to read them is a worker's right.
    "/hermosis.v1.SessionService/InitialiseParameters": _WORKER,
    "/hermosis.v1.GradientService/Exchange": _WORKER,
    "/hermosis.v1.GradientService/Push": _WORKER,
    "/hermosis.v1.GradientService/Pull": _WORKER,
    "/hermosis.v1.GradientService/Step": _WORKER,
    # The life of sessions, and their whole state.
    "/hermosis.v1.SessionService/CreateSession": _OPERATOR,
    "/hermosis.v1.SessionService/UpdateSession": _OPERATOR,
    "/hermosis.v1.SessionService/PauseSession": _OPERATOR,
    "/hermosis.v1.SessionService/ResumeSession": _OPERATOR,
    "/hermosis.v1.SessionService/CloseSession": _OPERATOR,
    "/hermosis.v1.SessionService/ExportSession": _OPERATOR,
    "/hermosis.v1.SessionService/ImportSession": _OPERATOR,
    "/hermosis.v1.SessionService/SnapshotSession": _OPERATOR,
    "/hermosis.v1.SessionService/RestoreSession": _OPERATOR,
    "/hermosis.v1.SessionService/ForkSession": _OPERATOR,
    # Who may come in, and who did what. Each operator deals with its own tenant's; see access/desk.py.
    "/hermosis.v1.AccessService/CreateToken": _OPERATOR,
    "/hermosis.v1.AccessService/ListTokens": _OPERATOR,
    "/hermosis.v1.AccessService/RevokeToken": _OPERATOR,
    "/hermosis.v1.AccessService/ListAudit": _OPERATOR,
    # Tells what the .proto files tell, but to nobody who has no business here.
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _VIEWER,
}

# Change nothing and take no weights away; a page that shows the audit log would else fill it.
_LOOKS: Final = {"/hermosis.v1.AccessService/ListTokens", "/hermosis.v1.AccessService/ListAudit"}

# Each leaves a line in the audit log.
MANAGEMENT: Final = (
    frozenset(method for method, role in LEAST_ROLE.items() if role is _OPERATOR)
    | {"/hermosis.v1.SessionService/InitialiseParameters"}
) - _LOOKS

# Load balancers ask without any proof; the answer says nothing of what is inside.
OPEN_PREFIX: Final = "/grpc.health."


def require_permission(method: str, identity: Identity) -> None:
    """Raises PermissionDenied unless somebody may call a method."""
    least = LEAST_ROLE.get(method)
    if least is None or identity.role < least:
        wanted = "which nobody may" if least is None else f"which asks for {least.name.lower()}"
        raise PermissionDenied(
            f"{identity.subject} is {identity.role.name.lower()} and may not call {method.rpartition('/')[2]}, {wanted}"
        )
