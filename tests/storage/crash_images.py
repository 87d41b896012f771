"""CrashDisk: a Disk that remembers what it did, and can leave the folder as a crash at any moment could have left it.

A power cut keeps what was synced. Of the rest each write may be lost, there, or torn at any byte, whatever the others
are; each name likewise. A killed process leaves everything with the kernel, and nothing of it synced: a power cut in a
later life may still take it.
"""

import contextlib
import copy
import errno
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hermosis_server.storage.disk import Bytes, Disk


@dataclass
class File:
    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # a write, or the size where it has no bytes

    def change(self, at: int, data: bytes | None) -> None:
        if data is None:
            del self.content[at:]
            self.content.extend(bytes(at - len(self.content)))
        else:
            self.content.extend(bytes(max(0, at - len(self.content))))
            self.content[at : at + len(data)] = data

    def settle(self, luck: "Luck") -> None:
        for at, data in self.pending:
            if data is None:
                if luck.there():
                    self.change(at, None)
                continue
            begin, end = luck.part(len(data))
            if begin < end:
                self.change(at + begin, data[begin:end])
        self.pending.clear()


@dataclass
class Folder:
    names: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[dict[str, "File | Folder | None"]] = field(default_factory=list)

    def now(self) -> dict[str, "File | Folder"]:
        """As the kernel shows it."""
        names = dict(self.names)
        for change in self.pending:
            _apply(names, change)
        return names

    def settle(self, luck: "Luck") -> None:
        for change in self.pending:
            if luck.there():
                _apply(self.names, change)
        self.pending.clear()
        for node in self.names.values():
            node.settle(luck)


def _apply(names: dict[str, "File | Folder"], change: dict[str, "File | Folder | None"]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Luck:
    """What becomes of that which was not synced."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._kind = rng.choice(["lost", "there", "mixed", "mixed", "mixed"])

    def there(self) -> bool:
        return self._kind == "there" or (self._kind == "mixed" and self._rng.random() < 0.5)

    def part(self, size: int) -> tuple[int, int]:
        if self._kind != "mixed" or self._rng.random() < 0.5:
            return (0, size) if self.there() else (0, 0)
        begin, end = sorted((self._rng.randint(0, size), self._rng.randint(0, size)))
        return (0, end) if self._rng.random() < 0.5 else (begin, end)


class CrashDisk(Disk):
    """Does it and remembers it.

    Args:
      root: everything that is written lies in it.
      was:  what of root is not synced; None means that all of it is.
    """

    def __init__(self, root: Path, was: Folder | None = None) -> None:
        self.root = root
        self._start = _seen(root) if was is None else was
        self._log: list[Callable[[_Replay], None]] = []
        self._lock = threading.RLock()
        self._files: dict[int, int] = {}  # descriptor → which opening
        self._openings = 0
        self.fail: Callable[[int, str], OSError | None] = lambda index, what: None
        self.asked = 0

    def __len__(self) -> int:
        """Operations so far."""
        return len(self._log)

    # What a crash leaves

    def power_cut(self, after: int, target: Path, rng: random.Random) -> "CrashDisk":
        """The disk in another folder, as it may be when the power went after so many operations."""
        folder = self._at(after)
        folder.settle(Luck(rng))
        _write(folder, target)
        return CrashDisk(target)

    def killed(self, after: int, target: Path) -> "CrashDisk":
        """The same when only the process ended: all is there, and the disk has still to get it."""
        folder = self._at(after)
        _write(folder, target)
        return CrashDisk(target, folder)

    def _at(self, after: int) -> Folder:
        replay = _Replay(copy.deepcopy(self._start))
        for step in self._log[:after]:
            step(replay)
        return replay.root

    # Disk

    def create(self, path: Path) -> int:
        with self._does("create"):
            file = super().create(path)
            opening = self._opened(file)
            where = self._where(path)
            self._log.append(lambda replay: replay.create(where, opening))
            return file

    def open(self, path: Path) -> int:
        with self._does("open"):
            file = super().open(path)
            opening = self._opened(file)
            where = self._where(path)
            self._log.append(lambda replay: replay.open(where, opening))
            return file

    def allocate(self, file: int, size: int) -> None:
        with self._does("allocate"):
            super().allocate(file, size)
            self._sized(file)

    def truncate(self, file: int, size: int) -> None:
        with self._does("truncate"):
            super().truncate(file, size)
            self._sized(file)

    def write(self, file: int, parts: Sequence[Bytes], offset: int) -> int:
        with self._does("write"):
            end = super().write(file, parts, offset)
            opening, data = self._files[file], b"".join(bytes(part) for part in parts)
            self._log.append(lambda replay: replay.change(opening, offset, data))
            return end

    def sync(self, file: int) -> None:
        with self._does("sync"):
            super().sync(file)
            opening = self._files[file]
            self._log.append(lambda replay: replay.sync(opening))

    def rename(self, old: Path, new: Path) -> None:
        with self._does("rename"):
            super().rename(old, new)
            before, after = self._where(old), self._where(new)
            self._log.append(lambda replay: replay.rename(before, after))

    def sync_folder(self, folder: Path) -> None:
        with self._does("sync_folder"):
            super().sync_folder(folder)
            where = self._where(folder)
            self._log.append(lambda replay: replay.sync_folder(where))

    def unlink(self, path: Path) -> None:
        with self._does("unlink"):
            super().unlink(path)
            where = self._where(path)
            self._log.append(lambda replay: replay.unlink(where))

    def make_folder(self, path: Path) -> None:
        with self._does("make_folder"):
            super().make_folder(path)
            where = self._where(path)
            self._log.append(lambda replay: replay.make_folder(where))

    def remove_folder(self, path: Path) -> None:
        with self._does("remove_folder"):
            where = self._where(path)
            for inside in sorted(path.iterdir()):
                with contextlib.suppress(OSError):
                    self.unlink(inside)
            super().remove_folder(path)
            self._log.append(lambda replay: replay.unlink(where))

    def close(self, file: int) -> None:
        self._files.pop(file, None)
        super().close(file)

    def _does(self, what: str) -> threading.RLock:
        """The lock, unless this time it is to fail."""
        self.asked += 1
        if (error := self.fail(self.asked, what)) is not None:
            raise error
        return self._lock

    def _opened(self, file: int) -> int:
        self._openings += 1
        self._files[file] = self._openings
        return self._openings

    def _sized(self, file: int) -> None:
        opening, size = self._files[file], os.fstat(file).st_size
        self._log.append(lambda replay: replay.change(opening, size, None))

    def _where(self, path: Path) -> tuple[str, ...]:
        return path.relative_to(self.root).parts


class _Replay:
    """The operations once more, on what stands for the disk."""

    def __init__(self, root: Folder) -> None:
        self.root = root
        self._open: dict[int, File] = {}

    def create(self, where: tuple[str, ...], opening: int) -> None:
        folder = self._folder(where[:-1])
        node = folder.now().get(where[-1])
        if isinstance(node, File):  # it was there: emptied
            self._open[opening] = node
            node.pending.append((0, None))
            return
        self._open[opening] = File()
        folder.pending.append({where[-1]: self._open[opening]})

    def open(self, where: tuple[str, ...], opening: int) -> None:
        node = self._folder(where[:-1]).now()[where[-1]]
        assert isinstance(node, File)
        self._open[opening] = node

    def change(self, opening: int, at: int, data: bytes | None) -> None:
        self._open[opening].pending.append((at, data))

    def sync(self, opening: int) -> None:
        file = self._open[opening]
        for at, data in file.pending:
            file.change(at, data)
        file.pending.clear()

    def rename(self, old: tuple[str, ...], new: tuple[str, ...]) -> None:
        folder = self._folder(old[:-1])
        folder.pending.append({old[-1]: None, new[-1]: folder.now()[old[-1]]})

    def unlink(self, where: tuple[str, ...]) -> None:
        self._folder(where[:-1]).pending.append({where[-1]: None})

    def make_folder(self, where: tuple[str, ...]) -> None:
        self._folder(where[:-1]).pending.append({where[-1]: Folder()})

    def sync_folder(self, where: tuple[str, ...]) -> None:
        folder = self._folder(where)
        folder.names = folder.now()
        folder.pending.clear()

    def _folder(self, where: tuple[str, ...]) -> Folder:
        folder = self.root
        for name in where:
            node = folder.now()[name]
            assert isinstance(node, Folder)
            folder = node
        return folder


def _seen(path: Path) -> Folder:
    folder = Folder()
    for inside in path.iterdir():
        folder.names[inside.name] = _seen(inside) if inside.is_dir() else File(bytearray(inside.read_bytes()))
    return folder


def _write(folder: Folder, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name, node in folder.now().items():
        if isinstance(node, Folder):
            _write(node, target / name)
            continue
        shown = File(bytearray(node.content))
        for at, data in node.pending:
            shown.change(at, data)
        (target / name).write_bytes(shown.content)


def failing_at(index: int, number: int = errno.EIO) -> Callable[[int, str], OSError | None]:
    """Lets one operation fail, the n-th."""

    def fail(asked: int, what: str) -> OSError | None:
        return OSError(number, f"{os.strerror(number)} at {what}") if asked == index else None

    return fail
