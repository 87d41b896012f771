"""Recipes: named optimizers, each nothing but settings of the Hamiltonian.

Where torch.optim has a twin, names and defaults are torch's, and the iterates are equal up to rounding.
A recipe is declared once, here; validation, the GetRecipes call and the docs read this declaration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hermosis_server.dynamics.family import Scheme
from hermosis_server.dynamics.hamiltonian import Hamiltonian, WeightDecay
from hermosis_server.dynamics.kinetic import Classical, NormKind, NormScope, Relativistic, VelocityRegularised
from hermosis_server.dynamics.metric import (
    Diagonal,
    Euclidean,
    Full,
    Kronecker,
    Metric,
    MetricPlace,
)
from hermosis_server.dynamics.parameters import (
    DECOUPLED,
    EPS,
    L2,
    PATH,
    Parameter,
    Parameters,
    Value,
    at_least_zero,
    choice,
    decay,
    eps,
    flag,
    lr,
    momentum,
    positive,
    share,
    weight_decay,
)
from hermosis_server.dynamics.thermal import Exponential, Force, ForceMode, Power
from hermosis_server.errors import InvalidHyperparameter


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
        ("relativistic", "information_unit"),
        ("force.mode", "momentum"),
    ):
        if part in field and name in known:
            return f"{PATH}.{name}"
    return PATH


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


@recipe(
    lr(1e-2),
    decay("momentum", 0.9, "retention of momentum over a step, exp(-gamma tau)"),
    weight_decay(0.0, L2),
    physics="Newtonian motion in an exponentially cooling bath that drifts with the momentum one kick ahead.",
    source="torch.optim.SGD with nesterov; docs/theory.md, section 7",
)
def nesterov(settings: Parameters) -> Hamiltonian:
    retention = settings.number("momentum")
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=retention),
        force=Force(mode=ForceMode.UNIT),
        lookahead=retention > 0,
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
    weight_decay(1e-2, DECOUPLED),
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
    eps(1e-10),
    weight_decay(0.0, L2),
    physics="The limit of infinite friction in a metric whose own temperature stands still: it sums and never forgets.",
    source="torch.optim.Adagrad with lr_decay 0; docs/theory.md, section 7",
)
def adagrad(settings: Parameters) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=0.0),
        force=Force(mode=ForceMode.UNIT),
        metric=Diagonal(second_moment_decay=1.0, second_moment_gain=1.0, epsilon=settings.number("eps")),
        weight_decay=WeightDecay(thermal=settings.number("weight_decay")),
    )


@recipe(
    lr(1e-2),
    momentum(0.9),
    at_least_zero(
        "delta", 1.0, "inverse square of the longest half drift of the whole model at lr_scale 1; 0 is plain momentum"
    ),
    share("alpha", 1.0, "how much of its first half drift a step keeps; 1 is conformal symplectic, 0 is Nesterov's"),
    choice("form", ("conformal", "euler"), "as in the authors' code, or the first printed one: one whole drift a step"),
    physics="Relativistic motion in an exponentially cooling bath: no half drift is longer than 1/sqrt(delta).",
    source="França et al., arXiv 1903.04100, and the authors' relativistic2; docs/theory.md, section 7",
)
def rgd(settings: Parameters) -> Hamiltonian:
    conformal = settings.choice("form") == "conformal"
    if not conformal and settings.number("alpha") != 1:
        raise InvalidHyperparameter(
            f"alpha {settings.number('alpha'):g} in the euler form, which keeps its whole drift; wanted 1, or form "
            "conformal",
            field=f"{PATH}.alpha",
        )
    # Half a drift moves by half of lr times the momentum, so that the authors' velocity is -lr X/2.
    halves = 2.0 if conformal else 1.0
    delta = settings.number("delta")
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=settings.number("momentum")),
        force=Force(mode=ForceMode.UNIT, gradient_gain=halves),
        kinetic=Relativistic(max_step=halves * delta**-0.5) if delta > 0 else Classical(),
        integrator=Scheme.CONFORMAL if conformal else Scheme.SYMPLECTIC_EULER,
        kept_drift=settings.number("alpha"),
    )


@recipe(
    lr(1e-3),
    BETA1,
    BETA2,
    at_least_zero("beta3", 1.0, "how much the squared norm of the momentum brakes; 0 is AdamW"),
    at_least_zero("lr_cutoff", 10.0, "bounds the braking: the step is never divided by more than 1 + lr_cutoff"),
    EPS,
    weight_decay(0.0, DECOUPLED + ", braked as the step is"),
    choice("norm", ("model", "tensor"), "whether the whole model brakes together or each tensor by itself"),
    physics="AdamW under a velocity-regularised kinetic energy that sees the euclidean norm of the raw momentum.",
    source="VRAdam, arXiv 2505.13196, the authors' code; docs/theory.md, sections 4 and 7",
)
def vradam(settings: Parameters) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=settings.number("beta1")),
        kinetic=VelocityRegularised(stiffness=settings.number("beta3"), cap=settings.number("lr_cutoff")),
        norm_scope=NormScope.TENSOR if settings.choice("norm") == "tensor" else NormScope.SESSION,
        norm_kind=NormKind.EUCLIDEAN,
        metric=Diagonal(second_moment_decay=settings.number("beta2"), epsilon=settings.number("eps"), normalise=True),
        normalise=True,
        weight_decay=WeightDecay(decoupled=settings.number("weight_decay"), follows_speed=True),
    )


@recipe(
    lr(1e-2),
    at_least_zero("gradient_window", 9.0, "T1, steps over which gradients are averaged; momentum is T1/(1 + T1)"),
    positive("metric_window", 99.0, "T2, steps over which their products are averaged"),
    eps(1e-4),
    choice("metric", ("diagonal", "full"), "full keeps the square of the number of parameters, and turns with them"),
    physics="Motion along covariant gradients: the metric is the gradients' own windowed second moment.",
    source="Guskov and Vanchurin, Covariant Gradient Descent, arXiv 2504.05279; docs/theory.md, section 5",
)
def cgd(settings: Parameters) -> Hamiltonian:
    first, second = settings.number("gradient_window"), settings.number("metric_window")
    kind = Full if settings.choice("metric") == "full" else Diagonal
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=first / (1 + first)),
        metric=kind(second_moment_decay=second / (1 + second), epsilon=settings.number("eps")),
    )


@recipe(
    lr(1e-2),
    positive("exponent", 3.0, "p: friction is p over the age; 3 is Nesterov's, 2 is faster and wilder at first"),
    positive("age", 1.0, "age at the first step, in steps"),
    weight_decay(0.0, L2),
    physics="Newtonian motion in a bath whose mass grows as a power of the age, so that friction fades.",
    source="Su, Boyd and Candès, A Differential Equation for Modeling Nesterov's Method; docs/theory.md, section 3",
)
def nesterov_ode(settings: Parameters) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Power(exponent=settings.number("exponent"), age=settings.number("age")),
        force=Force(mode=ForceMode.PHYSICAL),
        integrator=Scheme.CONFORMAL,
        weight_decay=WeightDecay(thermal=settings.number("weight_decay")),
    )


@recipe(
    lr(1e-2),
    momentum(0.9),
    decay("beta2", 0.95, "retention of the second moment over a step: the metric's own temperature"),
    positive("max_step", 0.1, "longest step of each tensor at lr_scale 1, in the norm of the metric"),
    EPS,
    weight_decay(0.0, DECOUPLED),
    choice(
        "metric",
        ("kronecker", "diagonal", "euclidean"),
        "kronecker keeps two factors a matrix and turns with its rows and columns; euclidean learns none",
    ),
    Parameter(
        name="refresh_steps",
        kind="number",
        default=5,
        minimum=1,
        maximum=2**31 - 1,
        description="steps between two decompositions of a kronecker metric; a whole number",
    ),
    physics="Relativistic motion of each tensor under a speed limit that does not cool, along the thermal average of "
    "the gradients, in the Kronecker metric of their second moment.",
    source="Learning Dynamics v0.1.0; docs/theory.md, sections 5, 6, 10 and 11",
)
def hermosis(settings: Parameters) -> Hamiltonian:
    refresh = settings.number("refresh_steps")
    if refresh % 1:
        raise InvalidHyperparameter(
            f"refresh_steps of recipe hermosis is {refresh:g}, wanted a whole number", field=f"{PATH}.refresh_steps"
        )
    retention, kind = settings.number("momentum"), settings.choice("metric")
    rho2, eps = settings.number("beta2"), settings.number("eps")
    metric: Metric = Euclidean()
    if kind == "kronecker":
        metric = Kronecker(second_moment_decay=rho2, epsilon=eps, normalise=True, refresh_steps=int(refresh))
    elif kind == "diagonal":
        metric = Diagonal(second_moment_decay=rho2, epsilon=eps, normalise=True)
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        thermal=Exponential(momentum_retention=retention),
        kinetic=Relativistic(max_step=settings.number("max_step")),
        norm_scope=NormScope.TENSOR,
        metric=metric,
        normalise=True,
        integrator=Scheme.CONFORMAL if retention > 0 else Scheme.SYMPLECTIC_EULER,
        weight_decay=WeightDecay(decoupled=settings.number("weight_decay")),
    )


@recipe(
    lr(1e-2),
    Parameter(
        name="momentum",
        kind="number",
        default=0.9,
        minimum=0,
        minimum_excluded=True,
        maximum=1,
        maximum_excluded=True,
        description="retention of momentum over a step, exp(-gamma tau)",
    ),
    positive("information_unit", 10.0, "k; the speed limit is k/beta in units of momentum, so it falls as beta grows"),
    at_least_zero("weight_decay", 0.0, "the text's harmonic term, which fades as 1/beta"),
    physics="The published text to the letter: the rest energy cools with the bath, and learning freezes in the end.",
    source="Learning Dynamics v0.1.0; docs/theory.md, section 10",
)
def hermosis_literal(settings: Parameters) -> Hamiltonian:
    return Hamiltonian(
        learning_rate=settings.number("lr"),
        information_unit=settings.number("information_unit"),
        thermal=Exponential(momentum_retention=settings.number("momentum")),
        kinetic=Relativistic(speed_limit=settings.number("information_unit"), rest_cooling=1.0, rest_energy=1.0),
        weight_decay=WeightDecay(bare=settings.number("weight_decay")),
    )
