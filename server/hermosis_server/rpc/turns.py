"""Turns: who may be served in this pass of the event loop, so that one that floods it is one among many.

A pass serves all streams that have a message. Where eight workers flood the server for one session, an answer to any
other would wait for all eight at each of its hand-overs. So each session has one message a pass as long as another
one is there; and large messages, which take as long as twenty small ones, go one a pass whoever sends them.

An answer takes several passes, and would meet one message of the flood in each. So who has had its turn and wants
another lets a message that is in hand be answered first, unless it has waited for as long as a large one takes.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Final

HEAVY_BYTES: Final = 64 << 10
# A session whose worker waits for an answer has no message in most passes, and is there all the same.
COMPANY_S: Final = 0.05
# A message that was not answered by then waits for something else than the event loop: for other workers, as a rule.
IN_HAND_S: Final = 0.005
# How long who wants another turn lets others be answered: so it has half of the loop at least.
PATIENCE_S: Final = 0.002


class _Large:
    """Who sends large messages, all together."""


LARGE: Final = _Large()


class _Line:
    """Those of one session that wait, or of LARGE."""

    __slots__ = ("since_s", "waiting")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s  # when its last turn was, or it began
        self.waiting: deque[asyncio.Future[None]] = deque()


class Turns:
    """One a pass for each, first come, first served. Used from the rpc thread only.

    Attributes:
      several: whether more than one is there.
    """

    def __init__(self) -> None:
        self._served: set[Hashable] = set()  # in this pass
        self._last: Hashable = None  # whose message came last
        self._passed_s = -COMPANY_S  # when the last pass was
        self._company_s = 0.0  # until when several count as being there; on the loop's clock
        self.several = False
        self._lines: dict[Hashable, _Line] = {}
        self._in_hand: dict[Hashable, tuple[Hashable, float]] = {}  # whose, and until when; by stream
        self._passing = False  # `_next` comes after this pass
        self._timer: asyncio.TimerHandle | None = None

    def take(self, who: Hashable, of: Hashable = None) -> bool:
        """Whether it is the caller's turn now; else `wait` for it.

        Args:
          of: the session or stream, where `who` is LARGE.
        """
        of = of or who
        if of != self._last:
            now_s = self._now()
            if now_s < self._passed_s + COMPANY_S:
                self._company_s = now_s + COMPANY_S
            self._last = of
        if who in self._lines:
            return False
        if who not in self._served:
            if who is LARGE and self._in_hand and self._holds(who, self._now()):
                return False
            self._pass()
            self._served.add(who)
            return True
        return who is not LARGE and not self.several and len(self._served) == 1

    async def wait(self, who: Hashable) -> None:
        """Comes back in a pass in which it is the caller's turn."""
        since_s = self._now()
        while True:
            line = self._lines.get(who)
            if line is None:
                line = self._lines[who] = _Line(since_s)
                self._pass()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            line.waiting.append(turn)
            await turn
            # What the same pass has brought meanwhile goes first as well.
            now_s = self._now()
            if not self._in_hand or now_s - since_s >= PATIENCE_S or not self._holds(who, now_s):
                return

    def begin(self, stream: Hashable, who: Hashable) -> None:
        """A small message is in hand until it is answered, of one who had no other before it in this pass."""
        self._in_hand[stream] = who, self._now() + IN_HAND_S

    def end(self, stream: Hashable) -> None:
        """It is answered, or will not be."""
        if self._in_hand.pop(stream, None) is not None and self._lines:
            self._pass()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _pass(self) -> None:
        if not self._passing:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._next)

    def _holds(self, who: Hashable, now_s: float) -> bool:
        """Whether something is in hand of another."""
        return any(whose != who and now_s < until_s for whose, until_s in self._in_hand.values())

    def _late(self) -> None:
        self._timer = None
        self._pass()

    def _next(self) -> None:
        """Another pass: those that wait have the first turns of it."""
        self._passing = False
        now_s = self._now()
        self._passed_s, self.several = now_s, now_s < self._company_s
        self._served.clear()
        for who, line in list(self._lines.items()):
            while line.waiting and line.waiting[0].done():  # it has gone
                line.waiting.popleft()
            if not line.waiting:
                del self._lines[who]
            elif now_s - line.since_s < PATIENCE_S and self._in_hand and self._holds(who, now_s):
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._late)
            else:
                self._served.add(who)
                line.since_s = now_s
                line.waiting.popleft().set_result(None)
                if not line.waiting:
                    del self._lines[who]
        if self._served:
            self._pass()
