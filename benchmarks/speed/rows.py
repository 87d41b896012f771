"""The rows: what is measured together, because its sides run in turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.speed import bulk, growth, journal, small, step
from benchmarks.speed.goals import Result
from benchmarks.speed.lab import Lab


@dataclass(frozen=True, slots=True)
class Row:
    """Goals that are measured in one go.

    Attributes:
      goals: names, in the order of the table.
    """

    name: str
    goals: Sequence[str]
    measure: Callable[[Lab], list[Result]]


ROWS = {
    row.name: row
    for row in (
        Row("streams", ("ceiling", "cpu", "torch-rpc", "torch-rpc-bfloat16"), bulk.measure_streams),
        Row("plain", ("naive", "naive-allocator", "flower", "flower-allocator"), bulk.measure_plain),
        Row("same-host", ("ray", "gloo"), bulk.measure_same_host),
        Row("medium", ("medium",), small.measure_medium),
        Row("round-trip", ("round-trip", "beside-bulk"), small.measure_round_trip),
        Row("many-streams", ("streams",), small.measure_many_streams),
        Row("packed", ("packed",), small.measure_packed),
        Row("step", ("step-norm", "step-plain", "step-tiny", "step-small"), step.measure),
        Row("memory", ("memory", "memory-flat"), growth.measure_memory),
        Row("growth", ("growth-sessions", "growth-streams"), growth.measure_growth),
        Row("journal", ("journal",), journal.measure_journal),
    )
}
