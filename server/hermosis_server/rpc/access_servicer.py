"""AccessService: one method a call. Files are read and written on a thread, so that no gradient waits for them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from hermosis.v1 import access_pb2, access_pb2_grpc
from hermosis_server.access.desk import Desk
from hermosis_server.rpc.codec import access as access_codec
from hermosis_server.rpc.codec.session import fingerprint
from hermosis_server.rpc.gate import Call
from hermosis_server.rpc.requests import AnsweredRequests

DEFAULT_ENTRIES = 100
MAX_ENTRIES = 1000
# An answer may hold a secret, so few are remembered: for those who ask again because they missed it.
REMEMBERED = 100

T = TypeVar("T", bound=Message)


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """AccessService over the desk of a data folder."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._answered = AnsweredRequests(REMEMBERED)
        self._reading = asyncio.Lock()  # an audit log is long; one at a time is read

    async def CreateToken(self, request: access_pb2.CreateTokenRequest, context: Any) -> access_pb2.CreateTokenResponse:
        async def create() -> access_pb2.CreateTokenResponse:
            made = await asyncio.to_thread(
                self._desk.create,
                context.identity,
                name=request.name,
                role=access_codec.role(request.role),
                sessions=request.sessions,
                lifetime_s=request.lifetime_s,
            )
            return access_pb2.CreateTokenResponse(token=access_codec.token(made.record), secret=made.secret)

        return await self._once(context, request, create)

    async def ListTokens(self, request: access_pb2.ListTokensRequest, context: Any) -> access_pb2.ListTokensResponse:
        records = await asyncio.to_thread(self._desk.tokens, context.identity)
        return access_pb2.ListTokensResponse(tokens=map(access_codec.token, records))

    async def RevokeToken(self, request: access_pb2.RevokeTokenRequest, context: Any) -> access_pb2.RevokeTokenResponse:
        async def revoke() -> access_pb2.RevokeTokenResponse:
            record = await asyncio.to_thread(self._desk.revoke, context.identity, request.name)
            return access_pb2.RevokeTokenResponse(token=access_codec.token(record))

        return await self._once(context, request, revoke)

    async def ListAudit(self, request: access_pb2.ListAuditRequest, context: Any) -> access_pb2.ListAuditResponse:
        limit = min(request.limit or DEFAULT_ENTRIES, MAX_ENTRIES)
        async with self._reading:
            found = await asyncio.to_thread(self._desk.audit, context.identity, limit)
        return access_pb2.ListAuditResponse(entries=[access_codec.audit_entry(*each) for each in found])

    async def _once(self, call: Call, request: Any, make: Callable[[], Awaitable[T]]) -> T:
        # Of the same person: an answer may hold a secret that another operator of the tenant was not given.
        owner = call.identity.tenant, call.identity.subject
        return await self._answered.once(request.request_id, fingerprint(request), make, owner=owner)
