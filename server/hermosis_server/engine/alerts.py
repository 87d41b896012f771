"""Alerts: what somebody should look at, found by rules over plain facts. docs/metrics.md lists them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hermosis_server.records import Alert, AlertSeverity, DeviceOverview
from hermosis_server.storage.disk import DiskUse

LITTLE_DISK: Final = 0.1  # of the disk, and
LITTLE_DISK_BYTES: Final = 10 << 30  # at the same time in bytes: a tenth of a large disk is plenty
DEVICE_FULL: Final = 0.95


RULES: Final = {
    "storage_failed": AlertSeverity.CRITICAL,
    "session_set_aside": AlertSeverity.CRITICAL,
    "session_blocked": AlertSeverity.CRITICAL,
    "disk_low": AlertSeverity.WARNING,
    "staging_full": AlertSeverity.WARNING,
    "queue_grows": AlertSeverity.WARNING,
    "device_full": AlertSeverity.WARNING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules look at. Sessions by their ids.

    Attributes:
      storage_failure: why nothing new is durable; empty while it is.
      set_aside: why, of sessions that were found damaged.
      blocked:   why, of sessions that take no gradient though they are READY.
      refusing:  whether gradients are refused for want of staging memory.
      disk:      None where nothing is kept.
    """

    storage_failure: str
    set_aside: Mapping[str, str]
    blocked: Mapping[str, str]
    refusing: bool
    queue_rounds: int
    queue_grows: bool
    devices: Sequence[DeviceOverview]
    disk: DiskUse | None


def alerts(facts: Facts) -> list[Alert]:
    """All that the rules find, the gravest first."""
    return sorted((*_of_server(facts), *_of_sessions(facts)), key=lambda alert: -alert.severity)


def _of_server(facts: Facts) -> Iterator[Alert]:
    if facts.storage_failure:
        yield _alert("storage_failed", facts.storage_failure)
    if facts.disk is not None and _is_low(facts.disk):
        yield _alert(
            "disk_low",
            f"{facts.disk.free_bytes} of {facts.disk.capacity_bytes} bytes of the data folder's disk are free; free "
            "some room before snapshots and the journal find none",
        )
    if facts.refusing:
        yield _alert(
            "staging_full",
            "host memory for gradients on their way is used up and workers are told to come later; raise "
            "--staging-bytes, or send less at a time",
        )
    if facts.queue_grows:
        yield _alert(
            "queue_grows",
            f"{facts.queue_rounds} rounds wait for the device, more than a minute ago: it gets more than it can step",
        )
    for device in facts.devices:
        if device.used_bytes > DEVICE_FULL * device.capacity_bytes:
            yield _alert(
                "device_full",
                f"{device.used_bytes} of {device.capacity_bytes} bytes of {device.name} are taken; close sessions, or "
                "raise --device-memory-bytes",
            )


def _of_sessions(facts: Facts) -> Iterator[Alert]:
    for session_id, problem in facts.set_aside.items():
        yield _alert("session_set_aside", f"{problem}; restore a snapshot or close it", session_id)
    for session_id, problem in facts.blocked.items():
        yield _alert("session_blocked", f"it takes no gradients: {problem}", session_id)


def _is_low(disk: DiskUse) -> bool:
    return disk.free_bytes < min(LITTLE_DISK * disk.capacity_bytes, LITTLE_DISK_BYTES)


def _alert(rule: str, text: str, session_id: str = "") -> Alert:
    return Alert(severity=RULES[rule], rule=rule, text=text, session_id=session_id)
