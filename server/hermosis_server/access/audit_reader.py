"""Reading the audit log from its end: the newest calls of one tenant, however long the log is."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hermosis_server.access.audit import FILE_NAME, KEPT_FILES, AuditEntry

_BLOCK_BYTES = 1 << 20
_FIELDS = AuditEntry.__dataclass_fields__


def newest(
    folder: Path, *, tenant: str, limit: int, wanted: Callable[[AuditEntry], bool]
) -> list[tuple[float, AuditEntry]]:
    """Entries of a tenant with the seconds since 1970 at which they were written, newest first.

    A line that cannot be read, such as one that a crash cut off, is left out.

    Args:
      folder: of the server's data.
      limit:  the most to give.
      wanted: which of the tenant's.
    """
    found: list[tuple[float, AuditEntry]] = []
    mark = json.dumps(tenant).encode()  # Most lines of other tenants go by without being parsed.
    for line in _lines(folder):
        if mark in line and (read := _read(line)) is not None and read[1].tenant == tenant and wanted(read[1]):
            found.append(read)
            if len(found) == limit:
                break
    return found


def _lines(folder: Path) -> Iterator[bytes]:
    """Of all files, the last one first."""
    read: set[int] = set()
    for number in range(KEPT_FILES + 1):
        with contextlib.suppress(FileNotFoundError), _path(folder, number).open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode not in read:  # else it was renamed since it was read
                read.add(inode)
                yield from _backwards(file)


def _path(folder: Path, number: int) -> Path:
    return folder / (f"{FILE_NAME}.{number}" if number else FILE_NAME)


def _backwards(file: BinaryIO) -> Iterator[bytes]:
    end = file.seek(0, os.SEEK_END)
    rest = b""  # the end of a line whose beginning lies before
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        lines = (file.read(end - start) + rest).split(b"\n")
        rest, end = lines[0], start
        yield from reversed(lines[1:])
    yield rest


def _read(line: bytes) -> tuple[float, AuditEntry] | None:
    try:
        said: dict[str, Any] = json.loads(line)
        entry = AuditEntry(**{name: str(said[name]) for name in _FIELDS if name in said})
        return float(said["time_s"]), entry
    except (ValueError, TypeError, KeyError):
        return None
