"""The runner: what fails is kept, counted, told, and tried first the next time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.fuzz import __main__ as runner
from tests.fuzz import guided
from tests.fuzz.targets import Round, Target, _try


class Numbers:
    """A house where numbers from a million on do harm, while it has not been repaired."""

    def __init__(self) -> None:
        self.cases = 0
        self.tried: list[int] = []
        self.repaired = False
        self.interrupt = False

    def check(self, number: int) -> None:
        self.cases += 1
        self.tried.append(number)
        if self.interrupt:
            raise KeyboardInterrupt
        assert self.repaired or number < 1_000_000, f"{number} does harm"


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Numbers:
    numbers = Numbers()

    @contextlib.contextmanager
    def opened() -> Iterator[Numbers]:
        numbers.cases = 0
        yield numbers

    def run(house: Any, chosen: Round) -> None:
        _try("numbers", st.integers(0, 1 << 40), house.check, chosen)

    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'something'", name="something")

    targets = (Target("numbers", "…", 10, opened, run), Target("needy", "…", 10, missing, run))
    monkeypatch.setattr(runner, "TARGETS", targets)
    monkeypatch.setattr(runner, "MEMORY", tmp_path)
    return numbers


def test_a_finding_fails_is_kept_and_comes_first_the_next_time(
    house: Numbers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(["--cases", "200", "--seed", "1", "--only", "numbers"]) == 1
    assert "1000000 does harm" in " ".join(capsys.readouterr().err.split())
    (kept,) = (tmp_path / "findings").iterdir()
    assert "1000000 does harm" in kept.read_text()
    house.tried.clear()
    assert runner.main(["--cases", "1", "--seed", "2", "--only", "numbers"]) == 1
    assert house.tried[0] == 1_000_000
    house.repaired = True
    assert runner.main(["--cases", "60", "--seed", "3", "--only", "numbers"]) == 0


def test_the_same_seed_tries_the_same(house: Numbers) -> None:
    house.repaired = True
    runner.main(["--cases", "300", "--seed", "7", "--only", "numbers"])
    first, house.tried = house.tried, []
    runner.main(["--cases", "300", "--seed", "7", "--only", "numbers"])
    assert house.tried == first
    assert len(set(first)) > 30


def test_an_interruption_ends_with_the_summary(house: Numbers, capsys: pytest.CaptureFixture[str]) -> None:
    house.interrupt = True
    assert runner.main(["--hours", "1", "--seed", "1"]) == 130
    told = capsys.readouterr()
    assert "Interrupted" in told.err
    assert "numbers" in told.out


def test_what_is_not_installed_is_left_out_by_name(house: Numbers, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--cases", "5", "--only", "needy"]) == 0
    assert "something is not installed" in " ".join(capsys.readouterr().out.split())


def test_atheris_that_cannot_be_had_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "MEMORY", tmp_path)
    monkeypatch.setattr(guided.sys, "executable", "/bin/false")
    assert runner.main(["--coverage-guided", "--cases", "1", "--only", "wire"]) == 0
    assert "atheris cannot be had" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--cases", "0"], ["--hours", "-1"]])
def test_words_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        runner.main(words)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err
