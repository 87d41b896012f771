"""Between records and rows of the tables. What is undefined is NULL there, since SQLite has no NaN."""

import math
from typing import Any

from sqlalchemy import RowMapping

from hermosis_client import EnergySample, TelemetryReading
from hermosis_sidecar.history.records import Event, Kept, KeptEvent, Life, LossOfMinute


def row_of(kept: Kept) -> dict[str, Any]:
    """A reading as a row, by column."""
    reading, minute = kept.reading, kept.minute
    return {
        "reading_id": kept.reading_id,
        "life_key": kept.life_key,
        "step": reading.step,
        "time_s": reading.time_s,
        "minute": int(reading.time_s // 60),
        **{name: _known(value) for name, value in zip(EnergySample._fields, reading.energies, strict=True)},
        "contributions": reading.contributions,
        "staleness": reading.staleness,
        "received_bytes": reading.received_bytes,
        "sent_bytes": reading.sent_bytes,
        "device_s": _known(reading.device_s),
        "batch_sessions": reading.batch_sessions,
        "wait_s": _known(reading.wait_s),
        "compression_error": _known(reading.compression_error),
        "stands_for": 0 if minute is None else minute.readings,
        "loss_min": None if minute is None else _known(minute.least),
        "loss_max": None if minute is None else _known(minute.most),
        "loss_mean": None if minute is None else _known(minute.mean),
    }


def kept_of(row: RowMapping) -> Kept:
    """The other way round, from a row that has the session_id of its life too."""
    return Kept(
        reading_id=row["reading_id"],
        life_key=row["life_key"],
        reading=TelemetryReading(
            session_id=row["session_id"],
            step=row["step"],
            time_s=row["time_s"],
            energies=EnergySample(*(_number(row[name]) for name in EnergySample._fields)),
            contributions=row["contributions"],
            staleness=row["staleness"],
            received_bytes=row["received_bytes"],
            sent_bytes=row["sent_bytes"],
            device_s=_number(row["device_s"]),
            batch_sessions=row["batch_sessions"],
            wait_s=_number(row["wait_s"]),
            compression_error=_number(row["compression_error"]),
        ),
        minute=LossOfMinute(
            readings=row["stands_for"],
            least=_number(row["loss_min"]),
            most=_number(row["loss_max"]),
            mean=_number(row["loss_mean"]),
        )
        if row["stands_for"]
        else None,
    )


def event_row_of(kept: KeptEvent) -> dict[str, Any]:
    """An event as a row, by column."""
    event = kept.event
    return {
        "event_id": event.event_id,
        "life_key": kept.life_key,
        "time_s": event.time_s,
        "step": event.step,
        "kind": event.kind,
        "text": event.text,
    }


def event_of(row: RowMapping) -> KeptEvent:
    """The other way round, from a row that has the session_id of its life too."""
    return KeptEvent(
        life_key=row["life_key"],
        event=Event(**{name: row[name] for name in Event.__dataclass_fields__}),
    )


def life_of(row: RowMapping) -> Life:
    """A life from its row."""
    return Life(**{name: row[name] for name in Life.__dataclass_fields__})


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
