"""Which session the parameters of an optimizer get: a new one, or one that other workers made."""

import contextlib
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from hermosis_client.client import Client
from hermosis_client.errors import SessionExists, SessionNotReady
from hermosis_client.layout import ParameterLayout
from hermosis_client.local_server import LocalServer
from hermosis_client.records import (
    Aggregation,
    Consistency,
    Outcome,
    Recipe,
    RecipeValue,
    SessionInfo,
    SessionStatus,
    StepResult,
)
from hermosis_client.session import LR, Session

_JOIN_POLL_S = 0.05


def merged_recipe(
    optimizer: Recipe | str | None, lr: float | None, parameters: Mapping[str, RecipeValue]
) -> Recipe | None:
    """One recipe from what was said in several ways; the later word counts."""
    if optimizer is None:
        return None
    recipe = Recipe(optimizer) if isinstance(optimizer, str) else optimizer
    rate = {} if lr is None else {LR: float(lr)}
    return Recipe(recipe.name, **{**recipe.parameters, **parameters, **rate})


def connected(resources: contextlib.ExitStack, address: str | None, timeout_s: float) -> Client:
    """A client of the server there, or of a private one; they end with the resources."""
    if address is None:
        address = resources.enter_context(LocalServer()).address
    return resources.enter_context(Client(address, timeout_s=timeout_s))


def not_finite(result: StepResult | None) -> bool:
    """Whether a step was not taken because of NaN or infinity."""
    return result is not None and result.outcome in (Outcome.NON_FINITE_GRADIENT, Outcome.NON_FINITE_STATE)


def warned_of(results: Iterable[StepResult | None]) -> bool:
    """Whether one of these steps was not taken because of NaN or infinity, which the caller's caller is told."""
    for result in results:
        if result is not None and not_finite(result):
            warnings.warn(
                f"{result.outcome.name}: the step of sequence {result.sequence} was not taken, the parameters are as "
                "before; optimizer.last_result tells this of every step, this warning comes once",
                RuntimeWarning,
                stacklevel=3,
            )
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What sessions to make, or to join where `recipe` is None."""

    session: Session | str | None
    recipe: Recipe | None
    workers: int
    consistency: Literal["barrier", "async"] | Consistency
    parameters_on: Literal["server", "worker"]
    clip_norm: float = 0.0

    @property
    def rule(self) -> Consistency:
        """When contributions become a step."""
        if isinstance(self.consistency, Consistency):
            return self.consistency
        return Consistency(mode=self.consistency, workers=self.workers)

    def check(self, *, address: str | None, given: Collection[str]) -> None:
        """ValueError when the plan makes no sense, before anything is started."""
        if self.workers not in (1, self.rule.workers):
            raise ValueError(f"workers is {self.workers}, and {self.rule.workers} in consistency; say it there alone")
        if self.recipe is not None:
            if isinstance(self.session, Session):
                raise ValueError("a Session has its optimizer already; leave it out, or give the session's id")
            return
        if self.session is None:
            raise ValueError("name an optimizer, such as 'adamw', or a session to join")
        if self.clip_norm:
            raise ValueError("a session that is joined has its aggregation; leave out clip_norm or name an optimizer")
        if given:
            raise ValueError(f"a session that is joined has its settings; leave out {list(given)} or name an optimizer")
        if isinstance(self.session, Session) != (address is None):
            raise ValueError("to join a session, give a Session, or its id and the address of its server")


class SessionMaker:
    """Makes or finds the sessions of a plan.

    Args:
      client:    of the server; None where the plan holds a Session.
      timeout_s: how long to wait for the parameters of a session that is joined.
    """

    def __init__(self, plan: SessionPlan, client: Client | None, timeout_s: float) -> None:
        self._plan = plan
        self._client = client
        self._timeout_s = timeout_s

    def recipe_of(self, group: Mapping[str, Any]) -> Recipe | None:
        """The plan's recipe with a param_group's own settings; None when the session has its settings already."""
        recipe = self._plan.recipe
        if recipe is None:
            return None
        names = self._setting_names
        settings = {name: _plain(group[name]) for name in group if name in names and group[name] is not None}
        return Recipe(recipe.name, **settings)

    def create_or_join(self, index: int, layout: ParameterLayout, recipe: Recipe | None) -> tuple[Session, bool]:
        """The session of the param_group of that index, and whether it is new.

        Raises:
          ValueError:      one of that id was made with other settings, or for tensors of other shapes.
          SessionNotReady: one of that id was not given its parameters in time.
        """
        plan = self._plan
        if isinstance(plan.session, Session):
            if index:
                raise ValueError("a Session holds one param_group; give the session's id to join one for each group")
            return _fitting(plan.session, layout), False
        if self._client is None:
            raise RuntimeError("no client; this is a bug in hermosis")
        session_id = f"{plan.session}-{index}" if plan.session and index else plan.session or ""
        if recipe is not None:
            try:
                session = self._client.create_session(
                    layout,
                    recipe,
                    session_id=session_id,
                    consistency=plan.rule,
                    parameters_on=plan.parameters_on,
                    aggregation=Aggregation(clip_norm=plan.clip_norm) if plan.clip_norm else None,
                )
            except SessionExists:
                pass
            else:
                return session, True
        session = _fitting(self._client.session(session_id), layout)
        if recipe is not None:
            self._check_same(session.info(), recipe)
        self._wait_until_ready(session)
        return session, False

    @cached_property
    def _setting_names(self) -> set[str]:
        """What of a param_group is meant for the recipe: what it has, and what was given for it, even in error."""
        recipe = self._plan.recipe
        if recipe is None or self._client is None:
            return set()
        described = [each for each in self._client.recipes() if each.name == recipe.name]
        return {*recipe.parameters, *(parameter.name for each in described for parameter in each.parameters)}

    def _check_same(self, info: SessionInfo, recipe: Recipe) -> None:
        plan, rule = self._plan, info.consistency
        if plan.rule.late == "default":  # the server tells what that is
            rule = replace(rule, late="default")
        wanted = (recipe, plan.rule, plan.parameters_on, plan.clip_norm)
        found = (
            # An edited session shows the Hamiltonian it has become, which no recipe compares with.
            info.optimizer if isinstance(info.optimizer, Recipe) else recipe,
            rule,
            info.parameters_on.name.lower(),
            info.aggregation.clip_norm,
        )
        if wanted != found:
            raise ValueError(
                f"session {info.session_id} exists with other settings (recipe, consistency, parameters_on, "
                f"clip_norm): it has {found}, this worker wants {wanted}"
            )

    def _wait_until_ready(self, session: Session) -> None:
        """Waits for whoever made the session to give it its parameters."""
        deadline = time.monotonic() + self._timeout_s
        while session.info().status is SessionStatus.CREATING:
            if time.monotonic() > deadline:
                raise SessionNotReady(
                    f"session {session.session_id} was not given its parameters within {self._timeout_s} s by the "
                    "worker that made it; close it and begin again"
                )
            time.sleep(_JOIN_POLL_S)


def _fitting(session: Session, layout: ParameterLayout) -> Session:
    """The session, whose tensors have the shapes of the layout; names may differ."""
    wanted = [tensor.shape for tensor in session.layout.tensors]
    got = [tensor.shape for tensor in layout.tensors]
    if wanted == got:
        return session
    place = next((i for i, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(len(wanted), len(got)))
    raise ValueError(
        f"session {session.session_id} has {len(wanted)} tensors of {session.layout.parameter_count} elements, these "
        f"parameters are {len(got)} of {layout.parameter_count}; they differ from tensor {place} on"
    )


def _plain(value: Any) -> RecipeValue:
    """A setting as the wire has it; torch allows a learning rate to be a tensor."""
    return value if isinstance(value, bool | str) else float(value)
