"""Tokens and entries of the audit log."""

from hermosis.v1 import access_pb2
from hermosis_server.access.audit import AuditEntry
from hermosis_server.access.tokens import TokenRecord
from hermosis_server.errors import InvalidRequest
from hermosis_server.identity import Role
from hermosis_server.rpc.codec.telemetry import timestamp


def role(number: int) -> str:
    """The name of a role off the wire.

    Raises:
      InvalidRequest: it is none; there is no default for what somebody may do.
    """
    try:
        return Role(number).name
    except ValueError:
        names = ", ".join(f"{member.name} ({member.value})" for member in Role)
        raise InvalidRequest(f"role is {number}; wanted one of {names}", field="role") from None


def token(record: TokenRecord) -> access_pb2.Token:
    times = {"create_time": record.created_s, "expire_time": record.expires_s, "revoke_time": record.revoked_s}
    return access_pb2.Token(
        name=record.name,
        role=_role_message(record.role),
        tenant=record.tenant,
        sessions=record.sessions,
        **{name: timestamp(seconds) for name, seconds in times.items() if seconds is not None},
    )


def audit_entry(time_s: float, record: AuditEntry) -> access_pb2.AuditEntry:
    return access_pb2.AuditEntry(
        time=timestamp(time_s),
        subject=record.subject,
        role=_role_message(record.role),
        method=record.method,
        session_id=record.session,
        token=record.token,
        request_id=record.request_id,
        outcome=record.outcome,
    )


def _role_message(name: str) -> access_pb2.Role.ValueType:
    known = Role.__members__.get(name.upper())
    return access_pb2.Role.ValueType(0 if known is None else int(known))
