"""Scalars: a reading as numbers by name, alike for every place that they go to."""

import math
from typing import Protocol

from hermosis_client.records import TelemetryReading

_OF_STEP = (
    *("contributions", "staleness", "received_bytes", "sent_bytes", "device_s", "batch_sessions", "wait_s"),
    "compression_error",
)


class Reporter(Protocol):
    """Where readings go. Used by one thread at a time."""

    def take(self, reading: TelemetryReading) -> None:
        """Takes the reading of one step. Steps rise, unless the session went back to a snapshot."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


def scalars(reading: TelemetryReading) -> dict[str, float]:
    """Numbers by name: ``energies/…`` as in EnergySample, ``step/…`` as in TelemetryReading. Undefined ones are left
    out, and infinite ones, which not every place takes."""
    numbers = {f"energies/{name}": value for name, value in reading.energies._asdict().items()}
    numbers |= {f"step/{name}": float(getattr(reading, name)) for name in _OF_STEP}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
