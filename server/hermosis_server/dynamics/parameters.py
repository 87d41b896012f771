"""Parameters: what a recipe can be told, with what is allowed; and the kinds that recipes share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hermosis_server.dynamics.metric import MINIMUM_EPSILON

Value = float | bool | str
Kind = Literal["number", "flag", "choice"]
PATH = "optimizer.recipe.parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One setting of a recipe, with what is allowed."""

    name: str
    kind: Kind
    default: Value
    description: str
    minimum: float | None = None
    minimum_excluded: bool = False
    maximum: float | None = None
    maximum_excluded: bool = False
    choices: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """The allowed values in words."""
        if self.kind == "flag":
            return "true or false"
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        low = "(-inf" if self.minimum is None else f"{'(' if self.minimum_excluded else '['}{self.minimum:g}"
        high = "inf)" if self.maximum is None else f"{self.maximum:g}{')' if self.maximum_excluded else ']'}"
        return f"a number in {low}, {high}"

    def allows(self, value: object) -> bool:
        """Whether a value is of the right kind and within bounds."""
        if self.kind == "flag":
            return isinstance(value, bool)
        if self.kind == "choice":
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low = self.minimum is None or (value > self.minimum if self.minimum_excluded else value >= self.minimum)
        high = self.maximum is None or (value < self.maximum if self.maximum_excluded else value <= self.maximum)
        return abs(value) < float("inf") and low and high


class Parameters:
    """Settings of a recipe by name and kind, all present and allowed."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def number(self, name: str) -> float:
        return float(self._values[name])

    def flag(self, name: str) -> bool:
        return bool(self._values[name])

    def choice(self, name: str) -> str:
        return str(self._values[name])


def lr(default: float) -> Parameter:
    return positive("lr", default, "learning rate, tau/h; schedules act on it through lr_scale")


def momentum(default: float) -> Parameter:
    return decay("momentum", default, "retention of momentum over a step, exp(-gamma tau)")


def decay(name: str, default: float, description: str) -> Parameter:
    return Parameter(
        name=name, kind="number", default=default, minimum=0, maximum=1, maximum_excluded=True, description=description
    )


def weight_decay(default: float, description: str) -> Parameter:
    return at_least_zero("weight_decay", default, description)


def at_least_zero(name: str, default: float, description: str) -> Parameter:
    return Parameter(name=name, kind="number", default=default, minimum=0, description=description)


def positive(name: str, default: float, description: str) -> Parameter:
    return Parameter(
        name=name, kind="number", default=default, minimum=0, minimum_excluded=True, description=description
    )


def share(name: str, default: float, description: str) -> Parameter:
    return Parameter(name=name, kind="number", default=default, minimum=0, maximum=1, description=description)


def choice(name: str, words: tuple[str, ...], description: str) -> Parameter:
    return Parameter(name=name, kind="choice", default=words[0], choices=words, description=description)


def flag(name: str, description: str) -> Parameter:
    return Parameter(name=name, kind="flag", default=False, description=description)


def eps(default: float) -> Parameter:
    return Parameter(
        name="eps",
        kind="number",
        default=default,
        minimum=MINIMUM_EPSILON,
        description="added to the root of the second moment; keeps the metric finite",
    )


EPS = eps(1e-8)
L2 = "L2 penalty, a part of the potential: added to the gradient"
DECOUPLED = "shrinks the parameters by lr * weight_decay each step, beside the Hamiltonian"
