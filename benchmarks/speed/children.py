"""Processes under measurement: started, told what to do, and gone at the end, whatever happens."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import descendants

ROOT = Path(__file__).resolve().parents[2]
READY_S = 120.0


class ChildFailed(Exception):
    """A process of the benchmark ended, did not answer in time, or said that it failed."""


class Child:
    """``PYTHON -m MODULE …``, which speaks lines of JSON (benchmarks/peers/child.py).

    Args:
      python:    that runs it; peers may have one of their own.
      arguments: the module and its arguments.
    """

    def __init__(self, python: str, arguments: Sequence[str]) -> None:
        self.name = " ".join(arguments[:2])
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._lines = b""
        self._process = subprocess.Popen(
            [python, "-m", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the harness, which then ends the others
        )

    @property
    def process_id(self) -> int:
        return self._process.pid

    def address(self) -> str:
        """Where it can be reached; said before it is ready."""
        return str(self.hear(READY_S)["address"])

    def wait_ready(self) -> None:
        self.hear(READY_S)

    def order(self, case: str, *, at: float, rounds: int, seconds: float) -> None:
        """Sends an order; `hear` gives the answer."""
        line = json.dumps({"case": case, "at": at, "rounds": rounds, "seconds": seconds}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise self._failed("has ended") from None

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """The next line it says.

        Raises:
          ChildFailed: it ended, said nothing in time, or says that it failed.
        """
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        while b"\n" not in self._lines:
            if not select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise self._failed(f"gave no answer in {timeout_s:.0f} s")
            more = os.read(self._process.stdout.fileno(), 1 << 20)
            if not more:
                raise self._failed("has ended")
            self._lines += more
        line, _, self._lines = self._lines.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if "failed" in said:
            raise ChildFailed(f"{self.name}: {said['failed']}")
        return said

    def rest(self) -> None:
        """Stops it where it is. Some wait by asking over and over, which takes from whoever is measured meanwhile."""
        self._tell(signal.SIGSTOP)

    def wake(self) -> None:
        """Lets it go on."""
        self._tell(signal.SIGCONT)

    def _tell(self, number: signal.Signals) -> None:
        for process_id in descendants(self.process_id) | {self.process_id}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, number)

    def close(self) -> None:
        """Ends it and all that came from it. Harmless when repeated."""
        if self._log.closed:
            return
        family = descendants(self.process_id) if self._process.poll() is None else {self.process_id}
        self.wake()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process_id in family - {self.process_id}:
            with contextlib.suppress(OSError):
                os.kill(process_id, signal.SIGKILL)
        self._process.stdout.close()
        self._log.close()

    def _failed(self, what: str) -> ChildFailed:
        self._log.seek(0, os.SEEK_END)
        size = self._log.tell()
        tail = os.pread(self._log.fileno(), 600, max(0, size - 600)).decode(errors="replace").strip()
        return ChildFailed(f"{self.name} {what}; its last words: {tail or '(none)'}")
