"""Fuzzing for as long as one likes: python3 run.py fuzz."""

import argparse
import math
import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tests.fuzz import guided
from tests.fuzz.targets import TARGETS, Round, Target

MEMORY = Path("build/fuzz")
ROUND_CASES = 250
DEFAULT_CASES = 1000


@dataclass(slots=True)
class Row:
    """What became of a target."""

    name: str
    cases: int = 0
    findings: int = 0
    seconds: float = 0.0
    note: str = ""


def main(words: Sequence[str] | None = None) -> int:
    """Fuzzes, prints a summary, and returns the exit status: 1 where something was found."""
    chosen = _arguments(words)
    names = chosen.only or [target.name for target in (guided.TARGETS if chosen.coverage_guided else TARGETS)]
    rows = [Row(name) for name in names]
    console = Console(stderr=True)
    console.print(f"seed {chosen.seed}; what fails is kept in {MEMORY} and comes first the next time")
    interrupted = False
    try:
        if chosen.coverage_guided:
            _guided(rows, chosen, console)
        else:
            _drawn(rows, chosen, console)
    except KeyboardInterrupt:
        interrupted = True
        console.print("Interrupted.")
    Console().print(_table(rows))
    return 1 if any(row.findings for row in rows) else 130 if interrupted else 0


def _drawn(rows: list[Row], chosen: argparse.Namespace, console: Console) -> None:
    known = {target.name: target for target in TARGETS}
    for left, row in zip(range(len(rows), 0, -1), rows, strict=True):
        end = time.monotonic() + (chosen.end - time.monotonic()) / left
        with _timed(row), _progress(console, row.name, chosen.cases) as shown:
            _fuzz(known[row.name], row, chosen, end, shown)
        if row.note or row.findings:
            console.print(f"{row.name}: {row.note}")


def _fuzz(target: Target, row: Row, chosen: argparse.Namespace, end: float, shown: Any) -> None:
    """Rounds of a target until its cases or its time are over, or something was found."""
    try:
        house = target.house()
    except ModuleNotFoundError as error:
        row.note = f"left out: {error.name} is not installed"
        return
    with house as opened:
        tried = 0
        while tried < chosen.cases and (time.monotonic() < end or not tried) and not row.findings:
            cases = min(ROUND_CASES, chosen.cases - tried) if chosen.cases < math.inf else ROUND_CASES
            try:
                target.run(opened, Round(cases=int(cases), seed=chosen.seed + tried, memory=MEMORY / "examples"))
            except (Exception, BaseExceptionGroup) as error:  # schemathesis groups what it found under the latter
                _keep(row, error)
            tried += int(cases)
            row.cases = opened.cases
            shown(tried)


def _keep(row: Row, error: BaseException) -> None:
    """Writes down what was found."""
    found = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    folder = MEMORY / "findings"
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        row.findings += 1
        path = folder / f"{row.name}-{time.strftime('%Y%m%d-%H%M%S')}-{row.findings}.txt"
        path.write_text("".join(traceback.format_exception(one)), encoding="utf-8", errors="backslashreplace")
        row.note = f"{_first_line(one)} (see {path})"


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0][:200]


def _guided(rows: list[Row], chosen: argparse.Namespace, console: Console) -> None:
    try:
        python = guided.environment(MEMORY / "atheris", console.print)
    except guided.Missing as missing:
        for row in rows:
            row.note = f"left out: {missing}"
        return
    for left, row in zip(range(len(rows), 0, -1), rows, strict=True):
        seconds = (chosen.end - time.monotonic()) / left
        with _timed(row), _progress(console, row.name, math.inf):
            limits = {"seconds": seconds, "cases": chosen.cases, "seed": chosen.seed}
            row.cases, crashes = guided.run(python, row.name, MEMORY, **limits)
        row.findings = len(crashes)
        row.note = ", ".join(map(str, crashes))


@contextmanager
def _timed(row: Row) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        row.seconds = time.monotonic() - began


@contextmanager
def _progress(console: Console, name: str, cases: float) -> Iterator[Any]:
    """A bar on a terminal; elsewhere a line when a target is over."""
    total = None if cases == math.inf else cases
    columns = (TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.update(task, completed=done)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="fuzzing", title_justify="left")
    table.add_column("target")
    for heading in ("cases", "findings", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(row.name, str(row.cases), str(row.findings), f"{row.seconds:.0f}", row.note)
    return table


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {target.name:14} {target.idea}" for target in (*TARGETS, *guided.TARGETS))
    parser = argparse.ArgumentParser(
        prog="python3 run.py fuzz",
        description="Asks a real server everything that it must refuse, and watches that nobody else notices.",
        epilog=f"targets:\n{listed}\n\nThe exit status is 1 when something was found.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, metavar="H", help="how long, all targets together")
    parser.add_argument(
        "--cases", type=int, metavar="N", help=f"of each target; {DEFAULT_CASES} where no hours are said"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="for the same cases again")
    parser.add_argument("--only", action="append", metavar="NAME", help="this target; may be said again")
    parser.add_argument(
        "--coverage-guided", action="store_true", help="the parsers, by atheris, in an environment of its own"
    )
    chosen = parser.parse_args(words)
    known = [target.name for target in (guided.TARGETS if chosen.coverage_guided else TARGETS)]
    for name in chosen.only or ():
        if name not in known:
            parser.error(f"there is no target {name!r}; there are {', '.join(known)}")
    if chosen.cases is None:
        chosen.cases = DEFAULT_CASES if chosen.hours is None else math.inf
    if chosen.cases < 1 or (chosen.hours is not None and not chosen.hours > 0):
        parser.error("cases and hours must be more than zero")
    chosen.end = math.inf if chosen.hours is None else time.monotonic() + 3600 * chosen.hours
    chosen.seed = random.randrange(1 << 32) if chosen.seed is None else chosen.seed
    return chosen


if __name__ == "__main__":
    sys.exit(main())
