"""An honest race of optimizers: python -m benchmarks.quality, from the root of the repository."""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.quality_contestants import OUTSIDE, REFERENCE, Contestant, code_of, contestants
from benchmarks.quality_plot import draw
from benchmarks.quality_pool import RunStore, run_all
from benchmarks.quality_report import Conditions, page, record, show
from benchmarks.quality_runs import SCHEDULES, Run, RunSpec
from benchmarks.quality_tasks import TASKS
from benchmarks.quality_verdict import TaskResult, best_trial, judge

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / "build" / "quality"
QUICK = {"tasks": ["digits-mlp", "logistic"], "trials": 2, "seeds": 2, "steps": 40, "out": SCRATCH / "quick"}
FULL = {"tasks": list(TASKS), "trials": 20, "seeds": 5, "steps": 400, "out": ROOT / "benchmarks" / "results"}

HELP = f"""\
Each contestant is tuned on each task with the same number of trials. Its best settings are then run again with fresh
seeds, and only these runs are reported: in how many steps they reach {REFERENCE}'s best loss, and their own loss at the
budget. Ranges, tasks and rules are written down in the report.

Every finished run is kept in build/quality/runs.jsonl. An interrupted race goes on from there, and a race with more
trials, seeds or contestants runs only what is new. A run counts as new when its optimizer's code has changed; see
--fingerprint.

examples:
  python -m benchmarks.quality --quick
  python -m benchmarks.quality --tasks characters autoencoder --contestants "hermosis adamw" SOAP --trials 40
  python -m benchmarks.quality --seeds 9 --out build/quality/tried
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Who runs on what, with which budget."""

    tasks: Sequence[str]
    field: Sequence[Contestant]
    trials: int
    seeds: int
    steps: int
    measure_every: int
    schedule: str
    fingerprint: str  # in place of the digest of Hermosis' own code, where given

    def code(self, contestant: Contestant) -> str:
        return self.fingerprint if self.fingerprint and contestant.family == "hermosis" else code_of(contestant)

    def tuning(self, task: str, contestant: Contestant) -> list[RunSpec]:
        """The trials, all from seed 0."""
        first = RunSpec(
            task=task,
            contestant=contestant.name,
            settings={},
            seed=0,
            steps=self.steps,
            measure_every=self.measure_every,
            schedule=self.schedule,
            fingerprint=self.code(contestant),
        )
        return [replace(first, settings=contestant.trial(number)) for number in range(self.trials)]

    def again(self, trials: Sequence[Run]) -> list[RunSpec]:
        """The best trial with fresh seeds; nothing where all diverged."""
        best = best_trial(trials)
        return [replace(best.spec, seed=seed) for seed in range(1, self.seeds + 1)] if best else []


@dataclass(frozen=True, slots=True)
class Outcome:
    """All runs and what they say."""

    results: list[TaskResult]
    seeds: dict[str, dict[str, list[Run]]]  # by task and contestant


def hold(race: Race, store: RunStore, *, workers: int, done: Callable[[Run], None] = lambda run: None) -> Outcome:
    """Tunes everybody, runs the best again and judges."""
    pairs = [(task, contestant) for task in race.tasks for contestant in race.field]
    specs = {(task, each.name): race.tuning(task, each) for task, each in pairs}
    run_all([spec for several in specs.values() for spec in several], store, workers=workers, done=done)
    trials = {pair: run_all(several, store, workers=workers) for pair, several in specs.items()}
    again = {pair: race.again(runs) for pair, runs in trials.items()}
    run_all([spec for several in again.values() for spec in several], store, workers=workers, done=done)
    seeds = {pair: run_all(several, store, workers=workers) for pair, several in again.items()}

    def on(task: str, runs: dict[tuple[str, str], list[Run]]) -> dict[str, list[Run]]:
        return {each.name: runs[task, each.name] for each in race.field}

    return Outcome(
        results=[judge(task, race.field, on(task, trials), on(task, seeds)) for task in race.tasks],
        seeds={task: on(task, seeds) for task in race.tasks},
    )


def write(out: Path, outcome: Outcome, field: Sequence[Contestant], conditions: Conditions) -> list[Path]:
    """The page, the picture and the record; an earlier race of the same day is replaced."""
    stem = out / f"quality-{conditions.date}"
    picture = stem.with_suffix(".png")
    draw(picture, outcome.results, outcome.seeds)
    stem.with_suffix(".json").write_text(record(outcome.results, conditions), encoding="utf-8")
    stem.with_suffix(".md").write_text(page(outcome.results, field, conditions, picture.name), encoding="utf-8")
    return [stem.with_suffix(suffix) for suffix in (".md", ".json", ".png")]


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[Run], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    finished = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("starting", total=total)

        def done(run: Run) -> None:
            nonlocal finished
            finished += 1
            bar.update(line, advance=1, description=f"{run.spec.task}, {run.spec.contestant}")
            if not console.is_terminal and finished * 10 // total > (finished - 1) * 10 // total:
                console.print(f"{finished} of {total} runs")

        yield done


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="An honest race of optimizers on small real tasks.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    everybody = list(contestants())
    say = parser.add_argument
    say("--tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"of {', '.join(TASKS)}; all")
    say(
        "--contestants", nargs="+", choices=everybody, metavar="NAME",
        help=f"{REFERENCE} always runs as well; of {', '.join(everybody)}; all",
    )  # fmt: skip
    say("--trials", type=positive, help="of each contestant on each task, to tune it; 20, or 2 with --quick")
    say(
        "--seeds",
        type=positive,
        help="runs of the best settings; odd numbers have a plain median; 5, or 2 with --quick",
    )
    say("--steps", type=positive, help="budget of every run; 400, or 40 with --quick")
    say("--measure-every", type=positive, default=5, help="steps between measurements; the error of a step count; 5")
    say("--schedule", choices=SCHEDULES, default="constant", help="of everybody's learning rate; constant")
    say(
        "--quick",
        action="store_true",
        help="every part in under a minute, for a look or for CI; the numbers mean little",
    )
    say("--workers", type=positive, default=2, help="runs at once, one thread each; 1 means in this very process; 2")
    say("--fingerprint", default="", help="name of the Hermosis code that is raced; a digest of the dynamics package")
    say(
        "--runs",
        type=Path,
        default=SCRATCH / "runs.jsonl",
        help="where finished runs are kept; build/quality/runs.jsonl",
    )
    say("--out", type=Path, help="folder of the report; benchmarks/results, or build/quality/quick with --quick")
    parsed = parser.parse_args(arguments)
    for name, value in (QUICK if parsed.quick else FULL).items():
        if getattr(parsed, name) is None:
            setattr(parsed, name, value)
    parsed.contestants = list(dict.fromkeys([REFERENCE, *(parsed.contestants or everybody)]))
    return parsed


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; wanted at least 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parse(arguments)
    console = Console()
    try:
        asked.out.mkdir(parents=True, exist_ok=True)  # now, and not after half an hour of runs
    except OSError as error:
        console.print(f"cannot make the folder {asked.out}: {error.strerror}; wanted one that may be written to")
        return 2
    present = contestants()
    race = Race(
        tasks=asked.tasks,
        field=[present[name] for name in asked.contestants],
        trials=asked.trials,
        seeds=asked.seeds,
        steps=asked.steps,
        measure_every=asked.measure_every,
        schedule=asked.schedule,
        fingerprint=asked.fingerprint,
    )
    if "SOAP" not in present:
        console.print(f"SOAP and Muon are left out: {OUTSIDE} is not installed.")
    total = len(race.tasks) * len(race.field) * (race.trials + race.seeds)
    try:
        with progress(console, total) as done:
            outcome = hold(race, RunStore(asked.runs), workers=asked.workers, done=done)
    except KeyboardInterrupt:
        console.print("\nInterrupted. Finished runs are kept; the same command goes on from there.")
        return 130
    conditions = Conditions(
        date=date.today().isoformat(),
        command=shlex.join(["python", "-m", "benchmarks.quality", *(sys.argv[1:] if arguments is None else arguments)]),
        trials=race.trials,
        seeds=race.seeds,
        steps=race.steps,
        measure_every=race.measure_every,
        schedule=race.schedule,
        workers=asked.workers,
        codes={each.name: race.code(each) for each in race.field},
    )
    files = write(asked.out, outcome, race.field, conditions)
    show(console, outcome.results)
    for file in files:
        console.print(f"written: {file}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
