"""Settings that suit the digits, for each recipe."""

GOOD: dict[str, dict[str, float | bool | str]] = {
    "sgd": {"lr": 0.3, "momentum": 0.9},
    "nesterov": {"lr": 0.1},
    "adam": {"lr": 0.01},
    "adamw": {"lr": 0.01},
    "rmsprop": {"lr": 0.003},
    "adagrad": {"lr": 0.1},
    "rgd": {"lr": 0.1},
    "vradam": {"lr": 0.01},
    "cgd": {"lr": 0.01},
    "nesterov_ode": {"lr": 0.01},
    "hermosis": {"lr": 0.003, "eps": 1e-3},
    "hermosis_literal": {"lr": 10.0, "momentum": 0.995, "information_unit": 100.0},
}


def settings_for(recipe: str, lr: float | None) -> dict[str, float | bool | str]:
    """Parameters of the recipe, with the learning rate that was asked for; its own defaults where it is not known."""
    return GOOD.get(recipe, {}) | ({} if lr is None else {"lr": lr})
