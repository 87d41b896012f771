"""JournalReader: what the segments of a journal hold, and what they should hold and do not. It changes nothing.

What was being written when the server ended may be torn. Nobody was promised that, and it is left out; reading ends
there. What an entry after it knew to be on disk was promised: that is damage. See `journal_format`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hermosis_server.storage import journal_format
from hermosis_server.storage.disk import Bytes
from hermosis_server.storage.journal_format import Header, Piece

SEGMENT = "{:016d}.seg"
SPARE = "{:016d}.spare"
_SEGMENT_NAME = re.compile(r"(\d{16})\.seg")
_SPARE_NAME = re.compile(r"(\d{16})\.spare")


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """Something that happened to a session, to be done again after a crash.

    Attributes:
      step:       that the session was at afterwards.
      generation: that it belonged to; a snapshot of the same one continues with it.
      created_s:  when the session was made: a later one of the same id has nothing to do with this entry.
      parts:      the body in pieces, which must not change until it is on disk. Read back it is one piece.
      checksums:  of the last of these pieces, where they are known; the others are computed.
    """

    session_id: str
    step: int
    generation: int
    created_s: float = 0.0
    parts: Sequence[Bytes]
    checksums: Sequence[int] = ()

    @property
    def size_bytes(self) -> int:
        return sum(memoryview(part).nbytes for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Entries that were on disk once and cannot be read any more.

    Attributes:
      session_ids: whose they were; None where nobody can tell.
    """

    session_ids: tuple[str, ...] | None
    detail: str


@dataclass(slots=True)
class Segment:
    """A file of the journal.

    Attributes:
      size: in bytes, with the room that nothing was written to yet.
      end:  of what can be believed in it; zero where that is nothing.
      held: of each session the last (generation, step) that lies here.
    """

    serial: int
    path: Path
    size: int
    end: int = 0
    held: dict[str, tuple[int, int]] = field(default_factory=dict)


class JournalReader:
    """Reads a journal once, from its oldest entry to its last.

    Attributes, which are final when `entries` has ended:
      segments: all of them, in order, those in which nothing can be believed included.
      spares:   files that hold nothing, to be used again.
      sequence: of the last entry that can be believed; zero where there is none.
      chain:    its place in the chain.
      serial:   higher than any that a segment has or had.
    """

    def __init__(self, folder: Path) -> None:
        self.segments = [
            Segment(int(match[1]), path, path.stat().st_size) for path, match in _named(folder, _SEGMENT_NAME)
        ]
        spares = list(_named(folder, _SPARE_NAME))
        self.spares = [path for path, _ in spares]
        # Spares count: what remains in them must never have the serial of the segment that they become.
        self.serial = max([0, *(one.serial for one in self.segments), *(int(match[1]) for _, match in spares)])
        self.sequence = 0
        self.chain = journal_format.FIRST_CHAIN
        self._gap = False  # damage was told, and what comes next does not say how much is missing
        self._witness: int | None = None

    def entries(self) -> Iterator[JournalEntry | Damage]:
        """What the disk holds, in order, and what it should hold and does not. One segment is in memory at a time."""
        for index, segment in enumerate(self.segments):
            content = memoryview(segment.path.read_bytes())
            for piece in journal_format.pieces(content, segment.serial):
                problem = self._problem(piece, content, index)
                if problem is not None:
                    lost, damage = problem
                    if self._proven(index) < lost:
                        return
                    yield damage
                segment.end = piece.end
                self._gap = piece.header is None
                if piece.header is not None:
                    yield from self._believed(piece.header, piece.body, segment)

    def _problem(self, piece: Piece, content: memoryview, index: int) -> tuple[int, Damage] | None:
        """What is missing up to the end of this piece: the first sequence of it, and how to tell."""
        header, expected = piece.header, self.sequence + 1
        if header is None:
            if not self.sequence:
                expected = _first(content, self.segments[index].serial)
            size = piece.end - piece.begin
            return expected, Damage(session_ids=None, detail=f"entry {expected} and maybe more, {size} bytes")
        if not self.sequence and not self._gap and index:
            return 0, Damage(session_ids=None, detail=f"nothing in {self.segments[0].path.name} can be read")
        if self.sequence and not self._gap and header.sequence != expected:
            where = f"entry {header.sequence} comes where {expected} should be"
            return expected, Damage(session_ids=None, detail=where)
        if piece.body is None:
            where = f"entry {header.sequence}, step {header.step} of session {header.session_id}"
            # A seal is nobody's: what it says of others is in its header, which was read.
            return header.sequence, Damage(session_ids=(header.session_id,) if header.session_id else (), detail=where)
        if self.sequence and not self._gap and not header.follows(self.chain):
            where = f"entry {header.sequence} does not follow the one before it"
            return 0, Damage(session_ids=None, detail=where)
        return None

    def _believed(self, header: Header, body: memoryview | None, segment: Segment) -> Iterator[JournalEntry]:
        self.sequence, self.chain = header.sequence, header.chain
        if not header.session_id:
            return
        segment.held[header.session_id] = header.generation, header.step
        if body is not None:
            yield JournalEntry(
                session_id=header.session_id,
                step=header.step,
                generation=header.generation,
                created_s=header.created_s,
                parts=[body],
            )

    def _proven(self, index: int) -> int:
        """How far the journal was known to be on disk, by what can be read from a segment on. Read once, if ever."""
        if self._witness is None:
            self._witness = 0
            for segment in self.segments[index:]:
                content = memoryview(segment.path.read_bytes())
                for piece in journal_format.pieces(content, segment.serial):
                    if piece.header is not None:
                        self._witness = max(self._witness, piece.header.durable)
        return self._witness


def _named(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()):
        if (match := pattern.fullmatch(path.name)) is not None:
            yield path, match


def _first(content: memoryview, serial: int) -> int:
    """The sequence that a segment begins with, as anything in it says."""
    for piece in journal_format.pieces(content, serial):
        if piece.header is not None:
            return piece.header.begin
    return 1  # nothing in it can be read: whatever is known to be on disk was after it
