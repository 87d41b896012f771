"""Segments that nobody needs any more: used again, and never read as if they were still part of the journal."""

import queue
from pathlib import Path

from hermosis_server.storage.disk import Disk
from hermosis_server.storage.journal import Damage, Journal, JournalEntry

SEGMENT_BYTES = 2048


def journal(folder: Path) -> Journal:
    return Journal(folder / "journal", Disk(), segment_bytes=SEGMENT_BYTES)


def put(journal: Journal, session_id: str, step: int) -> None:
    told: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    entry = JournalEntry(session_id=session_id, step=step, generation=1, parts=[bytes([step % 251]) * 500])
    journal.append(entry, told.put)
    assert told.get() is None


def steps(journal: Journal) -> list[int]:
    """Of the entries that it reads; none may be damaged."""
    read = list(journal.entries())
    assert not [piece for piece in read if isinstance(piece, Damage)], read
    return [piece.step for piece in read if isinstance(piece, JournalEntry)]


def test_what_was_let_go_leaves_no_hole_in_what_is_read_after_a_restart(tmp_path: Path) -> None:
    first = journal(tmp_path)
    for step in range(1, 11):
        put(first, "a", step)
    first.release({"a": (1, 8)})  # several segments at once
    for step in range(11, 13):  # in one of those, not in all
        put(first, "a", step)
    first.close()
    again = journal(tmp_path)
    found = steps(again)
    assert found == list(range(found[0], 13))
    assert found[0] > 1
    again.close()


def test_serial_of_a_spare_is_not_used_again_while_its_remains_may_be_read(tmp_path: Path) -> None:
    first = journal(tmp_path)
    for step in range(1, 9):
        put(first, "a", step)
    first.close()
    for path in (tmp_path / "journal").glob("*.seg"):  # as if all had been let go
        path.rename(path.with_suffix(".spare"))
    again = journal(tmp_path)
    assert steps(again) == []
    put(again, "a", 100)
    again.close()
    last = journal(tmp_path)
    assert steps(last) == [100]
    last.close()
