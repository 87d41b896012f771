"""Copier: brings snapshots to object storage, one at a time, and never in anybody's way.

Of a session whose snapshots come faster than they can be copied only the newest is. What the storage refuses is tried
again with the next snapshot, and said in the log: a copy is worth nothing until it is there.
"""

import asyncio
import logging
from typing import NamedTuple

from hermosis_server.storage.copies import Copies
from hermosis_server.storage.store import SnapshotInfo

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0  # for the copies that are due when the server stops


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
                    await asyncio.to_thread(self._copies.forget, session_id)
                if due.info is not None:
                    await asyncio.to_thread(self._copies.put, due.info)
            except Exception as error:  # whatever a storage's library raises: the next copy is another matter
                logger.error("event=copy_failed session=%s problem=%r", session_id, str(error))
        self._working = None
