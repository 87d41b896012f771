"""Desk: what operators may do with the tokens of their tenant, and see of what its people did.

An operator whose sessions are limited by a pattern deals with what lies within it: others' tokens are as if they were
not there, and it makes none that sees more than itself. No identity spans tenants; who owns the data folder does.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hermosis_server.access import audit_reader
from hermosis_server.access.audit import AuditEntry
from hermosis_server.access.tokens import TokenFile, TokenRecord, fingerprint
from hermosis_server.errors import InvalidRequest, PermissionDenied
from hermosis_server.identity import EVERY_SESSION, LOCAL_OPERATOR, Identity

MAX_LIFETIME_S = 100 * 365 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token that was just made.

    Attributes:
      secret: what its bearer sends; it is kept nowhere.
    """

    record: TokenRecord
    secret: str


class Desk:
    """Over the files of a data folder, which are opened at each call: a thread may make it.

    Args:
      folder: of the server's data.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, by: Identity, *, name: str, role: str, sessions: str, lifetime_s: float) -> NewToken:
        """Makes a token of the caller's tenant.

        Args:
          sessions:   pattern of what it sees; empty means the caller's.
          lifetime_s: zero means for ever.

        Raises:
          PermissionDenied: it would see more than its maker, or nobody knows who asks.
          InvalidRequest:   there is one of this name, or a word will not do.
        """
        if by is LOCAL_OPERATOR:
            # Its first token would shut everybody else out, for good.
            raise PermissionDenied(
                "this server asks nobody who they are, so it cannot know whom it would give a token; make the first "
                "one on the server's machine with 'hermosis token create'"
            )
        if not 0 <= lifetime_s <= MAX_LIFETIME_S:
            raise InvalidRequest(
                f"lifetime_s is {lifetime_s}; wanted seconds up to {MAX_LIFETIME_S:.0f}, or 0 for ever",
                field="lifetime_s",
            )
        sessions = sessions or by.sessions
        tokens = TokenFile(self._folder)
        if not lies_within(sessions, by.sessions):
            raise PermissionDenied(
                f"{by.subject} may make tokens for sessions within {by.sessions} only, not for {sessions[:80]}",
                field="sessions",
            )
        secret = tokens.create(name, role=role, tenant=by.tenant, sessions=sessions, lifetime_s=lifetime_s or None)
        record = next(record for record in tokens.records if record.fingerprint == fingerprint(secret))
        return NewToken(record=record, secret=secret)

    def tokens(self, by: Identity) -> list[TokenRecord]:
        """The tokens within the caller's reach, oldest first."""
        return [record for record in TokenFile(self._folder).records if _reaches(by, record)]

    def revoke(self, by: Identity, name: str) -> TokenRecord:
        """Lets a token in no longer.

        Raises:
          InvalidRequest: no valid token within the caller's reach has this name.
        """
        tokens = TokenFile(self._folder)
        valid = [record for record in tokens.records if record.revoked_s is None and _reaches(by, record)]
        if name not in {record.name for record in valid}:
            raise InvalidRequest(f"there is no token {name[:80]!r}; list the tokens to see them", field="name")
        return tokens.revoke(name, tenant=by.tenant)

    def audit(self, by: Identity, limit: int) -> list[tuple[float, AuditEntry]]:
        """What was done in the caller's tenant, newest first, with the time of each."""

        def wanted(entry: AuditEntry) -> bool:
            return by.sessions == EVERY_SESSION or (
                fnmatchcase(entry.session, by.sessions) if entry.session else entry.subject == by.subject
            )

        return audit_reader.newest(self._folder, tenant=by.tenant, limit=limit, wanted=wanted)


def lies_within(pattern: str, other: str) -> bool:
    """Whether every id that a pattern matches is one that another matches.

    In doubt it says no: a wildcard may be matched by a star only, and so by nothing where there is a question mark too.
    """
    if pattern == other or other == EVERY_SESSION:
        return True
    plain = not set("*?") & set(pattern)
    return (plain or "?" not in other) and fnmatchcase(pattern, other)


def _reaches(by: Identity, record: TokenRecord) -> bool:
    return record.tenant == by.tenant and lies_within(record.sessions, by.sessions)
