"""The measurements of speed: verdicts follow from the figures, and what cannot be measured is said, never guessed."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.speed import __main__ as speed
from benchmarks.speed.children import Child, ChildFailed
from benchmarks.speed.goals import GOALS, Figure, Result
from benchmarks.speed.growth import cliff
from benchmarks.speed.lab import QUICK, Lab, figure, result
from benchmarks.speed.machine import cpu_seconds, descendants, described, memory_bytes
from benchmarks.speed.passes import Case
from benchmarks.speed.report import Conditions, markdown_table, number, page, record, summary
from benchmarks.speed.rigs import Missing, Workshop
from benchmarks.speed.rows import ROWS, Row
from benchmarks.speed.statistics import Load, Reading, Spread, better, compare

CALM, BUSY = Load(steal=0.0, others=0.0), Load(steal=0.0, others=1.5)


def reading(rate: float, load: Load = CALM) -> Reading:
    return Reading(exchanges=round(rate), seconds=1.0, load=load, server_cpu_s=0.5, latencies_s=[1.0 / rate] * 3)


def of_ratio(*ratios: float, judged: bool = True) -> list[Figure]:
    return [Figure(label="it", ratio=Spread.exactly(each), ours=Spread.exactly(1.0), judged=judged) for each in ratios]


def conditions() -> Conditions:
    return Conditions(
        date="2026-11-26", command="run", settings=QUICK, machine=described(), peers={}, rows_s={"it": 1},
        steal=Spread.exactly(0), others=Spread.exactly(0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ratios", "verdict"),
    [
        ("naive", (6.0,), "met"),
        ("naive", (5.99,), "missed by 0%"),
        ("naive", (7.0, 3.0), "missed by 50%"),
        ("cpu", (1.3,), "met"),
        ("cpu", (1.95,), "missed by 50%"),
    ],
)
def test_a_goal_is_met_when_every_judged_figure_keeps_its_bound(
    name: str, ratios: tuple[float, ...], verdict: str
) -> None:
    assert result(name, of_ratio(*ratios)).verdict == verdict
    told = [*of_ratio(*ratios), *of_ratio(1e-9, 1e9, judged=False)]
    assert result(name, told).verdict == verdict, "figures beside the goal judge nothing"


def test_a_figure_that_is_not_a_number_meets_nothing() -> None:
    assert result("naive", of_ratio(math.nan)).met is False
    assert result("cpu", of_ratio(math.nan)).met is False


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    for each in (
        result("naive", failure="it is not here"),
        result("naive"),
        result("naive", of_ratio(9, judged=False)),
    ):
        assert each.met is None
    assert result("naive", failure="it is not here").verdict == "not measured"


def test_ratios_are_taken_pass_by_pass() -> None:
    """A machine that is half as fast in one pass slows both sides."""
    compared = compare([reading(100), reading(50), reading(100)], [reading(50), reading(25), reading(50)], rate)
    assert compared.ratio == Spread(2.0, 2.0, 2.0)
    assert compared.theirs == Spread(50, 25, 50)


def rate(one: Reading) -> float:
    return one.rate


def test_passes_under_other_load_are_left_out_where_enough_are_calm() -> None:
    theirs = [reading(100)] * 5
    few = compare([*[reading(200)] * 3, reading(10, BUSY), reading(10, BUSY)], theirs, rate)
    assert (few.ratio.low, few.disturbed) == (2.0, 0)
    many = compare([*[reading(200)] * 2, *[reading(10, BUSY)] * 3], theirs, rate)
    assert (many.ratio.median, many.disturbed) == (0.1, 3)


def test_the_ceiling_is_the_better_of_two() -> None:
    slow, fast = [reading(10)] * 3, [reading(20)] * 3
    assert better(slow, fast, rate) == 1
    assert better(fast, slow, rate) == 0


def test_a_cliff_is_the_deepest_fall_below_the_best_before() -> None:
    assert cliff([(1, 10.0), (10, 100.0), (100, 50.0), (1000, 80.0)]) == (100, 0.5)
    assert cliff([(1, 10.0), (10, 20.0)]) == (1, 1.0)


def test_every_goal_has_one_row_that_measures_it() -> None:
    measured = [goal for row in ROWS.values() for goal in row.goals]
    assert sorted(measured) == sorted(GOALS)


def test_a_row_that_fails_says_why_for_each_of_its_goals_and_ends_its_processes() -> None:
    started: list[int] = []

    def fails(lab: Lab) -> list[Result]:
        raw = lab.workshop.raw("sync")
        started.append(raw.process_id)
        os.kill(raw.process_id, signal.SIGKILL)
        lab.run([Case(name="it", parts=[raw.client(8)])])
        return []

    asked = speed.parse(["--quick"])
    results = speed.measured(Row("it", ("naive", "cpu"), fails), asked, [], lambda what: None)
    assert [each.goal.name for each in results] == ["naive", "cpu"]
    assert all("benchmarks.peers.raw worker" in each.failure for each in results)
    assert not Path(f"/proc/{started[0]}").exists()


def test_a_child_that_dies_tells_its_last_words() -> None:
    child = Child(sys.executable, ["benchmarks.peers.naive", "server", "--parameters", "many"])
    try:
        with pytest.raises(ChildFailed, match="invalid int value"):
            child.address()
    finally:
        child.close()


def test_an_absent_peer_is_named_with_the_way_to_get_it() -> None:
    with Workshop(None, 1) as workshop, pytest.raises(Missing, match=r"no_such_package.*requirements\.txt"):
        workshop.python_with("no_such_package")


def test_page_and_record_hold_every_goal_and_no_number_that_is_none() -> None:
    results = [
        result("naive", [figure("1 worker", [reading(12)], [reading(2, BUSY)])], notes=["a note"]),
        result("flower", of_ratio(math.inf)),
        result("journal", failure="there is none"),
    ]
    text = page(results, conditions(), "")
    assert "| 1 worker |  | 6 ~1 | 12 exchanges/s | 2 |  |" in text
    assert "journal is not measured: there is none" in text
    assert "- a note" in text
    values = json.loads(record(results, conditions()), parse_constant=pytest.fail)
    assert [each["verdict"] for each in values["results"]] == ["met, under other load", "met", "not measured"]
    assert values["results"][1]["figures"][0]["ratio"]["median"] is None
    assert summary(results) == (
        "2 of 2 measured goals are met; not measured: journal; to be measured again without other load: naive."
    )


def test_cells_do_not_break_the_table() -> None:
    assert markdown_table(["a"], [["x | y"]])[2] == "| x / y |"
    assert number(1234.5) == "1,234"
    assert number(math.nan) == "–"


def test_the_machine_is_read_from_proc() -> None:
    me = os.getpid()
    assert me in descendants(me)
    before = cpu_seconds(me)
    end = time.monotonic() + 10
    while cpu_seconds(me) == before:
        assert time.monotonic() < end
    assert memory_bytes(me) <= memory_bytes(me, peak=True)


def run_bench(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed", "--quick", *arguments],
        cwd=speed.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_quick_run_measures_real_servers(tmp_path: Path) -> None:
    run = run_bench("--only", "round-trip", "journal", "--output", str(tmp_path))
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0, said
    (data,) = tmp_path.glob("*.json")
    results = {each["goal"]["name"]: each for each in json.loads(data.read_text())["results"]}
    assert results["round-trip"]["failure"] == results["beside-bulk"]["failure"] == ""
    for name in ("round-trip", "beside-bulk"):
        for each in results[name]["figures"]:
            assert each["ratio"]["median"] > 0
            assert 0 < each["ours"]["low"] <= each["ours"]["high"]
    assert results["journal"]["failure"] == ""
    assert "round-trip" in said


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    run = run_bench("--only", "many-streams", "--output", str(tmp_path))
    family: set[int] = set()
    end = time.monotonic() + 60
    while len(family) < 4:
        assert time.monotonic() < end
        assert run.poll() is None
        family = descendants(run.pid)
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert not list(tmp_path.iterdir())
    alive = [each for each in family if Path(f"/proc/{each}").exists() and not is_zombie(each)]
    assert alive == []


def is_zombie(process_id: int) -> bool:
    return ") Z" in Path(f"/proc/{process_id}/stat").read_text()
