"""State file: an exported session as one file that any reader of safetensors opens, the same as a snapshot on disk.

So a session goes from one server to another by file, and a snapshot that was found in a dead server's folder comes back
on any other.
"""

from pathlib import Path

import numpy as np

from hermosis.v1 import session_pb2
from hermosis_client import ExportedState
from hermosis_server.errors import CorruptState
from hermosis_server.identity import shown_id
from hermosis_server.offline import NO_LIMITS
from hermosis_server.records import StateBuffer
from hermosis_server.rpc.codec import session as session_codec
from hermosis_server.storage import snapshot_file
from hermosis_server.storage.disk import Disk
from hermosis_server.storage.snapshot_file import StoredSnapshot


def write(path: Path, session_id: str, exported: ExportedState) -> int:
    """Writes the file, whole or not at all; gives its length in bytes.

    Raises:
      StorageFull, OSError: nothing was written.
    """
    head = session_pb2.SessionState.FromString(exported.head)
    buffers = {StateBuffer[name.upper()]: values.data.cast("B") for name, values in exported.buffers.items()}
    stored = StoredSnapshot(
        session_id=session_id,
        generation=1,
        layout=session_codec.layout(head.spec.layout, NO_LIMITS),
        state=session_codec.state_of(head, buffers),
        document=head.spec.SerializeToString(deterministic=True),
    )
    return snapshot_file.write(Disk(), path, stored)


def read(path: Path) -> tuple[str, ExportedState]:
    """The session's id and its state.

    Raises:
      CorruptState: it is not what was written, in whatever way.
    """
    stored = snapshot_file.read(path)
    try:
        made_from = session_pb2.SessionSpec.FromString(stored.document)
    except ValueError as error:
        raise CorruptState(f"{path.name} was written by another version ({error})") from error
    head = session_codec.state_head(made_from, stored.layout, stored.state)
    buffers = {kind.name.lower(): np.frombuffer(payload, np.float32) for kind, payload in stored.state.buffers.items()}
    return shown_id(stored.session_id), ExportedState(head=head.SerializeToString(), buffers=buffers)
