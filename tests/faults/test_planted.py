"""Planted bugs: a suite that has never been red proves nothing, so each bug must turn it red."""

from pathlib import Path

import pytest
from tests.faults.drill import drill
from tests.faults.planted import BUGS, provoke
from tests.faults.servers import Wishes
from tests.faults.twin import Twin


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_seen(name: str, tmp_path: Path, twin: Twin) -> None:
    bug = BUGS[name]
    with drill(tmp_path, twin, Wishes(plant=name, volatile=bug.volatile)) as one:
        provoke(one, bug)
        assert one.violations, f"nobody noticed that {bug.what}"
