"""Targets: what can be fuzzed, by name, and how one round of it is run by hypothesis."""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.stateful import run_state_machine_as_test
from hypothesis.strategies import SearchStrategy
from tests.fuzz.calls import METHODS, call, check_call
from tests.fuzz.conversations import check_conversation, conversation
from tests.fuzz.exactly_once import ExactlyOnce
from tests.fuzz.imports import check_import, imports
from tests.fuzz.rig import Rig


class House(Protocol):
    """What a target's cases are tried on."""

    cases: int  # tried so far


class Round(NamedTuple):
    """How much is tried.

    Attributes:
      cases:  at most.
      seed:   of the chance by which they are drawn; None draws the same ones every time.
      memory: folder of cases that failed, which come first; None remembers nothing. Needs a seed.
    """

    cases: int
    seed: int | None = None
    memory: Path | None = None


class Target(NamedTuple):
    """Something to fuzz.

    Attributes:
      idea:  what is tried, in a line.
      cases: in the test suite.
      house: opens what the cases are tried on.
      run:   tries one round there; raises what the smallest case of each finding raised.
    """

    name: str
    idea: str
    cases: int
    house: Callable[[], AbstractContextManager[Any]]
    run: Callable[[Any, Round], None]


def _settings(chosen: Round, name: str) -> settings:
    """With a memory of its own for each name: what was drawn for one strategy means nothing to another."""
    return settings(
        max_examples=chosen.cases,
        derandomize=chosen.seed is None,
        database=None if chosen.memory is None else DirectoryBasedExampleDatabase(chosen.memory / name),
        deadline=None,  # the rig has one
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
        stateful_step_count=40,
        print_blob=False,
    )


def _try(name: str, strategy: SearchStrategy[Any], check: Callable[[Any], None], chosen: Round) -> None:
    @hypothesis.given(strategy)
    def case(drawn: Any) -> None:
        check(drawn)

    # The settings come last: a seed forgets the database of those before it.
    seeded: Any = case if chosen.seed is None else hypothesis.seed(chosen.seed)(case)
    _settings(chosen, name)(seeded)()


def _conversations(rig: Rig, chosen: Round) -> None:
    _try("conversations", conversation(), functools.partial(check_conversation, rig), chosen)


def _imports(rig: Rig, chosen: Round) -> None:
    _try("imports", imports(), functools.partial(check_import, rig), chosen)


def _exactly_once(rig: Rig, chosen: Round) -> None:
    def machine() -> ExactlyOnce:
        return ExactlyOnce(rig)

    factory: Any = machine if chosen.seed is None else hypothesis.seed(chosen.seed)(machine)
    run_state_machine_as_test(factory, settings=_settings(chosen, "exactly-once"))


# Of all cases of a service, for methods that take more than a name.
_WEIGHTS = {"CreateSession": 8, "UpdateSession": 4, "ImportSession": 2, "Exchange": 2, "Step": 2}


def _calls(service: str) -> Callable[[Rig, Round], None]:
    def run(rig: Rig, chosen: Round) -> None:
        methods = [method for method in METHODS if method.service.endswith(service)]
        weights = [_WEIGHTS.get(method.name, 1) for method in methods]
        for method, weight in zip(methods, weights, strict=True):
            part = chosen._replace(cases=math.ceil(chosen.cases * weight / sum(weights)))
            _try(method.name, call(method), functools.partial(check_call, rig), part)

    return run


def _rest_house() -> Any:
    from tests.fuzz.rest import Hall

    return Hall()


def _rest(hall: Any, chosen: Round) -> None:
    _try("rest", hall.requests(), hall.check, chosen)


TARGETS = (
    Target("sessions", "any message to each method of SessionService", 128, Rig, _calls("SessionService")),
    Target("gradients", "any message to each method of GradientService", 60, Rig, _calls("GradientService")),
    Target("telemetry", "any message to each method of TelemetryService", 30, Rig, _calls("TelemetryService")),
    Target("access", "any message to each method of AccessService", 30, Rig, _calls("AccessService")),
    Target("conversations", "a stream whose lines are out of order, twice or wrong", 60, Rig, _conversations),
    Target("imports", "states with other numbers, under a digest that is right", 30, Rig, _imports),
    Target("exactly-once", "workers and operators in any order, against a model", 30, Rig, _exactly_once),
    Target("rest", "what the sidecar's OpenAPI document allows and forbids", 60, _rest_house, _rest),
)
