"""Turns: who may be served in this pass of the event loop, so that one that floods it is one among many.

A pass serves all streams that have a message. Where eight workers flood the server for one session, an answer to any
other would wait for all eight at each of its hand-overs. So each session has one message a pass as long as another
one is there; and large messages, which take as long as twenty small ones, go one a pass whoever sends them.

An answer takes several passes, and would meet one message of the flood in each. So a flood, which is who has a message
while another one waits or is not answered yet, or sends large ones, rests after each turn while somebody is there who
does not; and then lets what is in hand be answered first.
"""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Final

HEAVY_BYTES: Final = 64 << 10
# A session whose worker waits for an answer has no message in most passes, and is there all the same.
COMPANY_S: Final = 0.05
# Who never waits for a turn has one message at a time, and may be there again after as long as this.
QUIET_S: Final = 0.01
# Between two turns of one who floods, while a quiet one is there: so it has half of the loop, more or less.
REST_S: Final = 0.002
# And then for as long, at the most, as something is in hand.
PATIENCE_S: Final = 0.002
# A message that was not answered by then waits for something else than the event loop: for other workers, as a rule.
IN_HAND_S: Final = 0.005
TICK_S: Final = 0.001  # of the loop's timers


class _Large:
    """Who sends large messages, all together."""


LARGE: Final = _Large()


class _Line:
    """Those of one session that wait, or of LARGE. A session has one as long as it floods."""

    __slots__ = ("asked_s", "crowded_s", "since_s", "waiting")

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s  # when its last turn was
        self.asked_s = now_s  # when the first of those that wait came
        self.crowded_s = now_s  # when another message came while one waited
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
        self._quiet: tuple[Hashable, float] = None, -QUIET_S  # who came last that does not flood, and when
        self.several = False
        self._lines: dict[Hashable, _Line] = {LARGE: _Line(-COMPANY_S)}
        self._in_hand: dict[Hashable, tuple[Hashable, float]] = {}  # whose, and until when; by stream
        self._passing = False  # `_next` comes after this pass
        self._timer: asyncio.TimerHandle | None = None

    def take(self, who: Hashable, of: Hashable = None, *, ahead: bool = False) -> bool:
        """Whether it is the caller's turn now; else `wait` for it.

        Args:
          of:    the session or stream, where `who` is LARGE.
          ahead: an answer to the same worker is due still.
        """
        of, now_s = of or who, self._now()
        if of != self._last:
            if now_s < self._passed_s + COMPANY_S:
                self._company_s = now_s + COMPANY_S
            self._last = of
        line = self._lines.get(who)
        if line is None and ahead and self.several:
            line = self._lines[who] = _Line(now_s)
        if line is not None:
            if line.waiting:
                line.crowded_s = now_s
                return False
            line.asked_s = now_s
            if self._rests(who, line, now_s):
                return False
        if who in self._served:
            return who is not LARGE and not self.several and len(self._served) == 1
        if line is not None:
            line.since_s = now_s
        self._pass()
        self._served.add(who)
        return True

    async def wait(self, who: Hashable) -> None:
        """Comes back in a pass in which it is the caller's turn."""
        now_s = self._now()
        while True:
            line = self._lines.get(who)
            if line is None:
                line = self._lines[who] = _Line(now_s)
            self._pass()
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            line.waiting.append(turn)
            await turn
            # What the same pass has brought meanwhile goes first as well.
            now_s = self._now()
            if not self._rests(who, line, now_s):
                line.since_s = now_s
                return

    def begin(self, stream: Hashable, who: Hashable) -> None:
        """A small message is in hand until it is answered, of one who had no other before it in this pass."""
        now_s = self._now()
        self._in_hand[stream] = who, now_s + IN_HAND_S
        if who not in self._lines:
            self._quiet = who, now_s

    def end(self, stream: Hashable) -> None:
        """It is answered, or will not be."""
        if self._in_hand.pop(stream, None) is not None and any(line.waiting for line in self._lines.values()):
            self._pass()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _pass(self) -> None:
        if not self._passing:
            self._passing = True
            asyncio.get_running_loop().call_soon(self._next)

    def _rests(self, who: Hashable, line: _Line, now_s: float) -> bool:
        """Whether its next turn comes later."""
        rested_s, (quiet, quiet_s) = line.since_s + REST_S, self._quiet
        if now_s < rested_s and self.several and quiet != who and now_s < quiet_s + QUIET_S:
            return True
        return now_s < max(rested_s, line.asked_s) + PATIENCE_S and bool(self._in_hand) and self._holds(who, now_s)

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
                if who is not LARGE and now_s - line.crowded_s > QUIET_S:
                    del self._lines[who]
            elif self._rests(who, line, now_s):
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(TICK_S, self._late)
            else:
                self._served.add(who)
                line.waiting.popleft().set_result(None)
        if self._served:
            self._pass()
