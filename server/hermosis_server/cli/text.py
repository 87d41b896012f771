"""How sessions and readings look: tables on a terminal, plain columns in a pipe, JSON for programs."""

import dataclasses
import datetime
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from hermosis_client import Recipe, SessionInfo, TelemetryReading

READING_COLUMNS = ("session", "step", "loss", "kinetic", "temperature", "|gradient|", "|step|", "lr", "bytes")


def print_json(value: object) -> None:
    """One line of JSON; numbers that JSON does not know are null."""
    print(json.dumps(_finite(value), ensure_ascii=False), flush=True)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere one line a row with the columns divided by tabs, for cut and awk."""
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            print("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def facts(record: Any) -> dict[str, Any]:
    """A plain record for JSON."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def session_facts(info: SessionInfo) -> dict[str, Any]:
    """A session for JSON."""
    said = facts(info)
    for name in ("status", "consistency", "durability", "parameters_on"):
        said[name] = said[name].name
    said["labels"] = dict(info.labels)
    said["layout"] = [
        {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype.name} for tensor in info.layout.tensors
    ]
    if isinstance(info.optimizer, Recipe):
        said["optimizer"] = {"recipe": info.optimizer.name, "parameters": info.optimizer.parameters}
    else:
        hamiltonian = json_format.MessageToDict(info.optimizer, preserving_proto_field_name=True)
        said["optimizer"] = {"hamiltonian": hamiltonian}
    return said


def reading_facts(reading: TelemetryReading) -> dict[str, Any]:
    """A reading for JSON."""
    return facts(reading) | {"energies": reading.energies._asdict()}


def session_row(info: SessionInfo) -> list[str]:
    return [
        info.session_id,
        info.status.name,
        str(info.step),
        optimizer_text(info),
        f"{info.workers}/{info.expected_workers}",
        f"{info.parameter_count:,}",
        memory(info),
        datetime.datetime.fromtimestamp(info.create_time_s).isoformat(" ", "seconds"),
    ]


SESSION_COLUMNS = ("session", "status", "step", "optimizer", "workers", "parameters", "bytes held", "created")


def reading_row(reading: TelemetryReading) -> list[str]:
    energies = reading.energies
    return [
        reading.session_id,
        str(reading.step),
        number(energies.loss),
        number(energies.kinetic_energy),
        temperature(energies.log_beta),
        number(energies.gradient_norm),
        number(energies.step_norm),
        number(energies.learning_rate),
        str(reading.received_bytes + reading.sent_bytes),
    ]


def optimizer_text(info: SessionInfo) -> str:
    if not isinstance(info.optimizer, Recipe):
        return "hamiltonian"
    return " ".join([info.optimizer.name, *(f"{name}={value}" for name, value in info.optimizer.items)])


def memory(info: SessionInfo) -> str:
    """Bytes that a session holds, and where: on its device, or in host memory while it idles."""
    return f"{info.device_bytes:,} on {info.device}" if info.device_bytes else f"{info.host_bytes:,} in host memory"


def number(value: float) -> str:
    """Four digits; a dash for what does not exist."""
    return "-" if math.isnan(value) else f"{value:.4g}"


def temperature(log_beta: float) -> str:
    """exp(-log_beta), which leaves the range of floats long before a session is done."""
    if not math.isfinite(log_beta):
        return "-" if math.isnan(log_beta) else "0"
    exponent = -log_beta / math.log(10)
    if abs(exponent) < 4:
        return f"{math.exp(-log_beta):.4g}"
    return f"{10 ** (exponent % 1):.2f}e{math.floor(exponent):+03d}"


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
