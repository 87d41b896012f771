"""Each recipe moves as its torch.optim twin does."""

import pytest
import torch

from hermosis_server.dynamics import RECIPES

from .equality_table import CASES, TOLERANCE, Case, difference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_recipe_equals_torch_over_200_steps(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    assert difference(case, dtype, ours=True, scheduled=False, device=device) <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", {case.recipe + str(sorted(case.settings)): case for case in CASES}.values(), ids=str)
def test_recipe_equals_torch_under_a_learning_rate_schedule(case: Case, device: torch.device) -> None:
    assert difference(case, torch.float64, ours=True, scheduled=True, device=device) <= TOLERANCE[torch.float64]


def test_every_recipe_with_a_twin_in_torch_is_in_the_table() -> None:
    others = {"rgd", "vradam", "cgd", "nesterov_ode", "hermosis", "hermosis_literal"}
    assert {case.recipe for case in CASES} == set(RECIPES) - others
