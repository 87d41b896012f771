"""Executor: the one thread that owns the device."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from hermosis_server.dynamics import fused
from hermosis_server.engine.arena import Arena
from hermosis_server.engine.batch import FleetDone, StepDone, step_batch, step_failed
from hermosis_server.engine.scheduler import Job, Ready, StepQueue
from hermosis_server.engine.step import Stepper
from hermosis_server.errors import ServerStopping

T = TypeVar("T")


class Executor:
    """Runs steps and jobs in the order they were asked for, and answers on the event loop.

    Args:
      arena:   built by the caller, used by nobody else from then on.
      queue:   the way in.
      threads: processor threads of a large step.
    """

    def __init__(self, arena: Arena, queue: StepQueue, *, threads: int = 1) -> None:
        self._arena = arena
        self._queue = queue
        self._stepper = Stepper(arena, fused.Pool(threads))
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="hermosis-device", daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[Arena], T]) -> T:
        """Runs a job on the device thread and gives its result, or raises what it raised, or ServerStopping."""
        if self._stopped:
            raise ServerStopping("the server is stopping; connect again shortly", retry_after_s=1.0)
        future: asyncio.Future[T] = self._loop.create_future()

        def work() -> None:
            try:
                result = job(self._arena)
            except Exception as error:
                self._tell(_settle, future, None, error)
            else:
                self._tell(_settle, future, result, None)

        self._queue.put(Job(work))
        # A caller that goes away does not undo what the device does; it only no longer hears of it.
        return await asyncio.shield(future)

    @property
    def free_bytes(self) -> int:
        """Memory that new sessions may still take, as it stands between two jobs."""
        return self._arena.free_bytes

    def submit(self, ready: Ready) -> None:
        """Queues a round or a fleet's; its `done` is called on the event loop with a StepDone or FleetDone, or with
        the exception."""
        self._queue.put(ready)

    async def stop(self) -> None:
        """Finishes what is queued and ends the thread."""
        self._stopped = True
        self._queue.stop()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (work := self._queue.next()) is not None:
            if isinstance(work, Job):
                work.run()
            else:
                self._step(work)
            del work  # While nothing comes it would hold memory that a worker shares, which may have gone.

    def _step(self, batch: list[Ready]) -> None:
        """Steps a batch, and tells each item what became of it."""
        news: list[tuple[Callable[[Any], None], StepDone | FleetDone | Exception]]
        try:
            news = [
                (item.done, result)
                for item, result in zip(batch, step_batch(self._arena, self._stepper, batch), strict=True)
            ]
        except Exception as error:
            failure = step_failed(error, len(batch))
            news = [(item.done, failure) for item in batch]
        self._tell(_deliver, news)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has gone: nobody is left to hear.
            self._loop.call_soon_threadsafe(functools.partial(function, *arguments))


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
