"""Settings that suit the digits, for each recipe; a recipe that is not listed runs with its own defaults."""

GOOD: dict[str, dict[str, float | bool | str]] = {
    "hermosis": {"lr": 3.0, "max_step": 0.3},
    "rgd": {"lr": 0.3},
    "sgd": {"lr": 0.3, "momentum": 0.9},
    "adam": {"lr": 0.01},
    "adamw": {"lr": 0.01},
    "rmsprop": {"lr": 0.003},
}


def settings_for(recipe: str, lr: float | None) -> dict[str, float | bool | str]:
    """Parameters of the recipe, with the learning rate that was asked for."""
    return GOOD.get(recipe, {}) | ({} if lr is None else {"lr": lr})
