"""How a training looks while it runs: bars on a terminal, a line now and then elsewhere."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from hermosis_client import TelemetryReading
from hermosis_server.cli.text import number, temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is known of a training at one time."""

    reading: TelemetryReading
    accuracy: float
    steps_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        energies = self.reading.energies
        return (
            f"loss {number(energies.loss)}  accuracy {self.accuracy:.1%}  {self.steps_per_s:.0f} steps/s  "
            f"{self.bytes_per_s / 1e6:.1f} MB/s  temperature {temperature(energies.log_beta)}  "
            f"energy {number(energies.total_energy)} (kinetic {number(energies.kinetic_energy)})"
        )


class Rates:
    """Steps and bytes a second over the last readings, by the server's clock."""

    def __init__(self, window_s: float = 3.0) -> None:
        self._window_s = window_s
        self._seen: deque[TelemetryReading] = deque()

    def after(self, reading: TelemetryReading) -> tuple[float, float]:
        """Steps a second and payload bytes a second, both ways together; 0 before there are two readings."""
        self._seen.append(reading)
        while len(self._seen) > 2 and reading.time_s - self._seen[0].time_s > self._window_s:
            self._seen.popleft()
        first = self._seen[0]
        elapsed_s = reading.time_s - first.time_s
        if elapsed_s <= 0:
            return 0.0, 0.0
        steps_per_s = (reading.step - first.step) / elapsed_s
        return steps_per_s, steps_per_s * (reading.received_bytes + reading.sent_bytes)


class Display(Protocol):
    def show(self, moment: Moment) -> None: ...


class Bars:
    """Two bars, steps and accuracy, over a line of numbers."""

    def __init__(self, live: Live, total_steps: int) -> None:
        self._live = live
        self._steps = Progress(
            TextColumn("training "), BarColumn(40), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn()
        )
        self._accuracy = Progress(TextColumn("accuracy "), BarColumn(40), TaskProgressColumn("{task.percentage:.1f} %"))
        self._step_bar = self._steps.add_task("", total=total_steps)
        self._accuracy_bar = self._accuracy.add_task("", total=1.0)

    def show(self, moment: Moment) -> None:
        self._steps.update(self._step_bar, completed=moment.reading.step)
        # A bar that is full stops its clock; this one goes up and down.
        self._accuracy.update(self._accuracy_bar, completed=moment.accuracy)
        self._live.update(Group(self._steps, self._accuracy, Text(str(moment), style="dim")))


class Lines:
    """A plain line for each twentieth of the way."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._next = 0.0

    def show(self, moment: Moment) -> None:
        step = moment.reading.step
        if step < self._next:
            return
        self._next = min(self._total_steps, step + self._total_steps / 20)
        print(f"step {step}/{self._total_steps}  {moment}", flush=True)


@contextmanager
def display(console: Console, total_steps: int) -> Iterator[Display]:
    """The display that fits where output goes."""
    if not console.is_terminal:
        yield Lines(total_steps)
        return
    with Live(console=console, refresh_per_second=8) as live:
        yield Bars(live, total_steps)
