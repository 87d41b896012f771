"""Issuer: JSON Web Tokens of an identity provider (OpenID Connect), checked with its published keys."""

import asyncio
import hashlib
import ipaddress
import json
import logging
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt

from hermosis_server.access.admission import Admission
from hermosis_server.errors import InvalidRequest, Recovering, Unauthenticated
from hermosis_server.identity import DEFAULT_TENANT, EVERY_SESSION, checked_identity

logger = logging.getLogger(__name__)

# Asymmetric only. With "none" or HMAC whoever knows a public key could sign.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S = 10.0  # Clocks of two machines are never quite the same.
REFRESH_S = 60.0
FETCH_S = 5.0
MAX_DOCUMENT_BYTES = 1 << 20
MAX_KNOWN = 10_000

Fetch = Callable[[str], Any]


class Issuer:
    """One identity provider.

    Args:
      issuer:   its address, which "iss" must be.
      audience: one of which "aud" must be: this service, as the provider knows it.
      keys_url: where its keys are; empty asks its discovery document.
      fetch:    gets a JSON document; called on a thread.
      clock:    seconds since 1970.
      steady:   monotonic seconds.

    Raises:
      InvalidRequest: an address is not one from which keys may be had.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        keys_url: str = "",
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        for url in filter(None, (issuer, keys_url)):
            checked_url(url)
        self._issuer = issuer
        self._audience = audience
        self._keys_url = keys_url
        self._fetch = fetch or _fetched
        self._clock = clock
        self._steady = steady
        self._keys: dict[str, jwt.PyJWK] = {}
        self._asked_s = float("-inf")
        self._asking = asyncio.Lock()
        self._known: OrderedDict[bytes, Admission] = OrderedDict()

    async def admit(self, token: str) -> Admission:
        """Whom a token lets in.

        Raises:
          Unauthenticated: it does not hold; says which part.
          Recovering:      the provider's keys could not be had yet.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and known.expires_s is not None and known.expires_s > self._clock():
            return known
        admission = self._admission(await self._claims(token))
        self._known[digest] = admission
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return admission

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            head = jwt.get_unverified_header(token)
            algorithm, key_id = head.get("alg"), head.get("kid", "")
            if algorithm not in ALGORITHMS or not isinstance(key_id, str):
                raise Unauthenticated(
                    f"the token is signed with {str(algorithm)[:20]!r}; wanted {', '.join(ALGORITHMS)}"
                )
            key = await self._key(key_id)
            if key.algorithm_name != algorithm:
                raise Unauthenticated(f"the token is signed with {algorithm}, its key is for {key.algorithm_name}")
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token does not hold: {type(error).__name__}: {error}"[:300]) from None
        return claims

    def _admission(self, claims: dict[str, Any]) -> Admission:
        words = {
            "subject": claims["sub"],
            "tenant": claims.get("hermosis_tenant", DEFAULT_TENANT),
            "role": claims.get("hermosis_role", ""),
            "sessions": claims.get("hermosis_sessions", EVERY_SESSION),
        }
        try:
            if not all(isinstance(word, str) for word in words.values()):
                raise InvalidRequest("a claim is not text")
            return Admission(identity=checked_identity(**words), expires_s=float(claims["exp"]) + LEEWAY_S)
        except InvalidRequest as error:
            raise Unauthenticated(
                f"the claims of the token name nobody that this server can know: {error}; wanted hermosis_role, and "
                "where they are needed hermosis_tenant and hermosis_sessions"
            ) from None

    async def _key(self, key_id: str) -> jwt.PyJWK:
        """The key of an id; asks the provider for its keys where it is new, but not at everybody's whim."""
        if key_id in self._keys:
            return self._keys[key_id]
        async with self._asking:
            if key_id not in self._keys and self._steady() - self._asked_s >= REFRESH_S:
                self._asked_s = self._steady()
                try:
                    self._keys = await asyncio.to_thread(self._fetched_keys)
                except (OSError, ValueError, LookupError, TypeError, InvalidRequest, jwt.PyJWTError) as error:
                    logger.warning("event=keys_not_fetched issuer=%s reason=%r", self._issuer, str(error))
        if key_id in self._keys:
            return self._keys[key_id]
        if not self._keys:
            left_s = max(1.0, REFRESH_S - (self._steady() - self._asked_s))
            raise Recovering("the keys of the identity provider could not be had yet", retry_after_s=left_s)
        raise Unauthenticated(f"the token's key {key_id[:80]!r} is none of the identity provider's")

    def _fetched_keys(self) -> dict[str, jwt.PyJWK]:
        url = self._keys_url or self._discovered()
        keys = jwt.PyJWKSet.from_dict(self._document(url)).keys
        usable = {key.key_id or "": key for key in keys if key.public_key_use in (None, "sig")}
        return {name: key for name, key in usable.items() if key.algorithm_name in ALGORITHMS}

    def _document(self, url: str) -> dict[str, Any]:
        document = self._fetch(url)
        if not isinstance(document, dict):
            raise ValueError(f"{url} answers with no JSON object")
        return document

    def _discovered(self) -> str:
        document = self._document(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        if document["issuer"] != self._issuer:
            raise ValueError(f"the discovery document is of {document['issuer']!r}")
        return checked_url(document["jwks_uri"])


def checked_url(url: str) -> str:
    """An address from which keys may be had: keys that came in clear text would be anybody's.

    Raises:
      InvalidRequest: it is neither https nor on this machine.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" and host:
        return url
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if parts.scheme == "http" and local:
        return url
    raise InvalidRequest(f"{url[:200]!r} is no https address, from which alone keys may be had", field="oidc_issuer")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection could lead out of https."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


def _fetched(url: str) -> Any:
    with urllib.request.build_opener(_NoRedirect).open(checked_url(url), timeout=FETCH_S) as answer:
        document = answer.read(MAX_DOCUMENT_BYTES + 1)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{url} answers with more than {MAX_DOCUMENT_BYTES} bytes")
    return json.loads(document)
