"""Outbox: what one stream still has to write, how much of its window that takes, and whose memory it is."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hermosis_server.engine.budget import Budget

MAX_ANSWERS = 1024  # under way; what is known of one takes memory beside its payload


class _Entry(NamedTuple):
    messages: Iterable[bytes]
    window_bytes: int
    budget: Budget | None
    held_bytes: int


class Outbox:
    """Answers on their way to one worker. Used from the rpc thread only.

    Reading should pause while the window is exceeded. Only answers count that come whatever the worker does next: if
    one that waits for other workers did, and they are on the same stream, all of them would wait for ever.

    Args:
      window_bytes: payload of answers at which reading should pause.

    Attributes:
      written_messages: so far; it does not grow while the worker reads nothing.
    """

    def __init__(self, window_bytes: int) -> None:
        self.written_messages = 0
        self._window_bytes = window_bytes
        self._taken_bytes = 0
        self._answers = 0
        self._due = 0
        self._ended = False
        self._closed = False
        self._waiting: deque[_Entry] = deque()
        self._writing: _Entry | None = None
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def expect(self, window_bytes: int, *, sure: bool = True) -> None:
        """An answer is due that takes as much of the window until it is written; `put` brings it.

        Args:
          sure: it comes whatever the worker does; else it counts from when it has come.
        """
        self._due += 1
        if sure:
            self._count(window_bytes)

    def put(
        self,
        messages: Iterable[bytes],
        window_bytes: int,
        *,
        sure: bool = True,
        budget: Budget | None = None,
        held_bytes: int = 0,
    ) -> None:
        """The answer that was expected: messages that follow one another, made as they are written.

        Args:
          budget:     that has counted the memory of the answer; it is given back when that is written, or will not be.
          held_bytes: which it has counted.
        """
        if self._closed:
            if budget is not None:
                budget.give(held_bytes)
            return
        self._due -= 1
        if not sure:
            self._count(window_bytes)
        self._waiting.append(_Entry(messages, window_bytes, budget, held_bytes))
        _wake(self._news)

    def put_now(self, message: bytes) -> None:
        """An answer that nothing had to be waited for."""
        self._count(len(message))
        self._waiting.append(_Entry((message,), len(message), None, 0))
        _wake(self._news)

    def end(self) -> None:
        """No more answers will be expected; those that are due still come."""
        self._ended = True
        _wake(self._news)

    def close(self) -> None:
        """Nobody will read any more: drops what there is and what still comes."""
        self._closed = True
        gone = [*self._waiting, *([self._writing] if self._writing else [])]
        self._waiting.clear()
        self._writing = None
        for entry in gone:
            if entry.budget is not None:
                entry.budget.give(entry.held_bytes)

    @property
    def unread(self) -> bool:
        """Whether the worker has something to read."""
        return self._writing is not None or bool(self._waiting)

    @property
    def owes(self) -> bool:
        """Whether an answer is due, or not all written."""
        return self._due > 0 or self.unread

    @property
    def full(self) -> bool:
        """Whether the window is exceeded."""
        return self._taken_bytes > self._window_bytes or self._answers > MAX_ANSWERS

    async def room(self) -> None:
        """Waits until the window is no longer exceeded."""
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def next(self) -> Iterator[bytes] | None:
        """The next answer, to be followed by `written`; None after the last."""
        while not self._waiting:
            if self._ended and not self._due:
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        self._writing = self._waiting.popleft()
        return iter(self._writing.messages)

    def written(self) -> None:
        """Gives back what the last answer took."""
        entry, self._writing = self._writing, None
        assert entry is not None, "an answer is written once"
        self._taken_bytes -= entry.window_bytes
        self._answers -= 1
        if entry.budget is not None:
            entry.budget.give(entry.held_bytes)
        if not self.full:
            _wake(self._room)

    def _count(self, window_bytes: int) -> None:
        self._taken_bytes += window_bytes
        self._answers += 1


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
