"""Each recipe moves as its torch.optim twin does."""

import pytest
import torch

from hermosis_server.dynamics import RECIPES

from .equality_table import CASES, SEEDS, TOLERANCE, Case, difference


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_recipe_equals_torch_over_300_steps(case: Case, scheduled: bool, device: torch.device) -> None:
    """Each case meets two seeds, one of them under a learning-rate schedule."""
    turn = CASES.index(case) + scheduled
    far = difference(case, torch.float64, scheduled=scheduled, seed=SEEDS[turn % len(SEEDS)], device=device)
    assert far <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recipe_in_float32_stays_as_near_as_float32_can(case: Case, device: torch.device) -> None:
    assert difference(case, torch.float32, device=device) <= TOLERANCE[torch.float32]


def test_every_recipe_with_a_twin_in_torch_is_in_the_table() -> None:
    others = {"rgd", "vradam", "cgd", "nesterov_ode", "hermosis", "hermosis_literal"}
    assert {case.recipe for case in CASES} == set(RECIPES) - others
