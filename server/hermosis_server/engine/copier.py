"""Copier: brings snapshots to object storage, one at a time, and never in anybody's way.

Of a session whose snapshots come faster than they can be copied only the newest is. What the storage refuses is tried
again with the next snapshot, and said in the log: a copy is worth nothing until it is there.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from hermosis_server.storage.copies import Copies
from hermosis_server.storage.store import SnapshotInfo

T = TypeVar("T")
logger = logging.getLogger(__name__)

PATIENCE_S = 20.0  # for the copies that are due when the server stops


class _Due(NamedTuple):
    """What is to be done for a session: first remove what is there, if it was closed; then copy."""

    closed: bool = False
    info: SnapshotInfo | None = None


class Copier:
    """A queue of what is to be copied or removed, and the task that works it off. Used from the rpc thread."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._due: dict[str, _Due] = {}  # by session
        self._working: asyncio.Task[None] | None = None

    def copy(self, info: SnapshotInfo) -> None:
        """Copies a snapshot soon."""
        self._enter(info.session_id, self._due.get(info.session_id, _Due())._replace(info=info))

    def forget(self, session_id: str) -> None:
        """Removes the copies of a session soon; those of a later one of the same name come after that."""
        self._enter(session_id, _Due(closed=True))

    async def stop(self) -> None:
        """Copies what is due, as long as that does not take too long."""
        if self._working is not None:
            await asyncio.wait([self._working], timeout=PATIENCE_S)
        for session_id in self._due:
            logger.error("event=copy_given_up session=%s", session_id)

    def _enter(self, session_id: str, due: "_Due") -> None:
        self._due[session_id] = due
        if self._working is None:
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._due:
            session_id = next(iter(self._due))
            due = self._due.pop(session_id)
            try:
                if due.closed:
                    await _apart(self._copies.forget, session_id)
                if due.info is not None:
                    await _apart(self._copies.put, due.info)
            except Exception as error:  # whatever a storage's library raises: the next copy is another matter
                logger.error("event=copy_failed session=%s problem=%r", session_id, str(error))
        self._working = None


async def _apart(function: Callable[[T], None], argument: T) -> None:
    """Calls it on a thread that the end of the process does not wait for: a storage may be silent for minutes."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        error: Exception | None = None
        try:
            function(argument)
        except Exception as problem:
            error = problem
        with contextlib.suppress(RuntimeError):  # the loop has gone: nobody is left to hear
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=work, name="hermosis-copies", daemon=True).start()
    await done
