"""Offline: what can be done with a data folder while no server has it.

`verify` reads everything in it by the rules of recovery and says what would come back, without changing a byte. `fetch`
fills an empty one from the copies in object storage.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hermosis_server.engine import replay
from hermosis_server.engine.recovery import newest_good
from hermosis_server.engine.resident import check_digest
from hermosis_server.engine.states import UNKNOWN_GENERATIONS
from hermosis_server.errors import CorruptState, InvalidRequest
from hermosis_server.records import DurabilityMode, Limits, Outcome, SessionStatus
from hermosis_server.rpc.codec import session as session_codec
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.copies import Copies
from hermosis_server.storage.disk import Disk
from hermosis_server.storage.folder import DataFolder, unattended
from hermosis_server.storage.journal import JOURNAL
from hermosis_server.storage.journal_reader import Damage, JournalEntry, JournalReader
from hermosis_server.storage.store import (
    SESSIONS,
    DamagedSession,
    SessionRecord,
    Store,
    load_snapshot,
    read_sessions,
    snapshots_in,
)

Progress = Callable[[str], None]
# Whatever a server allowed; what lies on disk is not to be refused for its size.
NO_LIMITS = replace(Limits(), max_parameters=1 << 62, max_tensors=1 << 31, max_rank=1 << 16)


@dataclass(slots=True, kw_only=True)
class Verdict:
    """How far one session can be brought back.

    Attributes:
      step:      that it reaches; None where it cannot be had.
      snapshots: that are as they were written, by name; newest first.
      entries:   of the journal that are stepped again.
      problems:  in words; none means that it comes back with all that was promised.
    """

    session_id: str
    step: int | None = None
    snapshots: list[str] = field(default_factory=list)
    entries: int = 0
    problems: list[str] = field(default_factory=list)


def verify(folder: Path, progress: Progress = lambda what: None) -> list[Verdict]:
    """Reads all of a data folder: every byte is held against its checksum, every state against its digest.

    What only stepping can show is left to recovery: whether the journal's entries lead to the same numbers again.

    Args:
      progress: hears what is being read.

    Raises:
      InvalidRequest: it is no data folder, or a server has it.
      OSError:        it cannot be read.
    """
    with unattended(folder):
        found = [_session(folder, each, progress) for each in read_sessions(folder / SESSIONS)]
        progress("the journal")
        journal = folder / JOURNAL
        _follow(JournalReader(journal).entries() if journal.is_dir() else (), found)
    return [one.verdict() for one in found]


def verify_file(path: Path) -> Verdict:
    """Reads one snapshot or exported session. Raises CorruptState if it is not what was written."""
    stored = snapshot_file.read(path)
    check_digest(stored.state)
    return Verdict(session_id=stored.session_id, step=stored.state.scalars.step, snapshots=[path.name])


def fetch(url: str, folder: Path, progress: Progress = lambda what: None) -> list[str]:
    """Fills an empty data folder from copies: a server that starts on it has each session as its newest copy has it.

    Workers that knew a later state are told that theirs is another (StaleGeneration), and go on after a pull.

    Returns:
      The sessions.

    Raises:
      InvalidRequest: the folder holds sessions already, or there are no copies.
      CorruptState:   no copy of a session is good.
      OSError:        the storage or the disk does not do it.
    """
    copies = Copies(url)
    with DataFolder(folder) as data:
        store = Store(data.path, Disk())
        if store.sessions():
            raise InvalidRequest(f"{folder} holds sessions already; give an empty folder", field="data_folder")
        sessions = copies.sessions()
        if not sessions:
            raise InvalidRequest(f"there are no copies in {url}", field="copies")
        for session_id in sessions:
            progress(session_id)
            _fetch(copies, store, session_id)
    return sessions


def _fetch(copies: Copies, store: Store, session_id: str) -> None:
    problems = []
    for copy in copies.held(session_id):
        try:
            stored = copies.read(copy)
            check_digest(stored.state)
        except CorruptState as error:
            problems.append(f"{copy.key}: {error}")
            continue
        store.save_session(
            SessionRecord(
                session_id=session_id,
                generation=stored.generation + UNKNOWN_GENERATIONS,
                replaced_generation=stored.generation,
                recovered_steps=(),
                status=SessionStatus.READY,
                revision=0,
                lr_scale=1.0,
                created_s=time.time(),
                document=stored.document,
            )
        )
        store.save_snapshot(stored)
        return
    raise CorruptState(f"no copy of session {session_id} is good ({'; '.join(problems)})")


@dataclass(slots=True, kw_only=True)
class _Found:
    """A session as far as it has been followed; the fields mean what they mean in recovery.Found."""

    session_id: str
    journalled: bool = False
    created_s: float = 0.0
    lineage: int = 0
    step: int | None = None
    must: int = 0
    snapshots: list[str] = field(default_factory=list)
    entries: int = 0
    proven: bool = True
    ended: bool = False
    problems: list[str] = field(default_factory=list)

    def verdict(self) -> Verdict:
        if self.step is not None and self.step < self.must:
            self.problems.append(f"it can be brought to step {self.step} only, and step {self.must} was promised")
        if not self.proven:
            self.problems.append("a part of the journal cannot be read, and may have held steps of it")
        return Verdict(
            session_id=self.session_id,
            step=self.step,
            snapshots=self.snapshots,
            entries=self.entries,
            problems=self.problems,
        )


def _session(folder: Path, record: SessionRecord | DamagedSession, progress: Progress) -> _Found:
    progress(record.session_id)
    found = _Found(session_id=record.session_id)
    held = snapshots_in(folder / SESSIONS / record.session_id)
    for info in held:
        try:
            check_digest(load_snapshot(info).state)
            found.snapshots.append(info.path.name)
        except CorruptState as error:
            found.problems.append(str(error))
    if isinstance(record, DamagedSession):
        found.problems.append(record.problem)
        return found
    try:
        spec = session_codec.from_document(record.document, NO_LIMITS)
        found.journalled = spec.durability.mode is DurabilityMode.JOURNAL
        stored, newest = newest_good(held, found.journalled)
    except CorruptState as error:
        if str(error) not in found.problems:
            found.problems.append(str(error))
        return found
    found.created_s = record.created_s
    found.lineage = record.replaced_generation if newest is None else newest.generation
    found.step = 0 if stored is None else stored.state.scalars.step
    found.must = max((one.step for one in held if one.generation == found.lineage), default=0)
    return found


def _follow(entries: Iterable[JournalEntry | Damage], sessions: list[_Found]) -> None:
    """Counts what the journal adds, by the rules of recovery."""
    journalled = {one.session_id: one for one in sessions if one.journalled and one.step is not None}
    for entry in entries:
        if isinstance(entry, JournalEntry):
            found = journalled.get(entry.session_id)
            if found is not None and (entry.generation, entry.created_s) == (found.lineage, found.created_s):
                _add(found, entry)
        elif entry.session_ids is None:
            for found in journalled.values():
                found.proven = False
        else:
            for session_id in entry.session_ids:
                if session_id in journalled:
                    journalled[session_id].problems.append(f"an entry of the journal is damaged ({entry.detail})")
                    journalled[session_id].ended = True


def _add(found: _Found, entry: JournalEntry) -> None:
    assert found.step is not None, "a session that cannot be had is not followed"
    if found.ended:
        return
    try:
        said = replay.read(memoryview(b"".join(entry.parts)))
    except CorruptState as error:
        found.problems.append(str(error))
        found.ended = True
        return
    if isinstance(said, replay.Edited):
        found.entries += 1
    elif said.outcome is Outcome.APPLIED and entry.step > found.step:
        if entry.step == found.step + 1:
            found.step, found.proven = entry.step, True
            found.entries += 1
            return
        found.ended = True
        if not found.proven:
            found.problems.append(f"the journal has no step {found.step + 1} of it, but step {entry.step}")
