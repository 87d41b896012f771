"""Turns: large messages go one a pass of the event loop, so that small ones of other streams come in between.

To check and copy a chunk takes as long as twenty small messages. Where eight streams send chunks, a small message would
wait for all eight; so it waits for one. A stream alone never waits: it is its turn in every pass.
"""

import asyncio
from collections import deque

HEAVY_BYTES = 64 << 10


class Turns:
    """First come, first served. Used from the rpc thread only."""

    def __init__(self) -> None:
        self._taken = False  # in this pass
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def mine(self) -> None:
        """Waits for the caller's turn; what it does until it next waits is its turn."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            await turn
            return
        self._taken = True
        loop.call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # one who has gone waits no more
                turn.set_result(None)
                # It acts in the next pass, and whoever follows in the one after.
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._taken = False
