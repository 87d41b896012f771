"""Kill -9 at every named place, under a mixed load: nothing promised is lost, nothing is counted twice."""

from pathlib import Path

import pytest
from tests.faults.drill import drill
from tests.faults.points import hits, reached_by_code
from tests.faults.servers import Wishes
from tests.faults.twin import Twin

POINTS = reached_by_code()
GROUPS = sorted({name.split(".")[0] for name in POINTS})
RUNS = 2


@pytest.mark.parametrize("group", GROUPS)
def test_kill_at_every_point_loses_nothing_that_was_promised(group: str, tmp_path: Path, twin: Twin) -> None:
    with drill(tmp_path, twin) as one:
        for name in (name for name in POINTS if name.split(".")[0] == group):
            for at in hits(name, RUNS, seed=0):
                if not one.die(f"{name}=kill@{at}"):
                    assert one.die(f"{name}=kill@1"), f"the load never reaches {name}"
                assert not one.violations, f"after a kill at {name}, time {at}: {'; '.join(map(str, one.violations))}"
    assert one.ledger.acknowledgements


@pytest.mark.parametrize("group", ["disk", "journal", "snapshot"])
def test_power_cut_takes_only_what_was_not_promised(group: str, tmp_path: Path, twin: Twin) -> None:
    with drill(tmp_path, twin, Wishes(volatile=True)) as one:
        for name in (name for name in POINTS if name.split(".")[0] == group):
            (at,) = hits(name, 1, seed=1)
            one.die(f"{name}=kill@{at}")
            assert not one.violations, f"after a power cut at {name}: {'; '.join(map(str, one.violations))}"
