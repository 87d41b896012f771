"""Differences: what happened to a session, read off two looks at it. What came and went in between is not seen."""

from collections.abc import Iterator
from typing import NamedTuple

from hermosis_client import SessionInfo, SessionStatus
from hermosis_sidecar.history.records import EventKind


class Happened(NamedTuple):
    """A kind of event, in words too."""

    kind: EventKind
    text: str


def differences(before: SessionInfo, now: SessionInfo) -> Iterator[Happened]:
    """Of one generation."""
    if before.status is not now.status:
        match now.status:
            case SessionStatus.PAUSED:
                yield Happened("paused", "takes no gradients")
            case SessionStatus.READY if before.status is SessionStatus.PAUSED:
                yield Happened("resumed", "takes gradients again")
            case SessionStatus.READY if before.status is SessionStatus.CREATING:
                yield Happened("ready", "the first parameters are there")
            case SessionStatus.FAILED:
                yield Happened("failed", now.status_reason)
            case _:
                pass  # RECOVERING: what comes of it is told when it is over.
    if edited := "; ".join(_edits(before, now)):
        yield Happened("edited", edited)


def _edits(before: SessionInfo, now: SessionInfo) -> Iterator[str]:
    for name in ("lr_scale", "display_name", "labels"):
        was, is_now = getattr(before, name), getattr(now, name)
        if was != is_now:
            yield f"{name}: {_shown(was)} → {_shown(is_now)}"
    if before.optimizer != now.optimizer:
        yield "thermal_profile: another one from here on"  # all of an optimizer that can be edited


def _shown(value: object) -> str:
    return str(dict(value)) if hasattr(value, "keys") else str(value)  # type: ignore[call-overload]
