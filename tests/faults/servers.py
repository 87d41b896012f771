"""Servers: `hermosis serve` as real processes that a test may arm, kill, freeze and start again on the same folder.

They are forked from one process that has imported everything, so that a start takes a third of a second, not three:
a test of crashes starts hundreds. Each is a process of its own all the same, with the command's own main.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hermosis_server import failpoints
from hermosis_server.processes import READY

SEGMENT_BYTES = 16 << 10  # so small that a load of seconds rolls the journal over and over
START_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a server shall be.

    Attributes:
      failpoints: as HERMOSIS_FAILPOINTS has it; empty arms nothing.
      plant:      a bug of planted.py; empty plants none.
      volatile:   lets what was not synced be lost when the process is killed, as a power cut does.
      flags:      further words of the command line.
      segment_bytes: of the journal.
    """

    failpoints: str = ""
    plant: str = ""
    volatile: bool = False
    flags: Sequence[str] = ()
    segment_bytes: int = SEGMENT_BYTES


class Refused(Exception):
    """A server that ended by itself before it was ready; the message is the end of its log."""


class Server:
    """One process. Its log is `log`; nothing is left of it after `close`.

    Args:
      folder: its data folder.
      log:    file for its standard error, appended to.
      wishes: how it shall be.
    """

    def __init__(self, folder: Path, log: Path, wishes: Wishes = Wishes()) -> None:
        self.log = log
        self._process, self._output = _started(folder, log, wishes)
        self._address = ""

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    def ready(self, timeout_s: float = START_S) -> bool:
        """Waits until it serves; False when it ended before, as one that is armed in its recovery does."""
        found = wait([self._output, self._process.sentinel], timeout_s)
        if not found:
            raise TimeoutError(f"the server was not ready after {timeout_s:g} s; its log:\n{self.tail()}")
        if self._output not in found and not self._output.poll():
            self._process.join()
            return False
        try:
            line = os.read(self._output.fileno(), 4096).decode()
        except OSError:
            line = ""
        if not line.startswith(READY):
            self._process.join(timeout_s)
            return False
        self._address = line.removeprefix(READY).split("\n")[0].strip()
        return True

    @property
    def address(self) -> str:
        """Where it listens.

        Raises:
          Refused: it ended by itself.
        """
        if not self._address and not self.ready():
            raise Refused(self.tail())
        return self._address

    def ended(self, timeout_s: float | None = 0.0) -> bool:
        """Whether it has ended, or does so in that time; None waits for good."""
        return bool(wait([self._process.sentinel], timeout_s))

    @property
    def sentinel(self) -> int:
        """Readable when it has ended; for multiprocessing.connection.wait."""
        return self._process.sentinel

    @property
    def exit_status(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        os.kill(self.process_id, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process_id, signal.SIGCONT)

    def limit_files(self, limit_bytes: int | None) -> None:
        """Lets no file grow beyond so many bytes, as `ulimit -f` does; None lets them all."""
        most = resource.RLIM_INFINITY
        resource.prlimit(self.process_id, resource.RLIMIT_FSIZE, (most if limit_bytes is None else limit_bytes, most))

    def stop(self, grace_s: float = 60.0) -> int:
        """SIGTERM; its exit status."""
        self._process.terminate()
        self._process.join(grace_s)
        assert self._process.exitcode is not None, f"it did not stop in {grace_s:g} s; its log:\n{self.tail()}"
        return self._process.exitcode

    def tail(self, limit_bytes: int = 3000) -> str:
        return self.log.read_bytes()[-limit_bytes:].decode(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        """Kills what is left. Harmless when repeated."""
        self.kill()
        self._output.close()


def _started(folder: Path, log: Path, wishes: Wishes) -> tuple[ForkServerProcess, Connection]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.warm"])
    output, theirs = context.Pipe(duplex=False)
    words = ["hermosis", "serve", "--port", "0", "--data-folder", str(folder), "--device", "cpu", *wishes.flags]
    process = context.Process(target=_serve, args=(theirs, str(log), words, wishes), daemon=True)
    process.start()
    theirs.close()
    return process, output


def _serve(output: Connection, log: str, words: list[str], wishes: Wishes) -> None:
    """The whole life of a server process."""
    os.dup2(output.fileno(), 1)
    error = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(error, 2)
    output.close()
    os.environ[failpoints.VARIABLE] = wishes.failpoints
    from tests.faults import planted

    from hermosis_server.cli import main
    from hermosis_server.storage.journal import Journal

    # Keyword defaults are the one place where the length of a segment is said.
    assert Journal.__init__.__kwdefaults__ is not None
    Journal.__init__.__kwdefaults__["segment_bytes"] = wishes.segment_bytes
    if wishes.volatile:
        planted.volatile_disk()
    if wishes.plant:
        planted.BUGS[wishes.plant].plant()
    sys.argv = words
    main()
