"""Overviews: how the server does, asked once every few seconds for all viewers of a token together."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from hermosis_client import Overview, errors

_Item = TypeVar("_Item")
_Extra = TypeVar("_Extra")


class Overviews:
    """Used on the event loop alone. Nothing is asked while nobody views.

    Args:
      ask:        the overview that a token may see; called on a thread.
      interval_s: between two of them.
      clock:      monotonic seconds.
    """

    def __init__(
        self, ask: Callable[[str], Overview], *, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._interval_s = interval_s
        self._clock = clock
        self._asked: dict[str, tuple[float, asyncio.Task[Overview]]] = {}

    async def follow(self, token: str) -> AsyncIterator[Overview]:
        """One at once and then one an interval, save while the server is away."""
        while True:
            with contextlib.suppress(errors.HermosisError):  # Viewers are told otherwise whether the server is there.
                yield await self._newest(token)
            await asyncio.sleep(self._interval_s)

    async def _newest(self, token: str) -> Overview:
        """What was asked less than an interval ago, or is just being asked; else it is asked now."""
        now_s = self._clock()
        # A hair less than the interval, or a viewer that comes every interval would get the one before, again.
        self._asked = {key: each for key, each in self._asked.items() if now_s - each[0] < 0.9 * self._interval_s}
        if token not in self._asked:
            task = asyncio.create_task(asyncio.to_thread(self._ask, token))
            task.add_done_callback(_hear)
            self._asked[token] = now_s, task
        return await asyncio.shield(self._asked[token][1])


def _hear(task: asyncio.Task[Overview]) -> None:
    """Takes note of a failure that nobody waited for any more."""
    if not task.cancelled():
        task.exception()


async def together(first: AsyncIterator[_Item], second: AsyncIterator[_Extra]) -> AsyncIterator[_Item | _Extra]:
    """What either gives, as it comes, until the first ends."""
    sources: tuple[AsyncIterator[_Item | _Extra], ...] = (first, second)
    waiting: dict[asyncio.Future[_Item | _Extra], AsyncIterator[_Item | _Extra]] = {
        asyncio.ensure_future(anext(source)): source for source in sources
    }
    try:
        while True:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                source = waiting.pop(future)
                try:
                    yield future.result()
                except StopAsyncIteration:
                    if source is first:
                        return
                else:
                    waiting[asyncio.ensure_future(anext(source))] = source
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
