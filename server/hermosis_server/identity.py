"""Identity: who makes a call, and which sessions that makes theirs. Standard library only.

A session of tenant "default" is known inside the server by its own id, any other by "tenant.id". A dot is in neither
name, so ids of different tenants never meet, and no caller can name another's session.
"""

import enum
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from hermosis.wire import SESSION_ID, is_plain_name
from hermosis_server.errors import InvalidRequest

DEFAULT_TENANT = "default"
EVERY_SESSION = "*"
MAX_SUBJECT_BYTES = 256

_PATTERN = re.compile(r"[a-z0-9*?-]{1,63}\Z")


class Role(enum.IntEnum):
    """What somebody may do; each may do what those below it may."""

    VIEWER = 1
    WORKER = 2
    OPERATOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whoever makes a call.

    Attributes:
      subject:  name of the token, certificate or person; for logs, it decides nothing.
      tenant:   whose sessions are seen.
      role:     what may be done with them.
      sessions: pattern of ids, with * and ?; other sessions are as if they were not there.
    """

    subject: str
    tenant: str = DEFAULT_TENANT
    role: Role = Role.VIEWER
    sessions: str = EVERY_SESSION

    def full_name(self, session_id: str) -> str | None:
        """How the server knows a session that this caller calls so; None for what is no id, or not theirs to name."""
        if not (SESSION_ID.match(session_id) and fnmatchcase(session_id, self.sessions)):
            return None
        return full_name(self.tenant, session_id)

    def sees(self, name: str) -> bool:
        """Whether a session, by the name the server knows it by, is theirs to see."""
        tenant, session_id = parted(name)
        return tenant == self.tenant and (self.sessions == EVERY_SESSION or fnmatchcase(session_id, self.sessions))


# Everybody, where no authentication is configured: whoever reaches the port is on this machine.
LOCAL_OPERATOR = Identity(subject="local", role=Role.OPERATOR)


def full_name(tenant: str, session_id: str) -> str:
    """The name of a tenant's session inside the server."""
    return session_id if tenant == DEFAULT_TENANT else f"{tenant}.{session_id}"


def parted(name: str) -> tuple[str, str]:
    """Tenant and id of a session, from the name the server knows it by."""
    tenant, _, session_id = name.rpartition(".")
    return tenant or DEFAULT_TENANT, session_id


def shown_id(name: str) -> str:
    """What callers call a session that the server knows by this name."""
    return name.rpartition(".")[2]


def checked_identity(*, subject: str, tenant: str, role: str, sessions: str) -> Identity:
    """An identity from the words of a token, a claim or a certificate.

    Raises:
      InvalidRequest: naming the word that will not do, and what will.
    """
    for good, field, got, wanted in (
        (is_plain_name(subject, MAX_SUBJECT_BYTES), "subject", subject, "1 to 256 bytes without control characters"),
        (bool(SESSION_ID.match(tenant)), "tenant", tenant, "1 to 63 of a-z, 0-9 and '-'"),
        (role.upper() in Role.__members__, "role", role, "operator, worker or viewer"),
        (bool(_PATTERN.match(sessions)), "sessions", sessions, "1 to 63 of a-z, 0-9, '-', '*' and '?'"),
    ):
        if not good:
            raise InvalidRequest(f"{field} is {got[:80]!r}; wanted {wanted}", field=field)
    return Identity(subject=subject, tenant=tenant, role=Role[role.upper()], sessions=sessions)
