"""`python3 run.py faults`: as many deaths as one likes, a table of what was kept, and that as JSON in build/faults."""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.drill import Drill, drill
from tests.faults.ledger import PROMISES, Violation
from tests.faults.planted import BUGS, provoke
from tests.faults.points import hits, reached_by_code
from tests.faults.servers import Wishes
from tests.faults.twin import Twin, calm_twin

RESULT = Path(__file__).resolve().parents[2] / "build" / "faults" / "result.json"


@dataclass(slots=True)
class Result:
    """What was done and seen.

    Attributes:
      deaths:     of a server, by kind.
      looks:      at each promise: one is one session of one recovered server, or one read.
      violations: without those of planted bugs.
      planted:    by bug, the promises that it was seen to break; empty where nobody noticed.
    """

    seed: int
    runs: int
    deaths: dict[str, int] = field(default_factory=dict)
    acknowledgements: int = 0
    losses_told: int = 0
    looks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROMISES, 0))
    violations: list[Violation] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    planted: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not self.violations and not self.unreached and all(self.planted.values())

    def died(self, kind: str) -> None:
        self.deaths[kind] = self.deaths.get(kind, 0) + 1

    def takes(self, one: Drill) -> None:
        """Adds what a drill has seen."""
        ledger = one.ledger
        self.acknowledgements += ledger.acknowledgements
        self.losses_told += ledger.losses_told
        self.violations += ledger.violations
        for promise, count in ledger.checks.items():
            self.looks[promise] += count


class Campaign:
    """The drills, one after another, each on a folder of its own."""

    def __init__(self, folder: Path, twin: Twin, result: Result, only: str) -> None:
        self._folder = folder
        self._twin = twin
        self._result = result
        self._only = only
        self._drills = 0

    def run(self) -> None:
        points = [name for name in reached_by_code() if self._wanted(name)]
        for group in sorted({name.split(".")[0] for name in points}):
            self._points([name for name in points if name.split(".")[0] == group], Wishes(), "kill at ")
        if self._wanted("power"):
            chosen = [name for name in reached_by_code() if name.split(".")[0] in ("disk", "journal", "snapshot")]
            self._points(chosen, Wishes(volatile=True), "power cut at ")
        if self._wanted("random"):
            self._random()
        if self._wanted("limit"):
            self._limited()
        for name in BUGS:
            if self._wanted("planted"):
                self._planted(name)

    def _wanted(self, name: str) -> bool:
        return name.startswith(self._only)

    def _points(self, names: list[str], wishes: Wishes, kind: str) -> None:
        with self._drill(wishes) as one:
            for name in names:
                for at in hits(name, self._result.runs, self._result.seed):
                    if not one.die(f"{name}=kill@{at}") and not (at > 1 and one.die(f"{name}=kill@1")):
                        self._result.unreached.append(kind + name)
                    self._result.died(kind + name.split(".")[0])
                    self._says(kind + f"{name}, time {at}", one)
            one.settle()

    def _random(self) -> None:
        draw = random.Random(self._result.seed)
        with self._drill(Wishes()) as one:
            for _ in range(4 * self._result.runs):
                one.kill_in_full_course(after_acknowledgements=draw.randint(1, 200))
                self._result.died("kill at a random moment")
                self._says("kill at a random moment", one)

    def _limited(self) -> None:
        draw = random.Random(self._result.seed)
        for _ in range(self._result.runs):  # each with a log that is short as yet: the limit is its limit too
            with self._drill(Wishes()) as one:
                if not one.limit_files_and_kill(draw.randint(6_000, 15_000)):
                    self._result.unreached.append("a limit on the size of files")
                self._result.died("kill after a limit on the size of files")
                self._says("kill after a limit on the size of files", one)

    def _planted(self, name: str) -> None:
        bug = BUGS[name]
        with self._drill(Wishes(plant=name, volatile=bug.volatile), counts=False) as one:
            provoke(one, bug)
            self._result.planted[name] = sorted({violation.promise for violation in one.violations})
            self._says(f"planted: {bug.what}", one)

    @contextlib.contextmanager
    def _drill(self, wishes: Wishes, *, counts: bool = True) -> Iterator[Drill]:
        folder = self._folder / f"drill-{self._drills}"
        folder.mkdir()
        self._drills += 1
        with drill(folder, self._twin, wishes) as one:
            try:
                yield one
            finally:
                if counts:
                    self._result.takes(one)

    def _says(self, what: str, one: Drill) -> None:
        found = len(one.violations)
        line = f"{sum(self._result.deaths.values()):5} deaths, {found} violations  {what}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def table(result: Result) -> str:
    """Promises, how often each was looked at, and how often it was broken."""
    lines = [f"{'promise':<92}{'looks':>8}{'broken':>8}  seen broken by planted bugs"]
    for promise, what in PROMISES.items():
        broken = sum(violation.promise == promise for violation in result.violations)
        planted = ", ".join(name for name, seen in result.planted.items() if promise in seen)
        lines.append(f"{promise + ' ' + what:<92}{result.looks[promise]:>8}{broken:>8}  {planted}")
    lines.append("")
    lines += [f"{count:6} {kind}" for kind, count in result.deaths.items()]
    lines.append(f"{result.acknowledgements:6} acknowledgements, {result.losses_told} times a worker was set back")
    lines += [f"nobody noticed the planted bug {name}" for name, seen in result.planted.items() if not seen]
    lines += [f"never reached: {name}" for name in result.unreached]
    lines += [str(violation) for violation in result.violations]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 run.py faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=2, help="deaths at each point [default: 2]")
    parser.add_argument("--only", default="", help="points whose name begins so, or power, random, limit, planted")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of death [default: 0]")
    wishes = parser.parse_args()
    result, began, status = Result(seed=wishes.seed, runs=wishes.runs), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="hermosis-faults-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with calm_twin(folder) as twin:
                Campaign(folder, twin, result, wishes.only).run()
        except KeyboardInterrupt:
            print("\ninterrupted; this is what was seen until now", file=sys.stderr)
            status = 130
    result.seconds = time.monotonic() - began
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**asdict(result), "promises": PROMISES}, indent=1) + "\n")
    print(f"\n{table(result)}\n{result.seconds:.0f} s; {RESULT.relative_to(Path.cwd())}")
    return status or int(not result.is_good)


if __name__ == "__main__":
    sys.exit(main())
