"""Outbox: what one stream still has to write, and how much of its window that takes."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator


class Outbox:
    """Answers on their way to one worker. Used from the rpc thread only.

    Args:
      window_bytes: payload of answers that are due or being written at which reading should pause.
    """

    def __init__(self, window_bytes: int) -> None:
        self._window_bytes = window_bytes
        self._taken_bytes = 0
        self._due = 0
        self._ended = False
        self._waiting: deque[tuple[Iterable[bytes], int]] = deque()
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def expect(self, window_bytes: int) -> None:
        """An answer is due that takes as much of the window until it is written; `put` brings it."""
        self._due += 1
        self._taken_bytes += window_bytes

    def put(self, messages: Iterable[bytes], window_bytes: int) -> None:
        """The answer that was expected: messages that follow one another, made as they are written."""
        self._due -= 1
        self._waiting.append((messages, window_bytes))
        _wake(self._news)

    def put_now(self, message: bytes) -> None:
        """An answer that nothing had to be waited for."""
        self._waiting.append(((message,), 0))
        _wake(self._news)

    def end(self) -> None:
        """No more answers will be expected; those that are due still come."""
        self._ended = True
        _wake(self._news)

    @property
    def full(self) -> bool:
        """Whether the window is exceeded."""
        return self._taken_bytes > self._window_bytes

    async def room(self) -> None:
        """Waits until the window is no longer exceeded."""
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def next(self) -> tuple[Iterator[bytes], int] | None:
        """The next answer with its part of the window, for `written`; None after the last."""
        while not self._waiting:
            if self._ended and not self._due:
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        messages, window_bytes = self._waiting.popleft()
        return iter(messages), window_bytes

    def written(self, window_bytes: int) -> None:
        """Gives an answer's part of the window back."""
        self._taken_bytes -= window_bytes
        if not self.full:
            _wake(self._room)


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
