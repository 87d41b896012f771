"""Forking: commands of ours as processes that are forked from a warm one, so that a start takes a third of a second.

A server that is started as users do it imports for three seconds, and the suite starts hundreds. Each of these is a
process of its own all the same, with the command's own main. What is of importing, of starting and of the memory that
this takes is tested with the real thing.

multiprocessing forks from one process only, and that one imports what the first to ask for it names. So there is one
list for all: tests/warm.py.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Self

import hermosis_server.cli
from hermosis_server.processes import READY

START_S = 120.0
STOP_S = 20.0


class Ended(Exception):
    """A process that ended by itself before it was ready; the message is the end of its log."""


def warm_up() -> None:
    """Starts the process that others are forked from, and waits until it has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm"])
    process = context.Process(target=int, daemon=True)
    process.start()
    process.join()


class Forked:
    """A process that runs a command. Its log is a file; nothing is left of it after `close`.

    Its standard input ends with `end_input`, with `close` and with us.

    Args:
      main:  of the command; it comes by its name, or as a partial of one.
      words: the command line.
      log:   file for its standard error, appended to.
      environment: what it finds besides ours.
    """

    def __init__(
        self, main: Callable[[], None], words: Sequence[str], log: Path, environment: Mapping[str, str] = {}
    ) -> None:
        self.log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.warm"])
        self._output, output = context.Pipe(duplex=False)
        input_, self._input = context.Pipe(duplex=False)
        given = main, list(words), str(log), {**os.environ, **environment}, input_, output
        self.process: ForkServerProcess = context.Process(target=_live, args=given, daemon=True)
        self.process.start()
        input_.close()
        output.close()
        self._address = ""

    @property
    def process_id(self) -> int:
        assert self.process.pid is not None, "it was started"
        return self.process.pid

    @property
    def sentinel(self) -> int:
        """Readable when it has ended; for multiprocessing.connection.wait."""
        return self.process.sentinel

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self.process.exitcode

    def ready(self, timeout_s: float = START_S) -> bool:
        """Waits for its ready line; False when it ended before."""
        if self._address:
            return True
        found = wait([self._output, self.sentinel], timeout_s)
        if not found:
            raise TimeoutError(f"it was not ready after {timeout_s:g} s; its log:\n{self.tail()}")
        line = ""
        if self._output in found or self._output.poll():
            with contextlib.suppress(OSError):
                line = os.read(self._output.fileno(), 4096).decode()
        if not line.startswith(READY):
            self.process.join(timeout_s)
            return False
        self._address = line.removeprefix(READY).split("\n")[0].strip()
        return True

    @property
    def address(self) -> str:
        """Where it listens.

        Raises:
          Ended: it did so by itself before.
        """
        if not self.ready():
            raise Ended(self.tail())
        return self._address

    def ended(self, timeout_s: float | None = 0.0) -> bool:
        """Whether it has ended, or does so in that time; None waits for good."""
        return bool(wait([self.sentinel], timeout_s))

    def tell(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.process_id, number)

    def end_input(self) -> None:
        """Closes its standard input."""
        self._input.close()

    def stop(self, grace_s: float = 60.0) -> int:
        """SIGTERM; its exit status."""
        self.process.terminate()
        self.process.join(grace_s)
        assert self.exit_status is not None, f"it did not stop in {grace_s:g} s; its log:\n{self.tail()}"
        return self.exit_status

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self.process.kill()
        self.process.join()

    def tail(self, limit_bytes: int = 3000) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-limit_bytes:].decode(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        """Kills what is left. Harmless when repeated."""
        self.kill()
        self._input.close()
        self._output.close()


class WarmServer:
    """`LocalServer` for tests of something else: the same command, for as long as it is needed, from a warm process.

    Args:
      data_folder: for what shall outlive the server; None means a folder that ends with it.
      arguments:   further arguments of ``hermosis serve``.

    Raises:
      Ended: it did so before it was ready.
    """

    def __init__(self, *, data_folder: str | os.PathLike[str] | None = None, arguments: Sequence[str] = ()) -> None:
        self._own = tempfile.TemporaryDirectory(prefix="hermosis-")
        flags = [] if data_folder is not None else ["--durability", "none"]
        self.data_folder = os.fspath(self._own.name if data_folder is None else data_folder)
        words = ["serve", "--port", "0", "--until-stdin-closes", "--data-folder", self.data_folder, *flags, *arguments]
        # Beside the folder of its own: some look whether that is there.
        self._logs = tempfile.TemporaryDirectory(prefix="hermosis-log-")
        self._forked = Forked(hermosis_server.cli.main, ["hermosis", *words], Path(self._logs.name) / "log")
        try:
            self.address = self._forked.address
        except BaseException:
            self._forked.close()
            raise

    @property
    def process_id(self) -> int:
        """Of the server."""
        return self._forked.process_id

    def log_tail(self, limit_bytes: int = 2000) -> str:
        """The end of what the server wrote to its log."""
        return self._forked.tail(limit_bytes).strip() or "(empty)"

    def close(self) -> None:
        """Stops the server and waits for its end. Harmless when repeated."""
        if not self._forked.ended():
            self._forked.stop(STOP_S)
        self._forked.close()
        self._own.cleanup()
        self._logs.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _live(
    main: Callable[[], None],
    words: list[str],
    log: str,
    environment: Mapping[str, str],
    input_: Connection,
    output: Connection,
) -> None:
    """The whole life of a forked process."""
    assert "tests.warm" in sys.modules, "somebody else had the process made that others are forked from: it is cold"
    os.setsid()  # Ctrl-C is for the tests, which then stop it in good order
    error = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, file in enumerate((input_.fileno(), output.fileno(), error)):
        os.dup2(file, number)
    input_.close()
    output.close()
    os.close(error)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  (in the place of the one that multiprocessing has closed)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    main()
