"""Data folder: one server's place on disk, and nobody else's while it runs."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from hermosis_server.errors import InvalidRequest

LOCK_NAME = "server.lock"


@contextlib.contextmanager
def unattended(path: Path) -> Iterator[None]:
    """Keeps servers out of a data folder while it is looked at. Nothing in it is changed.

    Raises:
      InvalidRequest: there is no such folder, or a server has it.
    """
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidRequest(
            f"{path} is no data folder of a server ({error.strerror}: {LOCK_NAME})", field="data_folder"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InvalidRequest(
            f"data folder {path} belongs to a running server; stop it first, or ask it", field="data_folder"
        ) from error
    finally:
        os.close(lock)


class DataFolder:
    """Holds a folder for one process. The lock is the kernel's: it ends with the process, however that ends.

    Args:
      path: made if missing, readable by its owner only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> "DataFolder":
        """Takes the folder.

        Raises:
          InvalidRequest: another server has it, or it cannot be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidRequest(
                f"data folder {self.path} cannot be used ({error.strerror}); choose another with --data-folder",
                field="data_folder",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise InvalidRequest(
                f"data folder {self.path} belongs to a running server (process {owner}); stop it, or choose another "
                "folder with --data-folder",
                field="data_folder",
            ) from error
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
