"""`python3 run.py faults`: as many deaths as one likes, a table of what was kept, and that as JSON in build/faults."""

import argparse
import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.faults.drill import Drill, drill
from tests.faults.ledger import PROMISES, Violation
from tests.faults.planted import BUGS, provoke
from tests.faults.points import hits, reached_by_code
from tests.faults.servers import Wishes
from tests.faults.twin import Twin, calm_twin

RESULT = Path(__file__).resolve().parents[2] / "build" / "faults" / "result.json"
JOBS = os.cpu_count() or 1
NEWS_EVERY = 100  # deaths, where there is no terminal to rewrite a line on


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
    """The drills, several at once, each on a folder of its own.

    Args:
      folder: for all that they write.
      only:   what the names of the wanted ones begin with.
      jobs:   drills at once.
    """

    def __init__(self, folder: Path, twin: Twin, result: Result, *, only: str, jobs: int) -> None:
        self._folder = folder
        self._twin = twin
        self._result = result
        self._jobs = jobs
        self._lock = threading.Lock()
        self._drills = itertools.count()
        self._stopped = False
        self._work = self._chosen(only)
        self._wanted = sum(deaths for deaths, _ in self._work)

    def run(self) -> None:
        """Runs them all; KeyboardInterrupt ends each after the death that it is at."""
        with ThreadPoolExecutor(self._jobs, "faults") as pool:
            running = [pool.submit(work) for _, work in self._work]
            try:
                for one in as_completed(running):
                    one.result()
            finally:  # where one broke, or there was Ctrl-C
                self._stopped = True
                pool.shutdown(cancel_futures=True)

    def _chosen(self, only: str) -> list[tuple[int, Callable[[], None]]]:
        """How many deaths, and what brings them about."""
        runs, names = self._result.runs, reached_by_code()
        volatile = [name for name in names if name.split(".")[0] in ("disk", "journal", "snapshot")]
        kill = functools.partial(self._point, Wishes(), "kill at ")
        power_cut = functools.partial(self._point, Wishes(volatile=True), "power cut at ")
        work: list[tuple[str, int, Callable[[], None]]] = []
        work += [(name, runs, functools.partial(kill, name)) for name in names]
        work += [("power", runs, functools.partial(power_cut, name)) for name in volatile]
        work += [("random", 4 * runs, self._random), ("limit", runs, self._limited)]
        work += [("planted", 0, functools.partial(self._planted, name)) for name in BUGS]
        return [(deaths, each) for name, deaths, each in work if name.startswith(only)]

    def _point(self, wishes: Wishes, kind: str, name: str) -> None:
        with self._drill(wishes) as one:
            for at in hits(name, self._result.runs, self._result.seed):
                met = one.die(f"{name}=kill@{at}") or (at > 1 and one.die(f"{name}=kill@1"))
                if not self._died(kind + name.split(".")[0], f"{kind}{name}, time {at}", one, met=met):
                    break
            one.settle()

    def _random(self) -> None:
        draw = random.Random(self._result.seed)
        kind = "kill at a random moment"
        with self._drill(Wishes()) as one:
            for _ in range(4 * self._result.runs):
                one.kill_in_full_course(after_acknowledgements=draw.randint(1, 200))
                if not self._died(kind, kind, one):
                    break

    def _limited(self) -> None:
        draw = random.Random(self._result.seed)
        kind = "kill after a limit on the size of files"
        for _ in range(self._result.runs):  # each with a log that is short as yet: the limit is its limit too
            with self._drill(Wishes()) as one:
                met = one.limit_files_and_kill(draw.randint(6_000, 15_000))
                if not self._died(kind, kind, one, met=met):
                    break

    def _planted(self, name: str) -> None:
        bug = BUGS[name]
        with self._drill(Wishes(plant=name, volatile=bug.volatile), counts=False) as one:
            provoke(one, bug)
            with self._lock:
                self._result.planted[name] = sorted({violation.promise for violation in one.violations})
                self._says(f"planted: {bug.what}", one)

    @contextlib.contextmanager
    def _drill(self, wishes: Wishes, *, counts: bool = True) -> Iterator[Drill]:
        folder = self._folder / f"drill-{next(self._drills)}"
        folder.mkdir()
        with drill(folder, self._twin, wishes) as one:
            try:
                yield one
            finally:
                if counts:
                    with self._lock:
                        self._result.takes(one)
        shutil.rmtree(folder, ignore_errors=True)

    def _died(self, kind: str, what: str, one: Drill, *, met: bool = True) -> bool:
        """Counts a death; whether there shall be another."""
        with self._lock:
            self._result.died(kind)
            if not met:
                self._result.unreached.append(what)
            self._says(what, one)
        return not self._stopped

    def _says(self, what: str, one: Drill) -> None:
        done = sum(self._result.deaths.values())
        line = f"{done:,} of {self._wanted:,} deaths, {len(one.violations)} violations  {what}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif done % NEWS_EVERY == 0:
            print(line, file=sys.stderr, flush=True)


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
    parser.add_argument("--runs", type=int, default=100, help="deaths at each point [default: 100, an hour or two]")
    parser.add_argument("--only", default="", help="points whose name begins so, or power, random, limit, planted")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of death [default: 0]")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"drills at once [default: {JOBS}, as there are cores]")
    wishes = parser.parse_args()
    if wishes.runs < 1 or wishes.jobs < 1:
        parser.error(f"--runs and --jobs must be at least 1, got {wishes.runs} and {wishes.jobs}")
    result, began, status = Result(seed=wishes.seed, runs=wishes.runs), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="hermosis-faults-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with calm_twin(folder) as twin:
                Campaign(folder, twin, result, only=wishes.only, jobs=wishes.jobs).run()
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
