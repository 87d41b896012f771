"""Export: a session's readings as CSV or Parquet, written as they are read, however many there are."""

import csv
import io
import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from hermosis_client import EnergySample, TelemetryReading, errors
from hermosis_sidecar.history.records import Kept

_CHUNK_BYTES = 1 << 20
_ROWS = 10_000  # of a Parquet row group, of a piece of CSV

# Whole numbers besides the step; what is not named here is 64-bit floating point.
_COUNTS = ("contributions", "staleness", "received_bytes", "sent_bytes", "batch_sessions", "minute_readings")
COLUMNS = (
    *("session_id", "step", "time"),
    *EnergySample._fields,
    *("contributions", "staleness", "received_bytes", "sent_bytes", "device_s", "batch_sessions", "wait_s"),
    "compression_error",
    *("minute_readings", "minute_loss_min", "minute_loss_max", "minute_loss_mean"),
)

Cell = str | int | float | datetime | None
Found = Kept | TelemetryReading


def as_csv(readings: Iterable[Found]) -> Iterator[str]:
    """Pieces of a CSV file with a head; undefined numbers are empty, times ISO 8601 in UTC."""
    yield _lines([COLUMNS])
    for piece in _batched(readings):
        yield _lines(
            [cell.isoformat() if isinstance(cell, datetime) else cell for cell in _cells(each)] for each in piece
        )


def as_parquet(readings: Iterable[Found]) -> Iterator[bytes]:
    """Pieces of a Parquet file; undefined numbers are null.

    Raises:
      Unsupported: at once, where pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise errors.Unsupported(
            f"Parquet needs a package that is missing on the sidecar ({error.name}): pip install 'hermosis[parquet]', "
            "or ask for format=csv",
            field="format",
        ) from None
    kinds = {"session_id": pyarrow.string(), "step": pyarrow.int64(), "time": pyarrow.timestamp("us", tz="UTC")}
    kinds |= dict.fromkeys(_COUNTS, pyarrow.int64())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    return _parquet(readings, schema)


def _parquet(readings: Iterable[Found], schema: Any) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    # A Parquet file ends with its table of contents, so it lies on disk until it is whole.
    with tempfile.TemporaryFile() as file:
        with pyarrow.parquet.ParquetWriter(file, schema) as writer:
            for piece in _batched(readings):
                columns = zip(*map(_cells, piece), strict=True)
                writer.write_table(
                    pyarrow.table(
                        [pyarrow.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)],
                        schema=schema,
                    )
                )
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _cells(found: Found) -> list[Cell]:
    reading, minute = (found.reading, found.minute) if isinstance(found, Kept) else (found, None)
    return [
        reading.session_id,
        reading.step,
        datetime.fromtimestamp(reading.time_s, UTC),
        *map(_known, reading.energies),
        reading.contributions,
        reading.staleness,
        reading.received_bytes,
        reading.sent_bytes,
        _known(reading.device_s),
        reading.batch_sessions,
        _known(reading.wait_s),
        _known(reading.compression_error),
        *((minute.readings, _known(minute.least), _known(minute.most), _known(minute.mean)) if minute else [None] * 4),
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _lines(rows: Iterable[Iterable[Cell]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _batched(readings: Iterable[Found]) -> Iterator[list[Found]]:
    rest = iter(readings)
    while piece := list(itertools.islice(rest, _ROWS)):
        yield piece
