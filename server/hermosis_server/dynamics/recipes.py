"""Recipes: named optimizers, each nothing but settings of the Hamiltonian.

Where torch.optim has a twin, names and defaults are torch's, and the iterates are equal up to rounding.
A recipe is declared once, here; validation, the GetRecipes call and the docs read this declaration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from hermosis_server.dynamics.hamiltonian import Hamiltonian, WeightDecay
from hermosis_server.dynamics.kinetic import Classical, Relativistic
from hermosis_server.dynamics.metric import MINIMUM_EPSILON, Diagonal, MetricPlace
from hermosis_server.dynamics.thermal import Exponential, Force, ForceMode
from hermosis_server.errors import InvalidHyperparameter

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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSpec:
    """A named optimizer: its parameters, one line of physics, the source of its formula, and how it is built."""

    name: str
    parameters: tuple[Parameter, ...]
    physics: str
    source: str
    build: Callable[[Parameters], Hamiltonian]


RECIPES: dict[str, RecipeSpec] = {}


def recipe(
    *parameters: Parameter, physics: str, source: str
) -> Callable[[Callable[[Parameters], Hamiltonian]], Callable[[Parameters], Hamiltonian]]:
    """Enters the decorated function into RECIPES under its own name."""

    def enter(build: Callable[[Parameters], Hamiltonian]) -> Callable[[Parameters], Hamiltonian]:
        RECIPES[build.__name__] = RecipeSpec(
            name=build.__name__, parameters=parameters, physics=physics, source=source, build=build
        )
        return build

    return enter


def resolve(name: str, values: Mapping[str, Value]) -> Hamiltonian:
    """The Hamiltonian of a recipe with some of its parameters given.

    Raises:
      InvalidHyperparameter: no such recipe or parameter, a value of the wrong kind or out of range, or values that
        contradict each other; `field` names the parameter.
    """
    spec = RECIPES.get(name)
    if spec is None:
        raise InvalidHyperparameter(
            f"no recipe {name!r}; the recipes are {', '.join(RECIPES)}", field="optimizer.recipe.name"
        )
    known = {parameter.name: parameter for parameter in spec.parameters}
    for given, value in values.items():
        parameter = known.get(given)
        if parameter is None:
            raise InvalidHyperparameter(
                f"recipe {name} has no parameter {given!r}; it has {', '.join(known)}", field=f"{PATH}.{given}"
            )
        if not parameter.allows(value):
            raise InvalidHyperparameter(
                f"{given} of recipe {name} is {value!r}, wanted {parameter.wanted}", field=f"{PATH}.{given}"
            )
    settings = {parameter.name: values.get(parameter.name, parameter.default) for parameter in spec.parameters}
    try:
        return spec.build(Parameters(settings))
    except InvalidHyperparameter as refusal:
        # The bounds above are loose enough to be said in words; the Hamiltonian knows what contradicts what.
        if refusal.field.startswith(PATH):
            raise
        raise InvalidHyperparameter(f"recipe {name}: {refusal}", field=_blamed(refusal.field, known)) from refusal


def _blamed(field: str, known: Mapping[str, Parameter]) -> str:
    """The recipe's own parameter behind a refused field of the Hamiltonian, where there is one by that meaning."""
    for part, name in (
        ("learning_rate", "lr"),
        ("weight_decay", "weight_decay"),
        ("relativistic", "max_step"),
        ("relativistic", "delta"),
    ):
        if part in field and name in known:
            return f"{PATH}.{name}"
    return PATH


def lr(default: float) -> Parameter:
    return Parameter(
        name="lr",
        kind="number",
        default=default,
        minimum=0,
        minimum_excluded=True,
        description="learning rate, tau/h; schedules act on it through lr_scale",
    )


def momentum(default: float) -> Parameter:
    return decay("momentum", default, "retention of momentum over a step, exp(-gamma tau)")


def decay(name: str, default: float, description: str) -> Parameter:
    return Parameter(
        name=name, kind="number", default=default, minimum=0, maximum=1, maximum_excluded=True, description=description
    )


def weight_decay(default: float, description: str) -> Parameter:
    return Parameter(name="weight_decay", kind="number", default=default, minimum=0, description=description)


def flag(name: str, description: str) -> Parameter:
    return Parameter(name=name, kind="flag", default=False, description=description)


EPS = Parameter(
    name="eps",
    kind="number",
    default=1e-8,
    minimum=MINIMUM_EPSILON,
    description="added to the root of the second moment; keeps the metric finite",
)
L2 = "L2 penalty, a part of the potential: added to the gradient"


@recipe(
    lr(1e-3),
    momentum(0.0),
    decay("dampening", 0.0, "taken from the weight of every gradient but the first; unused at momentum 0"),
    flag("nesterov", "drift with the momentum one kick ahead; needs momentum and no dampening"),
    weight_decay(0.0, L2),
    physics="Newtonian motion in an exponentially cooling bath; momentum 0 is the limit of infinite friction.",
    source="torch.optim.SGD; docs/theory.md, section 7",
)
def sgd(settings: Parameters) -> Hamiltonian:
    retention, dampening = settings.number("momentum"), settings.number("dampening")
    nesterov = settings.flag("nesterov")
    if nesterov and (retention == 0 or dampening > 0):
        raise InvalidHyperparameter(
            f"nesterov with momentum {retention:g} and dampening {dampening:g}; wanted momentum and no dampening",
            field=f"{PATH}.nesterov",
        )
    dampened = retention > 0 and dampening > 0
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=retention),
        force=Force(mode=ForceMode.UNIT, gradient_gain=1 - dampening if dampened else 1.0),
        first_kick=1.0 if dampened else None,
        lookahead=nesterov,
        weight_decay=WeightDecay(thermal=settings.number("weight_decay")),
    )


def _adam(settings: Parameters, weight_decay: WeightDecay) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=settings.number("beta1")),
        metric=Diagonal(second_moment_decay=settings.number("beta2"), epsilon=settings.number("eps"), normalise=True),
        normalise=True,
        weight_decay=weight_decay,
    )


BETA1 = decay("beta1", 0.9, "retention of momentum over a step")
BETA2 = decay("beta2", 0.999, "retention of the second moment over a step: the metric's own, slower cooling")


@recipe(
    lr(1e-3),
    BETA1,
    BETA2,
    EPS,
    weight_decay(0.0, L2),
    physics="Newtonian motion in the metric of the gradients' thermal second moment; the bath corrects the bias.",
    source="torch.optim.Adam; docs/theory.md, section 5",
)
def adam(settings: Parameters) -> Hamiltonian:
    return _adam(settings, WeightDecay(thermal=settings.number("weight_decay")))


@recipe(
    lr(1e-3),
    BETA1,
    BETA2,
    EPS,
    weight_decay(1e-2, "shrinks the parameters by lr * weight_decay each step, beside the Hamiltonian"),
    physics="Adam with a dilation of the parameters beside the Hamiltonian.",
    source="torch.optim.AdamW; docs/theory.md, sections 5 and 8",
)
def adamw(settings: Parameters) -> Hamiltonian:
    return _adam(settings, WeightDecay(decoupled=settings.number("weight_decay")))


@recipe(
    lr(1e-2),
    decay("alpha", 0.99, "retention of the second moment over a step"),
    EPS,
    momentum(0.0),
    flag("centered", "subtract the squared mean gradient from the second moment"),
    weight_decay(0.0, L2),
    physics="Newtonian motion whose kicks are measured in the metric before they are accumulated.",
    source="torch.optim.RMSprop; docs/theory.md, section 7",
)
def rmsprop(settings: Parameters) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=settings.number("momentum")),
        force=Force(mode=ForceMode.UNIT),
        metric=Diagonal(
            second_moment_decay=settings.number("alpha"),
            epsilon=settings.number("eps"),
            centered=settings.flag("centered"),
            place=MetricPlace.KICK,
        ),
        weight_decay=WeightDecay(thermal=settings.number("weight_decay")),
    )


@recipe(
    lr(1e-2),
    momentum(0.9),
    Parameter(
        name="delta",
        kind="number",
        default=1.0,
        minimum=0,
        description="inverse square of the longest step of the whole model at lr_scale 1; 0 is plain momentum",
    ),
    physics="Relativistic motion in an exponentially cooling bath: no step is longer than 1/sqrt(delta).",
    source="França et al., arXiv 1903.04100, first form: v = mu v - lr g, x += v/sqrt(1 + delta |v|^2)",
)
def rgd(settings: Parameters) -> Hamiltonian:
    delta = settings.number("delta")
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=settings.number("momentum")),
        force=Force(mode=ForceMode.UNIT),
        kinetic=Relativistic(max_step=delta**-0.5) if delta > 0 else Classical(),
    )


@recipe(
    lr(1e-2),
    momentum(0.9),
    Parameter(
        name="max_step",
        kind="number",
        default=0.1,
        minimum=0,
        minimum_excluded=True,
        description="longest step of the whole model at lr_scale 1, in the euclidean norm",
    ),
    weight_decay(0.0, "shrinks the parameters by lr * weight_decay each step, beside the Hamiltonian"),
    physics="The thermal average of the gradients drives relativistic motion whose speed limit does not cool "
    "(rest_cooling 0); symplectic Euler.",
    source="Learning Dynamics v0.1.0; docs/theory.md, sections 6 and 10",
)
def hermosis(settings: Parameters) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=settings.number("momentum")),
        kinetic=Relativistic(max_step=settings.number("max_step")),
        weight_decay=WeightDecay(decoupled=settings.number("weight_decay")),
    )
