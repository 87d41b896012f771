"""Planted bugs: servers that break a promise in the ways that servers do. The suite must see each of them.

They are patches of a process that was started for it; the product knows nothing of them.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermosis_server import app
from hermosis_server.engine import keeper, recovery, resident, session
from hermosis_server.records import ExportedState, StateBuffer, WorkerSequence
from hermosis_server.storage import disk, journal

if TYPE_CHECKING:
    from tests.faults.drill import Drill

ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """A bug and where it shows.

    Attributes:
      what:       for people.
      plant:      called in the server's process before its main.
      failpoints: at one of which a kill shows it.
      volatile:   it shows only where a kill takes what was not synced.
    """

    what: str
    plant: Callable[[], None]
    failpoints: Sequence[str] = ("intake.stepped=kill@9", "journal.taken=kill@9", "disk.write=kill@30")
    volatile: bool = False


def provoke(one: "Drill", bug: Bug) -> None:
    """Kills a server with the bug until that shows, a few times at most: it depends on what is under way."""
    for failpoints in [*bug.failpoints] * ROUNDS:
        if one.violations:
            return
        one.die(failpoints)
        one.settle()


def _acknowledge_before_the_journal() -> None:
    append = journal.Journal.append

    def told_at_once(
        self: journal.Journal, entry: journal.JournalEntry, done: journal.Done, *, hurry: bool = True
    ) -> None:
        kept = replace(entry, parts=[bytes(part) for part in entry.parts])
        done(None)
        later.submit(write, self, kept)

    def write(self: journal.Journal, entry: journal.JournalEntry) -> None:
        time.sleep(0.02)  # so long that the answer is out of the house before the entry is taken
        append(self, entry, lambda error: None)

    later = ThreadPoolExecutor(1)  # one, so that entries keep their order
    journal.Journal.append = told_at_once  # type: ignore[method-assign]


def _snapshots_without_the_sequence_table() -> None:
    save = keeper.Keeper._save

    def without(self: Any, kept: Any, generation: int, document: bytes, state: ExportedState) -> Any:
        return save(self, kept, generation, document, replace(state, workers={}, refused={}))

    keeper.Keeper._save = without  # type: ignore[method-assign]


def _forget_the_second_worker_of_a_race() -> None:
    adopt = session.Session.adopt_workers

    def all_but_one(self: session.Session, table: Iterable[WorkerSequence]) -> None:
        entries = sorted(table, key=lambda entry: entry.worker_id)
        adopt(self, entries if self.spec.consistency.has_rounds else [*entries[:1], *entries[2:]])

    session.Session.adopt_workers = all_but_one  # type: ignore[method-assign]


def _restore_weights_only() -> None:
    adopt = resident.adopt

    def weights_only(arena: Any, on_device: Any, state: ExportedState) -> None:
        buffers = {
            kind: payload if kind is StateBuffer.PARAMETERS else memoryview(bytes(len(memoryview(payload).cast("B"))))
            for kind, payload in state.buffers.items()
        }
        adopt(arena, on_device, replace(state, buffers=buffers))

    resident.adopt = weights_only


def _ignore_generations() -> None:
    session.Session.require_generation = lambda self, known: None  # type: ignore[method-assign]


def _replay_twice() -> None:
    again = recovery._Replay._step

    async def twice(self: Any, item: Any, *words: Any) -> None:
        await again(self, item, *words)
        await again(self, item, *words)

    recovery._Replay._step = twice  # type: ignore[method-assign]


class VolatileDisk(disk.Disk):
    """A disk that keeps in the process what was not synced, so that a kill takes what a power cut would.

    Bytes go to a file when it is synced, a new name to its folder when that is. Files that were made and never named
    anew are there at once, empty: that is the harder case for a reader.
    """

    def __init__(self) -> None:
        self._written: dict[int, list[tuple[bytes, int]]] = {}
        self._named: dict[Path, Path] = {}

    def open(self, path: Path) -> int:
        return super().open(self._named.get(path, path))

    def write(self, file: int, parts: Sequence[disk.Bytes], offset: int) -> int:
        disk.reach("disk.write")
        content = b"".join(map(bytes, parts))
        self._written.setdefault(file, []).append((content, offset))
        disk.reach("disk.written")
        return offset + len(content)

    def sync(self, file: int) -> None:
        disk.reach("disk.sync")
        for content, offset in self._written.pop(file, []):
            os.pwrite(file, content, offset)
        disk.reach("disk.synced")

    def close(self, file: int) -> None:
        self._written.pop(file, None)
        super().close(file)

    def rename(self, old: Path, new: Path) -> None:
        disk.reach("disk.rename")
        if new.suffix == ".spare":  # of no consequence whether it comes or not
            os.replace(old, new)
        else:
            self._named[new] = old
        disk.reach("disk.renamed")

    def sync_folder(self, folder: Path) -> None:
        disk.reach("disk.sync_folder")
        for new in [path for path in self._named if path.parent == folder]:
            os.replace(self._named.pop(new), new)


def volatile_disk() -> None:
    """Lets the server write to a disk that forgets."""
    app.Disk = VolatileDisk  # type: ignore[attr-defined]


def _never_sync_a_volatile_disk() -> None:
    VolatileDisk.sync = lambda self, file: None  # type: ignore[method-assign]


BUGS: Mapping[str, Bug] = {
    "acknowledge-early": Bug(
        what="a step is acknowledged as durable before the journal is written",
        plant=_acknowledge_before_the_journal,
        failpoints=("journal.taken=kill@6", "journal.taken=kill@11"),
    ),
    "no-sequence-table": Bug(what="snapshots lack the sequence table", plant=_snapshots_without_the_sequence_table),
    "no-second-worker": Bug(
        what="a recovery forgets the numbers of an asynchronous session's second worker",
        plant=_forget_the_second_worker_of_a_race,
        failpoints=("intake.answered=kill@40", "intake.answered=kill@150"),
    ),
    "weights-only": Bug(what="only the weights are restored", plant=_restore_weights_only),
    "no-sync": Bug(
        what="files are not synced",
        plant=_never_sync_a_volatile_disk,
        failpoints=("journal.synced=kill@20",),
        volatile=True,
    ),
    "no-generations": Bug(
        what="generations are ignored",
        plant=_ignore_generations,
        failpoints=("intake.answered=kill@40", "disk.write=kill@40", "journal.taken=kill@20"),
    ),
    "replay-twice": Bug(what="an entry of the journal is stepped twice", plant=_replay_twice),
}
