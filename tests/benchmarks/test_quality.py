"""The race of optimizers is fair, counts what it says it counts, and goes on where it was interrupted."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import quality, quality_pool
from benchmarks.quality import Race
from benchmarks.quality_contestants import LR_DECADES, REFERENCE, contestants
from benchmarks.quality_pool import RunStore, run_all
from benchmarks.quality_runs import Run, RunSpec, execute
from benchmarks.quality_tasks import TASKS
from benchmarks.quality_verdict import Spread, Verdict, best_trial, goal_met, judge, steps_to

FIELD = contestants()
SPEC = RunSpec(
    task="logistic",
    contestant="SGD",
    settings={"lr": 0.1},
    seed=0,
    steps=20,
    measure_every=5,
    schedule="constant",
    fingerprint="this code",
)


def made_up(losses: Sequence[float], *, finite: bool = True, contestant: str = "SGD", seed: int = 0) -> Run:
    """A run with these losses, measured every 10 steps."""
    steps = list(range(0, 10 * len(losses), 10))
    spec = replace(SPEC, contestant=contestant, seed=seed, steps=steps[-1])
    return Run(spec=spec, at_steps=steps, losses=list(losses), finite=finite, step_ms=1.0, optimizer_ms=0.5)


def race(trials: int = 6, seeds: int = 3) -> Race:
    return Race(
        tasks=list(TASKS),
        field=list(FIELD.values()),
        trials=trials,
        seeds=seeds,
        steps=20,
        measure_every=5,
        schedule="constant",
        fingerprint="",
    )


@pytest.fixture
def nothing_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(missing: list[RunSpec], *_: object, **__: object) -> None:
        raise AssertionError(f"{len(missing)} runs were started, the first is {missing[0]}")

    monkeypatch.setattr(quality_pool, "_run_missing", refuse)


@pytest.mark.parametrize("name", ["SGD", "hermosis sgd"])
@pytest.mark.parametrize(("task", "lr"), [("logistic", 1e4), ("digits-mlp", 1e12)])
def test_training_that_blows_up_has_diverged(name: str, task: str, lr: float) -> None:
    """The convex loss stays finite and ends above its start; the network's does not stay finite."""
    run = execute(replace(SPEC, task=task, contestant=name, settings={"lr": lr}))
    assert run.diverged
    assert run.final == math.inf
    assert run.finite == (task == "logistic"), run
    assert not run.error
    tame = execute(replace(SPEC, task=task, contestant=name))
    assert not tame.diverged
    assert tame.final == tame.losses[-1] < tame.losses[0]


def test_optimizer_that_raises_has_diverged_and_says_how() -> None:
    run = execute(replace(SPEC, settings={"lr": -1.0}))
    assert run.diverged
    assert "learning rate" in run.error


def test_diverged_trials_are_counted_and_never_chosen() -> None:
    good, worse_than_start, cut_off = made_up([3, 1]), made_up([3, 4]), made_up([3, 0.5], finite=False)
    trials = [cut_off, worse_than_start, good]
    assert best_trial(trials) is good
    assert best_trial(trials[:2]) is None
    field = [FIELD[REFERENCE], FIELD["SGD"]]
    seeds = {REFERENCE: [good], "SGD": []}
    result = judge("logistic", field, {REFERENCE: [good], "SGD": trials[:2]}, seeds)
    assert (result.reference.diverged, result.reference.trials) == (0, 1)
    assert (result.standing("SGD").diverged, result.standing("SGD").trials) == (2, 2)
    assert result.standing("SGD").ratio.median == math.inf


def test_best_trial_is_low_for_a_while_and_not_by_luck() -> None:
    lucky, steady = made_up([3] * 18 + [2, 2, 0.1]), made_up([3] * 18 + [1, 1, 1])
    assert best_trial([lucky, steady]) is steady


def test_same_seed_means_same_start_and_same_minibatches() -> None:
    for task in TASKS.values():
        first, again, other = (task.start(seed) for seed in (3, 3, 4))
        losses = [[float(next(each.losses).detach()) for _ in range(2)] for each in (first, again, other)]
        assert losses[0] == losses[1]
        assert losses[0] != losses[2]
        assert first.measured().item() == again.measured().item() != other.measured().item()


def test_everybody_gets_the_same_budget() -> None:
    """As many trials, at the same places of equally wide ranges, over the same steps from the same seeds."""
    held = race()
    places = set()
    for contestant in FIELD.values():
        assert len(contestant.draws) <= 2, contestant
        lr = contestant.ranges[0]
        assert math.log10(lr.high / lr.low) == pytest.approx(LR_DECADES)
        specs = held.tuning("logistic", contestant)
        assert len({spec.key for spec in specs}) == held.trials
        assert {(spec.steps, spec.seed, spec.schedule, spec.measure_every) for spec in specs} == {
            (20, 0, "constant", 5)
        }
        for spec in specs:
            assert all(draw.low <= abs(draw.from_one - spec.settings[draw.name]) <= draw.high * (1 + 1e-9)
                       for draw in contestant.ranges)  # fmt: skip
        places.add(tuple(round(math.log10(spec.settings["lr"] / contestant.lr), 9) for spec in specs))
        again = held.again([replace(made_up([3, 2, 1]), spec=specs[0])])
        assert [spec.seed for spec in again] == [1, 2, 3]
        assert {json.dumps(spec.settings) for spec in again} == {json.dumps(specs[0].settings)}
    assert len(places) == 1


def test_trials_fill_the_range_and_more_of_them_keep_the_first() -> None:
    adamw = FIELD[REFERENCE]
    settings = [trial.settings for trial in race(20).tuning("logistic", adamw)]
    assert settings[:6] == [trial.settings for trial in race(6).tuning("logistic", adamw)]
    rates = sorted(math.log10(each["lr"] / adamw.lr) / LR_DECADES + 0.5 for each in settings)
    assert max(high - low for low, high in pairwise([0.0, *rates, 1.0])) < 0.15


def test_steps_to_the_target_is_the_first_measurement_there() -> None:
    run = made_up([3.0, 2.0, 1.0, 1.5, 0.5])
    assert steps_to(run, 3.0) == 0
    assert steps_to(run, 1.2) == 20
    assert steps_to(run, 0.5) == 40
    assert steps_to(run, 0.4) == math.inf
    assert steps_to(made_up([3.0, 1.0001]), 1.0) == 10  # equal up to rounding
    assert steps_to(made_up([3.0, 1.01]), 1.0) == math.inf


def test_seeds_that_never_arrive_count_as_infinitely_many_steps() -> None:
    assert Spread.of([30, math.inf, 10, 20, math.inf]) == Spread(20, 30, math.inf)
    assert Spread.of([10, math.inf, math.inf]).median == math.inf
    assert Spread.of([]).median == math.inf


def test_ratio_is_of_median_steps_and_the_reference_is_at_one() -> None:
    slow = [made_up([4, 3, 2, 1, level], contestant=REFERENCE) for level in (0.4, 0.5, 0.6)]
    fast = [made_up([4, 0.5, 0.3, 0.3, 0.3]), made_up([4, 2, 0.5, 0.5, 0.6]), made_up([4, 3, 3, 3, 3])]
    runs = {REFERENCE: slow, "SGD": fast}
    result = judge("logistic", [FIELD["SGD"], FIELD[REFERENCE]], runs, runs)
    assert result.target == 0.5
    assert result.reference.contestant == REFERENCE
    assert result.reference.ratio.median == 1
    assert result.standing("SGD").ratio == Spread(0.25, 0.5, math.inf)
    assert result.standing("SGD").reached == 2


def test_reference_that_diverged_sets_no_target() -> None:
    """Otherwise everybody would be there before the first step."""
    runs = {REFERENCE: [made_up([1, 2], contestant=REFERENCE)], "SGD": [made_up([2, 1])]}
    result = judge("logistic", [FIELD[REFERENCE], FIELD["SGD"]], runs, runs)
    assert [each.ratio.median for each in result.standings] == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("ratio", "diverged", "met"), [(0.8, 2, True), (0.81, 1, False), (0.5, 3, False), (math.inf, 0, False)]
)
def test_goal_on_a_task_asks_for_speed_and_no_more_diverged_trials(ratio: float, diverged: int, met: bool) -> None:
    verdict = Verdict(recipe="r", task="logistic", ratio=ratio, diverged=diverged, reference_diverged=2)
    assert verdict.met is met


def test_goal_asks_for_every_task_and_fewer_diverged_trials_in_all() -> None:
    alike = Verdict(recipe="r", task="logistic", ratio=0.7, diverged=0, reference_diverged=0)
    fewer = Verdict(recipe="r", task="digits-mlp", ratio=0.7, diverged=0, reference_diverged=1)
    slow = replace(fewer, ratio=0.9)
    assert goal_met([alike, fewer])
    assert not goal_met([alike, alike])
    assert not goal_met([fewer, slow])


@pytest.mark.usefixtures("nothing_may_run")
def test_kept_runs_are_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    run = execute(SPEC)
    RunStore(path).add(run)
    with path.open("a") as lines:
        lines.write('{"key": "cut off wh')
    reopened = RunStore(path)
    assert run_all([SPEC, SPEC], reopened, workers=1) == [run, run]
    for other in (replace(SPEC, seed=1), replace(SPEC, fingerprint="that code"), replace(SPEC, settings={"lr": 0.2})):
        with pytest.raises(AssertionError, match="1 runs were started"):
            run_all([other], reopened, workers=1)
    reopened.add(replace(run, spec=replace(SPEC, seed=1)))
    assert RunStore(path).get(replace(SPEC, seed=1)) is not None


def test_interrupted_runs_keep_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    specs = [replace(SPEC, seed=seed) for seed in range(40)]

    def interrupt(run: Run) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(specs, RunStore(path), workers=2, done=interrupt)
    kept = sum(RunStore(path).get(spec) is not None for spec in specs)
    assert 1 <= kept < len(specs)


def test_small_race_writes_its_report_and_goes_on_from_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    words = ["--quick", "--tasks", "logistic", "--contestants", "hermosis sgd", "--steps", "10", "--seeds", "1",
             "--workers", "1", "--runs", str(tmp_path / "runs.jsonl"), "--out", str(tmp_path / "out")]  # fmt: skip
    assert quality.main(words) == 0
    assert "Goal: " in capsys.readouterr().out
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2 * (2 + 1)
    files = {file.suffix: file for file in (tmp_path / "out").iterdir()}
    assert set(files) == {".md", ".json", ".png"}
    page = files[".md"].read_text()
    assert files[".png"].name in page
    assert files[".png"].read_bytes().startswith(b"\x89PNG")
    record = json.loads(files[".json"].read_text())
    assert [each["contestant"] for each in record["tasks"][0]["standings"]] == [REFERENCE, "hermosis sgd"]
    assert record["tasks"][0]["standings"][0]["ratio"]["median"] == 1
    assert f"| {REFERENCE} | 10 (10–10) | 1.00 | 1/1 |" in page
    assert record["conditions"]["trials"] == 2

    request.getfixturevalue("nothing_may_run")
    assert quality.main(words) == 0


def test_report_that_could_not_be_written_is_said_before_the_race(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    runs = tmp_path / "runs.jsonl"
    assert quality.main(["--quick", "--runs", str(runs), "--out", str(tmp_path / "file" / "report")]) == 2
    assert "cannot make the folder" in capsys.readouterr().out
    assert not runs.exists()
