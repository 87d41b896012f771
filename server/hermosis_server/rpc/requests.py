"""Requests: a management call that comes again under its request_id is answered with the first answer."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from hermosis_server.errors import InvalidRequest, PayloadMismatch

T = TypeVar("T")

MAX_REQUEST_ID_BYTES = 128


class AnsweredRequests:
    """The last answers by request_id. Failures are not remembered: trying again may help.

    Args:
      capacity: how many are remembered; the oldest is forgotten first.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[str, tuple[bytes, asyncio.Future[Any]]] = OrderedDict()

    async def once(self, request_id: str, fingerprint: bytes, make: Callable[[], Awaitable[T]]) -> T:
        """Makes the answer, or waits for the one that is being made, or gives the one that was.

        Raises:
          PayloadMismatch: the id came before with another request.
        """
        if not request_id:
            return await make()
        if len(request_id) > MAX_REQUEST_ID_BYTES:
            raise InvalidRequest(
                f"request_id has {len(request_id)} characters; at most {MAX_REQUEST_ID_BYTES} are kept",
                field="request_id",
            )
        known = self._answers.get(request_id)
        if known is None:
            task: asyncio.Future[Any] = asyncio.ensure_future(make())
            self._answers[request_id] = (fingerprint, task)
            task.add_done_callback(lambda done: self._keep_only_success(request_id, done))
            while len(self._answers) > self._capacity:
                self._answers.popitem(last=False)
        else:
            task = known[1]
            if known[0] != fingerprint:
                raise PayloadMismatch(
                    f"request_id {request_id!r} came before with another request; give each request an id of its own",
                    field="request_id",
                )
        # The caller may go away; what it asked for goes on, and its repeat finds the answer.
        answer: T = await asyncio.shield(task)
        return answer

    def _keep_only_success(self, request_id: str, done: "asyncio.Future[Any]") -> None:
        if done.cancelled() or done.exception() is not None:
            self._answers.pop(request_id, None)
