"""What every request passes: who may ask, how much may be sent, and what a browser is told to allow.

The server judges callers by the tokens that they bring. Where it asks for none, the danger is a foreign web page in the
browser of somebody who can reach the sidecar. Such a page is kept out by the Host header (a name of its own that
resolves to our address) and by Sec-Fetch-Site and Origin (a request sent across sites).
"""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hermosis_client import errors
from hermosis_sidecar.problems import response_to, response_to_unforeseen

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware.

    Args:
      app:            what is guarded.
      hosts:          names in the Host header that are answered; None means any.
      max_body_bytes: largest request body.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str] | None, max_body_bytes: int) -> None:
        self._app = app
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, _Bounded(receive, self._max_body_bytes), send_with_headers)
        except Exception as error:
            if started:
                raise
            response = response_to_unforeseen(error, scope["method"], scope["path"])
            await response(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return response_to(
                errors.PermissionDenied(
                    f"this sidecar does not answer to the host name {host!r}; "
                    "HERMOSIS_SIDECAR_ALLOWED_HOSTS names those it answers to"
                )
            )
        if scope["method"] not in _SAFE_METHODS and _crosses_sites(headers, host):
            return response_to(errors.PermissionDenied("a page of another site may not change anything here"))
        return None


class _Bounded:
    """Receives a body up to a limit, whatever its Content-Length says."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._most = most
        self._left = most

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, f"the request body is larger than {self._most} bytes")
        return message


def _name(host: str) -> str:
    """The Host header without its port, in lower case."""
    return host.lower() if host.endswith("]") else host.lower().rpartition(":")[0] or host.lower()


def _crosses_sites(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != host
