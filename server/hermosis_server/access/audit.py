"""Audit: who managed what, one line of JSON a call, in a file of the data folder that grows no further than it may.

A line says time, subject, tenant, role, method, session, token, request_id and what became of it; never what was sent.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

FILE_NAME = "audit.jsonl"
LIMIT_BYTES = 16 << 20
KEPT_FILES = 4  # besides the one that is written


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One management call.

    Attributes:
      token:   the name of the one that was made or revoked.
      outcome: "OK", or the name of the error that it met.
    """

    subject: str
    tenant: str
    role: str
    method: str
    session: str
    request_id: str
    outcome: str
    token: str = ""


class AuditLog:
    """Appends lines to a file, and begins a new one when it is full. Used from the rpc thread only.

    What cannot be written is told in the log of the server, which goes on: a full disk must not stop the training.

    Args:
      folder:      of the server's data.
      limit_bytes: at which a file is full.
      clock:       seconds since 1970.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / FILE_NAME
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._file: int | None = None
        self._size_bytes = 0

    def write(self, entry: AuditEntry) -> None:
        """Notes a call, in one piece."""
        line = json.dumps({"time_s": round(self._clock(), 3), **asdict(entry)}).encode() + b"\n"
        try:
            file = self._open_for(len(line))
            self._size_bytes += os.write(file, line)
        except OSError as error:
            self.close()
            logger.error("event=audit_not_written reason=%r line=%s", error.strerror, line.decode().strip())

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open_for(self, more_bytes: int) -> int:
        if self._file is not None and self._size_bytes and self._size_bytes + more_bytes > self._limit_bytes:
            self.close()
            self._make_room()
        if self._file is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size_bytes = os.fstat(self._file).st_size
            if self._size_bytes and self._size_bytes + more_bytes > self._limit_bytes:
                return self._open_for(more_bytes)
        return self._file

    def _make_room(self) -> None:
        """audit.jsonl becomes audit.jsonl.1, and so on; the last one goes."""
        for number in range(KEPT_FILES, 0, -1):
            older = self.path.with_name(f"{FILE_NAME}.{number}")
            newer = self.path if number == 1 else self.path.with_name(f"{FILE_NAME}.{number - 1}")
            if newer.exists():
                newer.replace(older)
