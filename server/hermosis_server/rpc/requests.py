"""Requests: a management call that comes again under its request_id is answered with the first answer."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from hermosis_server.errors import InvalidRequest, Overloaded, PayloadMismatch

T = TypeVar("T", bound=Message)

MAX_REQUEST_ID_BYTES = 128
MAX_UNDER_WAY = 1024
RETRY_AFTER_S = 0.25


@dataclass(slots=True)
class _Answered:
    fingerprint: bytes
    answer: asyncio.Future[Any]
    size_bytes: int = 0


class AnsweredRequests:
    """The last answers by request_id. Failures are not remembered: trying again may help.

    Args:
      capacity:       how many are remembered; the oldest is forgotten first.
      capacity_bytes: how long all remembered answers together may be.
    """

    def __init__(self, capacity: int = 10_000, capacity_bytes: int = 64 << 20) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._size_bytes = 0
        self._under_way = 0
        self._known: OrderedDict[tuple[str, ...], _Answered] = OrderedDict()

    async def once(
        self, request_id: str, fingerprint: bytes, make: Callable[[], Awaitable[T]], *, owner: tuple[str, ...] = ()
    ) -> T:
        """Makes the answer, or waits for the one that is being made, or gives the one that was.

        Args:
          owner: whose request it is; ids of different owners have nothing to do with each other.

        Raises:
          PayloadMismatch: the id came before with another request.
          Overloaded:      too many are being made; whoever asked for them may have gone.
        """
        if not request_id:
            return await make()
        if len(request_id) > MAX_REQUEST_ID_BYTES:
            raise InvalidRequest(
                f"request_id has {len(request_id)} characters; at most {MAX_REQUEST_ID_BYTES} are kept",
                field="request_id",
            )
        key = *owner, request_id
        known = self._known.get(key)
        if known is None:
            if self._under_way >= MAX_UNDER_WAY:
                raise Overloaded(
                    f"{self._under_way} calls are being carried out, the most at a time; call again shortly",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._under_way += 1
            known = _Answered(fingerprint, asyncio.ensure_future(make()))
            self._known[key] = known
            known.answer.add_done_callback(lambda done: self._settle(key, done))
        elif known.fingerprint != fingerprint:
            raise PayloadMismatch(
                f"request_id {request_id!r} came before with another request; give each request an id of its own",
                field="request_id",
            )
        # The caller may go away; what it asked for goes on, and its repeat finds the answer.
        answer: T = await asyncio.shield(known.answer)
        return answer

    def _settle(self, key: tuple[str, ...], done: "asyncio.Future[Any]") -> None:
        self._under_way -= 1
        if done.cancelled() or done.exception() is not None:
            self._known.pop(key, None)
            return
        if (known := self._known.get(key)) is not None:
            known.size_bytes = done.result().ByteSize()
            self._size_bytes += known.size_bytes
        while len(self._known) > self._capacity or self._size_bytes > self._capacity_bytes:
            _, oldest = self._known.popitem(last=False)
            self._size_bytes -= oldest.size_bytes
