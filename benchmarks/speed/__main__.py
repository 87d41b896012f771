"""Every goal of speed on this machine, side by side in one run: python3 run.py bench."""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from rich.console import Console

from benchmarks.speed.children import ROOT, ChildFailed
from benchmarks.speed.goals import Result
from benchmarks.speed.lab import QUICK, Lab, Settings, default_peer_python, result
from benchmarks.speed.machine import described, installed
from benchmarks.speed.plot import draw
from benchmarks.speed.report import Conditions, page, record, show
from benchmarks.speed.rigs import PEER_ENVIRONMENT, Workshop, version_in
from benchmarks.speed.rows import ROWS, Row
from benchmarks.speed.statistics import Load, Spread
from hermosis_client import HermosisError
from hermosis_server.processes import sigterm_as_interrupt

RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "build" / "speed"

HELP = f"""\
Peers that are not installed are left out by name. Flower wants other versions of what Hermosis needs, so it gets an
environment of its own, which is found by itself:
  python3 -m venv build/peers && build/peers/bin/pip install -r benchmarks/peers/requirements.txt

rows: {", ".join(ROWS)}

examples:
  python3 run.py bench
  python3 run.py bench --only streams same-host
  python3 run.py bench --quick --only journal round-trip
  python3 run.py bench --gpu          the CUDA part instead, with this Python; needs torch, numpy and triton alone
"""


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    console = Console()
    if asked.list:
        for row in ROWS.values():
            console.print(f"{row.name}: {', '.join(row.goals)}", highlight=False)
        return 0
    try:
        asked.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        console.print(f"cannot make the folder {asked.output}: {error.strerror}; wanted one that may be written to")
        return 2
    loads: list[Load] = []
    results: list[Result] = []
    rows_s: dict[str, float] = {}
    interrupted = False
    try:
        with sigterm_as_interrupt(), progress(console, len(asked.only)) as told:
            for name in asked.only:
                told(name, "starting")
                began = time.monotonic()
                results += measured(ROWS[name], asked, loads, lambda what, name=name: told(name, what))  # type: ignore[misc]
                rows_s[name] = time.monotonic() - began
    except KeyboardInterrupt:
        interrupted = True
        console.print("\nInterrupted; what was measured until now is written.")
        if not results:
            return 130
    conditions = Conditions(
        date=date.today().isoformat(),
        command=shlex.join(["python3", "run.py", "bench", *(sys.argv[1:] if arguments is None else arguments)]),
        settings=asked.settings,
        machine=described(),
        peers=peers(asked.peer_python),
        rows_s=rows_s,
        steal=Spread.of([load.steal for load in loads]),
        others=Spread.of([load.others for load in loads]),
    )
    show(console, results)
    for file in write(asked.output, results, conditions):
        console.print(f"written: {file}", highlight=False, soft_wrap=True)
    return 130 if interrupted else 0


def measured(row: Row, asked: argparse.Namespace, loads: list[Load], told: Callable[[str], None]) -> list[Result]:
    """A row's results; where it fails, the reason in place of each."""
    try:
        with Workshop(asked.peer_python, asked.settings.threads) as workshop:
            return row.measure(Lab(asked.settings, workshop, told, loads))
    except (
        ChildFailed,
        HermosisError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return [result(name, failure=reason) for name in row.goals]


def write(folder: Path, results: Sequence[Result], conditions: Conditions) -> list[Path]:
    """The page, the record and, where growth was measured, the picture; an earlier run of the day is replaced."""
    stem = folder / f"speed-{conditions.date}"
    picture, text, data = (stem.with_suffix(suffix) for suffix in (".png", ".md", ".json"))
    drawn = draw(picture, results)
    text.write_text(page(results, conditions, picture.name if drawn else ""), encoding="utf-8")
    data.write_text(record(results, conditions), encoding="utf-8")
    return [text, data, *([picture] if drawn else [])]


def peers(python: Path | None) -> dict[str, str]:
    """Versions of the packages that only peers need."""
    own = {package: installed(package) for package in ("ray", "flwr")}
    return {
        package: version_in(python, package) if python and found == "not installed" else found
        for package, found in own.items()
    }


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[str, str], None]]:
    """One line that moves on a terminal; elsewhere a line a row."""
    seen: list[str] = []
    with console.status("starting") as status:

        def told(row: str, what: str) -> None:
            if row not in seen:
                seen.append(row)
                if not console.is_terminal:
                    console.print(f"{len(seen)} of {total}: {row}", highlight=False)
            status.update(f"{len(seen)} of {total}: {row}: {what}")

        yield told


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 run.py bench",
        description="Measures every goal of speed on this machine, in ratios of one run; under 15 minutes.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("--only", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS), help="rows to measure; all")
    say("--quick", action="store_true", help="tiny sizes and short passes, to see that all runs; numbers mean little")
    say("--list", action="store_true", help="the rows and their goals, and nothing else")
    say("--output", type=Path, help="folder of the results; benchmarks/results, or build/speed with --quick")
    say("--passes", type=int, help="of each case, in turns; 5")
    say("--threads", type=int, help="of the server's step on the CPU, and of torch beside it; 2")
    say("--memory-steps", type=int, help="over which the server's memory is watched; 12 (about 30 s)")
    say("--peer-python", type=Path, help="interpreter for peers that need other versions; build/peers if it is there")
    asked = parser.parse_args(arguments)
    settings = QUICK if asked.quick else Settings()
    given = {"passes": asked.passes, "threads": asked.threads, "memory_steps": asked.memory_steps}
    for name, value in given.items():
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; wanted at least 1")
    given = {name: value for name, value in given.items() if value is not None}
    asked.settings = dataclasses.replace(settings, **given)
    asked.output = asked.output or (SCRATCH if asked.quick else RESULTS)
    asked.peer_python = asked.peer_python or default_peer_python(PEER_ENVIRONMENT)
    return asked


if __name__ == "__main__":
    sys.exit(main())
