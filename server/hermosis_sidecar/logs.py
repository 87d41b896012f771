"""Logs: the lines of the sidecar, each with the request that it is about.

The answer tells the request's number as X-Request-Id, and whoever sends one keeps theirs.
"""

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hermosis import lines

_HEADER = "x-request-id"
_GOOD = re.compile(r"[\w.-]{1,64}", re.ASCII)

_request: ContextVar[str] = ContextVar("hermosis_request", default="")


def configure(*, level: str, style: str) -> None:
    """Sends every logger's lines to standard error, in the level and style of the settings."""
    lines.configure(level=level, style=style, ids=lambda: {"request": _request.get()})


class Numbered:
    """ASGI middleware that binds each request's number to the lines written for it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(_HEADER, "")
        number = given if _GOOD.fullmatch(given) else uuid.uuid4().hex[:12]

        async def send_with_number(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = number
            await send(message)

        token = _request.set(number)  # a connection that is kept alive may bring the next in the same task
        try:
            await self._app(scope, receive, send_with_number)
        finally:
            _request.reset(token)
