"""Telemetry readings and times."""

from google.protobuf import timestamp_pb2

from hermosis.v1 import telemetry_pb2
from hermosis_server.identity import shown_id
from hermosis_server.records import TelemetryReading
from hermosis_server.rpc.codec.gradient import energies


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp


def reading(record: TelemetryReading) -> telemetry_pb2.TelemetryReading:
    return telemetry_pb2.TelemetryReading(
        session_id=shown_id(record.session_id),
        step=record.step,
        time=timestamp(record.time_s),
        energies=energies(record.energies),
        contributions=record.contributions,
        staleness=record.staleness,
        received_bytes=record.received_bytes,
        sent_bytes=record.sent_bytes,
        device_s=record.device_s,
        batch_sessions=record.batch_sessions,
        wait_s=record.wait_s,
    )
