"""Runs in parallel processes, each result kept on disk as soon as it is there."""

import json
import signal
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from functools import partial
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
    run_each = _run_here if workers == 1 else partial(_run_in_processes, workers=min(workers, len(missing)))
    with closing(run_each(missing, keep=store.add)) as runs:
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
    """Ends only when started runs have ended; these are kept too."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=be_a_worker)
    waiting = {pool.submit(execute, spec) for spec in missing}
    try:
        for future in as_completed(set(waiting)):
            waiting.remove(future)
            keep(future.result())
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for future in waiting:
            if future.done() and not future.cancelled() and not future.exception():
                keep(future.result())
