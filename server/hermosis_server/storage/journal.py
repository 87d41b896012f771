"""Journal: one for all sessions. What is appended while the disk is busy goes to it together, with one sync.

    journal/<serial>.seg    segments, preallocated
    journal/<serial>.spare  those that no session needs any more, to be used again under another name

A failed write or sync is the end of it: what the disk holds then cannot be known, so nothing is acknowledged until a
restart has read it back. Want of room is not: what came of the entry is cut off again, and a later one may fit.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from hermosis import wire
from hermosis_server.errors import InternalError, StorageFailed, StorageFull
from hermosis_server.failpoints import reach
from hermosis_server.storage import journal_format
from hermosis_server.storage.disk import Bytes, Disk, full
from hermosis_server.storage.journal_format import SEAL_BYTES, Header
from hermosis_server.storage.journal_reader import SEGMENT, SPARE, Damage, JournalEntry, JournalReader, Segment

__all__ = ["Damage", "Done", "Journal", "JournalEntry"]

logger = logging.getLogger(__name__)

JOURNAL = "journal"  # its folder within the data folder
SEGMENT_BYTES = 64 << 20
SPARES = 4
_LEAST_SEGMENTS = 8  # that the whole journal is divided into: the oldest can go while others are needed
_GROUP_BYTES = 256 << 20
# While nobody waits for it an entry may wait for others, so that they share a sync: this long, or for so many bytes.
_GATHER_S = 0.01
_GATHER_BYTES = 16 << 20
_ZEROS = bytes(journal_format.ALIGN)

Done = Callable[[Exception | None], None]

_SEAL = JournalEntry(session_id="", step=0, generation=0, parts=())


class Journal:
    """Appends entries, and reads those of the life before.

    Read first: `entries` to its end; then append.

    Args:
      folder:        of the segments; made if missing.
      disk:          how files are written.
      segment_bytes: of a new segment, if an eighth of the journal is not less; an entry that is longer gets one of its
                     own.
      most_bytes:    of all segments, beyond which `held` tells who should be written whole.
    """

    def __init__(
        self, folder: Path, disk: Disk, *, segment_bytes: int = SEGMENT_BYTES, most_bytes: int = 4 << 30
    ) -> None:
        self.most_bytes = most_bytes
        self._folder = folder
        self._disk = disk
        self._segment_bytes = min(segment_bytes, most_bytes // _LEAST_SEGMENTS)
        self._segments: deque[Segment] = deque()
        self._size = 0  # of these
        self._spares: list[Path] = []  # the journal's thread alone
        self._file = -1
        self._at = 0
        self._serial = 0
        self._begin = 0  # sequence of the first entry of the segment that is written
        self._sequence = 0
        self._durable = 0
        self._sealed = 0
        self._chain = journal_format.FIRST_CHAIN
        self._failure: Exception | None = None
        self._lock = threading.Lock()  # of the segments and of what waits
        self._waiting: deque[tuple[JournalEntry, Done]] = deque()
        self._waiting_bytes = 0
        self._hurry = False  # somebody waits for one of them
        self._gathering = False
        self._wake = threading.Condition(self._lock)
        self._closing = False
        self._thread: threading.Thread | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.sync_folder(folder.parent)
        self._read = not any(folder.iterdir())

    @property
    def size_bytes(self) -> int:
        """Of all segments that are needed."""
        return self._size

    # Reading

    def entries(self) -> Iterator[JournalEntry | Damage]:
        """What the disk holds, in order, and what it should hold and does not. Afterwards appending may begin.

        The tail that was being written when the server ended is no damage: nobody was told of it. It is cut off, so
        that it is never taken for something that was promised.
        """
        reader = JournalReader(self._folder)
        yield from reader.entries()
        self._go_on_from(reader)

    def _go_on_from(self, reader: JournalReader) -> None:
        segments, spares = reader.segments, reader.spares[:SPARES]
        for path in reader.spares[SPARES:]:
            self._disk.unlink(path)
        while segments and not segments[-1].end:
            self._disk.unlink(segments.pop().path)
        if segments:
            last = segments[-1]
            file = self._disk.open(last.path)
            try:
                self._disk.truncate(file, last.end)
                # What was read may have been with the kernel only, where a server that was killed left it.
                self._disk.sync(file)
            finally:
                self._disk.close(file)
            last.size = last.end
        self._disk.sync_folder(self._folder)
        with self._lock:
            self._segments.extend(segments)
            self._size = sum(segment.size for segment in segments)
        self._spares = spares
        self._serial, self._chain = reader.serial, reader.chain
        self._sequence = self._durable = self._sealed = reader.sequence
        self._read = True

    # Appending

    def append(self, entry: JournalEntry, done: Done, *, hurry: bool = True) -> None:
        """Writes an entry after all that were appended before it. Any thread may ask.

        Args:
          hurry: somebody waits for it. Else it may wait for others, up to 10 ms; see also `hasten`.
          done: called on the journal's thread, in order: with None when the entry is on disk, else with StorageFull
                (nothing of it is there; another time it may fit) or the error that ended the journal. After `close`
                it is called at once, with StorageFailed.

        Raises:
          InternalError: what the folder holds was not read before, or the entry is nobody's.
        """
        if not (self._read and entry.session_id):
            raise InternalError("an entry is appended before the journal was read, or without a session")
        with self._lock:
            if not self._closing:
                self._waiting.append((entry, done))
                self._waiting_bytes += entry.size_bytes
                self._hurry |= hurry
                called = not self._gathering or hurry or self._waiting_bytes >= _GATHER_BYTES
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="hermosis-journal", daemon=True)
                    self._thread.start()
                if called:  # else it comes by itself
                    self._wake.notify()
                return
        done(StorageFailed("the journal is closed: the server stops; try again when it is back"))

    def hasten(self) -> None:
        """Somebody has come to wait for what was appended."""
        with self._lock:
            self._hurry = True
            self._wake.notify()

    def close(self) -> None:
        """Writes what waits and ends the thread. Harmless when repeated."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        if self._file >= 0:
            with contextlib.suppress(OSError):  # a seal only: what was promised is on disk
                self._disk.sync(self._file)
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
            self._wake.notify()

    def forget(self, session_id: str) -> None:
        """Lets go all of a session that was closed."""
        with self._lock:
            for segment in self._segments:
                segment.held.pop(session_id, None)
            self._wake.notify()

    def keep_only(self, session_ids: Collection[str]) -> None:
        """Lets go all of sessions that are no more, after reading: a crash may have come before `forget`."""
        with self._lock:
            for segment in self._segments:
                for session_id in segment.held.keys() - session_ids:
                    del segment.held[session_id]
            self._wake.notify()

    def held(self) -> list[str]:
        """The sessions that the oldest segment is kept for."""
        with self._lock:
            return list(self._segments[0].held) if self._segments else []

    # The journal's thread

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self._waiting or self._closing or self._is_idle_over()):
                    self._wake.wait()
                self._gather()
                group: list[tuple[JournalEntry, Done]] = []
                size = 0
                while self._waiting and size < _GROUP_BYTES:
                    group.append(self._waiting.popleft())
                    size += group[-1][0].size_bytes
                self._waiting_bytes -= size
                self._hurry &= bool(self._waiting)
                ending = self._closing and not group
            for (_, done), outcome in zip(group, self._write(group), strict=True):
                try:
                    done(outcome)
                except Exception:
                    logger.exception("event=journal_listener_failed")
            del group
            self._tidy(idle=not self._waiting)
            if ending:
                return

    def _gather(self) -> None:
        """Lets more come, while nobody waits for what there is. Called with the lock."""
        if not self._waiting:
            return
        end = time.monotonic() + _GATHER_S
        self._gathering = True
        while not (self._hurry or self._closing) and self._waiting_bytes < _GATHER_BYTES:
            left = end - time.monotonic()
            if left <= 0 or not self._wake.wait(left):
                break
        self._gathering = False

    def _write(self, group: Sequence[tuple[JournalEntry, Done]]) -> list[Exception | None]:
        """Writes a group; gives what became of each."""
        outcomes: list[Exception | None] = []
        if not group or self._failure is not None:
            return [self._failure] * len(group)
        try:
            reach("journal.taken")
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
            if self._file >= 0 and self._durable < self._sequence:
                self._disk.sync(self._file)
            self._durable = self._sequence
            reach("journal.synced")
        except Exception as error:
            return [self._failed(error)] * len(group)
        return outcomes

    def _failed(self, error: Exception) -> Exception:
        logger.critical("event=journal_failed problem=%r", str(error))
        self._failure = error
        return error

    def _put(self, entry: JournalEntry) -> None:
        least = journal_format.entry_bytes(entry.size_bytes) + SEAL_BYTES  # a seal fits always
        if not self._has_room(least):
            self._begin_segment(least)
        self._append_to_segment(entry)
        with self._lock:
            self._segments[-1].held[entry.session_id] = entry.generation, entry.step

    def _has_room(self, size: int) -> bool:
        return self._file >= 0 and self._at + size <= self._segments[-1].size

    def _append_to_segment(self, entry: JournalEntry) -> None:
        size, parts = entry.size_bytes, entry.parts
        unknown = parts[: len(parts) - len(entry.checksums)]
        checksums = [*map(wire.checksum, unknown), *entry.checksums]
        lengths = [memoryview(part).nbytes for part in parts]
        crc32 = wire.joined_checksum(zip(checksums, lengths, strict=True))
        header = Header(
            body_bytes=size,
            body_crc32=crc32,
            sequence=self._sequence + 1,
            durable=self._durable,
            step=entry.step,
            generation=entry.generation,
            serial=self._serial,
            begin=self._begin,
            session_id=entry.session_id,
            created_s=entry.created_s,
        ).chained(self._chain)
        pieces: list[Bytes] = [header.head(), *parts, _ZEROS[: -size % journal_format.ALIGN], header.foot()]
        try:
            with full("write to the journal"):
                self._at = self._disk.write(self._file, pieces, self._at)
        except StorageFull:
            self._end_segment()
            raise
        self._sequence, self._chain = header.sequence, header.chain

    def _end_segment(self) -> None:
        """There is less room than was taken, as under a limit on the size of files: the next entry begins another.

        What came of the last one goes: a shorter one in its place would leave the rest of it to be read. So does a
        segment without any, which would be read as one that was lost.
        """
        segment = self._segments[-1]
        if self._at:
            self._disk.truncate(self._file, self._at)
        else:
            self._disk.close(self._file)
            self._file = -1
            self._disk.unlink(segment.path)
        with self._lock:
            self._size -= segment.size - self._at
            segment.size = self._at
            if not self._at:
                self._segments.pop()

    def _begin_segment(self, least: int) -> None:
        """Goes on in another segment; StorageFull where there is no room for one, and nothing was changed."""
        serial = self._serial + 1
        path = self._folder / SEGMENT.format(serial)
        size = max(self._segment_bytes, least)
        reach("journal.segment")
        if self._file >= 0:
            self._disk.sync(self._file)
            self._durable = self._sequence
        with full("make room for the journal"):
            file = self._opened(path, size)
        try:
            self._disk.sync_folder(self._folder)
        except BaseException:
            self._disk.close(file)
            raise
        if self._file >= 0:
            self._disk.close(self._file)
        self._file, self._at, self._serial, self._begin = file, 0, serial, self._sequence + 1
        with self._lock:
            self._segments.append(Segment(serial, path, size))
            self._size += size

    def _opened(self, path: Path, size: int) -> int:
        """A file of that size under that name: a spare one, else a new one."""
        while size == self._segment_bytes and self._spares:
            spare = self._spares.pop()
            if spare.stat().st_size == size:
                self._disk.rename(spare, path)
                return self._disk.open(path)
            self._disk.unlink(spare)
        file = self._disk.create(path)
        try:
            self._disk.allocate(file, size)
        except OSError:
            self._disk.close(file)
            with contextlib.suppress(OSError):
                self._disk.unlink(path)
            raise
        return file

    # Between groups

    def _is_idle_over(self) -> bool:
        return self._failure is None and self._has_needless()

    def _has_needless(self) -> bool:
        """Whether the oldest segment can go. Never the newest: the sequence goes on from it."""
        return len(self._segments) > 1 and not self._segments[0].held

    def _tidy(self, *, idle: bool) -> None:
        """Lets segments go that nobody needs; when nothing waits, gives the last entry its witness."""
        if self._failure is not None:
            return
        try:
            if idle and self._sealed < self._sequence and self._has_room(SEAL_BYTES):
                with contextlib.suppress(StorageFull):  # the next entry is as good a witness
                    self._append_to_segment(_SEAL)
                    self._sealed = self._sequence
            self._recycle()
        except Exception as error:
            self._failed(error)

    def _recycle(self) -> None:
        """From the oldest on, each for good before the next, so that the sequence never has a hole."""
        while True:
            with self._lock:
                if not self._has_needless():
                    return
                segment = self._segments.popleft()
                self._size -= segment.size
            reach("journal.recycle")
            if segment.size == self._segment_bytes and len(self._spares) < SPARES:
                spare = self._folder / SPARE.format(segment.serial)
                self._disk.rename(segment.path, spare)
                self._spares.append(spare)
            else:
                self._disk.unlink(segment.path)
            self._disk.sync_folder(self._folder)
