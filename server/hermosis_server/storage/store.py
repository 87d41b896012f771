"""Store: a folder for each session, with its record and its last two snapshots.

    sessions/<session_id>/session.json
    sessions/<session_id>/<generation>-<step>.safetensors

There is no common index that could be damaged for all: what a folder holds is its session, and what is in none is not
there. Different sessions may be written at the same time by several threads, one session by one thread at a time.
"""

import base64
import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hermosis import wire
from hermosis_server.errors import CorruptState, InvalidRequest
from hermosis_server.failpoints import reach
from hermosis_server.records import SessionStatus
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.disk import ASIDE, Disk, DiskUse, full
from hermosis_server.storage.snapshot_file import StoredSnapshot

KEPT_SNAPSHOTS = 2

_RECORD = "session.json"
_REMOVED = ".removed-"  # before the name of a folder that is going
_NAME = re.compile(r"(\d{10})-(\d{20})\.safetensors")
# With the tenant before it, where it has one.
_SESSION_ID = re.compile(r"([a-z0-9][a-z0-9-]{0,62}\.)?[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What is known of a session beside its optimizer state.

    Attributes:
      replaced_generation, recovered_steps: as in engine.session.Session.
      document:    its settings, in whatever bytes the server writes them.
      request_id:  of the call that made it, with the fingerprint of that request.
    """

    session_id: str
    generation: int
    replaced_generation: int
    recovered_steps: tuple[int, ...]
    status: SessionStatus
    revision: int
    lr_scale: float
    created_s: float
    document: bytes
    request_id: str = ""
    request_fingerprint: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedSession:
    """A folder whose record cannot be believed."""

    session_id: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A snapshot by its name; whether it is good, its file tells."""

    session_id: str
    step: int
    generation: int
    size_bytes: int
    written_s: float  # seconds since 1970
    path: Path


class Store:
    """The folders of all sessions.

    Args:
      folder: the server's data folder.
      disk:   how files are written.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder / "sessions"
        self._disk = disk
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        disk.sync_folder(folder)

    def disk_use(self) -> DiskUse:
        """How full the disk is that all this is on."""
        return self._disk.use(self._folder)

    # Records

    def save_session(self, record: SessionRecord) -> None:
        """Writes a record, in place of the one before.

        Raises:
          StorageFull, OSError: the one before is still there.
        """
        folder = self._of(record.session_id)
        reach("record.begin")
        with full("make a folder for the session"):
            if not folder.exists():
                self._disk.make_folder(folder)
            if not (folder / _RECORD).exists():  # nor was it certain before that the folder's name is on disk
                self._disk.sync_folder(self._folder)
        self._disk.write_whole(folder / _RECORD, [_record_bytes(record)])
        reach("record.written")

    def remove_session(self, session_id: str) -> None:
        """Removes a session; whenever the power goes, it is there whole or gone for good."""
        folder = self._of(session_id)
        reach("session.removing")
        going = self._folder / f"{_REMOVED}{session_id}-{time.time_ns()}"
        self._disk.rename(folder, going)
        self._disk.sync_folder(self._folder)
        reach("session.unnamed")
        self._disk.remove_folder(going)
        reach("session.removed")

    def sessions(self) -> list[SessionRecord | DamagedSession]:
        """All sessions in order of creation; damaged ones at the end. Clears away what was begun and not finished."""
        good: list[SessionRecord] = []
        bad: list[DamagedSession] = []
        # A removal may have been with the kernel only: were it undone after what follows, a part of it would be back.
        self._disk.sync_folder(self._folder)
        for folder in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            if self._is_leftover(folder):
                self._disk.remove_folder(folder)
                continue
            if not _SESSION_ID.fullmatch(folder.name):
                continue  # not ours
            for partial in folder.glob("*" + ASIDE):
                self._disk.unlink(partial)
            try:
                good.append(read_record(folder))
            except CorruptState as error:
                bad.append(DamagedSession(session_id=folder.name, problem=str(error)))
        return [*sorted(good, key=lambda record: (record.created_s, record.session_id)), *bad]

    # Snapshots

    def save_snapshot(self, snapshot: StoredSnapshot) -> SnapshotInfo:
        """Writes a snapshot and clears away all but the two newest.

        Raises:
          StorageFull, OSError: those before are still there.
        """
        reach("snapshot.begin")
        folder = self._of(snapshot.session_id)
        path = folder / f"{snapshot.generation:010d}-{snapshot.state.scalars.step:020d}.safetensors"
        snapshot_file.write(self._disk, path, snapshot, aside="snapshot.aside")
        reach("snapshot.named")
        held = self.snapshots(snapshot.session_id)
        for old in held[KEPT_SNAPSHOTS:]:
            with contextlib.suppress(OSError):  # one too many harms nobody, and the next snapshot tries again
                self._disk.unlink(old.path)
        reach("snapshot.pruned")
        return next(info for info in held if info.path == path)

    def snapshots(self, session_id: str) -> list[SnapshotInfo]:
        """The snapshots of a session, newest first."""
        return sorted(_found(self._of(session_id)), key=lambda info: (info.generation, info.step), reverse=True)

    def load_snapshot(self, info: SnapshotInfo) -> StoredSnapshot:
        """Reads a snapshot.

        Raises:
          CorruptState: it is damaged, or another session's.
        """
        stored = snapshot_file.read(info.path)
        said = stored.session_id, stored.generation, stored.state.scalars.step
        if said != (info.session_id, info.generation, info.step):
            raise CorruptState(
                f"snapshot {info.path.name} holds session {said[0]} at step {said[2]}; it was moved here"
            )
        return stored

    def _of(self, session_id: str) -> Path:
        if not _SESSION_ID.fullmatch(session_id):
            raise InvalidRequest(
                f"session_id {session_id[:80]!r} cannot be the name of a folder; wanted 1 to 63 of a-z, 0-9 and -",
                field="session_id",
            )
        return self._folder / session_id

    def _is_leftover(self, folder: Path) -> bool:
        """Whether it was removed, or nobody was ever told of it."""
        if folder.name.startswith(_REMOVED):
            return True
        if not _SESSION_ID.fullmatch(folder.name):
            return False
        return not (folder / _RECORD).exists() and not list(_found(folder))


def read_record(folder: Path) -> SessionRecord:
    """The record in a session's folder.

    Raises:
      CorruptState: there is none that can be believed.
    """
    try:
        raw = (folder / _RECORD).read_bytes()
    except OSError as error:
        raise CorruptState(f"{_RECORD} cannot be read ({error.strerror})") from error
    try:
        text, _, rest = raw.partition(b"\n")
        if rest != f"{wire.checksum(text):08x}\n".encode():
            raise CorruptState(f"{_RECORD} has another checksum than when it was written")
        said = json.loads(text)
        record = SessionRecord(
            session_id=said["session_id"],
            generation=said["generation"],
            replaced_generation=said["replaced_generation"],
            recovered_steps=tuple(said["recovered_steps"]),
            status=SessionStatus[said["status"]],
            revision=said["revision"],
            lr_scale=said["lr_scale"],
            created_s=said["created_s"],
            document=base64.b64decode(said["document"], validate=True),
            request_id=said["request_id"],
            request_fingerprint=bytes.fromhex(said["request_fingerprint"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"{_RECORD} was written by another version ({error})") from error
    if record.session_id != folder.name:
        raise CorruptState(f"{_RECORD} is of session {record.session_id}; it was moved here")
    return record


def _record_bytes(record: SessionRecord) -> bytes:
    said = {
        "session_id": record.session_id,
        "generation": record.generation,
        "replaced_generation": record.replaced_generation,
        "recovered_steps": record.recovered_steps,
        "status": record.status.name,
        "revision": record.revision,
        "lr_scale": record.lr_scale,
        "created_s": record.created_s,
        "document": base64.b64encode(record.document).decode(),
        "request_id": record.request_id,
        "request_fingerprint": record.request_fingerprint.hex(),
    }
    text = json.dumps(said, separators=(",", ":")).encode()
    return text + f"\n{wire.checksum(text):08x}\n".encode()


def _found(folder: Path) -> Iterator[SnapshotInfo]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _NAME.fullmatch(path.name)) is not None:
            status = path.stat()
            yield SnapshotInfo(
                session_id=folder.name,
                generation=int(match[1]),
                step=int(match[2]),
                size_bytes=status.st_size,
                written_s=status.st_mtime,
                path=path,
            )
