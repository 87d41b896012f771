"""Executor: the device has one owner at a time: its thread or, for a small step, the event loop.

Ownership is a lock that the thread has while it does anything, but for the slices of a heavy step, in which it touches
nothing but the rows of that. Where the lock is free the loop itself may step; it never waits for it. The thread takes
nothing but what the loop hands it, and the loop knows what it has not heard the end of: what is asked for before a step
and after it comes before it and after it.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar

from hermosis_server.dynamics import fused
from hermosis_server.engine.arena import Arena
from hermosis_server.engine.batch import FleetDone, Results, StepDone, begin_batch, step_batch, step_failed
from hermosis_server.engine.resident import Resident
from hermosis_server.engine.scheduler import Job, Ready, ReadyRound, StepQueue
from hermosis_server.engine.step import Stepper
from hermosis_server.errors import ServerStopping

T = TypeVar("T")
logger = logging.getLogger(__name__)

# Gradients of a step on the event loop, together: it takes less than two hand-overs between threads.
HERE_BYTES = 64 << 10


class Executor:
    """Runs steps and jobs in the queue's order, and answers on the event loop.

    On a processor a heavy step goes in slices, and between two of them light rounds of other sessions are stepped, by
    a stepper of their own. So does the loop while a slice is under way.

    Args:
      arena:   built by the caller, used by nobody else from then on.
      queue:   the way in.
      threads: processor threads of a large step.
    """

    def __init__(self, arena: Arena, queue: StepQueue, *, threads: int = 1) -> None:
        self._arena = arena
        self._queue = queue
        self._owner = threading.Lock()
        during = _Lent(self._owner)
        self._stepper = Stepper(arena, fused.Pool(threads, between=self._let_light_ones_through, during=during))
        self._light_stepper = Stepper(arena, fused.Pool(1))
        self._stepping: set[int] = set()  # the sessions of the batch that goes in slices
        self._told: list[Callable[[], None]] = []  # by the thread, when it has the time
        self._loop = asyncio.get_running_loop()
        # Handed over to the thread and not heard of again: rounds by their session, and how much else.
        self._rounds: dict[int, int] = {}
        self._others = 0
        self._here: dict[int, ReadyRound] = {}  # to be stepped on the event loop; by the session
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="hermosis-device", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[Arena], T], *, of: Sequence[Resident] | None = None) -> T:
        """Runs a job on the device thread and gives its result, or raises what it raised, or ServerStopping.

        Args:
          of: the sessions that it is about: it sees what was asked for before of theirs, and nothing that was later.
              None: of all.
        """
        if self._stopped:
            raise ServerStopping("the server is stopping; connect again shortly", retry_after_s=1.0)
        future: asyncio.Future[T] = self._loop.create_future()

        def work() -> None:
            try:
                result = job(self._arena)
            except Exception as error:
                self._tell((item,), _settle, future, None, error)
            else:
                self._tell((item,), _settle, future, result, None)

        item = Job(work, of)
        self._hand_over(item)
        # A caller that goes away does not undo what the device does; it only no longer hears of it.
        return await asyncio.shield(future)

    @property
    def device(self) -> str:
        """The name of the device."""
        return str(self._arena.device)

    @property
    def limit_bytes(self) -> int:
        """Memory that sessions may hold here."""
        return self._arena.limit_bytes

    @property
    def used_bytes(self) -> int:
        """Memory that they hold, as it stands between two jobs."""
        return self._arena.used_bytes

    @property
    def free_bytes(self) -> int:
        """Memory that new sessions may still take, as it stands between two jobs."""
        return self._arena.free_bytes

    def submit(self, ready: Ready) -> None:
        """Queues a round or a fleet's; its `done` is called on the event loop with a StepDone or FleetDone, or with
        the exception."""
        if not self._may_step_here(ready):
            self._hand_over(ready)
            return
        if not self._here:
            # Not at once, so that what has come at the same moment is stepped together.
            self._loop.call_soon(self._step_here)
        self._here[id(ready.residents[0])] = ready

    async def stop(self) -> None:
        """Finishes what is queued and ends the thread."""
        self._stopped = True
        self._queue.stop()
        await asyncio.to_thread(self._thread.join)

    def _hand_over(self, item: Ready | Job) -> None:
        """Lets the device thread do it, and before it what would be stepped here and may be of the same session."""
        items: list[Ready | Job] = [item]
        if not isinstance(item, ReadyRound):
            items[:0] = self._here.values()
            self._here.clear()
        elif id(item.resident) in self._here:
            items.insert(0, self._here.pop(id(item.resident)))
        for each in items:
            if isinstance(each, ReadyRound):
                self._rounds[id(each.resident)] = self._rounds.get(id(each.resident), 0) + 1
            else:
                self._others += 1
            self._queue.put(each)

    def _may_step_here(self, ready: Ready) -> TypeGuard[ReadyRound]:
        if self._others or self._stopped or self._queue.lingers or not isinstance(ready, ReadyRound):
            return False
        known: Resident = ready.resident
        if id(known) in self._rounds or id(known) in self._here:  # a second step waits for the first
            return False
        size = ready.size_bytes + sum(other.size_bytes for other in self._here.values())
        return size <= HERE_BYTES and not self._owner.locked() and self._is_short(known)

    def _is_short(self, known: Resident) -> bool:
        # To fetch a session from host memory may take long, and displace one that is being stepped.
        return known.slot.resident and self._light_stepper.takes_microseconds(known)

    def _step_here(self) -> None:
        """Steps what waits for that on the event loop, and tells everyone at once."""
        waiting = list(self._here.values())
        self._here.clear()
        if not (waiting and self._owner.acquire(blocking=False)):
            for item in waiting:
                self._hand_over(item)
            return
        try:
            short = [self._is_short(item.resident) for item in waiting]  # still
            batch = list(itertools.compress(waiting, short))
            try:
                results = step_batch(self._arena, self._light_stepper, batch)
            except Exception as error:
                results = [step_failed(error, len(batch))] * len(batch)
        finally:
            self._owner.release()
        for item, here in zip(waiting, short, strict=True):
            if not here:
                self._hand_over(item)
        _deliver([(item.done, result) for item, result in zip(batch, results, strict=True)])

    def _work(self) -> None:
        flying: list[Ready] = []  # the batch that a device is at
        land: Callable[[], None] = _nothing
        while True:
            work = self._queue.next(wait=not flying)
            if work is None and not flying:
                return
            batch = work if isinstance(work, list) else []
            with self._owner:
                if not batch or not _sessions(batch).isdisjoint(_sessions(flying)):
                    land()
                    flying, land = [], _nothing
                if isinstance(work, Job):
                    work.run()
                elif batch:
                    begun = self._begin(batch)
                    land()  # the one before, while this one steps
                    flying, land = batch, begun
                    if self._stepper.device is None:  # it has stepped by now
                        land()
                        flying, land = [], _nothing
                    del begun
            self._tell_all()  # while somebody else may own the device: what they send next is stepped at once
            if work is None:
                return
            del work, batch  # While nothing comes they would hold memory that a worker shares, which may have gone.

    def _begin(self, batch: list[Ready]) -> Callable[[], None]:
        """Begins to step a batch; what it gives waits for the end and tells each item what became of it."""
        self._stepping = _sessions(batch)
        try:
            results = begin_batch(self._arena, self._stepper, batch)
        except Exception as error:
            return functools.partial(self._fail, batch, error)
        return self._end(batch, results)

    def _let_light_ones_through(self) -> None:
        """Steps what is light and of other sessions, in the middle of a heavy batch."""
        batch = self._queue.light(self._may_step_between)
        if not batch:
            return
        try:
            results = begin_batch(self._arena, self._light_stepper, batch)
        except Exception as error:
            self._fail(batch, error)
        else:
            self._end(batch, results)()
        self._tell_all()

    def _may_step_between(self, item: Ready) -> bool:
        # To fetch one from host memory could put a session there that is being stepped.
        return all(one.slot.resident and id(one) not in self._stepping for one in item.residents)

    def _end(self, batch: list[Ready], results: Callable[[], Results]) -> Callable[[], None]:
        """How a begun batch ends: it is waited for, and each item is told what became of it."""

        def end() -> None:
            try:
                news = [(item.done, result) for item, result in zip(batch, results(), strict=True)]
            except Exception as error:
                self._fail(batch, error)
            else:
                self._tell(batch, _deliver, news)

        return end

    def _fail(self, batch: list[Ready], error: Exception) -> None:
        failure = step_failed(error, len(batch))
        self._tell(batch, _deliver, [(item.done, failure) for item in batch])

    def _tell(self, items: Sequence[Ready | Job], function: Callable[..., None], *arguments: object) -> None:
        """Notes what the event loop is to hear of the end of items. The last thing that this thread does with them."""
        self._told.append(functools.partial(self._hear, items, function, *arguments))

    def _tell_all(self) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has gone: nobody is left to hear.
            for hear in self._told:
                self._loop.call_soon_threadsafe(hear)
        self._told.clear()

    def _hear(self, items: Sequence[Ready | Job], function: Callable[..., None], *arguments: object) -> None:
        for item in items:
            if not isinstance(item, ReadyRound):
                self._others -= 1
            elif self._rounds[id(item.resident)] > 1:
                self._rounds[id(item.resident)] -= 1
            else:
                del self._rounds[id(item.resident)]
        function(*arguments)


class _Lent:
    """Without the lock that one has, for as long as this lasts."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self._lock.acquire()


def _nothing() -> None:
    """The end of no batch."""


def _sessions(batch: list[Ready]) -> set[int]:
    return {id(resident) for item in batch for resident in item.residents}


def _settle(future: asyncio.Future[T], result: T, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _deliver(news: list[tuple[Callable[[Any], None], StepDone | FleetDone | Exception]]) -> None:
    for done, result in news:
        done(result)


def warm_up() -> None:
    """Compiles the fused pass now rather than in somebody's first step; says so where that takes a while."""
    began = time.monotonic()
    late = threading.Timer(1.0, logger.info, ["event=compiling what=%r", "the step, once; some ten seconds"])
    late.daemon = True
    late.start()
    fused.warm_up()
    late.cancel()
    logger.info("event=warm seconds=%.1f", time.monotonic() - began)
