"""Copies: snapshots in object storage, where they outlive this machine. Needs obstore (the extra `cloud`).

    <address>/<session_id>/<generation>-<step>.safetensors     the very files of the data folder, the last two of each

A copy is put under a name that must be free. So of two servers that both believe a session is theirs, one is told.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hermosis_server.errors import InvalidRequest, StaleGeneration
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.snapshot_file import StoredSnapshot
from hermosis_server.storage.store import KEPT_SNAPSHOTS, SESSION_ID, SNAPSHOT_NAME, SnapshotInfo

RETRY_S = 15.0  # that a request is tried again for
PART_BYTES = 16 << 20  # of an upload: what a copy on its way takes of memory is a few of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A snapshot in object storage; `key` is its name there."""

    session_id: str
    step: int
    generation: int
    size_bytes: int
    written_s: float  # seconds since 1970
    key: str


class Copies:
    """The copies under one address. May be used by several threads.

    Args:
      url:     s3://bucket/folder, gs://…, az://…, file:///folder or memory:///; credentials come from where the tools
               of that storage look for them, such as AWS_ACCESS_KEY_ID.
      options: of obstore.store.from_url beside that: `config`, `client_options`, `mkdir`.

    Raises:
      InvalidRequest: obstore is not installed, or it does not know what to do with the address or the options.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._library = _obstore()
        self._failures = (self._library.exceptions.BaseError, OSError)
        self._url = url
        usual: dict[str, Any] = {}
        if url.startswith("file:"):
            usual = {"mkdir": True}
        elif not url.startswith("memory:"):
            # The next snapshot tries again, and a server that stops waits for no storage that is away.
            usual = {"retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_S)}}
        try:
            self._store = self._library.store.from_url(url, **usual, **(options or {}))
        except (*self._failures, ValueError, TypeError) as error:
            raise InvalidRequest(f"snapshots cannot be copied to {url}: {error}", field="copies") from error

    def put(self, info: SnapshotInfo) -> None:
        """Copies a snapshot's file, and clears away all but the last two of its session.

        A file that has gone meanwhile is passed over; putting the same again does nothing.

        Raises:
          StaleGeneration: another snapshot is there under this name: another server has the session.
          OSError:         the storage did not take it.
        """
        key = f"{info.session_id}/{info.path.name}"
        try:
            self._library.put(self._store, key, info.path, mode="create", chunk_size=PART_BYTES)
        except FileNotFoundError:
            return
        except self._library.exceptions.AlreadyExistsError as taken:
            # Perhaps our own: a reply that was lost makes one try again.
            if self._read(key) != info.path.read_bytes():
                raise StaleGeneration(
                    f"another server has stored session {info.session_id} at step {info.step}, generation "
                    f"{info.generation}, in {self._url}; stop one of the two",
                    metadata={"generation": str(info.generation)},
                ) from taken
        except self._failures as error:
            raise OSError(f"snapshot {key} was not copied to {self._url}: {error}") from error
        for old in self.held(info.session_id)[KEPT_SNAPSHOTS:]:
            self._delete(old.key)

    def held(self, session_id: str) -> list[Copy]:
        """The copies of a session, newest first: by generation, then by step.

        Raises:
          OSError: the storage does not answer.
        """
        return sorted(self._found(session_id), key=lambda each: (each.generation, each.step), reverse=True)

    def sessions(self) -> list[str]:
        """All sessions of which there are copies.

        Raises:
          OSError: the storage does not answer.
        """
        return sorted({copy.session_id for copy in self._found()})

    def read(self, copy: Copy) -> StoredSnapshot:
        """Reads a copy and checks all of it.

        Raises:
          CorruptState: it is damaged.
          OSError:      the storage does not give it.
        """
        return snapshot_file.from_bytes(memoryview(self._read(copy.key)))

    def forget(self, session_id: str) -> None:
        """Removes the copies of a session that was closed.

        Raises:
          OSError: the storage does not answer.
        """
        for copy in self.held(session_id):
            self._delete(copy.key)

    def _found(self, session_id: str | None = None) -> Iterator[Copy]:
        try:
            pages = self._library.list(self._store, prefix=session_id)
            for meta in (meta for page in pages for meta in page):
                copy = _copy(meta)
                if copy is not None and session_id in (None, copy.session_id):
                    yield copy
        except self._failures as error:
            raise OSError(f"copies in {self._url} cannot be listed: {error}") from error

    def _read(self, key: str) -> bytes:
        try:
            return bytes(self._library.get(self._store, key).bytes())
        except self._failures as error:
            raise OSError(f"snapshot {key} cannot be read from {self._url}: {error}") from error

    def _delete(self, key: str) -> None:
        try:
            self._library.delete(self._store, key)
        except self._failures as error:
            raise OSError(f"snapshot {key} cannot be removed from {self._url}: {error}") from error


def _copy(meta: Mapping[str, Any]) -> Copy | None:
    folder, _, file = meta["path"].rpartition("/")
    name = SNAPSHOT_NAME.fullmatch(file)
    if name is None or not SESSION_ID.fullmatch(folder):
        return None
    return Copy(
        session_id=folder,
        generation=int(name[1]),
        step=int(name[2]),
        size_bytes=meta["size"],
        written_s=meta["last_modified"].timestamp(),
        key=meta["path"],
    )


def _obstore() -> Any:
    try:
        import obstore.exceptions
        import obstore.store
    except ModuleNotFoundError as missing:
        raise InvalidRequest(
            "copies of snapshots need obstore, which is not installed; pip install 'hermosis[cloud]'", field="copies"
        ) from missing
    return obstore
