"""Journal: one for all sessions. What is appended while the disk is busy goes to it together, with one sync.

    journal/<serial>.seg      segments, preallocated, without a hole from the first to the last
    journal/<serial>.spare    one that no session needs any more; it is not read, and used again

A failed write or sync is the end of it: what the disk holds then cannot be known, so nothing is acknowledged until a
restart has read it back. Want of room for another segment is not: nothing of the entry was written, and a later one may
fit.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hermosis import wire
from hermosis_server.errors import StorageFull
from hermosis_server.failpoints import reach
from hermosis_server.storage import journal_format
from hermosis_server.storage.disk import Bytes, Disk, full
from hermosis_server.storage.journal_format import Header

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
SPARES = 4
_GROUP_BYTES = 256 << 20
_SUFFIX, _SPARE = ".seg", ".spare"
_ZEROS = bytes(journal_format.ALIGN)

Done = Callable[[Exception | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """Something that happened to a session, to be done again after a crash.

    Attributes:
      step:       that the session was at afterwards.
      generation: that it belonged to; a snapshot of the same one continues with it.
      parts:      the body in pieces, which must not change until it is on disk. Read back it is one piece.
    """

    session_id: str
    step: int
    generation: int
    parts: Sequence[Bytes]

    @property
    def size_bytes(self) -> int:
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Entries that were on disk once and cannot be read any more.

    Attributes:
      session_ids: whose they were; None where nobody can tell.
    """

    session_ids: tuple[str, ...] | None
    detail: str


@dataclass(slots=True)
class _Segment:
    """Attributes:
    held: of each session the last (generation, step) that lies here.
    """

    serial: int
    path: Path
    size: int
    held: dict[str, tuple[int, int]] = field(default_factory=dict)


class Journal:
    """Appends entries, and reads those of the life before.

    Read first: `entries` to its end; then append.

    Args:
      folder:        of the segments; made if missing.
      disk:          how files are written.
      segment_bytes: of a new segment; an entry that is longer gets one of its own.
      most_bytes:    of all segments, beyond which `held` tells who should be written whole.
    """

    def __init__(
        self, folder: Path, disk: Disk, *, segment_bytes: int = SEGMENT_BYTES, most_bytes: int = 4 << 30
    ) -> None:
        self.most_bytes = most_bytes
        self._folder = folder
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._segments: deque[_Segment] = deque()
        self._spares: list[Path] = []
        self._file = -1
        self._at = 0
        self._serial = 0
        self._named: dict[str, tuple[int, int]] = {}  # generation of a session's last entry, serial of its segment
        self._sequence = 0
        self._durable = 0
        self._chain = journal_format.FIRST_CHAIN
        self._failure: OSError | None = None
        self._lock = threading.Lock()  # of the segments and of what waits
        self._waiting: deque[tuple[JournalEntry, Done]] = deque()
        self._wake = threading.Condition(self._lock)
        self._closing = False
        self._thread: threading.Thread | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.sync_folder(folder.parent)

    @property
    def size_bytes(self) -> int:
        """Of all segments that are needed."""
        return sum(segment.size for segment in list(self._segments))

    # Reading

    def entries(self) -> Iterator[JournalEntry | Damage]:
        """What the disk holds, in order, and what it should hold and does not. Afterwards appending may begin.

        The tail that was being written when the server ended is no damage: nobody was told of it. It is cut off.
        """
        paths = sorted(path for path in self._folder.iterdir() if path.suffix == _SUFFIX)
        self._spares = [path for path in self._folder.iterdir() if path.suffix == _SPARE]
        # Not used twice: a spare may hold remains of any serial below its own.
        self._serial = max((int(path.stem) for path in self._spares), default=0)
        for index, path in enumerate(paths):
            segment = _Segment(int(path.stem), path, path.stat().st_size)
            self._serial = max(self._serial, segment.serial)
            content = memoryview(path.read_bytes())
            found = 0
            for piece in journal_format.pieces(content, segment.serial):
                header = piece.header
                torn = piece.body is None or header is None
                expected = self._sequence + 1
                skipped = header is not None and self._sequence and header.sequence != expected
                if torn or skipped:
                    if not self._is_proven(expected, content[piece.begin :], segment.serial, paths[index + 1 :]):
                        self._cut(segment, piece.begin, paths[index + 1 :])
                        return
                    yield _damage(piece, expected)
                if header is None:
                    continue
                if not (torn or skipped) and self._sequence and not header.follows(self._chain):
                    yield Damage(session_ids=None, detail=f"entry {header.sequence} does not follow the one before it")
                self._sequence, self._durable, self._chain = header.sequence, header.sequence, header.chain
                segment.held[header.session_id] = header.generation, header.step
                self._named[header.session_id] = header.generation, segment.serial
                found += 1
                if piece.body is not None:
                    yield JournalEntry(
                        session_id=header.session_id, step=header.step, generation=header.generation, parts=[piece.body]
                    )
            if found:
                self._segments.append(segment)
            else:
                with contextlib.suppress(OSError):  # it holds nothing, whatever its name
                    self._lay_by(path)

    def _is_proven(self, sequence: int, rest: memoryview, serial: int, later: Sequence[Path]) -> bool:
        """Whether something after a place that cannot be read knew it to be on disk."""
        for piece in journal_format.pieces(memoryview(bytes(rest)), serial):
            if piece.header is not None and piece.header.durable >= sequence:
                return True
        for path in later:
            for piece in journal_format.pieces(memoryview(path.read_bytes()), int(path.stem)):
                if piece.header is not None and piece.header.durable >= sequence:
                    return True
        return False

    def _cut(self, segment: _Segment, at: int, later: Sequence[Path]) -> None:
        """Removes a tail that was not promised to anybody, so that it is never taken for something that was."""
        for path in later:
            self._disk.unlink(path)
        file = self._disk.open(segment.path)
        try:
            self._disk.truncate(file, at)
            self._disk.sync(file)
        finally:
            self._disk.close(file)
        self._disk.sync_folder(self._folder)
        segment.size = at
        if segment.held:
            self._segments.append(segment)
        else:
            with contextlib.suppress(OSError):
                self._lay_by(segment.path)

    # Appending

    def append(self, entry: JournalEntry, done: Done) -> None:
        """Writes an entry after all that were appended before it. Any thread may ask.

        Args:
          done: called on the journal's thread, in order: with None when the entry is on disk, else with StorageFull
                (nothing of it was written; another time it may fit) or the OSError that ended the journal.
        """
        with self._lock:
            self._waiting.append((entry, done))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="hermosis-journal", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """Writes what waits and ends the thread."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = -1

    # Letting go

    def release(self, covered: Mapping[str, tuple[int, int]]) -> None:
        """Lets go what snapshots hold.

        Args:
          covered: of each session the (generation, step) up to which it needs nothing of the journal.
        """
        with self._lock:
            for segment in self._segments:
                for session_id in covered.keys() & segment.held.keys():
                    if segment.held[session_id] <= covered[session_id]:
                        del segment.held[session_id]
            self._recycle()

    def forget(self, session_id: str) -> None:
        """Lets go all of a session that was closed."""
        with self._lock:
            for segment in self._segments:
                segment.held.pop(session_id, None)
            self._recycle()

    def keep_only(self, session_ids: Container[str]) -> None:
        """Lets go all of sessions that are none of these: they were closed before a restart."""
        with self._lock:
            for segment in self._segments:
                segment.held = {name: last for name, last in segment.held.items() if name in session_ids}
            self._recycle()

    def last_generation(self, session_id: str) -> int:
        """Of the entries under that name that may still be read after a crash; zero means there are none."""
        with self._lock:
            return self._named.get(session_id, (0, 0))[0]

    def held(self) -> list[str]:
        """The sessions that the oldest segment is kept for."""
        with self._lock:
            return list(self._segments[0].held) if self._segments else []

    def _recycle(self) -> None:
        """From the oldest on, so that the sequence never has a hole."""
        before = len(self._segments)
        while self._segments and not self._segments[0].held and self._segments[0].serial != self._serial:
            segment = self._segments.popleft()
            reach("journal.recycle")
            try:
                if segment.size == self._segment_bytes and len(self._spares) < SPARES:
                    self._lay_by(segment.path)
                else:
                    self._disk.unlink(segment.path)
            except OSError:
                self._segments.appendleft(segment)  # it is still there, so those after it stay too
                break
        if len(self._segments) < before:
            oldest = self._segments[0].serial if self._segments else self._serial
            self._named = {name: last for name, last in self._named.items() if last[1] >= oldest}

    def _lay_by(self, path: Path) -> None:
        """Keeps a segment under a name that says it holds nothing: the segments that are read have no hole."""
        spare = path.with_suffix(_SPARE)
        self._disk.rename(path, spare)
        self._spares.append(spare)

    # The journal's thread

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closing:
                    self._wake.wait()
                group: list[tuple[JournalEntry, Done]] = []
                size = 0
                while self._waiting and size < _GROUP_BYTES:
                    group.append(self._waiting.popleft())
                    size += group[-1][0].size_bytes
                if not group:
                    return
            reach("journal.taken")
            for (_, done), outcome in zip(group, self._write(group), strict=True):
                done(outcome)
            del group

    def _write(self, group: Sequence[tuple[JournalEntry, Done]]) -> list[Exception | None]:
        """Writes a group; gives what became of each."""
        outcomes: list[Exception | None] = []
        if self._failure is not None:
            return [self._failure] * len(group)
        try:
            for entry, _ in group:
                try:
                    self._put(entry)
                except StorageFull as error:
                    # Those after it are of no use without it, whoever they are of: they wait for room as well.
                    outcomes.extend([error] * (len(group) - len(outcomes)))
                    break
                outcomes.append(None)
                if len(outcomes) == (len(group) + 1) // 2:
                    reach("journal.half")
            reach("journal.written")
            if self._file >= 0:
                self._disk.sync(self._file)
            self._durable = self._sequence
            reach("journal.synced")
        except OSError as error:
            logger.critical("event=journal_failed problem=%r", str(error))
            self._failure = error
            return [error] * len(group)
        return outcomes

    def _put(self, entry: JournalEntry) -> None:
        size = entry.size_bytes
        least = journal_format.entry_bytes(size)
        if self._file < 0 or self._at + least > self._segments[-1].size:
            self._begin_segment(least)
        crc32 = 0
        for part in entry.parts:
            crc32 = wire.checksum(part, crc32)
        header = Header(
            body_bytes=size,
            body_crc32=crc32,
            sequence=self._sequence + 1,
            durable=self._durable,
            step=entry.step,
            generation=entry.generation,
            serial=self._serial,
            session_id=entry.session_id,
        ).chained(self._chain)
        pieces: list[Bytes] = [
            header.head(),
            *entry.parts,
            _ZEROS[: least - 2 * journal_format.SIZE - size],
            header.foot(),
        ]
        self._at = self._disk.write(self._file, pieces, self._at)
        self._sequence, self._chain = header.sequence, header.chain
        with self._lock:
            self._segments[-1].held[entry.session_id] = entry.generation, entry.step
            self._named[entry.session_id] = entry.generation, self._serial

    def _begin_segment(self, least: int) -> None:
        """Goes on in another segment; StorageFull where there is no room for one, and nothing was changed."""
        serial = self._serial + 1
        path = self._folder / f"{serial:016d}{_SUFFIX}"
        size = max(self._segment_bytes, least)
        with self._lock:
            spare = self._spares.pop() if self._spares and size == self._segment_bytes else None
        reach("journal.segment")
        if self._file >= 0:
            self._disk.sync(self._file)
            self._durable = self._sequence
        with full("make room for the journal"):
            if spare is not None and spare.stat().st_size == size:
                self._disk.rename(spare, path)
                file = self._disk.open(path)
            else:
                if spare is not None:
                    self._disk.unlink(spare)
                file = self._allocated(path, size)
        self._disk.sync_folder(self._folder)
        if self._file >= 0:
            self._disk.close(self._file)
        self._file, self._at = file, 0
        with self._lock:
            self._serial = serial
            self._segments.append(_Segment(serial, path, size))
            self._recycle()

    def _allocated(self, path: Path, size: int) -> int:
        file = self._disk.create(path)
        try:
            self._disk.allocate(file, size)
        except OSError:
            self._disk.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return file


def _damage(piece: journal_format.Piece, expected: int) -> Damage:
    header = piece.header
    if header is not None and header.sequence == expected:
        return Damage(session_ids=(header.session_id,), detail=f"entry {expected}, step {header.step} of the session")
    return Damage(session_ids=None, detail=f"entry {expected} and maybe more after it, {piece.end - piece.begin} bytes")
