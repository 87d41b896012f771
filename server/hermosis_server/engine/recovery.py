"""Recovery: sessions come back from disk, all at once, before anything is served.

For each: its record, its newest snapshot, then the journal's entries after it, stepped again and compared with what
they led to the first time. What cannot be proved is not served: the session is set aside, with the reason, and the
others go on. A damaged newest snapshot of a journalled session costs nothing: the journal reaches back to the one
before.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hermosis_server.engine import checks, replay
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.batch import StepDone
from hermosis_server.engine.engine import Engine, Quarantined
from hermosis_server.engine.keeper import Keeper
from hermosis_server.engine.rounds import WorkerRecord
from hermosis_server.engine.scheduler import ReadyRound
from hermosis_server.engine.session import Session
from hermosis_server.engine.states import require_fit
from hermosis_server.errors import CorruptState, HermosisError, InternalError
from hermosis_server.failpoints import reach
from hermosis_server.records import DurabilityMode, Outcome, ParametersOn, SessionStatus, WorkerSequence
from hermosis_server.storage.journal import Damage, JournalEntry
from hermosis_server.storage.snapshot_file import StoredSnapshot
from hermosis_server.storage.store import DamagedSession, SessionRecord, SnapshotInfo, load_snapshot

logger = logging.getLogger(__name__)

PARALLEL = 8  # sessions that are read at a time
REPLAY_BYTES = 256 << 20  # of gradients on their way through the device


@dataclass(slots=True)
class Found:
    """A session on its way back.

    Attributes:
      lineage:  the generation that its state belongs to; entries of others are not its own.
      must:     the least step that it has to reach.
      proven:   whether the last entry that the journal held of it is known to be the last.
      problem:  why it cannot be had.
      ended:    whether later entries no longer count: one before them never reached the disk, and none was promised.
    """

    session: Session
    lineage: int
    must: int
    snapshot_step: int
    step: int
    proven: bool = True
    problem: str = ""
    ended: bool = False


async def recover(engine: Engine, keeper: Keeper) -> None:
    """Brings all sessions back. The engine says Recovering until this returns."""
    began = time.monotonic()
    records = await asyncio.to_thread(keeper.store.sessions)
    limit = asyncio.Semaphore(PARALLEL)

    async def one(record: SessionRecord | DamagedSession) -> Found | None:
        async with limit:
            try:
                return await _read(engine, keeper, record)
            except Exception as error:  # whatever it is, it is this session's alone
                if not isinstance(error, HermosisError):
                    logger.exception("event=recovery_failed session=%s", record.session_id)
                    error = InternalError("it could not be read back; the server's log says why")
                _set_aside(engine, record.session_id, str(error), record)
                return None

    found = {one.session.session_id: one for one in await asyncio.gather(*map(one, records)) if one is not None}
    reach("recovery.read")
    entries = await _Replay(engine, keeper, found).run()
    reach("recovery.replayed")
    for session_id, item in found.items():
        if not item.problem and item.session.step < item.must:
            item.problem = f"it can be brought to step {item.session.step} only, and step {item.must} was promised"
        if not item.problem and not item.proven:
            item.problem = "a part of the journal cannot be read, and may have held steps of it that were promised"
        if item.problem:
            await engine.abandon(item.session)
            _set_aside(engine, session_id, item.problem, keeper.record(item.session))
            continue
        await _enter(engine, keeper, item)
    keeper.journal.keep_only(found.keys() | engine.quarantined.keys())
    reach("recovery.entered")
    logger.info(
        "event=recovered sessions=%d set_aside=%d entries=%d seconds=%.2f",
        *(len(engine.quarantined.keys() ^ set(found)), len(engine.quarantined), entries, time.monotonic() - began),
    )


async def _read(engine: Engine, keeper: Keeper, record: SessionRecord | DamagedSession) -> Found:
    """A session from its record and its newest good snapshot."""
    if isinstance(record, DamagedSession):
        raise CorruptState(f"its record is damaged ({record.problem}); restore it from a snapshot")
    spec = keeper.decode(record.document)
    held = await asyncio.to_thread(keeper.store.snapshots, record.session_id)
    journalled = spec.durability.mode is DurabilityMode.JOURNAL
    stored, info = await asyncio.to_thread(newest_good, held, journalled)
    if stored is not None:
        spec = replace(spec, optimizer=keeper.decode(stored.document).optimizer)
    session = engine.begin_session(record.session_id, spec)
    try:
        await engine.reserve(session)
        if stored is not None:
            require_fit(session, stored.state)
            await session.executor.run(
                lambda arena: on_device.adopt(arena, session.on_device, stored.state), of=[session.on_device]
            )
    except BaseException:
        await engine.abandon(session)
        raise
    keeper.recall(session, record)
    session.status = record.status
    if stored is not None:
        session.step = stored.state.scalars.step
        if session.status is SessionStatus.CREATING:
            session.status = SessionStatus.READY
    elif spec.parameters_on is ParametersOn.SERVER:
        session.status = SessionStatus.CREATING
    must = max((one.step for one in held if info is None or one.generation == info.generation), default=0)
    lineage = record.replaced_generation if info is None else info.generation
    return Found(
        session=session,
        lineage=lineage,
        must=must,
        snapshot_step=session.step if info is not None else -1,
        step=session.step,
    )


def newest_good(held: Sequence[SnapshotInfo], journalled: bool) -> tuple[StoredSnapshot | None, SnapshotInfo | None]:
    """The newest snapshot that is what it says; an older one only where the journal goes on from there.

    Raises:
      CorruptState: there is none such.
    """
    for info in held:
        try:
            stored = load_snapshot(info)
            on_device.check_digest(stored.state)
        except CorruptState as error:
            logger.error("event=corrupt_snapshot session=%s step=%d problem=%r", info.session_id, info.step, str(error))
            if not journalled or info.generation != held[-1].generation or info is held[-1]:
                raise
        else:
            return stored, info
    return None, None


class _Replay:
    """Steps the journal's entries again."""

    def __init__(self, engine: Engine, keeper: Keeper, found: dict[str, Found]) -> None:
        self._engine = engine
        self._keeper = keeper
        self._found = found
        self._loop = asyncio.get_running_loop()
        self._under_way: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._bytes = 0

    async def run(self) -> int:
        """Gives how many entries were stepped."""
        count, entries = 0, self._keeper.journal.entries()
        while True:
            batch = await asyncio.to_thread(_some, entries)
            if not batch:
                break
            for entry in batch:
                if isinstance(entry, Damage):
                    self._damaged(entry)
                elif await self._again(entry):
                    count += 1
        await self._wait(0)
        return count

    def _damaged(self, damage: Damage) -> None:
        logger.error("event=corrupt_journal sessions=%s problem=%r", damage.session_ids, damage.detail)
        for item in self._found.values():
            if item.session.spec.durability.mode is not DurabilityMode.JOURNAL:
                continue
            if damage.session_ids is None:
                item.proven = False
            elif item.session.session_id in damage.session_ids:
                item.problem = f"an entry of the journal is damaged ({damage.detail})"

    async def _again(self, entry: JournalEntry) -> bool:
        item = self._found.get(entry.session_id)
        if item is None or item.problem or item.ended:
            return False
        if (entry.generation, entry.created_s) != (item.lineage, item.session.created_s):
            return False
        try:
            said = replay.read(
                memoryview(b"".join(entry.parts)) if len(entry.parts) > 1 else memoryview(entry.parts[0])
            )
            if isinstance(said, replay.Edited):
                await self._edit(item, entry, said)
                return True
            if said.outcome is not Outcome.APPLIED:
                if entry.step >= item.step:
                    await self._refused(item, entry, said)
                return False
            if entry.step <= item.step:
                return False
            if entry.step != item.step + 1:
                item.ended = item.proven  # where a part is missing, what follows proves that something was lost
                if not item.proven:
                    item.problem = f"the journal has no step {item.step + 1} of it, but step {entry.step}"
                return False
            item.proven = True
            await self._step(item, entry, said)
        except HermosisError as error:
            item.problem = str(error)
            return False
        return True

    async def _edit(self, item: Found, entry: JournalEntry, said: replay.Edited) -> None:
        if entry.step < item.snapshot_step:
            return
        await self._wait(0)
        session, spec = item.session, self._keeper.decode(said.document)
        profile = checks.checked_hamiltonian(spec, self._engine.limits).thermal
        await session.executor.run(lambda arena: on_device.change_profile(arena, session.on_device, profile))
        session.spec = replace(session.spec, optimizer=spec.optimizer)

    async def _refused(self, item: Found, entry: JournalEntry, said: replay.TriedRound) -> None:
        resident = item.session.on_device
        lines = {
            worker_id: WorkerSequence(worker_id, commit.sequence, crc32, said.outcome, entry.step)
            for worker_id, commit, _, crc32 in said.commits
        }
        await item.session.executor.run(lambda arena: resident.refused.update(lines), of=[resident])

    async def _step(self, item: Found, entry: JournalEntry, said: replay.TriedRound) -> None:
        session, workers = item.session, dict[str, WorkerRecord]()
        made = replay.contributions(said, workers, self._engine.intake.assembler)
        size = sum(one.gradient.size_bytes for one in made)
        future: asyncio.Future[None] = self._loop.create_future()

        def done(fate: StepDone | Exception) -> None:
            for one in made:
                one.gradient.release()
            self._compare(item, entry, said, fate)
            future.set_result(None)

        item.step = entry.step
        session.executor.submit(
            ReadyRound(
                resident=session.on_device,
                contributions=made,
                lr_scale=said.lr_scale,
                loss=replay.loss(made),
                size_bytes=size,
                done=done,
                aggregation=None if session.spec.aggregation.is_plain else session.spec.aggregation,
                late_weights=said.late_weights,
            )
        )
        self._under_way.append((size, future))
        self._bytes += size
        await self._wait(REPLAY_BYTES)

    def _compare(self, item: Found, entry: JournalEntry, said: replay.TriedRound, fate: StepDone | Exception) -> None:
        if item.problem:
            return
        if isinstance(fate, Exception):
            item.problem = f"step {entry.step} could not be taken again ({fate})"
        elif (fate.outcome, fate.step, replay.fingerprint(fate.energies)) != (
            said.outcome,
            entry.step,
            said.fingerprint,
        ):
            item.problem = (
                f"step {entry.step} led to other numbers than the first time; recover it on a device of the same kind "
                "and with the same version, or restore a snapshot"
            )
        else:
            item.session.step = fate.step

    async def _wait(self, most_bytes: int) -> None:
        while self._under_way and (self._bytes > most_bytes or not most_bytes):
            size, future = self._under_way.popleft()
            self._bytes -= size
            await future


def _some(entries: Iterator[JournalEntry | Damage]) -> list[JournalEntry | Damage]:
    """The next few entries, some megabytes of them."""
    batch: list[JournalEntry | Damage] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        if isinstance(entry, JournalEntry):
            size += sum(len(part) for part in entry.parts)
        if size > 32 << 20 or len(batch) >= 1024:
            break
    return batch


async def _enter(engine: Engine, keeper: Keeper, item: Found) -> None:
    """A session that is whole again begins its next generation, on disk before anybody hears of it."""
    session = item.session
    resident = session.on_device
    session.adopt_workers([*resident.workers.values(), *resident.refused.values()])
    session.generation += 1
    if session.replaced_generation != item.lineage:  # a crash cut a replacement in half: what was before goes on
        session.replaced_generation, session.recovered_steps = item.lineage, ()
    session.recovered_steps = (*session.recovered_steps, session.step)
    keeper.adopt_recovered(session, item.snapshot_step)
    await keeper.save(session)


def _set_aside(engine: Engine, session_id: str, problem: str, record: SessionRecord | DamagedSession) -> None:
    logger.error("event=set_aside session=%s problem=%r", session_id, problem)
    known = record if isinstance(record, SessionRecord) else None
    engine.quarantined[session_id] = Quarantined(problem=problem, record=known)


__all__ = ["recover"]
