"""Gate: every call passes here, before it begins and as long as it lasts.

A method gets a `Call` in place of gRPC's context: the same, and who makes it. That is handed down as an argument, so
nothing depends on which task it runs in.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from hermosis_server.access.admission import Admission
from hermosis_server.access.audit import AuditEntry, AuditLog
from hermosis_server.access.gatekeeper import Gatekeeper
from hermosis_server.engine.quotas import Meter, Quotas
from hermosis_server.errors import HermosisError, InternalError, Unauthenticated
from hermosis_server.identity import Identity
from hermosis_server.rpc.permissions import MANAGEMENT, require_permission

# How long somebody whose token was revoked may still be inside.
RECHECK_S = 1.0
MAX_NOTED = 128  # characters of what a caller wrote


class Call:
    """gRPC's context of a call, and who makes it.

    Attributes:
      identity:   of the caller.
      call_id:    made up here; for the log.
      session_id: that the call is about, as the caller wrote it; for the audit.
      request_id: by which it may be repeated; for the audit.
      token:      that is made or revoked, by its name; for the audit.
      read:       the next message, in bytes; it comes no faster than the tenant may send.
    """

    def __init__(self, context: Any, identity: Identity, meter: Meter | None = None) -> None:
        self._context = context
        self._meter = meter
        self.identity = identity
        self.read: Callable[[], Awaitable[Any]] = context.read if meter is None else self._paced_read
        self.call_id = uuid.uuid4().hex[:12]
        self.session_id = ""
        self.request_id = ""
        self.token = ""

    def note(self, message: Any) -> None:
        """Keeps what a message says about the call itself: the first that says so, a session's answer last."""
        self.session_id = self.session_id or str(getattr(message, "session_id", ""))
        self.request_id = self.request_id or str(getattr(message, "request_id", ""))
        self.token = self.token or str(getattr(message, "name", ""))

    @property
    def subject(self) -> str:
        """Who makes it, by name; for the log."""
        return self.identity.subject

    async def _paced_read(self) -> Any:
        raw = await self._context.read()
        if raw is not grpc.aio.EOF:
            await self.pace(len(raw))
        return raw

    async def pace(self, size_bytes: int) -> None:
        """Counts bytes that came on a stream, and waits until more may: HTTP/2 then holds the sender up."""
        if self._meter is not None and (wait_s := self._meter.take(size_bytes)):
            await asyncio.sleep(wait_s)

    def charge(self, size_bytes: int) -> None:
        """Counts the bytes of a call that is made at once; QuotaExceeded where they are too many."""
        if self._meter is not None:
            self._meter.require(size_bytes)

    def owe(self, size_bytes: int) -> None:
        """Counts bytes that came by another way than the stream, which then waits for them."""
        if self._meter is not None:
            self._meter.take(size_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Gate:
    """Lets calls in, and puts those out that may no longer be there.

    Args:
      gatekeeper: knows who somebody is.
      audit:      notes management calls; None where nobody wants to know.
      quotas:     measure what tenants send.
      clock:      seconds since 1970, for the expiry of tokens.
    """

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        *,
        audit: AuditLog | None,
        quotas: Quotas,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gatekeeper = gatekeeper
        self._quotas = quotas
        self._audit = audit
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
        call = Call(context, admission.identity, self._quotas.meter(admission.identity.tenant))
        outcome = "Cancelled"
        try:
            require_permission(method, admission.identity)
            async with self._while_valid(admission):
                yield call
            outcome = "OK"
        except Exception as error:
            outcome = type(error).__name__ if isinstance(error, HermosisError) else InternalError.__name__
            raise
        finally:
            if self._audit is not None and method in MANAGEMENT:
                self._audit.write(_entry(call, method, outcome))

    @asynccontextmanager
    async def _while_valid(self, admission: Admission) -> AsyncIterator[None]:
        """Ends what is done in here when the proof of who does it ends."""
        left_s = None if admission.expires_s is None else admission.expires_s - self._clock()
        limit = asyncio.timeout(left_s)
        try:
            async with limit:
                self._inside[limit] = admission
                yield
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


def _entry(call: Call, method: str, outcome: str) -> AuditEntry:
    identity = call.identity
    return AuditEntry(
        subject=identity.subject,
        tenant=identity.tenant,
        role=identity.role.name.lower(),
        method=method.rpartition("/")[2],
        session=call.session_id[:MAX_NOTED],
        request_id=call.request_id[:MAX_NOTED],
        outcome=outcome,
        token=call.token[:MAX_NOTED],
    )


def _authorization(context: Any) -> str:
    """What the caller sends as proof; of several, none, since it is not for us to choose."""
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else " " if found else ""


def _certificate(context: Any) -> bytes:
    """The client's certificate; TLS has verified it, or it would not be here."""
    shown = context.auth_context().get("x509_pem_cert", ())
    return bytes(shown[0]) if shown else b""
