"""Access calls: what an operator asks of a server about tokens and about what was done."""

from typing import Literal

from hermosis.v1 import access_pb2
from hermosis_client import codec
from hermosis_client.connection import Connection, new_request_id
from hermosis_client.records import AuditEntry, NewToken, Role, TokenInfo


class AccessCalls:
    """The part of a `Client` that is for operators; each deals with its own tenant's."""

    _connection: Connection

    def create_token(
        self, name: str, role: Literal["viewer", "worker", "operator"], *, sessions: str = "", lifetime_s: float = 0.0
    ) -> NewToken:
        """Makes a token of the caller's tenant; for operators.

        Args:
          name:       to list and revoke it by.
          role:       a viewer reads; a worker also sends gradients and reads weights; an operator does everything.
          sessions:   pattern of the ids it is for, with * and ?; empty means the caller's own.
          lifetime_s: seconds that it holds; zero means for ever.

        Raises:
          PermissionDenied: it would see more than the caller, or the server asks nobody for a token.
          InvalidRequest:   there is a token of that name.
        """
        request = access_pb2.CreateTokenRequest(
            request_id=new_request_id(),
            name=name,
            role=access_pb2.Role.ValueType(_role(role)),
            sessions=sessions,
            lifetime_s=lifetime_s,
        )
        response = self._connection.call(self._connection.access_service.CreateToken, request)
        return NewToken(info=codec.token_info(response.token), secret=response.secret)

    def tokens(self) -> list[TokenInfo]:
        """The tokens of the caller's tenant, oldest first, those that hold no longer included; for operators."""
        response = self._connection.call(self._connection.access_service.ListTokens, access_pb2.ListTokensRequest())
        return [codec.token_info(token) for token in response.tokens]

    def revoke_token(self, name: str) -> TokenInfo:
        """Lets a token in no longer, and ends what goes on under it within two seconds; for operators.

        Raises:
          InvalidRequest: no valid token has this name.
        """
        request = access_pb2.RevokeTokenRequest(request_id=new_request_id(), name=name)
        response = self._connection.call(self._connection.access_service.RevokeToken, request)
        return codec.token_info(response.token)

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """The last management calls in the caller's tenant, newest first, at most a thousand; for operators."""
        request = access_pb2.ListAuditRequest(limit=limit)
        response = self._connection.call(self._connection.access_service.ListAudit, request)
        return [codec.audit_entry(entry) for entry in response.entries]


def _role(name: str) -> Role:
    known = [role.name for role in Role if role]
    if name.upper() not in known:
        raise ValueError(f"role is {name!r}; it is one of {', '.join(known).lower()}")
    return Role[name.upper()]
