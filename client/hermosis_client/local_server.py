"""LocalServer: a private server on this machine, for as long as it is needed."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType

from hermosis_client.errors import ConnectionFailed

_READY = "HERMOSIS READY address="
_NEEDED = ("torch", "grpc_health", "grpc_reflection", "pydantic_settings", "typer")
_STOP_S = 10.0


class LocalServer:
    """Starts a server as a process of its own on a free loopback port and waits until it is ready.

    It ends with `close` or when this object is forgotten, at the latest with this process, even by a kill: its standard
    input is a pipe from here, and it stops when that closes.

    Attributes:
      data_folder: of the server.

    Args:
      data_folder: for what shall outlive the server; None means a folder that ends with it.
      arguments:   further arguments of ``hermosis serve``.
      ready_s:     how long it may take to start.

    Raises:
      ModuleNotFoundError: the server's packages are not installed.
      ConnectionFailed:    it ended, or was not ready in time; the message holds the end of its log.
    """

    def __init__(
        self,
        *,
        data_folder: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        ready_s: float = 120.0,
    ) -> None:
        _require_installed()
        resources = contextlib.ExitStack()
        self._end = weakref.finalize(self, _end, resources, os.getpid())
        flags = [] if data_folder is not None else ["--durability", "none"]  # what ends with the server need not last
        if data_folder is None:
            data_folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="hermosis-"))
        self.data_folder = os.fspath(data_folder)
        self._log = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  closed with the others
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hermosis_server", "serve", "--port", "0", "--until-stdin-closes"),
                *("--data-folder", self.data_folder),
                *flags,
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then stops the server in good order.
        )
        self._ready = threading.Event()
        self._found: list[str] = []
        reader = threading.Thread(
            target=_read, args=(self._process, self._found, self._ready), name="hermosis-local-server", daemon=True
        )
        reader.start()
        resources.callback(reader.join)
        resources.callback(_stop, self._process)
        try:
            came = self._ready.wait(ready_s)
        except BaseException:
            self.close()
            raise
        if not self._found:
            what = "the local server ended before it was ready" if came else f"the local server took over {ready_s} s"
            log = self.log_tail()
            self.close()
            raise ConnectionFailed(f"{what}; the end of its log:\n{log}")

    @property
    def address(self) -> str:
        """host:port to connect to."""
        return self._found[0]

    @property
    def process_id(self) -> int:
        """Of the server."""
        return self._process.pid

    def log_tail(self, limit_bytes: int = 2000) -> str:
        """The end of what the server wrote to its log."""
        log = self._log.fileno()
        # Not seek: the server writes at the same file position.
        start = max(0, os.fstat(log).st_size - limit_bytes)
        return os.pread(log, limit_bytes, start).decode(errors="replace").strip() or "(empty)"

    def close(self) -> None:
        """Stops the server and waits for its end. Harmless when repeated, and in a forked child, whose it is not."""
        self._end()

    def __enter__(self) -> "LocalServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(process: subprocess.Popen[str], found: list[str], ready: threading.Event) -> None:
    """Finds the ready line, then drains what else the server prints, so that it never waits for a full pipe."""
    assert process.stdout is not None, "asked for above"
    with process.stdout:
        for line in process.stdout:
            if line.startswith(_READY):
                found.append(line.removeprefix(_READY).strip())
                ready.set()
    ready.set()


def _end(resources: contextlib.ExitStack, owner: int) -> None:
    if os.getpid() == owner:
        resources.close()


def _stop(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _require_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"a local server needs packages that are missing ({', '.join(missing)}): pip install 'hermosis[server]'",
            name=missing[0],
        )
