"""Gatekeeper: from what a call brings with it to who makes it."""

import logging

from hermosis_server.access.admission import Admission
from hermosis_server.access.certificates import admission_of
from hermosis_server.access.issuer import Issuer
from hermosis_server.access.tokens import PREFIX, TokenFile
from hermosis_server.errors import InvalidRequest, Unauthenticated
from hermosis_server.identity import LOCAL_OPERATOR

logger = logging.getLogger(__name__)

# Longer ones are not looked at; identity providers stay well below.
MAX_TOKEN_BYTES = 8192
_SCHEME = "bearer "


class Gatekeeper:
    """Knows who somebody is.

    Without anything configured everybody is the local operator. That ends for good with the first token in the file.

    Args:
      tokens:             of the data folder; None where there is none.
      require_token:      asks for a token even where there is none yet, and of those who show a certificate too.
      issuer:             of JSON Web Tokens; None takes none.
      takes_certificates: whether TLS has asked for a client certificate and verified it.
    """

    def __init__(
        self,
        tokens: TokenFile | None = None,
        *,
        require_token: bool = False,
        issuer: Issuer | None = None,
        takes_certificates: bool = False,
    ) -> None:
        self._tokens = tokens
        self._require_token = require_token
        self._takes_certificates = takes_certificates
        self._issuer = issuer
        self._asks_for_token = require_token or issuer is not None or bool(tokens and tokens.records)

    @property
    def asks(self) -> bool:
        """Whether anybody has to prove who they are."""
        return self._asks_for_token or self._takes_certificates

    async def admit(self, authorization: str, certificate: bytes = b"") -> Admission:
        """Who makes a call. A token that is sent decides, whatever else there is.

        Args:
          authorization: the call's metadata of that name, "Bearer …"; or empty.
          certificate:   of the client, in PEM, verified; or empty.

        Raises:
          Unauthenticated: the proof is missing or does not hold.
        """
        self.refresh()  # A look at the file's date: who was revoked a moment ago is out.
        if not self.asks:
            # What is not asked for is not looked at: a client keeps its settings when a server is opened up.
            return Admission(identity=LOCAL_OPERATOR)
        if authorization:
            return await self._bearer(authorization)
        if certificate and self._takes_certificates and not self._require_token:
            return admission_of(certificate)
        raise Unauthenticated("this server asks for a token; send it as 'authorization: Bearer …'")

    async def _bearer(self, authorization: str) -> Admission:
        if len(authorization) > MAX_TOKEN_BYTES or not authorization.lower().startswith(_SCHEME):
            raise Unauthenticated("authorization is not written 'Bearer …', or is too long")
        token = authorization[len(_SCHEME) :].strip()
        if token.startswith(PREFIX) and self._tokens is not None:
            return self._tokens.admit(token)
        if self._issuer is not None:
            return await self._issuer.admit(token)
        raise Unauthenticated("the token is of no kind that this server takes")

    def refresh(self) -> bool:
        """Hears of tokens that were made or revoked; whether there were any. Never opens the server up."""
        if self._tokens is None:
            return False
        try:
            changed = self._tokens.refresh()
        except InvalidRequest as error:
            logger.error("event=tokens_unreadable reason=%r", str(error))
            return False
        self._asks_for_token = self._asks_for_token or bool(self._tokens.records)
        return changed

    def require_still(self, admission: Admission) -> None:
        """Raises Unauthenticated when the proof of somebody who is inside already no longer holds."""
        if admission.fingerprint and self._tokens is not None:
            self._tokens.admission(admission.fingerprint)
        elif self.asks and admission.identity is LOCAL_OPERATOR:
            raise Unauthenticated("this server asks for a token since the call began; send one")
