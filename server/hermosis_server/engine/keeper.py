"""Keeper: what of a session is on disk, and when it gets there.

    NONE      nothing
    SNAPSHOT  its record, and the whole state every so often
    JOURNAL   these, and every contribution that was tried, before its acknowledgement at AckLevel DURABLE

It lives on the rpc thread; files are touched by the journal's thread and a few for snapshots. What the disk holds of a
session is told by `durable_step`; whoever waits for it is told when it is reached, or that it will not be.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from hermosis_server.engine import replay
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.batch import StepDone
from hermosis_server.engine.rounds import Answer, Contribution, Tell
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.errors import HermosisError, InvalidRequest, StaleGeneration, StorageFailed, StorageFull
from hermosis_server.failpoints import reach
from hermosis_server.records import DurabilityMode, ExportedState, SessionStatus
from hermosis_server.storage.disk import DiskUse
from hermosis_server.storage.journal import Journal, JournalEntry
from hermosis_server.storage.snapshot_file import StoredSnapshot
from hermosis_server.storage.store import SessionRecord, SnapshotInfo, Store

T = TypeVar("T")
logger = logging.getLogger(__name__)

WRITERS = 2  # snapshots at a time: each holds a copy of its session's state
TICK_S = 0.5
RETRY_S = 1.0


class Written(NamedTuple):
    """A snapshot on disk."""

    info: SnapshotInfo
    digest: bytes


class Held(NamedTuple):
    """A snapshot that the disk has, by the name that callers know it by."""

    snapshot_id: str
    step: int
    generation: int
    size_bytes: int
    written_s: float  # seconds since 1970


@dataclass(slots=True)
class Kept:
    """What the keeper knows of one session.

    Attributes:
      snapshot_step: of the last snapshot; -1 means none.
      snapshot_s:    monotonic seconds when it was begun.
      writing:       the snapshot that is being written.
      waiting:       whom to tell when a step is durable.
    """

    snapshot_step: int = -1
    snapshot_s: float = field(default_factory=time.monotonic)
    writing: "asyncio.Task[Written] | None" = None
    waiting: list[tuple[int, Answer, Tell]] = field(default_factory=list)


class Keeper:
    """Keeps sessions on disk, each as its durability says.

    Args:
      store:   records and snapshots.
      journal: of all sessions.
      encode:  a session's spec as bytes.
      decode:  the other way.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        encode: Callable[[SessionSpec], bytes],
        decode: Callable[[bytes], SessionSpec],
    ) -> None:
        self.decode = decode
        self.store = store
        self.journal = journal
        self._encode = encode
        self._loop = asyncio.get_running_loop()
        self._kept: dict[Session, Kept] = {}
        self._files = ThreadPoolExecutor(WRITERS, thread_name_prefix="hermosis-files")
        self._writers = asyncio.Semaphore(WRITERS)
        self._failure: StorageFailed | None = None
        self._ticking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to write snapshots when they are due."""
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Writes what has not been written: a snapshot of each session that went on since its last one."""
        if self._ticking is not None:
            self._ticking.cancel()
        behind = [session for session, kept in self._kept.items() if session.step > kept.snapshot_step]
        outcomes = await asyncio.gather(*map(self.snapshot, behind), return_exceptions=True)
        for session, outcome in zip(behind, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                logger.error("event=snapshot_failed session=%s problem=%r", session.session_id, str(outcome))
        await asyncio.to_thread(self.journal.close)
        self._files.shutdown()

    @property
    def failure(self) -> str:
        """Why nothing new is durable; empty while it is."""
        return str(self._failure or "")

    async def disk_use(self) -> DiskUse:
        """How full the disk is."""
        return await asyncio.to_thread(self.store.disk_use)

    # A session's life

    async def adopt(self, session: Session) -> None:
        """Keeps a session from now on: its record is on disk when this returns."""
        if session.spec.durability.mode is DurabilityMode.NONE:
            return
        if self._failure is not None:
            raise self._failure
        self._kept[session] = Kept()
        try:
            await self.save(session)
        except BaseException:
            del self._kept[session]
            raise

    def adopt_recovered(self, session: Session, snapshot_step: int) -> None:
        """Keeps a session that was found on disk."""
        self._kept[session] = Kept(snapshot_step=snapshot_step)
        session.durable_step = session.step

    async def save(self, session: Session) -> None:
        """Writes the session's record: all of it but the optimizer state."""
        if session in self._kept:
            await self._on_disk(self.store.save_session, self.record(session))

    def record(self, session: Session) -> SessionRecord:
        """The session's record as it should be on disk."""
        return SessionRecord(
            session_id=session.session_id,
            generation=session.generation,
            replaced_generation=session.replaced_generation,
            recovered_steps=session.recovered_steps,
            status=session.status,
            revision=session.revision,
            lr_scale=session.lr_scale,
            created_s=session.created_s,
            document=self._encode(session.spec),
            request_id=session.request_id,
            request_fingerprint=session.request_fingerprint,
        )

    async def edited(self, session: Session) -> None:
        """Makes an edit of the dynamics durable, in its place between the steps, then the record."""
        if session not in self._kept:
            return
        if session.spec.durability.mode is DurabilityMode.JOURNAL:
            entry = JournalEntry(
                session_id=session.session_id,
                step=session.step,
                generation=session.replaced_generation,
                created_s=session.created_s,
                parts=replay.edit(self._encode(session.spec)),
            )
            future = self._loop.create_future()
            self._append(session, entry, functools.partial(_settle, future))
            await future
        else:
            await self.snapshot(session)
        await self.save(session)

    async def begun(self, session: Session) -> None:
        """Makes the initial parameters durable."""
        if session in self._kept:
            await self.snapshot(session)

    async def snapshots(self, session_id: str) -> list[Held]:
        """The snapshots of a session, newest first."""
        held = await self._on_disk(self.store.snapshots, session_id)
        return [Held(name_of(info), info.step, info.generation, info.size_bytes, info.written_s) for info in held]

    async def load(self, session_id: str, snapshot_id: str) -> StoredSnapshot:
        """Reads a snapshot, the newest if none is named.

        Raises:
          InvalidRequest: there is no such snapshot.
          CorruptState:   it is damaged.
        """
        held = await self._on_disk(self.store.snapshots, session_id)
        chosen = [info for info in held if snapshot_id in ("", name_of(info))]
        if not chosen:
            names = ", ".join(map(name_of, held)) or "none"
            raise InvalidRequest(
                f"session {session_id} has no snapshot {snapshot_id!r}; there is {names}", field="snapshot_id"
            )
        return await self._on_disk(self.store.load_snapshot, chosen[0])

    async def replaced(self, session: Session, status: SessionStatus) -> None:
        """Makes a state that took another's place durable.

        Args:
          status: that the session goes on with; until this returns it takes nothing.
        """
        if session not in self._kept:
            return
        self._kept[session].snapshot_step = -1
        session.durable_step = 0
        self._refuse_waiting(
            session, StaleGeneration(f"session {session.session_id} was set to another state; open it again")
        )
        try:
            await self._on_disk(self.store.save_session, replace(self.record(session), status=status))
            await self.snapshot(session)
        except HermosisError as error:
            self._block(session, error)  # the journal has nothing to begin from
            raise

    async def forget(self, session: Session) -> None:
        """Removes a session that was closed."""
        kept = self._kept.pop(session, None)
        if kept is None:
            return
        for _, _, tell in kept.waiting:
            tell(StorageFailed(f"session {session.session_id} was closed before the step was durable"))
        if kept.writing is not None:
            await asyncio.wait([kept.writing])
        await self._on_disk(self.store.remove_session, session.session_id)
        self.journal.forget(session.session_id)

    # Steps

    def stepped(self, session: Session, contributions: Sequence[Contribution], lr_scale: float, done: StepDone) -> None:
        """Hears of a round that was tried. Gives its gradients back when the disk has them, or does not want them."""
        kept = self._kept.get(session)
        if kept is not None and session.spec.durability.mode is DurabilityMode.JOURNAL and session.obstacle is None:
            entry = JournalEntry(
                session_id=session.session_id,
                step=done.step,
                generation=session.replaced_generation,
                created_s=session.created_s,
                parts=replay.step(contributions, lr_scale, done),
            )
            self._append(session, entry, lambda error: _release(contributions))
        else:
            _release(contributions)
        if kept is not None and self._is_due(session, kept):
            self._begin(session, kept)

    def counted(self, sessions: Iterable[Session]) -> None:
        """Hears of steps of many sessions, none of which is journalled."""
        for session in sessions:
            if (kept := self._kept.get(session)) is not None and self._is_due(session, kept):
                self._begin(session, kept)

    def durably(self, session: Session, tell: Tell) -> Tell:
        """Tells only when what the answer speaks of is durable."""
        kept = self._kept[session]

        def later(fate: Answer | Exception) -> None:
            if isinstance(fate, Exception):
                tell(fate)
            elif session.durable_step >= fate.result.step:
                tell(_durable(fate, session))
            elif session.obstacle is not None:
                tell(session.obstacle())
            else:
                kept.waiting.append((fate.result.step, fate, tell))
                if session.spec.durability.mode is DurabilityMode.SNAPSHOT:
                    self._begin(session, kept)

        return later

    def _append(self, session: Session, entry: JournalEntry, then: Callable[[Exception | None], None]) -> None:
        def written(error: Exception | None) -> None:
            self._loop.call_soon_threadsafe(self._journalled, session, entry, then, error)

        self.journal.append(entry, written)
        if self.journal.size_bytes > self.journal.most_bytes:
            self._make_room()

    def _journalled(
        self, session: Session, entry: JournalEntry, then: Callable[[Exception | None], None], error: Exception | None
    ) -> None:
        if error is None:
            # Not where one before it is missing, nor where the state that it led to was replaced meanwhile.
            if session.obstacle is None and entry.generation == session.replaced_generation:
                self._advance(session, entry.step)
        elif isinstance(error, StorageFull):
            self._block(session, error)
        else:
            self._fail(error)
        then(error)

    def _advance(self, session: Session, step: int) -> None:
        """The disk holds the session up to a step."""
        kept = self._kept.get(session)
        if kept is None:
            return
        session.durable_step = max(session.durable_step, step)
        ready = [(answer, tell) for at, answer, tell in kept.waiting if at <= session.durable_step]
        kept.waiting = [one for one in kept.waiting if one[0] > session.durable_step]
        reach("keeper.before_acknowledging")
        for answer, tell in ready:
            tell(_durable(answer, session))
        reach("keeper.after_acknowledging")

    # Trouble

    def _block(self, session: Session, error: HermosisError) -> None:
        """The journal lacks a step of this session: it takes no more until a snapshot holds what is missing."""
        if session.obstacle is None:
            logger.error("event=not_durable session=%s problem=%r", session.session_id, str(error))
        session.obstacle = functools.partial(StorageFull, str(error), retry_after_s=RETRY_S)
        self._refuse_waiting(session)

    def _fail(self, error: Exception) -> None:
        """A write or sync failed: what the disk holds of it cannot be known, so nothing is acknowledged any more."""
        if self._failure is None:
            logger.critical("event=storage_failed problem=%r", str(error))
            self._failure = StorageFailed(
                f"the server's disk failed ({error}); nothing new is durable. Look at the disk, then restart the server"
            )
        failure = str(self._failure)
        for session in self._kept:
            if session.spec.durability.mode is DurabilityMode.JOURNAL:
                session.obstacle = functools.partial(StorageFailed, failure)
            self._refuse_waiting(session, StorageFailed(failure))

    def _refuse_waiting(self, session: Session, error: HermosisError | None = None) -> None:
        kept = self._kept[session]
        waiting, kept.waiting = kept.waiting, []
        for _, _, tell in waiting:
            tell(error or (session.obstacle() if session.obstacle else StorageFailed("the disk failed")))

    # Snapshots

    async def snapshot(self, session: Session) -> Written:
        """Writes the session's whole state now; the step it holds is durable when this returns.

        Raises:
          InvalidRequest: the session has durability NONE.
          StorageFull, StorageFailed: the disk took it not.
        """
        kept = self._kept.get(session)
        if kept is None:
            raise InvalidRequest(
                f"session {session.session_id} has durability NONE, so nothing of it is written; export it instead"
            )
        while kept.writing is not None:  # That one may have begun before what should be written now.
            await asyncio.wait([kept.writing])
        return await asyncio.shield(self._begin(session, kept))

    def _begin(self, session: Session, kept: Kept) -> "asyncio.Task[Written]":
        if kept.writing is None:
            kept.writing = asyncio.create_task(self._write(session, kept))
            kept.writing.add_done_callback(functools.partial(self._ended, session, kept))
        return kept.writing

    async def _write(self, session: Session, kept: Kept) -> Written:
        if self._failure is not None:
            raise StorageFailed(str(self._failure))
        async with self._writers:
            kept.snapshot_s = time.monotonic()
            resident, belongs = session.on_device, None
            while belongs != (
                session.replaced_generation,
                session.spec,
            ):  # else it was replaced before the copy
                belongs = session.replaced_generation, session.spec
                state = await session.executor.run(lambda arena: on_device.copy_out(arena, resident), of=[resident])
            generation, document = session.replaced_generation, self._encode(session.spec)
            reach("keeper.copied")
            written = await self._on_disk(self._save, session, generation, document, state)
        info = written.info
        if generation != session.replaced_generation:
            return written
        kept.snapshot_step = info.step
        if session.obstacle is not None and info.step >= session.step and self._failure is None:
            session.obstacle = None
        self._advance(session, info.step)
        covered = await self._on_disk(self._covered, session.session_id)
        self.journal.release({session.session_id: covered})
        return written

    def _save(self, session: Session, generation: int, document: bytes, state: ExportedState) -> Written:
        layout = session.spec.layout
        state = replace(state, digest=on_device.digest_of(state))
        stored = StoredSnapshot(
            session_id=session.session_id, generation=generation, layout=layout, state=state, document=document
        )
        return Written(self.store.save_snapshot(stored), state.digest)

    def _covered(self, session_id: str) -> tuple[int, int]:
        """Generation and step of the older of the snapshots that are kept: the journal must reach back to it."""
        held = self.store.snapshots(session_id)
        newest = held[0].generation
        return newest, min(info.step for info in held if info.generation == newest)

    def _ended(self, session: Session, kept: Kept, task: "asyncio.Task[Written]") -> None:
        kept.writing = None
        if task.cancelled() or session not in self._kept:
            return
        error = task.exception()
        if error is None:
            if kept.waiting and session.spec.durability.mode is DurabilityMode.SNAPSHOT:
                self._begin(session, kept)  # for those who came while this one was written
            return
        if isinstance(error, OSError):
            self._fail(error)
        else:
            logger.error("event=snapshot_failed session=%s problem=%r", session.session_id, str(error))
        if kept.waiting and session.spec.durability.mode is DurabilityMode.SNAPSHOT:
            known = error if isinstance(error, HermosisError) else StorageFailed(str(self._failure or error))
            self._refuse_waiting(session, known)

    def _is_due(self, session: Session, kept: Kept) -> bool:
        every = session.spec.durability.snapshot_every_steps
        return bool(every) and session.step - max(kept.snapshot_step, 0) >= every

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            for session, kept in list(self._kept.items()):
                if session.resident is None or not session.on_device.initialised or kept.writing is not None:
                    continue
                every = session.spec.durability.snapshot_every_s
                late = bool(every) and now - kept.snapshot_s >= every and session.step > kept.snapshot_step
                if self._failure is None and (late or session.obstacle is not None):
                    self._begin(session, kept)

    def _make_room(self) -> None:
        """The journal is longer than it should be: snapshots let its oldest part go."""
        for session in self._named(self.journal.held()):
            if (kept := self._kept.get(session)) is not None:
                self._begin(session, kept)

    def _named(self, session_ids: Iterable[str]) -> list[Session]:
        wanted = set(session_ids)
        return [session for session in self._kept if session.session_id in wanted]

    async def _on_disk(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._loop.run_in_executor(self._files, functools.partial(function, *arguments))


def name_of(info: SnapshotInfo) -> str:
    """The snapshot_id of the wire."""
    return f"{info.step}-{info.generation}"


def _durable(answer: Answer, session: Session) -> Answer:
    return answer._replace(result=replace(answer.result, durable_step=session.durable_step))


def _release(contributions: Sequence[Contribution]) -> None:
    for contribution in contributions:
        contribution.gradient.release()


def _settle(future: "asyncio.Future[None]", error: Exception | None) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
