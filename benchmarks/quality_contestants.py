"""Contestants of the race, and the one table of what is drawn for each of them.

Every contestant has a learning rate, log-uniform over the same number of decades around its own sensible centre, and at
most two further settings. Trial k stands at the same place of everybody's ranges, so the budgets are equal point by
point. Nobody has weight decay: the training objective is raced.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import hermosis_server.dynamics as dynamics
from hermosis_server.dynamics import RECIPES, Hermosis

LR_DECADES = 4.0
REFERENCE = "AdamW"  # whose best loss is the others' target
OUTSIDE = "pytorch_optimizer"
PLASTIC = 1.22074408460575947536  # root of x^4 = x + 1: its powers spread points evenly over three dimensions

Settings = Mapping[str, Any]  # numbers; Any, because they go into constructors by name


@dataclass(frozen=True, slots=True)
class Draw:
    """A setting that is drawn log-uniformly: itself, or its distance from 1."""

    name: str
    low: float
    high: float
    from_one: bool = False

    def at(self, place: float) -> float:
        """The value at a place in [0, 1) of the range."""
        value = self.low * math.exp(place * math.log(self.high / self.low))
        return 1 - value if self.from_one else value

    def __str__(self) -> str:
        return f"{'1 - ' * self.from_one}{self.name} in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """An optimizer with the ranges it is tuned over."""

    name: str
    family: str  # "hermosis", "torch" or "outside"
    lr: float  # centre of the range
    draws: tuple[Draw, ...] = ()
    make: Callable[[nn.Module, Settings], Optimizer] = field(compare=False, repr=False)

    @property
    def ranges(self) -> tuple[Draw, ...]:
        """All that is drawn, the learning rate first."""
        reach = 10 ** (LR_DECADES / 2)
        return (Draw("lr", self.lr / reach, self.lr * reach), *self.draws)

    def trial(self, number: int) -> dict[str, float]:
        """The settings of a trial; number 0 is the centre of all ranges."""
        places = [(0.5 + number * PLASTIC**-power) % 1 for power in (1, 2, 3)]
        return {draw.name: draw.at(place) for draw, place in zip(self.ranges, places, strict=False)}

    def at_edge(self, settings: Settings) -> bool:
        """Whether the learning rate is in the outer tenth of its range, so that a better one may lie outside."""
        return not 10 ** (-0.4 * LR_DECADES) < settings["lr"] / self.lr < 10 ** (0.4 * LR_DECADES)


MOMENTUM = Draw("momentum", 0.02, 0.3, from_one=True)
BETA1 = Draw("beta1", 0.02, 0.3, from_one=True)
BETA2 = Draw("beta2", 0.001, 0.1, from_one=True)
MAX_STEP = Draw("max_step", 0.01, 10)

# Recipe: centre of the learning rate, what else is drawn. Draws that a recipe does not have are left out.
RECIPE_RANGES: dict[str, tuple[float, tuple[Draw, ...]]] = {
    "sgd": (0.1, (MOMENTUM,)),
    "nesterov": (0.1, (MOMENTUM,)),
    "adam": (0.03, (BETA1, BETA2)),
    "adamw": (0.03, (BETA1, BETA2)),
    "rmsprop": (0.01, (Draw("momentum", 0.1, 1, from_one=True), Draw("alpha", 0.001, 0.1, from_one=True))),
    "adagrad": (0.1, ()),
    "rgd": (0.1, (MOMENTUM, Draw("delta", 0.01, 1e4))),
    "vradam": (0.03, (BETA1, BETA2)),
    "cgd": (0.03, (BETA1, BETA2)),
    "nesterov_ode": (0.1, ()),
    "hermosis": (0.03, (MOMENTUM, BETA2)),
    "hermosis_literal": (1.0, (MOMENTUM, MAX_STEP)),
}


def of_recipe(name: str) -> Contestant:
    """A recipe as a contestant; one that the table lacks is raced around ten times its own default."""
    known = {parameter.name: parameter.default for parameter in RECIPES[name].parameters}
    lr, draws = RECIPE_RANGES.get(name, (10 * float(known["lr"]), (MOMENTUM, BETA1, BETA2)))
    fixed: Settings = {"weight_decay": 0.0} if "weight_decay" in known else {}

    def make(model: nn.Module, settings: Settings) -> Optimizer:
        return Hermosis(model.parameters(), name, **fixed, **settings)

    return Contestant(
        name=f"hermosis {name}",
        family="hermosis",
        lr=lr,
        draws=tuple(draw for draw in draws if draw.name in known)[:2],
        make=make,
    )


def make_adamw(model: nn.Module, settings: Settings) -> Optimizer:
    betas = (settings["beta1"], settings["beta2"])
    return AdamW(model.parameters(), lr=settings["lr"], betas=betas, weight_decay=0.0)


def make_sgd(model: nn.Module, settings: Settings) -> Optimizer:
    return SGD(model.parameters(), lr=settings["lr"], momentum=0.9)


def make_soap(model: nn.Module, settings: Settings) -> Optimizer:
    from pytorch_optimizer import SOAP

    betas = (settings["beta1"], settings["beta2"])
    soap: Optimizer = SOAP(model.parameters(), lr=settings["lr"], betas=betas, weight_decay=0.0)
    return soap


def make_muon(model: nn.Module, settings: Settings) -> Optimizer:
    """Its authors' advice: Muon for the hidden matrices; AdamW for embeddings, vectors and the last matrix."""
    from pytorch_optimizer import Muon

    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hidden = {id(matrix) for matrix in matrices[:-1]}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in hidden) is is_hidden], "use_muon": is_hidden}
        for is_hidden in (True, False)
    ]
    muon: Optimizer = Muon(
        [group for group in groups if group["params"]],
        lr=settings["lr"],
        momentum=settings["momentum"],
        adamw_lr=settings["adamw_lr"],
    )
    return muon


def contestants() -> dict[str, Contestant]:
    """Everybody who is there, by name: the outside optimizers are missing where their package is."""
    entered = [
        Contestant(name=REFERENCE, family="torch", lr=0.03, draws=(BETA1, BETA2), make=make_adamw),
        Contestant(name="SGD", family="torch", lr=0.1, make=make_sgd),
    ]
    if find_spec(OUTSIDE):
        adamw_lr = Draw("adamw_lr", 0.001, 1)
        entered += [
            Contestant(name="SOAP", family="outside", lr=0.03, draws=(BETA1, BETA2), make=make_soap),
            Contestant(name="Muon", family="outside", lr=0.03, draws=(MOMENTUM, adamw_lr), make=make_muon),
        ]
    entered += [of_recipe(name) for name in RECIPES]
    return {contestant.name: contestant for contestant in entered}


def code_of(contestant: Contestant) -> str:
    """What an old result of this contestant is worth nothing without: its code, in words or as a digest."""
    names = {"torch": f"torch {torch.__version__}"}
    if contestant.family == "hermosis":
        digest = hashlib.sha256()
        for module in sorted(Path(dynamics.__file__).parent.glob("*.py")):
            digest.update(module.read_bytes())
        names["dynamics"] = f"dynamics {digest.hexdigest()[:12]}"
    elif contestant.family == "outside":
        names["outside"] = f"{OUTSIDE} {version(OUTSIDE)}"
    return ", ".join(names.values())
