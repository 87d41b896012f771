"""Recipes as a user meets them: names, defaults, ranges, refusals."""

import inspect
import math

import pytest
import torch

from hermosis_server.dynamics import RECIPES, Hamiltonian, RecipeSpec, resolve
from hermosis_server.dynamics.parameters import Parameter, Value
from hermosis_server.errors import InvalidHyperparameter

TWINS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def test_recipes_are_the_promised_ones() -> None:
    assert list(RECIPES) == [
        "sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "rgd", "vradam", "cgd", "nesterov_ode", "hermosis",
        "hermosis_literal",
    ]  # fmt: skip


@pytest.mark.parametrize("spec", RECIPES.values(), ids=RECIPES)
def test_recipe_describes_itself(spec: RecipeSpec) -> None:
    assert spec.parameters[0].name == "lr"
    assert spec.physics.endswith(".")
    assert spec.source
    names = [parameter.name for parameter in spec.parameters]
    assert len(names) == len(set(names))
    for parameter in spec.parameters:
        assert parameter.description
        assert parameter.allows(parameter.default)


@pytest.mark.parametrize("name", TWINS)
def test_names_and_defaults_are_torchs(name: str) -> None:
    theirs = {key: each.default for key, each in inspect.signature(TWINS[name]).parameters.items()}
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    for parameter in RECIPES[name].parameters:
        assert parameter.default == theirs[parameter.name]


@pytest.mark.parametrize(("name", "parameter"), [(name, each) for name in RECIPES for each in RECIPES[name].parameters])
def test_value_of_the_wrong_kind_or_out_of_range_is_refused_by_name(name: str, parameter: Parameter) -> None:
    wrong: list[Value] = [math.nan, math.inf, -math.inf, "fast"] if parameter.kind == "number" else [1.0, "yes"]
    if parameter.kind == "number":
        wrong.append(True)
    if parameter.minimum is not None:
        wrong.append(parameter.minimum if parameter.minimum_excluded else math.nextafter(parameter.minimum, -math.inf))
    if parameter.maximum is not None:
        wrong.append(parameter.maximum if parameter.maximum_excluded else math.nextafter(parameter.maximum, math.inf))
    for value in wrong:
        with pytest.raises(InvalidHyperparameter) as refusal:
            resolve(name, {parameter.name: value})
        assert refusal.value.field == f"optimizer.recipe.parameters.{parameter.name}"
        assert parameter.wanted in str(refusal.value)


@pytest.mark.parametrize("name", RECIPES)
def test_bounds_are_reached_by_every_number_that_may_reach_them(name: str) -> None:
    for parameter in RECIPES[name].parameters:
        for bound, excluded in (
            (parameter.minimum, parameter.minimum_excluded),
            (parameter.maximum, parameter.maximum_excluded),
        ):
            if bound is not None and not excluded:
                assert isinstance(resolve(name, {parameter.name: bound}), Hamiltonian)


def test_unknown_recipe_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidHyperparameter, match="no recipe 'lion'; the recipes are sgd, nesterov") as refusal:
        resolve("lion", {})
    assert refusal.value.field == "optimizer.recipe.name"


def test_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidHyperparameter, match="no parameter 'betas'; it has lr, beta1, beta2") as refusal:
        resolve("adam", {"betas": 0.9})
    assert refusal.value.field == "optimizer.recipe.parameters.betas"


@pytest.mark.parametrize(
    ("name", "values", "blamed"),
    [
        ("sgd", {"nesterov": True}, ".nesterov"),
        ("sgd", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ".nesterov"),
        ("adamw", {"lr": 10.0, "weight_decay": 0.1}, ".weight_decay"),
        ("hermosis", {"lr": 10.0, "weight_decay": 0.1}, ".weight_decay"),
        ("adam", {"lr": 1e-320}, ".lr"),
        ("hermosis", {"lr": 1e-200, "max_step": 1e200}, ".max_step"),
        ("hermosis", {"refresh_steps": 2.5}, ".refresh_steps"),
        ("rgd", {"delta": 5e-324}, ".delta"),
        ("rgd", {"form": "euler", "alpha": 0.5}, ".alpha"),
        ("hermosis_literal", {"information_unit": 1e200}, ".information_unit"),
    ],
)
def test_values_that_contradict_each_other_are_refused(name: str, values: dict[str, Value], blamed: str) -> None:
    with pytest.raises(InvalidHyperparameter) as refusal:
        resolve(name, values)
    assert refusal.value.field == "optimizer.recipe.parameters" + blamed


def test_choice_takes_its_words_and_no_others() -> None:
    parameter = Parameter(name="p", kind="choice", default="a", description="d", choices=("a", "b"))
    assert [value for value in ("a", "b", "c", 1.0, True) if parameter.allows(value)] == ["a", "b"]
    assert parameter.wanted == "one of a, b"


def test_integers_are_numbers() -> None:
    assert resolve("sgd", {"lr": 1}).learning_rate == 1.0


def test_plain_sgd_ignores_dampening_as_torch_does() -> None:
    assert resolve("sgd", {"dampening": 0.5}) == resolve("sgd", {})
