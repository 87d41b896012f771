"""Child processes that end with their parent, in whatever way the parent ends.

A child's standard input is a pipe that nobody writes to: it closes when the parent is gone, even by kill -9, and the
child, started with --until-stdin-closes or watching by itself, stops. Standard library only.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

Thing = TypeVar("Thing")

READY = "HERMOSIS READY address="


class ChildFailed(Exception):
    """A child ended by itself, or was not ready in time; the message holds the end of its log."""


class Child:
    """``python -m MODULE …`` as a process of its own, in a process group of its own.

    Ctrl-C on a terminal goes to the whole group of the parent; children are outside it, so that the parent stops them
    in good order.

    Args:
      name:      what people call it.
      arguments: the module and its arguments.
      log:       file for its standard error; None shows it where ours goes.
      on_line:   called with every further line of its standard output, on a thread of its own.
      on_end:    called once when its standard output ends, on that thread.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        on_end: Callable[["Child"], None] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        self._on_line = on_line
        self._on_end = on_end
        self._address = ""
        self._answered = threading.Event()
        with log.open("wb") if log else contextlib.nullcontext() as error:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name=f"hermosis-{name}", daemon=True)
        self._reader.start()

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def address(self, timeout_s: float) -> str:
        """Where it listens; waits for its ready line.

        Raises:
          ChildFailed: it ended, or did not say so in time.
        """
        answered = self._answered.wait(timeout_s)
        if not self._address:
            what = f"ended with status {self.wait()}" if answered else f"was not ready after {timeout_s:g} s"
            raise ChildFailed(f"the {self.name} {what}{self._last_words()}")
        return self._address

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait()

    def failure(self) -> ChildFailed:
        """The error to raise for a child that has ended although it should not."""
        return ChildFailed(f"the {self.name} ended with status {self.wait()}{self._last_words()}")

    def log_tail(self, limit_bytes: int = 3000) -> str:
        """The end of its log; empty when it has none of its own."""
        if self._log is None:
            return ""
        return self._log.read_bytes()[-limit_bytes:].decode(errors="replace").strip()

    def close(self, grace_s: float = 10.0) -> None:
        """Asks it to stop, waits, and kills it when that takes too long. Harmless when repeated."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _last_words(self) -> str:
        tail = self.log_tail()
        return f"; the end of its log:\n{tail}" if tail else ""

    def _read(self) -> None:
        assert self._process.stdout is not None, "asked for above"
        for line in self._process.stdout:
            if line.startswith(READY) and not self._address:
                self._address = line.removeprefix(READY).strip()
                self._answered.set()
            elif self._on_line:
                self._on_line(line.rstrip("\n"))
        self._answered.set()
        if self._on_end:
            self._on_end(self)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Makes a polite kill end the main thread as Ctrl-C does, so that one path stops the children."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def waited_for(things: "queue.SimpleQueue[Thing]") -> Thing:
    """The next thing of a queue, for the main thread: Ctrl-C gets through.

    A signal that comes just before this thread blocks does not wake it, and handlers run only in this thread.
    """
    while True:
        try:
            return things.get(timeout=0.1)
        except queue.Empty:
            continue


def end_with_stdin() -> None:
    """For a child: ends this process at once when standard input closes, which is when the parent is gone."""

    def watch() -> None:
        # Not sys.stdin: its lock, held by a thread that waits, is fatal when the interpreter ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="hermosis-stdin", daemon=True).start()
