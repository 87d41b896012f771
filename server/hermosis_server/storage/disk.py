"""Disk: the few things that storage does to files, each in one place.

A write counts when it was synced, a name when its folder was. Tests put a Disk in the place of this one that fails the
n-th time, or remembers what a crash could have left.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hermosis_server.errors import StorageFull
from hermosis_server.failpoints import reach

Bytes = bytes | bytearray | memoryview

ASIDE = ".partial"
_MOST_PARTS = 512  # of one call of the system, which takes 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskUse(NamedTuple):
    """How full a disk is."""

    capacity_bytes: int
    free_bytes: int


class Disk:
    """The real one. Errors of the system leave it as OSError, a full disk too; see `full`."""

    def create(self, path: Path) -> int:
        """A new empty file, for writing."""
        reach("disk.open")
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """A file that is there, for writing over."""
        reach("disk.open")
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def allocate(self, file: int, size: int) -> None:
        """Takes room on disk for so many bytes, so that writing them cannot fail for want of it."""
        reach("disk.allocate")
        os.posix_fallocate(file, 0, size)

    def write(self, file: int, parts: Sequence[Bytes], offset: int) -> int:
        """Writes all of the parts one after another; gives where they end."""
        reach("disk.write")
        waiting = [memoryview(part).cast("B") for part in parts if len(part)]
        while waiting:
            written = os.pwritev(file, waiting[:_MOST_PARTS], offset)
            offset += written
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if written:
                waiting[0] = waiting[0][written:]
        reach("disk.written")
        return offset

    def truncate(self, file: int, size: int) -> None:
        """Cuts a file off."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Returns when the file's bytes are on disk."""
        reach("disk.sync")
        os.fdatasync(file)
        reach("disk.synced")

    def rename(self, old: Path, new: Path) -> None:
        """Gives a file another name, in place of any that had it."""
        reach("disk.rename")
        os.replace(old, new)
        reach("disk.renamed")

    def sync_folder(self, folder: Path) -> None:
        """Returns when the names in a folder are on disk."""
        reach("disk.sync_folder")
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def unlink(self, path: Path) -> None:
        """Removes a file."""
        reach("disk.unlink")
        path.unlink()

    def make_folder(self, path: Path) -> None:
        """Makes a folder for its owner alone."""
        reach("disk.open")
        path.mkdir(mode=0o700)

    def remove_folder(self, path: Path) -> None:
        """Removes a folder with all that is in it, as far as the system lets it."""
        reach("disk.unlink")
        shutil.rmtree(path, ignore_errors=True)

    def use(self, path: Path) -> DiskUse:
        """How full the disk is that a path is on, as whoever this process runs as may fill it."""
        found = os.statvfs(path)
        return DiskUse(found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail)

    def close(self, file: int) -> None:
        os.close(file)

    def write_whole(self, path: Path, parts: Sequence[Bytes], *, aside: str = "") -> None:
        """A file that is there whole or not at all, whenever the power goes: aside, synced, named, folder synced.

        Args:
          aside: failpoint between the sync and the name; empty means none.

        Raises:
          StorageFull: there is no room; nothing is left behind.
          OSError:     anything else of the system.
        """
        other = path.with_name(path.name + ASIDE)
        with full("write " + path.name):
            try:
                file = self.create(other)
                try:
                    self.write(file, parts, 0)
                    self.sync(file)
                finally:
                    self.close(file)
                if aside:
                    reach(aside)
                self.rename(other, path)
            except OSError:
                with contextlib.suppress(OSError):
                    self.unlink(other)
                raise
            self.sync_folder(path.parent)


@contextlib.contextmanager
def full(what: str) -> Iterator[None]:
    """Turns the system's ways of saying that there is no room into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFull(
            f"the server's disk is full: it cannot {what}. Free some room; the server goes on by itself",
            retry_after_s=1.0,
        ) from error
