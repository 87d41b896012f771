"""Rig: a real server to be ill-treated, and the oracle that says after each case whether it minded.

Whatever comes over the socket, these hold: every call ends in time with OK or a typed status of errors.py, never an
internal one; a victim session keeps its digest (P6); a probe session steps as its twin on a server that nobody
ill-treats, bit for bit; gradients on their way give their memory back; the log knows of no internal error.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from tests.fuzz.messages import messages_in
from tests.rpc.conftest import Service, _Hosted

from hermosis.v1 import types_pb2
from hermosis_server import errors
from hermosis_server.engine.engine import Engine
from hermosis_server.rpc.status import CODES, DETAILS_KEY, DOMAIN
from hermosis_server.settings import Settings

T = TypeVar("T")

CALL_S = 20.0  # A hang has no end; a busy machine stands still for more than five seconds.
REASONS = {kind.__name__: code for kind, code in CODES.items() if kind is not errors.InternalError}
# Small, so that every limit is near.
SMALL = {
    "device_memory_bytes": 64 << 20, "staging_bytes": 4 << 20, "segment_bytes": 1 << 20, "window_bytes": 1 << 20,
    "max_sessions": 32, "max_parameters": 1 << 18, "max_readings": 50,
}  # fmt: skip


class Rig:
    """Two servers in threads of this process: one for the cases, one for the twin.

    A case runs inside `case()`. When it fails, the next one gets new servers, so that one finding does not look like
    many.
    """

    def __init__(self) -> None:
        self.cases = 0
        self._stack = contextlib.ExitStack()
        self._begun = False

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @contextlib.contextmanager
    def case(self) -> Iterator[Service]:
        """A server with nothing on it but what the oracle watches; looks at it afterwards."""
        self._begin()
        self.cases += 1
        try:
            yield self.server
            self._judge()
        except BaseException:
            self._end()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the server's own event loop, to look inside."""
        return asyncio.run_coroutine_threadsafe(work, self.server.loop).result(4 * CALL_S)

    def _begin(self) -> None:
        if self._begun:
            return
        self._log = self._stack.enter_context(_Log())
        self.server, self._twin = (self._stack.enter_context(_served()) for _ in range(2))
        self._victim = self.server.create(7, "adam", start=0.5)
        for sequence in (1, 2):
            self.server.push(self._victim, np.arange(7), sequence)
        self._victims_digest = self.server.digest(self._victim)
        self._probes = [server.create(9, "adam", start=1.0) for server in (self.server, self._twin)]
        self._probed = 0
        self._begun = True

    def _end(self) -> None:
        self._begun = False
        self._stack.close()

    def _judge(self) -> None:
        kept = {self._victim.session_id, self._probes[0].session_id}
        digest = self.run(_tidied(self.server.engine, self._victim.session_id, kept))
        assert digest == self._victims_digest, "another session's digest changed (P6)"
        self._probed += 1
        told = [
            server.push(probe, np.full(9, self._probed % 5 - 1.5), self._probed, base_step=self._probed - 1)
            for server, probe in zip((self.server, self._twin), self._probes, strict=True)
        ]
        assert told[0].energies == told[1].energies, "the probe stepped in another way than its twin (P6)"
        assert told[0].step == self._probed
        digests = [s.digest(p) for s, p in zip((self.server, self._twin), self._probes, strict=True)]
        assert digests[0] == digests[1], "the probe's digest is not its twin's (P6)"
        assert not self._log.lines, f"the server's log: {self._log.lines[0]}"


async def _tidied(engine: Engine, victim: str, kept: set[str]) -> bytes:
    """Closes what a case left, waits until nothing is on its way, and reads the victim's digest."""
    for session in [session for session in engine.sessions() if session.session_id not in kept]:
        # One that a cancelled call was just creating or closing goes by itself.
        with contextlib.suppress(errors.SessionNotReady, errors.SessionNotFound):
            await engine.close_session(session.session_id)
    end = time.monotonic() + CALL_S
    while engine.budget.used_bytes or {session.session_id for session in engine.sessions()} != kept:
        left = [session.session_id for session in engine.sessions() if session.session_id not in kept]
        assert time.monotonic() < end, f"{engine.budget.used_bytes} bytes stay in staging, sessions {left} stay"
        await asyncio.sleep(0.001)
    return await engine.states.digest(victim)


@contextlib.contextmanager
def _served() -> Iterator[Service]:
    hosted = _Hosted(Settings(port=0, grace_s=0.1, device="cpu", **SMALL))
    try:
        yield hosted.start()
    finally:
        hosted.stop()


class _Log(logging.Handler):
    """Hears what must never be logged: an error of the server, or of a task that nobody waited for."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def __enter__(self) -> "_Log":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        line = logging.Formatter().format(record)
        # gRPC's own: a client that had gone when the status of its call was on the way. Nothing of ours can prevent it.
        if not (record.name.startswith("grpc.") and "SendStatusFromServerOperation" in line):
            self.lines.append(line)


def judge_end(call: Any, what: str, *, cancelled: bool = False) -> None:
    """Fails unless a finished call ended with OK or one of the errors of errors.py.

    Args:
      cancelled: this side has cancelled it, so CANCELLED is an end as well.
    """
    code = call.code()
    if code is grpc.StatusCode.OK or (cancelled and code is grpc.StatusCode.CANCELLED):
        return
    trailing = dict(call.trailing_metadata() or ())
    told = f"{what} ended with {code.name}: {call.details()}"
    assert code is not grpc.StatusCode.DEADLINE_EXCEEDED, f"{what} hung for {CALL_S} s"
    assert DETAILS_KEY in trailing, f"{told}, without details"
    status = status_pb2.Status.FromString(trailing[DETAILS_KEY])
    info = error_details_pb2.ErrorInfo()
    assert status.details, told
    assert status.details[0].Unpack(info), told
    assert info.domain == DOMAIN, told
    assert REASONS.get(info.reason) is code, f"{told}, as {info.reason}"


def judge_response(response: Message) -> None:
    """Fails when a response holds a refusal that is none of errors.py."""
    for part in messages_in(response):
        if isinstance(part, types_pb2.Refusal):
            code = REASONS.get(part.reason)
            assert code is not None, f"refused as {part.reason}: {part.message}"
            assert code.value[0] == part.code, f"{part.reason} has code {part.code}"


def parsed(kind: type[Message], raw: bytes) -> Message:
    """A response that must be one."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise AssertionError(f"the server sent bytes that are no {kind.DESCRIPTOR.name}: {raw.hex()}") from error
