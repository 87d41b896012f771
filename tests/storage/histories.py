"""Histories of a journal: what was appended, what was told durable and when, to compare with what a crash leaves."""

import random
import threading
from collections.abc import Sequence
from pathlib import Path

from hermosis_server.storage.disk import Disk
from hermosis_server.storage.journal import Damage, Journal, JournalEntry

from .crash_images import CrashDisk

SEGMENT_BYTES = 4096


def opened(root: Path, disk: Disk | None = None) -> Journal:
    """A journal of small segments in a folder."""
    (root / "journal").mkdir(exist_ok=True)
    return Journal(root / "journal", Disk() if disk is None else disk, segment_bytes=SEGMENT_BYTES)


def entry(session_id: str, step: int, body: bytes, generation: int = 1) -> JournalEntry:
    half = len(body) // 2
    return JournalEntry(
        session_id=session_id, step=step, generation=generation, created_s=2.5, parts=[body[:half], body[half:]]
    )


def same(one: JournalEntry, other: JournalEntry) -> bool:
    return key(one) == key(other)


def key(one: JournalEntry) -> tuple[object, ...]:
    return one.session_id, one.step, one.generation, one.created_s, b"".join(map(bytes, one.parts))


class Fates:
    """What became of entries, as the journal told."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.told: list[tuple[int, Exception | None]] = []
        self._asked = 0
        self._all = threading.Condition()

    def append(self, one: JournalEntry) -> int:
        index, self._asked = self._asked, self._asked + 1

        def done(error: Exception | None) -> None:
            with self._all:
                self.told.append((index, error))
                self._all.notify_all()

        self.journal.append(one, done)
        return index

    def wait(self) -> dict[int, Exception | None]:
        """When all have been told."""
        with self._all:
            assert self._all.wait_for(lambda: len(self.told) == self._asked, timeout=20)
        return dict(self.told)


def append_all(journal: Journal, entries: Sequence[JournalEntry]) -> dict[int, Exception | None]:
    fates = Fates(journal)
    for one in entries:
        fates.append(one)
    return fates.wait()


class Life:
    """One life of a journal on a disk that remembers: reads, appends, and knows what was promised when.

    Attributes:
      truth:    all that was read or appended, in order.
      promised: (operations, entries): by then the server had told that so many of them are durable.
      needed:   (operations, entries): from then on those before are covered by snapshots.
    """

    def __init__(self, disk: CrashDisk, before: "Life | None" = None, after: int = 0) -> None:
        self.disk = disk
        self.journal = opened(disk.root, disk)
        read = list(self.journal.entries())
        self.truth, still = before.check(read, after) if before else ([], 0)
        self.promised = [(0, still), (len(disk), len(self.truth))]
        self.needed = [(0, 0)]

    def append(self, entries: Sequence[JournalEntry]) -> None:
        told = threading.Semaphore(0)

        def done(error: Exception | None) -> None:
            assert error is None
            self.promised.append((len(self.disk), self.promised[-1][1] + 1))
            told.release()

        for one in entries:
            self.truth.append(one)
            self.journal.append(one, done)
        for _ in entries:
            assert told.acquire(timeout=20)

    def release(self, upto: int) -> None:
        """Snapshots hold the first so many entries."""
        self.needed.append((len(self.disk), upto))
        last = {one.session_id: (one.generation, one.step) for one in self.truth[:upto]}
        self.journal.release(last)

    def check(self, read: Sequence[JournalEntry | Damage], after: int) -> tuple[list[JournalEntry], int]:
        """What was read after a crash is a stretch of the truth that holds what is promised and needed.

        Gives it, and how many of it were promised.
        """
        damages = [one for one in read if isinstance(one, Damage)]
        assert not damages, damages
        entries = [one for one in read if isinstance(one, JournalEntry)]
        promised = max(count for at, count in self.promised if at <= after)
        free = max(count for at, count in self.needed if at <= after)
        if not entries:
            assert promised <= free, f"{promised} were promised, {free} are covered, and nothing was read"
            return [], 0
        keys = [key(one) for one in self.truth]
        begin = keys.index(key(entries[0]))
        assert keys[begin : begin + len(entries)] == [key(one) for one in entries]
        assert begin <= free, f"entries {free} to {begin} are needed and gone"
        assert begin + len(entries) >= promised, f"{promised} were promised, {begin + len(entries)} are there"
        return entries, max(0, promised - begin)


def random_entries(rng: random.Random, steps: dict[str, int], count: int) -> list[JournalEntry]:
    """The next steps of a few sessions; now and then one longer than a segment."""
    made = []
    for _ in range(count):
        session_id = rng.choice(["ant", "bee", "cat"])
        steps[session_id] = steps.get(session_id, 0) + 1
        size = rng.choice([0, 1, 8, 100, 700, 1500, 6000 if rng.random() < 0.2 else 3])
        made.append(entry(session_id, steps[session_id], rng.randbytes(size)))
    return made
