"""Kept: what the server's disk has of a session, by its id alone: so one can be had that was set aside as damaged."""

from hermosis.v1 import session_pb2
from hermosis_client import codec
from hermosis_client.connection import Connection, new_request_id
from hermosis_client.records import SessionInfo, SnapshotInfo


def snapshots(connection: Connection, session_id: str) -> list[SnapshotInfo]:
    """What of a session is on the server's disk, newest first."""
    request = session_pb2.ListSnapshotsRequest(session_id=session_id)
    response = connection.call(connection.sessions.ListSnapshots, request)
    return [codec.snapshot_info(snapshot) for snapshot in response.snapshots]


def restore(connection: Connection, session_id: str, snapshot_id: str) -> SessionInfo:
    """Sets a session back to a snapshot, the newest if none is named."""
    request = session_pb2.RestoreSessionRequest(
        request_id=new_request_id(), session_id=session_id, snapshot_id=snapshot_id
    )
    return codec.session_info(connection.call(connection.sessions.RestoreSession, request).session)
