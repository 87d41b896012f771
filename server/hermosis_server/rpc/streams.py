"""Streams: how many there are, and which of them have stood still for too long with something half-done.

Nothing is timed on the way of a message. A sweep now and then compares how far things are with how far they were: a
gradient by its elements, answers by the messages written. What has nothing half-done may stay for ever.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Protocol

from hermosis_server.errors import QuotaExceeded, Stalled

RETRY_AFTER_S = 1.0
SWEEPS = 4  # in each idle limit


class Stream(Protocol):
    """What is watched."""

    def half_done(self) -> Mapping[Hashable, int]:
        """How far each thing is that has begun and not ended."""
        ...

    def stalled(self, thing: Hashable, error: Stalled) -> None:
        """One of these got no further for too long."""
        ...


class Streams:
    """All streams of a server. Used from the rpc thread only.

    Args:
      limit:  the most at a time.
      idle_s: seconds without progress after which something half-done is given up; a quarter more at most.
      clock:  monotonic seconds.
    """

    def __init__(self, *, limit: int, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._clock = clock
        self._streams: dict[Stream, dict[Hashable, tuple[int, float]]] = {}  # how far since when

    def __len__(self) -> int:
        return len(self._streams)

    def enter(self, stream: Stream) -> None:
        """Adds a stream; `leave` takes it away. Raises QuotaExceeded while there are as many as there may be."""
        if len(self._streams) >= self._limit:
            raise QuotaExceeded(
                f"{len(self._streams)} streams are open, the most this server has; several sessions may share one",
                retry_after_s=RETRY_AFTER_S,
            )
        self._streams[stream] = {}

    def leave(self, stream: Stream) -> None:
        self._streams.pop(stream, None)

    async def watch(self) -> None:
        """Sweeps until it is cancelled."""
        while True:
            await asyncio.sleep(self._idle_s / SWEEPS)
            self.sweep()

    def sweep(self) -> None:
        """Looks at every stream once."""
        now_s = self._clock()
        for stream, known in list(self._streams.items()):
            half_done = stream.half_done()
            if not (half_done or known):
                continue
            fresh: dict[Hashable, tuple[int, float]] = {}
            for thing, reached in half_done.items():
                before = known.get(thing)
                fresh[thing] = before if before is not None and before[0] == reached else (reached, now_s)
            self._streams[stream] = fresh
            for thing, (_, since_s) in fresh.items():
                if now_s - since_s >= self._idle_s:
                    stream.stalled(thing, stalled(self._idle_s))


def stalled(idle_s: float) -> Stalled:
    """The refusal of what stood still."""
    return Stalled(
        f"nothing came, or nothing was read, for {idle_s:g} s, so this was given up; send it again whole",
        retry_after_s=RETRY_AFTER_S,
    )
