"""Files that others read: CSV by the csv module, Parquet by pyarrow."""

import csv
import io
import math
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from tests.sidecar.conftest import Sidecar, push
from tests.sidecar.history.conftest import a_reading, a_session

from hermosis_client import Client, EnergySample, TelemetryReading, errors
from hermosis_sidecar.history import Kept, export
from hermosis_sidecar.history.records import LossOfMinute


@pytest.fixture(scope="module")
def readings(client: Client) -> Iterator[list[TelemetryReading]]:
    with a_session(client, "exported") as session:
        push(session, 3.0, None, 1.0)
        yield session.history()


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_says_what_the_client_says(sidecar: Sidecar, readings: list[TelemetryReading]) -> None:
    answer = sidecar.http.get("/v1/sessions/exported/telemetry/export")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="exported.csv"'
    found = rows(answer.text)
    assert len(found) == 3
    for row, reading in zip(found, readings, strict=True):
        assert row["session_id"] == "exported"
        assert int(row["step"]) == reading.step
        assert datetime.fromisoformat(row["time"]).timestamp() == pytest.approx(reading.time_s, abs=1e-6)
        assert int(row["received_bytes"]) == reading.received_bytes
        for name, value in zip(EnergySample._fields, reading.energies, strict=True):
            assert row[name] == "" if math.isnan(value) else float(row[name]) == value, name
        assert row["minute_readings"] == ""
    assert found[1]["loss"] == ""


def test_range_of_steps_is_left_out_of_the_file(sidecar: Sidecar, readings: list[TelemetryReading]) -> None:
    query = {"after_step": 1, "before_step": 3}
    found = rows(sidecar.http.get("/v1/sessions/exported/telemetry/export", params=query).text)
    assert [row["step"] for row in found] == ["2"]


def test_parquet_says_what_the_client_says(sidecar: Sidecar, readings: list[TelemetryReading]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'hermosis[parquet]'")
    answer = sidecar.http.get("/v1/sessions/exported/telemetry/export", params={"format": "parquet"})
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    found = parquet.read_table(io.BytesIO(answer.content)).to_pylist()
    assert [row["step"] for row in found] == [1, 2, 3]
    assert [row["loss"] for row in found] == [3.0, None, 1.0]
    for row, reading in zip(found, readings, strict=True):
        assert row["time"] == datetime.fromtimestamp(reading.time_s, UTC)
        assert row["kinetic_energy"] == reading.energies.kinetic_energy
        assert (row["contributions"], row["minute_readings"]) == (1, None)


def test_minute_that_was_thinned_says_so_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_ROWS", 2)  # so that there are several pieces
    minute = LossOfMinute(readings=60, least=0.5, most=9.0, mean=2.0)
    found: list[Kept | TelemetryReading] = [
        Kept(reading_id=1, life_key=1, reading=a_reading(60), minute=minute),
        *(a_reading(step) for step in (61, 62, 63, 64)),
    ]
    first, *others = rows("".join(export.as_csv(found)))
    assert (first["minute_readings"], first["minute_loss_min"], first["minute_loss_max"]) == ("60", "0.5", "9.0")
    assert [each["step"] for each in others] == ["61", "62", "63", "64"]
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'hermosis[parquet]'")
    table = parquet.read_table(io.BytesIO(b"".join(export.as_parquet(found))))
    assert table.column_names == list(export.COLUMNS)
    assert table.column("minute_loss_mean").to_pylist() == [2.0, None, None, None, None]
    assert table.column("step").to_pylist() == [60, 61, 62, 63, 64]


def test_missing_pyarrow_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(errors.Unsupported, match=r"pip install 'hermosis\[parquet\]'"):
        export.as_parquet([])


def test_other_formats_are_refused(sidecar: Sidecar, readings: list[TelemetryReading]) -> None:
    refused = sidecar.http.get("/v1/sessions/exported/telemetry/export", params={"format": "xlsx"})
    assert (refused.status_code, refused.json()["field"]) == (422, "format")
