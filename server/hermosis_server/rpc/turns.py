"""Turns: who may be served in this pass of the event loop, so that one that floods it is one among many.

A pass serves all streams that have a message. Where eight workers flood the server for one session, an answer to any
other would wait for all eight at each of its hand-overs. So each session has one message a pass as long as another
one is there; and large messages, which take as long as twenty small ones, go one a pass whoever sends them.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Final

HEAVY_BYTES: Final = 64 << 10
# A session whose worker waits for an answer has no message in most passes, and is there all the same.
COMPANY_S: Final = 0.05


class _Large:
    """Who sends large messages, all together."""


LARGE: Final = _Large()


class Turns:
    """One a pass for each, first come, first served. Used from the rpc thread only."""

    def __init__(self) -> None:
        self._served: set[Hashable] = set()  # in this pass
        self._last: Hashable = None  # who was served alone last
        self._company_s = 0.0  # until when several count as being there; on the loop's clock
        self._several = False  # are there
        self._waiting: deque[tuple[Hashable, asyncio.Future[None]]] = deque()

    def take(self, who: Hashable) -> bool:
        """Whether it is the caller's turn now; else `wait` for it."""
        if who not in self._served:
            if not self._served:
                asyncio.get_running_loop().call_soon(self._next)
            self._served.add(who)
            return True
        return who is not LARGE and not self._several and len(self._served) == 1

    async def wait(self, who: Hashable) -> None:
        """Comes back in a pass in which it is the caller's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((who, turn))
        await turn

    def _next(self) -> None:
        """Another pass: those that wait have the first turns of it."""
        now_s = asyncio.get_running_loop().time()
        if self._last not in self._served or len(self._served) > 1:
            self._company_s = now_s + COMPANY_S
            self._last = next(iter(self._served))
        self._several = now_s < self._company_s
        self._served.clear()
        waiting, self._waiting = self._waiting, deque()
        for who, turn in waiting:
            if turn.done():  # it has gone
                continue
            if who in self._served:
                self._waiting.append((who, turn))
            else:
                self._served.add(who)
                turn.set_result(None)
        if self._served:
            asyncio.get_running_loop().call_soon(self._next)
