"""The journal after a crash, at any operation, with any luck: what was promised is there, in order, and nothing else.

Each history is random and known: its seed is the test's parameter.
"""

import random
from pathlib import Path

import pytest

from .crash_images import CrashDisk
from .histories import Life, random_entries


def _live(life: Life, rng: random.Random, rounds: int) -> None:
    steps: dict[str, int] = {}
    for one in life.truth:
        steps[one.session_id] = one.step
    released = 0
    for _ in range(rounds):
        life.append(random_entries(rng, steps, rng.randint(1, 6)))
        if rng.random() < 0.4:
            released = rng.randint(released, len(life.truth))
            life.release(released)
    life.journal.close()


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_any_operation_leaves_what_was_promised(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "journal").mkdir()
    life = Life(CrashDisk(tmp_path / "first"))
    _live(life, rng, 6)
    for after in range(len(life.disk) + 1):
        for luck in range(2):
            disk = life.disk.power_cut(after, tmp_path / f"{after}-{luck}", rng)
            Life(disk, life, after)


@pytest.mark.parametrize("seed", range(20))
def test_crash_follows_crash_and_no_life_takes_a_torn_tail_for_damage(tmp_path: Path, seed: int) -> None:
    rng = random.Random(1000 + seed)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "journal").mkdir()
    disk = CrashDisk(tmp_path / "0")
    life = Life(disk)
    for number in range(1, 7):
        _live(life, rng, rng.randint(0, 3))
        after = rng.randint(0, len(life.disk))
        if rng.random() < 0.5:
            disk = life.disk.killed(after, tmp_path / str(number))
        else:
            disk = life.disk.power_cut(after, tmp_path / str(number), rng)
        life = Life(disk, life, after)
