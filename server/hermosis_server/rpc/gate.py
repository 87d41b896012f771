"""Gate: every call passes here, before it begins and as long as it lasts.

A method gets a `Call` in place of gRPC's context: the same, and who makes it. That is handed down as an argument, so
nothing depends on which task it runs in.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from hermosis_server.access.admission import Admission
from hermosis_server.access.gatekeeper import Gatekeeper
from hermosis_server.errors import Unauthenticated
from hermosis_server.identity import Identity
from hermosis_server.rpc.permissions import require_permission

# How long somebody whose token was revoked may still be inside.
RECHECK_S = 1.0


class Call:
    """gRPC's context of a call, and who makes it.

    Attributes:
      identity: of the caller.
    """

    def __init__(self, context: Any, identity: Identity) -> None:
        self._context = context
        self.identity = identity

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Gate:
    """Lets calls in, and puts those out that may no longer be there.

    Args:
      gatekeeper: knows who somebody is.
      clock:      seconds since 1970, for the expiry of tokens.
    """

    def __init__(self, gatekeeper: Gatekeeper, *, clock: Callable[[], float] = time.time) -> None:
        self._gatekeeper = gatekeeper
        self._clock = clock
        self._inside: dict[asyncio.Timeout, Admission] = {}
        self._watching: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def admitted(self, method: str, context: Any) -> AsyncIterator[Call]:
        """A call, for as long as whoever makes it may.

        Raises:
          Unauthenticated:  nobody that is known, or no longer.
          PermissionDenied: somebody who may not do this.
        """
        admission = await self._gatekeeper.admit(_authorization(context), _certificate(context))
        require_permission(method, admission.identity)
        left_s = None if admission.expires_s is None else admission.expires_s - self._clock()
        limit = asyncio.timeout(left_s)
        try:
            async with limit:
                self._inside[limit] = admission
                yield Call(context, admission.identity)
        except TimeoutError:
            if limit.expired():
                self._gatekeeper.require_still(admission)  # says why, where it knows
                raise Unauthenticated("the token expired while the call went on; connect again with another") from None
            raise
        finally:
            self._inside.pop(limit, None)

    def recheck(self) -> None:
        """Ends the calls of those whose token was revoked."""
        self._gatekeeper.refresh()
        for limit, admission in self._inside.items():
            try:
                self._gatekeeper.require_still(admission)
            except Unauthenticated:
                limit.reschedule(asyncio.get_running_loop().time())

    def start(self) -> None:
        """Begins to look for revoked tokens now and then."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(RECHECK_S)
                self.recheck()

        self._watching = asyncio.ensure_future(watch())

    def stop(self) -> None:
        """Looks no longer."""
        if self._watching is not None:
            self._watching.cancel()


def _authorization(context: Any) -> str:
    """What the caller sends as proof; of several, none, since it is not for us to choose."""
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else " " if found else ""


def _certificate(context: Any) -> bytes:
    """The client's certificate; TLS has verified it, or it would not be here."""
    shown = context.auth_context().get("x509_pem_cert", ())
    return bytes(shown[0]) if shown else b""
