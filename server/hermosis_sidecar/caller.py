"""Caller: what a request brings to show who sends it, which is passed on to the server and judged there."""

import hmac

from starlette.requests import Request

from hermosis_client import Client, errors

_SCHEME = "bearer "


def token_of(request: Request) -> str:
    """The token of a request; empty where it has none.

    Raises:
      Unauthenticated: its Authorization is of another kind.
    """
    authorization = request.headers.get("authorization", "")
    if not authorization:
        return ""
    if not authorization.lower().startswith(_SCHEME):
        raise errors.Unauthenticated("Authorization is not written 'Bearer …', with a token of the server")
    return authorization[len(_SCHEME) :].strip()


def under_token(client: Client, token: str) -> Client:
    """The client as the bearer of a token, who has no part in the sidecar's own.

    Raises:
      Unauthenticated: it cannot be passed on.
    """
    try:
        return client.with_token(token)
    except ValueError as error:
        raise errors.Unauthenticated(f"the sidecar cannot pass this token on: {error}") from None


def is_own(token: str, own_token: str) -> bool:
    """Whether a caller has the sidecar's own token; takes as long whatever it is."""
    return bool(own_token) and hmac.compare_digest(token.encode(), own_token.encode())
