"""The step alone on a processor, no wire: the engine's launch against torch's optimizers, on as many threads."""

import sys
from collections.abc import Callable

import torch

from benchmarks.peers.child import Exchange, Voice, gradient, obey
from benchmarks.speed.goals import Figure, Result
from benchmarks.speed.lab import Lab, Readings, figure, result
from benchmarks.speed.passes import Case, Part
from benchmarks.speed.statistics import better

OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
}
TORCH = ("torch", "torch-single")
MANY = {"step-tiny": (10_000, 256), "step-small": (1_000, 10_000)}


def measure(lab: Lab) -> list[Result]:
    """One large session, then many small ones."""
    threads = str(lab.settings.threads)
    results = []
    names = [f"{who} {recipe}" for recipe in OPTIMIZERS for who in (*TORCH, "plain", "normed", "replying")]
    readings = lab.run(cases_of(lab, names, ["1", str(lab.settings.bulk), threads]), slower=0.5)
    for goal, kind in (("step-norm", "normed"), ("step-plain", "plain")):
        figures = [against_torch(recipe, kind, recipe, readings) for recipe in OPTIMIZERS]
        if kind == "plain":
            figures += [
                against_torch(f"{recipe}, writing the reply too", "replying", recipe, readings, judged=False)
                for recipe in OPTIMIZERS
            ]
        results.append(
            result(goal, figures, notes=[f"step alone: {threads} threads; torch with as many or one: its best"])
        )
    for goal, (sessions, parameters) in MANY.items():
        names = [f"{who} {recipe}" for recipe in OPTIMIZERS for who in (*TORCH, "plain")]
        sessions = min(sessions, lab.settings.most_sessions)
        readings = lab.run(cases_of(lab, names, [str(sessions), str(parameters), threads]), slower=0.5)
        results.append(result(goal, [against_torch(recipe, "plain", recipe, readings) for recipe in OPTIMIZERS]))
    return results


def against_torch(label: str, ours: str, recipe: str, readings: Readings, *, judged: bool = True) -> Figure:
    """Against the better of torch with all threads and with one: on small tensors threads may hurt it."""
    several, single = (readings[f"{who} {recipe}"] for who in TORCH)
    theirs = single if better(several, single, lambda reading: reading.rate) else several
    return figure(label, readings[f"{ours} {recipe}"], theirs, unit="steps/s", judged=judged)


def cases_of(lab: Lab, names: list[str], arguments: list[str]) -> list[Case]:
    """A case a name, all in one process."""
    lab.told(f"preparing {arguments[0]} sessions of {arguments[1]}")
    child = lab.workshop.child(sys.executable, "benchmarks.speed.step", *arguments, *names)
    child.wait_ready()
    return [Case(name=name, parts=[Part(child=child, case=name)]) for name in names]


def main() -> None:
    """Arguments: sessions, parameters, threads, then names as in `measure`."""
    from benchmarks.speed.engine import EngineStep

    sessions, parameters, threads = map(int, sys.argv[1:4])
    voice = Voice.take()
    cases: dict[str, list[Exchange]] = {}
    for name in sys.argv[4:]:
        who, recipe = name.split()
        if who in TORCH:
            cases[name] = [torch_loop(recipe, sessions, parameters, threads if who == "torch" else 1)]
        else:
            engine = EngineStep(
                sessions, parameters, recipe,
                normed=who == "normed", replies=who == "replying", threads=threads,
            )  # fmt: skip
            cases[name] = [engine.step]
    obey(voice, cases)


def torch_loop(recipe: str, sessions: int, parameters: int, threads: int) -> Exchange:
    """An optimizer a session, one after another."""
    mine = torch.from_numpy(gradient(parameters))
    optimizers = []
    for _ in range(sessions):
        weights = torch.nn.Parameter(torch.zeros(parameters))
        weights.grad = mine
        optimizers.append(OPTIMIZERS[recipe]([weights]))

    def step() -> None:
        torch.set_num_threads(threads)
        for optimizer in optimizers:
            optimizer.step()

    return step


if __name__ == "__main__":
    main()
