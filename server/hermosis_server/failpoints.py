"""Failpoints: named places where a test may kill the server, stop it, or let the system call fail.

    HERMOSIS_FAILPOINTS="journal.synced=kill@3,disk.sync=EIO"

kills the process when it reaches the first place for the third time, and lets every sync fail. Nothing is armed in
normal service; a place that is not armed costs one look into an empty dictionary.
"""

import errno
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from hermosis_server.errors import InvalidRequest

VARIABLE = "HERMOSIS_FAILPOINTS"

# Name → what is on disk when the process ends there.
POINTS: Mapping[str, str] = {
    "disk.open": "a file is about to be made",
    "disk.write": "bytes are about to be written; with an error of the system instead of kill they are not",
    "disk.written": "bytes are with the kernel, not yet on disk",
    "disk.sync": "the kernel is about to be asked to put a file on disk",
    "disk.synced": "a file is on disk",
    "disk.allocate": "room for a segment is about to be taken",
    "disk.rename": "a file is about to get its name",
    "disk.renamed": "a file has its name, its folder is not on disk",
    "disk.sync_folder": "a folder is about to be put on disk",
    "disk.unlink": "a file is about to go",
    "snapshot.begin": "nothing of a snapshot is written",
    "snapshot.aside": "a snapshot lies aside under another name, whole or not",
    "snapshot.named": "a snapshot is in its place, older ones are not cleared away",
    "snapshot.pruned": "older snapshots are cleared away",
    "record.begin": "a session's record is about to be replaced",
    "record.written": "a session's record is replaced",
    "session.removing": "a session is about to be removed",
    "session.unnamed": "a session's record is gone, its snapshots are there",
    "session.removed": "nothing of a session is left",
    "journal.taken": "entries wait, nothing of them is written",
    "journal.segment": "a new segment is about to be begun",
    "journal.half": "the first half of a group of entries is with the kernel",
    "journal.written": "a group of entries is with the kernel, not yet on disk",
    "journal.synced": "a group of entries is on disk, nobody has been told",
    "journal.recycle": "a segment that nobody needs is about to be used again",
    "keeper.copied": "a state was copied for its snapshot",
    "keeper.before_acknowledging": "a step is on disk, its workers have not been told",
    "keeper.after_acknowledging": "workers were told of a step that is on disk",
    "intake.admitted": "a gradient was counted, its step not taken",
    "intake.stepped": "a step was taken, nothing of it is on disk and nobody was told",
    "intake.answered": "a worker was told of a step that may not be on disk",
    "create.reserved": "a session has memory, and no record",
    "create.recorded": "a session has its record, its creator was not told",
    "initialise.landed": "a session has its parameters in memory only",
    "import.adopted": "a session has another state in memory, the old one on disk",
    "update.changed": "an edit is made in memory, not on disk",
    "recovery.read": "sessions were read back, the journal was not",
    "recovery.replayed": "the journal was stepped again, no generation has begun",
    "recovery.entered": "sessions have begun new generations, nobody was told",
}

_ACTIONS = ("kill", "stop")


@dataclass(slots=True)
class _Armed:
    action: str
    at: int  # the n-th time; zero means every time
    reached: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


_armed: dict[str, _Armed] = {}


def reach(name: str) -> None:
    """Does what the place is armed for; nothing otherwise.

    Raises:
      OSError: the place is armed with an error number.
    """
    if _armed and (armed := _armed.get(name)) is not None:
        _act(name, armed)


def arm(text: str) -> None:
    """Arms places as the environment variable says; "" disarms all.

    Raises:
      InvalidRequest: a place or an action that there is not.
    """
    wanted: dict[str, _Armed] = {}
    for item in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, rest = item.partition("=")
        action, _, at = rest.partition("@")
        if name not in POINTS:
            raise InvalidRequest(f"{VARIABLE} names {name!r}; there is {', '.join(POINTS)}")
        if action not in _ACTIONS and not (action.startswith("E") and hasattr(errno, action)):
            raise InvalidRequest(f"{VARIABLE} lets {name} do {action!r}; wanted kill, stop, or an error such as ENOSPC")
        if at and not (at.isdecimal() and int(at)):
            raise InvalidRequest(f"{VARIABLE} lets {name} act the {at!r}-th time; wanted a number from 1")
        wanted[name] = _Armed(action, int(at or 0))
    _armed.clear()
    _armed.update(wanted)


def arm_from_environment() -> None:
    """Arms what HERMOSIS_FAILPOINTS names."""
    arm(os.environ.get(VARIABLE, ""))


def _act(name: str, armed: _Armed) -> None:
    with armed.lock:
        armed.reached += 1
        if armed.at and armed.reached != armed.at:
            return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif armed.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        number = getattr(errno, armed.action)
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
