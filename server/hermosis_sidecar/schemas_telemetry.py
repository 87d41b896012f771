"""JSON of what was measured over time and of what happened."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from hermosis_sidecar.history import EventKind
from hermosis_sidecar.schemas import TelemetryReading


class History(BaseModel):
    readings: list[TelemetryReading] = Field(description="By step.")
    thinned: bool = Field(description="Whether readings were left out, now or when the older ones were thinned.")


class Event(BaseModel):
    """Something that happened to a session."""

    model_config = ConfigDict(from_attributes=True)

    event_id: int = Field(description="Rises with time; what /v1/live gives as the id.")
    session_id: str
    time: datetime = Field(
        validation_alias="time_s", description="When it was noticed, or by the server when it tells."
    )
    step: int = Field(description="That the session was at.")
    kind: EventKind
    text: str = Field(description="For people; may be empty.")


class EventList(BaseModel):
    events: list[Event] = Field(description="The newest, in order.")
