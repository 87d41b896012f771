"""JSON of the overview: how the whole server does."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from hermosis_client import records
from hermosis_sidecar.schemas import Measure

SeverityWord = Literal["UNKNOWN", "WARNING", "CRITICAL"]


class _Shown(BaseModel):
    """Read from the client's records by attribute."""

    model_config = ConfigDict(from_attributes=True, ser_json_inf_nan="null")


class StepSeconds(_Shown):
    """From a round's last contribution to the end of its step, in the last minute; null where there was none."""

    p50: Measure
    p99: Measure


class SessionMemory(_Shown):
    session_id: str
    device_bytes: int = Field(description="Zero while it idles in host memory.")
    host_bytes: int = Field(description="Held while it idles there.")


class DeviceOverview(_Shown):
    name: str
    capacity_bytes: int = Field(description="That sessions may hold.")
    used_bytes: int
    free_bytes: int
    sessions: list[SessionMemory] = Field(description="Of the caller, those with the most memory first.")


class Alert(_Shown):
    severity: Annotated[
        records.AlertSeverity, PlainSerializer(lambda severity: severity.name, return_type=SeverityWord)
    ]
    rule: str = Field(description="That found it.", examples=["storage_failed"])
    session_id: str = Field(description="Empty means the whole server.")
    text: str = Field(description="What it is, and what to do.")


class Overview(_Shown):
    """How the server does: all tenants together, except where sessions are named."""

    time: datetime = Field(validation_alias="time_s", description="By the server's clock.")
    uptime_s: float
    steps_per_s: float = Field(description="Of the last five to ten seconds, as are the bytes.")
    received_bytes_per_s: float
    sent_bytes_per_s: float
    queue_rounds: int = Field(description="That wait for a device, or are with it.")
    queue_bytes: int = Field(description="Of their gradients.")
    batch_sessions: Measure = Field(description="That a launch stepped, mean of the last minute.")
    step_s: StepSeconds
    streams: int = Field(description="Of workers that are open.")
    staging_bytes: int = Field(description="Host memory for gradients and answers on their way.")
    staging_limit_bytes: int
    devices: list[DeviceOverview]
    alerts: list[Alert] = Field(description="The gravest first.")


def overview(record: records.Overview) -> Overview:
    """One overview."""
    shown = {name: getattr(record, name) for name in Overview.model_fields if hasattr(record, name)}
    return Overview.model_validate(
        {**shown, "time_s": record.time_s, "step_s": StepSeconds(p50=record.step_p50_s, p99=record.step_p99_s)}
    )
