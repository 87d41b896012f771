"""Commands as a user starts them, and a look at every process that they leave behind."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MARK = "HERMOSIS_TEST_FAMILY"


class Command:
    """A running command whose children, however deep and detached, are known by a mark in their environment."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        temporary = folder / "tmp"
        temporary.mkdir()
        self.temporary = temporary
        self.lines: list[str] = []
        self._hung_up = False
        self._new: queue.Queue[str | None] = queue.Queue()
        self._log = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hermosis_server", *arguments],
            cwd=folder,
            env={**os.environ, name: value, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._new.put(line.rstrip("\n"))
            if self._hung_up:
                break
        self.process.stdout.close()
        self._new.put(None)

    def hang_up(self) -> None:
        """Reads one more line and then no more, as `head` does."""
        self._hung_up = True

    def line_with(self, text: str, timeout_s: float = 120) -> str:
        """The first line of output, so far or to come, that holds a text."""
        for line in self.lines:
            if text in line:
                return line
        deadline = time.monotonic() + timeout_s
        while True:
            new = self._new.get(timeout=max(0.01, deadline - time.monotonic()))
            if new is None:
                raise AssertionError(f"ended without saying {text!r}:\n{self.output()}\n{self.errors()}")
            self.lines.append(new)
            if text in new:
                return new

    def output(self) -> str:
        """All of its standard output until now."""
        while not self._new.empty():
            line = self._new.get()
            if line is not None:
                self.lines.append(line)
        return "\n".join(self.lines)

    def errors(self) -> str:
        """All of its standard error until now."""
        return Path(self._log.name).read_text()

    def wait(self, timeout_s: float = 150) -> int:
        """Its exit status, with all output read."""
        status = self.process.wait(timeout_s)
        self._reader.join()
        return status

    def family(self) -> dict[int, str]:
        """Command lines of the processes that carry the mark and run, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = self._mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if marked and not dead:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended while we looked, or is not ours
                continue
        return found

    def assert_nothing_is_left(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while left := self.family():
            assert time.monotonic() < deadline, f"still running: {left}"
            threading.Event().wait(0.05)

    def close(self) -> None:
        for number in self.family():
            os.kill(number, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self._log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts ``hermosis …`` in a folder of its own; whatever is left at the end of the test is killed."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to see which processes are left")
    commands: list[Command] = []

    def begin(*arguments: str) -> Command:
        folder = tmp_path / f"command{len(commands)}"
        folder.mkdir()
        commands.append(Command(list(arguments), folder))
        return commands[-1]

    yield begin
    for command in commands:
        command.close()
