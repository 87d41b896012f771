"""The demo does what it says, and whatever ends it leaves no process behind."""

import os
import re
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hermosis_server.demo import digits
from hermosis_server.demo.alone import train_alone
from hermosis_server.demo.recipes import GOOD
from hermosis_server.dynamics import RECIPES

Start = Callable[..., Any]

pytestmark = pytest.mark.slow


def said(pattern: str, output: str) -> tuple[str, ...]:
    found = re.search(pattern, output)
    assert found, output
    return found.groups()


def test_demo_learns_agrees_with_one_process_and_leaves_a_plot(start: Start, tmp_path: Path) -> None:
    demo = start("demo", "--epochs", "4", "--results", str(tmp_path / "results"), "--keep")
    demo.line_with("until Ctrl-C")
    output = demo.output()
    remote, alone = map(float, said(r"accuracy +([\d.]+)% with 2 remote workers, ([\d.]+)% in one", output))
    assert remote > 90
    assert abs(remote - alone) < 1
    (difference,) = said(r"largest difference +(\S+)", output)
    assert 0 < float(difference) < 1e-3
    assert re.search(r"step 224/224  loss 0\.\d+  accuracy 9\d\.\d%  \d+ steps/s  [\d.]+ MB/s  temperature", output)

    (page,) = said(r"page +(http://127\.0\.0\.1:\d+)", output)
    with urllib.request.urlopen(page, timeout=30) as answer:
        assert b"<html" in answer.read().lower()

    picture = tmp_path / "results" / "digits-hermosis.png"
    pixels = imread(picture)
    assert pixels.shape[0] > 500
    assert len({tuple(pixel) for row in pixels[::7] for pixel in row[::7]}) > 20, "an empty picture"

    os.kill(demo.process.pid, signal.SIGINT)
    assert demo.wait() == 0
    demo.assert_nothing_is_left()
    assert list(demo.temporary.glob("hermosis*")) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns_the_digits_with_the_settings_of_the_demo(recipe: str) -> None:
    _, test = digits.load()
    weights = train_alone(recipe, GOOD[recipe], epochs=2)
    assert digits.accuracy_with(digits.network(), weights, test) > 0.8


@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "Starting"), (signal.SIGTERM, "Training"), (signal.SIGINT, "steps/s")],
    ids=["ctrl-c-starting", "kill-training", "ctrl-c-stepping"],
)
def test_ctrl_c_and_kill_at_any_moment_leave_nothing(start: Start, number: signal.Signals, moment: str) -> None:
    demo = start("demo", "--epochs", "200")
    demo.line_with(moment)
    os.kill(demo.process.pid, number)
    assert demo.wait() == 130
    demo.assert_nothing_is_left()
    assert list(demo.temporary.glob("hermosis*")) == []
    assert demo.errors() == ""


@pytest.mark.parametrize("moment", ["Starting", "steps/s"])
def test_kill_9_of_the_demo_leaves_no_process(start: Start, moment: str) -> None:
    demo = start("demo", "--epochs", "200")
    demo.line_with(moment)
    os.kill(demo.process.pid, signal.SIGKILL)
    demo.assert_nothing_is_left()


def test_death_of_a_worker_ends_the_demo_and_names_it(start: Start) -> None:
    demo = start("demo", "--epochs", "200")
    demo.line_with("steps/s")
    (victim,) = [number for number, line in demo.family().items() if "--worker 1 " in line]
    os.kill(victim, signal.SIGKILL)
    assert demo.wait() == 1
    assert "worker 1 ended with status -9" in demo.errors()
    demo.assert_nothing_is_left()


def test_death_of_the_server_ends_the_demo_with_its_log(start: Start) -> None:
    demo = start("demo", "--epochs", "200", "--workers", "1")
    demo.line_with("steps/s")
    (victim,) = [number for number, line in demo.family().items() if "hermosis_server serve" in line]
    os.kill(victim, signal.SIGKILL)
    assert demo.wait() == 1
    assert "server ended with status -9; the end of its log:" in demo.errors()
    demo.assert_nothing_is_left()


def test_unknown_optimizer_is_refused_with_the_names_there_are(start: Start) -> None:
    demo = start("demo", "--optimizer", "addam")
    assert demo.wait() == 1
    assert "addam" in demo.errors()
    assert "adamw" in demo.errors()
    demo.assert_nothing_is_left()


def test_a_reader_that_goes_away_ends_the_demo(start: Start) -> None:
    demo = start("demo", "--epochs", "200", "--workers", "1")
    demo.line_with("Starting")
    demo.hang_up()
    assert demo.wait() == 1
    demo.assert_nothing_is_left()
