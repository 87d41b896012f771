"""Curves of many readings are shown with few, and their peaks with them."""

import math
from pathlib import Path

import numpy as np
import pytest
from tests.sidecar.history.conftest import a_reading, kept

from hermosis_sidecar.history import Steps, Store
from hermosis_sidecar.history.store import Losses
from hermosis_sidecar.history.thinning import candidates, chosen


def a_page(first: int, losses: list[float]) -> Losses:
    steps = np.arange(first, first + len(losses), dtype=np.int64)
    return steps + 1_000_000, steps, np.array(losses, np.float64)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 999, 1000, 1001, 4000, 4003, 50_000])
@pytest.mark.parametrize("at_most", [1, 2, 3, 4, 5, 7, 1000])
def test_at_most_so_many_stay_the_first_and_the_last_among_them(count: int, at_most: int) -> None:
    losses = np.random.default_rng(count).normal(size=count)
    steps = np.cumsum(np.random.default_rng(at_most).integers(1, 9, size=count))
    places = chosen(steps, losses, at_most)
    assert len(places) <= min(count, at_most)
    assert (np.diff(places) > 0).all()
    if count:
        assert places[-1] == count - 1
        assert places[0] == 0 or at_most == 1
    if count <= at_most:
        assert len(places) == count


def test_peak_of_one_step_stays_however_long_the_curve() -> None:
    pages = []
    for first in range(0, 200_000, 5_000):
        losses = [1.0 / (1 + step) for step in range(first, first + 5_000)]
        if first == 120_000:
            losses[1234] = 50.0
        pages.append(a_page(first, losses))
    ids, steps, losses_left = candidates(iter(pages), 200)
    assert len(ids) < 20_000, "all of a long history is never held"
    assert (ids == steps + 1_000_000).all()
    places = chosen(steps, losses_left, 200)
    assert 121_234 in steps[places]
    assert steps[places][0] == 0
    assert steps[places][-1] == 199_999


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_disturbs_nothing(odd: float) -> None:
    losses = np.ones(10_000)
    losses[::2] = odd
    losses[4321] = 7.0
    places = chosen(np.arange(10_000), losses, 50)
    assert len(places) <= 50
    assert 4321 in places or math.isinf(odd)
    assert len(chosen(np.arange(10_000), np.full(10_000, odd), 50)) <= 50


def test_store_and_candidates_agree(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/history.db")
    life = store.begin("a", create_time_s=1.0, generation=1, after_step=0, from_time_s=1.0)
    store.add([kept(life, a_reading(step, loss=float(step == 40))) for step in range(1, 101)])
    ids, steps, losses = candidates(store.losses([life], Steps()), 10)
    found = store.of_ids(ids[chosen(steps, losses, 10)].tolist())
    store.close()
    assert found[0].reading.step == 1
    assert found[-1].reading.step == 100
    assert 40 in [each.reading.step for each in found]
