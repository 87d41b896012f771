"""Kill -9 at every named place, under a mixed load: nothing promised is lost, nothing is counted twice."""

import random
from pathlib import Path

import pytest
from tests.faults.drill import Drill, drill
from tests.faults.points import hits, reached_by_code
from tests.faults.servers import Wishes
from tests.faults.twin import Twin

POINTS = reached_by_code()
GROUPS = sorted({name.split(".")[0] for name in POINTS})
RUNS = 2


def said(one: Drill, names: list[str]) -> str:
    """Of violations, after which deaths they were seen."""
    return f"after {' and '.join(names[-2:])}: {'; '.join(map(str, one.violations))}"


@pytest.mark.parametrize("group", GROUPS)
def test_kill_at_every_point_loses_nothing_that_was_promised(group: str, tmp_path: Path, twin: Twin) -> None:
    died: list[str] = []
    with drill(tmp_path, twin) as one:
        one.kill_after(3)
        for name in (name for name in POINTS if name.split(".")[0] == group):
            for at in hits(name, RUNS, seed=0):
                if not one.die(f"{name}=kill@{at}"):
                    one.take_spares_away()
                    assert one.die(f"{name}=kill@1"), f"the load never reaches {name}"
                died.append(f"{name}=kill@{at}")
                assert not one.violations, said(one, died)
        one.settle()
        assert not one.violations, said(one, died)
    assert one.ledger.acknowledgements


@pytest.mark.parametrize("group", ["disk", "journal", "snapshot"])
def test_power_cut_takes_only_what_was_not_promised(group: str, tmp_path: Path, twin: Twin) -> None:
    died: list[str] = []
    with drill(tmp_path, twin, Wishes(volatile=True)) as one:
        for name in (name for name in POINTS if name.split(".")[0] == group):
            (at,) = hits(name, 1, seed=1)
            one.die(f"{name}=kill@{at}")
            died.append(f"{name}=kill@{at}")
            assert not one.violations, said(one, died)
        one.settle()
        assert not one.violations, said(one, died)


@pytest.mark.parametrize("seed", [1])
def test_kills_at_random_moments_lead_to_what_the_twin_leads_to(seed: int, tmp_path: Path, twin: Twin) -> None:
    draw = random.Random(seed)
    with drill(tmp_path, twin) as one:
        for _ in range(4):
            one.kill_in_full_course(after_acknowledgements=draw.randint(1, 60))
            assert not one.violations, said(one, ["a kill at a random moment"])


def test_limit_on_the_size_of_files_that_is_raised_again_costs_nothing(tmp_path: Path, twin: Twin) -> None:
    """Writing fails within a segment as well as where one begins; the load holds on to its calls meanwhile."""
    with drill(tmp_path, twin) as one:
        assert one.limit_files_and_kill(12_000)
        assert not one.violations, said(one, ["a limit on the size of files"])
    assert "cannot write to the journal" in (tmp_path / "server.log").read_text()
