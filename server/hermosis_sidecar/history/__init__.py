"""What was measured survives restarts: a recorder beside the live stream, a store, and ways to read it."""

from hermosis_sidecar.history.history import History
from hermosis_sidecar.history.recorder import Retention
from hermosis_sidecar.history.records import EVENT_KINDS, Event, EventKind, Kept, Life, Steps
from hermosis_sidecar.history.store import Store

__all__ = ["EVENT_KINDS", "Event", "EventKind", "History", "Kept", "Life", "Retention", "Steps", "Store"]
