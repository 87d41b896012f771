"""Telemetry readings, the overview, and times."""

import math

from google.protobuf import timestamp_pb2

from hermosis.v1 import telemetry_pb2
from hermosis_server.identity import shown_id
from hermosis_server.records import Overview, TelemetryReading
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
        compression_error=None if math.isnan(record.compression_error) else record.compression_error,
    )


def overview(record: Overview) -> telemetry_pb2.Overview:
    """Sessions by the ids that callers know; numbers that there are none of are left out."""
    message = telemetry_pb2.Overview(
        time=timestamp(record.time_s),
        devices=[
            telemetry_pb2.DeviceOverview(
                name=device.name,
                capacity_bytes=device.capacity_bytes,
                used_bytes=device.used_bytes,
                free_bytes=device.free_bytes,
                sessions=[
                    telemetry_pb2.SessionMemory(
                        session_id=shown_id(held.session_id), device_bytes=held.device_bytes, host_bytes=held.host_bytes
                    )
                    for held in device.sessions
                ],
            )
            for device in record.devices
        ],
        alerts=[
            telemetry_pb2.Alert(
                severity=int(alert.severity),  # type: ignore[arg-type]
                rule=alert.rule,
                session_id=shown_id(alert.session_id),
                text=alert.text,
            )
            for alert in record.alerts
        ],
    )
    for name in _NUMBERS:
        value = getattr(record, name)
        if not math.isnan(value):
            setattr(message, name, value)
    return message


_NUMBERS = [
    name for name, field in telemetry_pb2.Overview.DESCRIPTOR.fields_by_name.items() if field.message_type is None
]
