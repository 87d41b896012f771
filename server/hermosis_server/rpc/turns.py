"""Turns: who may be served in this pass of the event loop, so that one that floods it is one among many.

A pass serves all streams that have a message. Where eight workers flood the server for one session, an answer to any
other would wait for all eight at each of its hand-overs. So each session has one message a pass as long as another
session has any; and large messages, which take as long as twenty small ones, go one a pass whoever sends them.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Final

HEAVY_BYTES: Final = 64 << 10


class _Large:
    """Who sends large messages, all together."""


LARGE: Final = _Large()


class Turns:
    """One a pass for each, first come, first served. Used from the rpc thread only."""

    def __init__(self) -> None:
        self._served: set[Hashable] = set()  # in this pass
        self._several = False  # had a turn in the pass before
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
        self._several = len(self._served) > 1
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
