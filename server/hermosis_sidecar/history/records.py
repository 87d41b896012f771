"""What the history keeps, as plain frozen data."""

from dataclasses import dataclass
from typing import Literal, get_args

from hermosis_client import TelemetryReading

EventKind = Literal[
    "created",
    "ready",
    "paused",
    "resumed",
    "edited",
    "snapshot",
    "restored",
    "forked",
    "closed",
    "failed",
    "anomaly",
    "server_restarted",
    "quarantined",
]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One generation of one session: an id may be closed and made anew, and a session set back to an older step.

    Attributes:
      create_time_s: of the session; with the id it tells sessions of the same id apart.
      until_step:    the last step that counts, where a later generation went on from there; None where none did.
    """

    life_key: int
    session_id: str
    create_time_s: float
    generation: int
    until_step: int | None
    closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOfMinute:
    """The loss of all readings that one kept reading stands for; NaN where none had any."""

    readings: int
    least: float
    most: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A reading with its place in the history."""

    reading_id: int
    life_key: int
    reading: TelemetryReading
    minute: LossOfMinute | None = None  # where it stands for the others of its minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a session."""

    event_id: int
    session_id: str
    time_s: float
    step: int
    kind: EventKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptEvent:
    """An event with the life that it belongs to."""

    life_key: int
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A range of steps, both ends left out; before_step None means up to the newest."""

    after_step: int = 0
    before_step: int | None = None

    def __contains__(self, step: int) -> bool:
        return step > self.after_step and (self.before_step is None or step < self.before_step)
