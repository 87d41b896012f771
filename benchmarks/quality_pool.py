"""Runs in parallel processes, each result kept on disk as soon as it is there."""

import json
import signal
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import closing
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.quality_runs import Run, RunSpec, execute


class RunStore:
    """Finished runs by key, in a file of JSON lines that only grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[str, Run] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    run = Run.from_json(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # cut off when the machine went down, or of an older form: it is run again
                self._runs[run.spec.key] = run
            if not path.read_bytes().endswith(b"\n"):
                with path.open("a") as lines:
                    lines.write("\n")
        path.parent.mkdir(parents=True, exist_ok=True)

    def get(self, spec: RunSpec) -> Run | None:
        return self._runs.get(spec.key)

    def add(self, run: Run) -> None:
        """Keeps a run; one that ended in an error only until the program ends, since its cause may be mended."""
        self._runs[run.spec.key] = run
        if run.error:
            return
        with self._path.open("a") as lines:
            lines.write(run.to_json() + "\n")


def be_a_worker() -> None:
    """One torch thread each; Ctrl-C is for the parent, which lets started runs end."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_all(
    specs: Iterable[RunSpec], store: RunStore, *, workers: int, done: Callable[[Run], None] = lambda run: None
) -> list[Run]:
    """The runs in the order of their specs; those in the store are not run again.

    KeyboardInterrupt comes through once started runs have ended; what ended until then is in the store.
    """
    specs = list(specs)
    missing = []
    for spec in {spec.key: spec for spec in specs}.values():
        run = store.get(spec)
        if run is None:
            missing.append(spec)
        else:
            done(run)
    if missing:
        _run_missing(missing, store, workers=workers, done=done)
    runs = [store.get(spec) for spec in specs]
    return [run for run in runs if run is not None]


def _run_missing(missing: list[RunSpec], store: RunStore, *, workers: int, done: Callable[[Run], None]) -> None:
    if workers == 1:
        runs = _run_here(missing, keep=store.add)
    else:
        runs = _run_in_processes(missing, workers=workers, keep=store.add)
    with closing(runs):
        for run in runs:
            done(run)


def _run_here(missing: list[RunSpec], *, keep: Callable[[Run], None]) -> Generator[Run, None, None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for spec in missing:
            run = execute(spec)
            keep(run)
            yield run
    finally:
        torch.set_num_threads(threads)


def _run_in_processes(
    missing: list[RunSpec], *, workers: int, keep: Callable[[Run], None]
) -> Generator[Run, None, None]:
    """Hands out no more than is run at once, so that little is waited for when it is closed early; that is kept too."""
    todo = iter(missing)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=be_a_worker)
    waiting = {pool.submit(execute, spec) for spec in islice(todo, workers)}
    try:
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            waiting |= {pool.submit(execute, spec) for spec in islice(todo, len(ended))}
            runs = [future.result() for future in ended]
            for run in runs:
                keep(run)
            yield from runs
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for future in waiting:
            if future.done() and not future.cancelled() and not future.exception():
                keep(future.result())
