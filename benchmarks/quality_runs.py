"""One run of the race: a contestant with given settings trains a task from a seed."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import quality_tasks
from benchmarks.quality_contestants import contestants
from benchmarks.quality_tasks import TASKS
from hermosis_server.dynamics import Hermosis

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
}
"""Factor of the learning rate at a share of the budget that is spent."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that a run depends on."""

    task: str
    contestant: str
    settings: Mapping[str, float]
    seed: int
    steps: int
    measure_every: int
    schedule: str
    fingerprint: str  # of the optimizer's code

    @cached_property
    def key(self) -> str:
        """Equal for runs that would come out equal."""
        text = json.dumps([asdict(self), own_code()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of a run. The curve ends before the first number that is not finite."""

    spec: RunSpec
    at_steps: list[int]  # 0 first: before any step
    losses: list[float]
    finite: bool
    step_ms: float  # a whole training step: gradient and optimizer, measurements left out
    optimizer_ms: float  # the optimizer's part
    error: str = ""

    @property
    def diverged(self) -> bool:
        """Not finite, or worse at the end than at the start."""
        return not self.finite or not self.losses or self.losses[-1] > self.losses[0]

    @property
    def final(self) -> float:
        """The loss at the fixed budget; infinite for a run that diverged."""
        return math.inf if self.diverged else self.losses[-1]

    @property
    def settled(self) -> float:
        """Median loss over the last tenth of the budget, to choose trials by: one lucky moment counts for little."""
        late = [loss for step, loss in zip(self.at_steps, self.losses, strict=True) if step >= 0.9 * self.spec.steps]
        return math.inf if self.diverged else median(late)

    def to_json(self) -> str:
        return json.dumps({"key": self.spec.key} | asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Run":
        values: dict[str, Any] = json.loads(line)
        del values["key"]
        return cls(**values | {"spec": RunSpec(**values["spec"])})


@cache
def own_code() -> str:
    """A digest of the code that all runs share."""
    return hashlib.sha256(Path(quality_tasks.__file__).read_bytes() + Path(__file__).read_bytes()).hexdigest()


def execute(spec: RunSpec) -> Run:
    """Trains; an optimizer that raises has diverged, and the run says how."""
    run = Run(spec=spec, at_steps=[], losses=[], finite=True, step_ms=math.nan, optimizer_ms=math.nan)
    try:
        return train(run)
    except Exception as error:  # numerical libraries raise errors of many classes
        return replace(run, finite=False, error=f"{type(error).__name__}: {error}".splitlines()[0][:200])


def train(run: Run) -> Run:
    """Trains until the budget is spent or a loss is not finite."""
    spec = run.spec
    problem = TASKS[spec.task].start(spec.seed)
    optimizer = contestants()[spec.contestant].make(problem.model, spec.settings)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    factor = SCHEDULES[spec.schedule]
    in_step = in_optimizer = 0.0
    done = 0
    finite = True
    for step in range(spec.steps + 1):
        if step % spec.measure_every == 0 or step == spec.steps:
            with torch.no_grad():
                measured = float(problem.measured())
            if not math.isfinite(measured):
                finite = False
                break
            run.at_steps.append(step)
            run.losses.append(measured)
        if step == spec.steps:
            break
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step / spec.steps)
        began = time.perf_counter()
        loss = next(problem.losses)
        if not math.isfinite(float(loss.detach())):
            finite = False
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        ready = time.perf_counter()
        if isinstance(optimizer, Hermosis):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        ended = time.perf_counter()
        in_step, in_optimizer, done = in_step + ended - began, in_optimizer + ended - ready, done + 1
    return replace(
        run, finite=finite, step_ms=1e3 * in_step / max(1, done), optimizer_ms=1e3 * in_optimizer / max(1, done)
    )
