"""The journal in fair weather and on failing disks: what is appended is read back, damage is told, trouble is said."""

import errno
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermosis_server.errors import InternalError, StorageFailed, StorageFull
from hermosis_server.storage.disk import Bytes, Disk
from hermosis_server.storage.journal import Damage, Journal, JournalEntry
from hermosis_server.storage.journal_format import SEAL_BYTES, Header, entry_bytes
from hermosis_server.storage.journal_reader import JournalReader

from .crash_images import CrashDisk, failing_at
from .histories import SEGMENT_BYTES, Fates, append_all, entry, key, opened


def _read(root: Path) -> list[JournalEntry | Damage]:
    return list(JournalReader(root / "journal").entries())


def _keys(read: list[JournalEntry | Damage]) -> list[tuple[object, ...]]:
    return [key(one) for one in read if isinstance(one, JournalEntry)]


def _segments(root: Path) -> list[Path]:
    return sorted((root / "journal").glob("*.seg"))


def _filled(root: Path, entries: list[JournalEntry]) -> None:
    journal = opened(root)
    assert set(append_all(journal, entries).values()) == {None}
    journal.close()


# Reading back


def test_entries_of_every_length_are_read_back_in_order_over_segments(tmp_path: Path) -> None:
    entries = [entry("ant", step, bytes([step]) * size) for step, size in enumerate([0, 1, 7, 8, 3000, 9000, 40, 3000])]
    _filled(tmp_path, entries)
    assert len(_segments(tmp_path)) > 2
    assert _keys(_read(tmp_path)) == [key(one) for one in entries]


def test_an_entry_may_have_no_parts_or_parts_of_any_element(tmp_path: Path) -> None:
    numbers = np.arange(5, dtype="<f4")
    entries = [
        JournalEntry(session_id="ant", step=1, generation=1, parts=[]),
        JournalEntry(session_id="ant", step=2, generation=1, parts=[b"", memoryview(numbers), b"x"]),
    ]
    _filled(tmp_path, entries)
    assert [one[-1] for one in _keys(_read(tmp_path))] == [b"", numbers.tobytes() + b"x"]


def test_reading_for_a_look_changes_nothing_though_the_tail_is_torn(tmp_path: Path) -> None:
    entries = [entry("ant", step, b"body") for step in range(3)]
    _filled(tmp_path, entries)
    path = _segments(tmp_path)[0]
    begin = path.read_bytes().rindex(b"HJe1") - 150  # in the last entry's footer, and the seal goes too
    torn = path.read_bytes()[:begin] + bytes(SEGMENT_BYTES - begin)
    path.write_bytes(torn)
    assert _keys(_read(tmp_path)) == [key(one) for one in entries[:2]]
    assert path.read_bytes() == torn
    assert _keys(list(opened(tmp_path).entries())) == [key(one) for one in entries[:2]]
    assert path.stat().st_size < begin


def test_appending_before_reading_is_a_bug_that_says_so(tmp_path: Path) -> None:
    _filled(tmp_path, [entry("ant", 1, b"one")])
    with pytest.raises(InternalError, match="before the journal was read"):
        opened(tmp_path).append(entry("ant", 2, b"two"), lambda error: None)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.sampled_from("abc"), st.integers(0, 5000)),
            st.tuples(st.just("release"), st.sampled_from("abc"), st.integers(0, 3)),
            st.tuples(st.just("forget"), st.sampled_from("abc"), st.just(0)),
            st.tuples(st.just("reopen"), st.just(""), st.just(0)),
        ),
        max_size=25,
    )
)
def test_any_history_reads_as_its_model_says(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, str, int]]
) -> None:
    """Of each session what was neither released nor forgotten is there; what else is there is from the oldest on."""
    root = tmp_path_factory.mktemp("journal")
    journal, truth, needed = opened(root), list[JournalEntry](), dict[str, int]()
    for what, session_id, number in history:
        last = max((one.step for one in truth if one.session_id == session_id), default=0)
        if what == "append":
            truth.append(entry(session_id, last + 1, bytes(number)))
            append_all(journal, truth[-1:])
        elif what == "reopen":
            journal.close()
            journal = opened(root)
            assert not [one for one in journal.entries() if isinstance(one, Damage)]
        else:
            covered = last if what == "forget" else max(0, last - number)
            needed[session_id] = max(covered, needed.get(session_id, 0))
            if what == "forget":
                journal.forget(session_id)
            else:
                journal.release({session_id: (1, covered)})
    journal.close()
    read = _keys(_read(root))
    assert read == [key(one) for one in truth][len(truth) - len(read) :]
    for one in truth:
        assert one.step <= needed.get(one.session_id, 0) or key(one) in read


# Damage


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, bytes, list[tuple[object, ...]]]:
    """A closed journal of two entries: its folder, the bytes of its one segment, and what it holds."""
    _filled(tmp_path, [entry("ant", 1, b"one body"), entry("bee", 1, b"other")])
    (path,) = _segments(tmp_path)
    content = path.read_bytes()
    return tmp_path, content[: content.rindex(b"HJf1") + SEAL_BYTES // 2], _keys(_read(tmp_path))


def test_every_flipped_bit_is_told_or_changes_nothing(small: tuple[Path, bytes, list[tuple[object, ...]]]) -> None:
    root, content, truth = small
    (path,) = _segments(root)
    told = 0
    first = 8 * (SEAL_BYTES + len(b"one body"))  # its header and body bit by bit; the footer is the header once more
    for bit in [*range(8 * 100), *range(8 * 100, first, 7)]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        read = _read(root)
        damages = [one for one in read if isinstance(one, Damage)]
        assert damages or _keys(read) == truth, f"bit {bit}"
        assert set(_keys(read)) <= set(truth), f"bit {bit}"
        told += bool(damages)
    assert told > 8 * 100


def test_a_segment_that_was_cut_or_grew_holds_a_prefix(small: tuple[Path, bytes, list[tuple[object, ...]]]) -> None:
    root, content, truth = small
    (path,) = _segments(root)
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        read = _read(root)
        assert [one for one in read if isinstance(one, Damage)] == []
        assert _keys(read) == truth[: len(read)]
    for extra in (b"\0" * 50, b"\xff" * 777, content, content[100:]):
        path.write_bytes(content + extra)
        assert set(_keys(_read(root))) == set(truth)


def test_a_lost_segment_is_told_wherever_it_was(tmp_path: Path) -> None:
    entries = [entry("ant", step, bytes(1500)) for step in range(12)]
    _filled(tmp_path, entries)
    for path in _segments(tmp_path)[1:-1]:
        content = path.read_bytes()
        path.unlink()
        assert any(isinstance(one, Damage) for one in _read(tmp_path))
        path.write_bytes(content)
    oldest = _segments(tmp_path)[0]
    oldest.write_bytes(bytes(SEGMENT_BYTES))
    assert any(isinstance(one, Damage) for one in _read(tmp_path))


def test_a_torn_first_entry_is_no_damage_though_the_journal_is_old(tmp_path: Path) -> None:
    """The oldest segment begins with entry 9 or so; what is on disk up to there says nothing of it."""
    disk = _Gate()
    journal = opened(tmp_path, disk)
    append_all(journal, [entry("ant", step, bytes(1500)) for step in range(1, 4)])
    fates = Fates(journal)
    disk.shut.set()
    fates.append(entry("ant", 4, bytes(10)))
    assert disk.arrived.wait(20)
    for step in (5, 6):
        fates.append(entry("ant", step, bytes(1500 if step == 5 else 10)))
    disk.opened.set()
    fates.wait()
    journal.close()
    *older, newest = _segments(tmp_path)
    for path in older:
        path.unlink()
    content = bytearray(newest.read_bytes())
    first = entry_bytes(1500)
    content[:first] = bytes(first)
    kept = content[: content.rindex(b"HJe1")] + bytes(SEAL_BYTES)  # without its seal: nobody was told
    newest.write_bytes(kept)
    read = _read(tmp_path)
    assert read == [], read


class _Gate(Disk):
    """Lets a sync wait."""

    def __init__(self) -> None:
        self.shut, self.arrived, self.opened = threading.Event(), threading.Event(), threading.Event()
        self.syncs = 0

    def sync(self, file: int) -> None:
        self.syncs += 1
        if self.shut.is_set():
            self.arrived.set()
            assert self.opened.wait(20)
        super().sync(file)


# Using segments again


def test_remains_of_a_former_life_are_never_read(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for step in range(1, 50):
        append_all(journal, [entry("ant", step, bytes([255]) * 10)])
    journal.release({"ant": (1, 99)})
    append_all(journal, [entry("bee", 1, b"")])  # after which the thread has let them go
    journal.close()
    *spares, last = sorted((tmp_path / "journal").glob("*.spare"))
    last.unlink()  # of an odd number the middle one would become what it was
    assert len(spares) == 3
    for path in _segments(tmp_path):
        path.unlink()  # as a power cut that tore all of it leaves it, once read back
    journal = opened(tmp_path)
    assert list(journal.entries()) == []
    new = [entry("cat", step, bytes(2000)) for step in range(1, 3)]  # shorter than what remains behind them
    append_all(journal, new)
    journal.close()
    read = _read(tmp_path)
    assert not [one for one in read if isinstance(one, Damage)]
    assert _keys(read) == [key(one) for one in new]


def test_what_nobody_needs_is_used_again_and_the_journal_stays_as_long_as_it_is(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for step in range(1, 60):
        append_all(journal, [entry("ant", step, bytes(1500))])
        journal.release({"ant": (1, step)})
    journal.close()
    assert journal.size_bytes <= 3 * SEGMENT_BYTES
    files = list((tmp_path / "journal").iterdir())
    assert sum(path.stat().st_size for path in files) <= 8 * SEGMENT_BYTES
    assert len(JournalReader(tmp_path / "journal").segments) <= 3


def test_sessions_that_are_no_more_hold_nothing_after_a_restart(tmp_path: Path) -> None:
    _filled(tmp_path, [entry("gone", step, bytes(1500)) for step in range(1, 9)])
    journal = opened(tmp_path)
    list(journal.entries())
    assert journal.held() == ["gone"]
    journal.keep_only({"ant"})
    append_all(journal, [entry("ant", step, bytes(1500)) for step in range(1, 3)])
    journal.close()
    assert journal.held() == ["ant"]


def test_a_snapshot_of_an_earlier_step_or_generation_lets_nothing_later_go(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    append_all(journal, [entry("ant", 5, b"", generation=2)])
    journal.release({"ant": (2, 4)})
    journal.release({"ant": (1, 9)})
    assert journal.held() == ["ant"]
    journal.release({"ant": (2, 5)})
    assert journal.held() == []
    journal.close()


def test_a_journal_shorter_than_a_segment_is_divided_all_the_same(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", Disk(), most_bytes=1 << 20)
    append_all(journal, [entry("ant", 1, b"one")])
    journal.close()
    assert journal.size_bytes <= journal.most_bytes // 8


# Groups and threads


def test_what_comes_while_the_disk_is_busy_shares_one_sync(tmp_path: Path) -> None:
    disk = _Gate()
    journal = opened(tmp_path, disk)
    append_all(journal, [entry("ant", 1, b"")])
    fates, before = Fates(journal), disk.syncs
    disk.shut.set()
    fates.append(entry("ant", 2, b""))
    assert disk.arrived.wait(20)
    lock = threading.Lock()

    def writer(session_id: str) -> None:
        for step in range(5):
            with lock:
                fates.append(entry(session_id, step, b""))

    threads = [threading.Thread(target=writer, args=(f"s{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.opened.set()
    assert set(fates.wait().values()) == {None}
    assert [index for index, _ in fates.told] == sorted(index for index, _ in fates.told)
    groups = disk.syncs - before
    journal.close()
    assert groups <= 2 + len(_segments(tmp_path))  # 41 entries: one for each group, one for each segment
    assert len(_keys(_read(tmp_path))) == 42


def test_a_listener_that_raises_harms_nobody_else(tmp_path: Path) -> None:
    journal = opened(tmp_path)

    def raises(error: Exception | None) -> None:
        raise ValueError("the listener's own bug")

    journal.append(entry("ant", 1, b""), raises)
    assert append_all(journal, [entry("ant", 2, b"")]) == {0: None}
    journal.close()


def test_after_the_end_an_entry_is_refused_at_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.close()
    journal.close()
    assert isinstance(append_all(journal, [entry("ant", 1, b"")])[0], StorageFailed)


# Trouble


def test_any_failing_operation_ends_it_and_leaves_what_was_told(tmp_path: Path) -> None:
    entries = [entry("ant", step, bytes(1500)) for step in range(1, 8)]
    index = 0
    while True:
        index += 1
        root = tmp_path / str(index)
        (root / "journal").mkdir(parents=True)
        disk = CrashDisk(root)
        journal = opened(root, disk)
        disk.asked = 0
        disk.fail = failing_at(index)
        fates: dict[int, Exception | None] = {}
        for number, one in enumerate(entries):
            fates[number] = append_all(journal, [one])[0]
            journal.release({"ant": (1, one.step - 4)})
        journal.close()
        failed = [number for number, fate in fates.items() if fate is not None]
        assert not failed or failed == list(range(failed[0], len(entries))), "it went on after a failure"
        told = [key(one) for number, one in enumerate(entries) if fates[number] is None]
        read = _read(root)
        assert not [one for one in read if isinstance(one, Damage)]
        assert set(told[-4:]) <= set(_keys(read))
        steps = [one[1] for one in _keys(read)]
        assert steps == list(range(steps[0], steps[0] + len(steps))) if steps else not told
        shutil.rmtree(root)
        if disk.asked < index:
            break
    assert index > 20


def test_without_room_for_a_segment_nothing_is_written_and_a_later_entry_may_fit(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    disk = CrashDisk(tmp_path)
    journal = opened(tmp_path, disk)
    assert append_all(journal, [entry("ant", 1, bytes(3000))]) == {0: None}
    full = threading.Event()
    full.set()
    disk.fail = lambda asked, what: OSError(errno.ENOSPC, "full") if what == "allocate" and full.is_set() else None
    fates = append_all(journal, [entry("ant", 2, bytes(10)), entry("ant", 3, bytes(3000)), entry("bee", 1, bytes(10))])
    assert isinstance(fates[1], StorageFull)
    full.clear()
    assert append_all(journal, [entry("cat", 1, bytes(3000))]) == {0: None}
    journal.close()
    kept = [(one[0], one[1]) for one in _keys(_read(tmp_path))]
    told = [pair for number, pair in enumerate([("ant", 2), ("ant", 3), ("bee", 1)]) if fates[number] is None]
    assert kept == [("ant", 1), *told, ("cat", 1)]


class LimitedDisk(Disk):
    """A disk under a limit on the size of files, as RLIMIT_FSIZE sets one: a write comes as far as the limit."""

    limit_bytes = 1 << 40

    def write(self, file: int, parts: Sequence[Bytes], offset: int) -> int:
        content = b"".join(map(bytes, parts))
        end = super().write(file, [content[: max(0, self.limit_bytes - offset)]], offset)
        if end < offset + len(content):
            raise OSError(errno.EFBIG, "File too large")
        return end


@pytest.mark.parametrize("limit_bytes", [0, 100, 700, 1500, 2700])
def test_of_an_entry_that_a_limit_cuts_off_nothing_is_left_and_a_later_one_may_fit(
    tmp_path: Path, limit_bytes: int
) -> None:
    """The entries that are cut off hold what could be taken for a later entry of the same segment."""
    later = Header(body_bytes=8, body_crc32=0, sequence=9, durable=8, step=1, generation=1, serial=1, begin=1)
    cuckoo = later.head() * 8
    disk = LimitedDisk()
    journal = opened(tmp_path, disk)
    disk.limit_bytes = limit_bytes
    tried = [entry("ant", 1, bytes(100)), entry("ant", 2, cuckoo), entry("ant", 3, cuckoo)]
    fates = [append_all(journal, [one])[0] for one in tried]
    assert [isinstance(fate, StorageFull) for fate in fates] == [limit_bytes < 600, True, limit_bytes < 2160]
    disk.limit_bytes = 1 << 40
    last = entry("cat", 1, b"short")
    assert append_all(journal, [last]) == {0: None}
    sizes = [path.stat().st_size for path in _segments(tmp_path)]
    assert journal.size_bytes == sum(sizes)
    assert all(sizes)
    journal.close()
    kept = [key(one) for one, fate in zip(tried, fates, strict=True) if fate is None]
    assert [key(one) for one in _read(tmp_path) if not isinstance(one, Damage)] == [*kept, key(last)]
    assert len(list(opened(tmp_path).entries())) == len(kept) + 1
