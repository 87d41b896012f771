"""The demo from beginning to end: processes up, training followed, compared, drawn, and everything down again."""

import itertools
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hermosis_client import Client, HermosisError, Recipe, Session, TelemetryReading, Watch
from numpy.typing import NDArray
from rich.console import Console

from hermosis_server.demo.display import Moment, Rates, display
from hermosis_server.demo.recipes import settings_for
from hermosis_server.processes import Child, ChildFailed, sigterm_as_interrupt, stop

WORKER = "hermosis_server.demo.worker"
ACCURACY_EVERY_S = 0.5
START_S = 120.0
GOAL = 0.97
GOAL_RECIPE, GOAL_EPOCHS = "hermosis", 20

Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What can be chosen; `lr` None means a good one for the recipe."""

    optimizer: str
    workers: int
    epochs: int
    lr: float | None
    results: str
    keep: bool


def run(settings: DemoSettings) -> int:
    """Runs the demo. Returns the exit status: 0 only when what was promised came true."""
    console = Console(highlight=False, soft_wrap=True)
    children: list[Child] = []
    try:
        with sigterm_as_interrupt(), tempfile.TemporaryDirectory(prefix="hermosis-demo-") as folder:
            try:
                return _Demo(settings, console, Path(folder), children).run()
            finally:
                stop(children)
    except (ChildFailed, HermosisError) as error:
        print(f"hermosis demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130


class _Demo:
    def __init__(self, settings: DemoSettings, console: Console, folder: Path, children: list[Child]) -> None:
        self._settings = settings
        self._console = console
        self._folder = folder
        self._children = children
        self._ended: queue.Queue[Child] = queue.Queue()
        self._recipe = Recipe(settings.optimizer, **settings_for(settings.optimizer, settings.lr))

    def run(self) -> int:
        settings, console = self._settings, self._console
        console.print("Starting a server and its page …")
        data_folder = str(self._folder / "data")
        server = self._start("server", "hermosis_server", "serve", "--port", "0", "--data-folder", data_folder)
        # These imports take seconds; the server starts meanwhile.
        from hermosis_server.demo import digits, plot
        from hermosis_server.demo.alone import train_alone

        training, test = digits.load()
        model = digits.network()
        address = server.address(START_S)
        page = self._start("page", "hermosis_sidecar", "--server", address, "--port", "0")
        page_address = page.address(START_S)
        console.print(f"  server   {address}\n  page     {page_address}")

        with Client(address) as client:
            session = client.create_session(
                dict(model.named_parameters()), self._recipe, session_id="digits", workers=settings.workers
            )
            session.initialise(digits.flat_parameters(model).numpy())
            console.print(
                f"Training {session.layout.parameter_count} weights on {len(training)} pictures of handwritten digits "
                f"with {_text(self._recipe)}, {settings.workers} worker processes …"
            )
            total_steps = settings.epochs * digits.steps_per_epoch(len(training))
            self._train(client, session, total_steps, lambda weights: digits.accuracy_with(model, weights, test))
            remote = session.pull().flat.copy()
            readings = session.history(max_readings=2000)

        console.print("The same again in this one process, without a server …")
        alone = train_alone(settings.optimizer, dict(self._recipe.parameters), settings.epochs)
        accuracy, accuracy_alone = (digits.accuracy_with(model, weights, test) for weights in (remote, alone))
        picture = Path(settings.results) / f"digits-{settings.optimizer}.png"
        plot.save(picture, f"{_text(self._recipe)}, {settings.workers} workers", readings)
        console.print(
            f"\ntest accuracy        {accuracy:.2%} with {settings.workers} remote workers, "
            f"{accuracy_alone:.2%} in one process ({len(test)} pictures that neither has seen)\n"
            f"largest difference   {abs(remote - alone).max():.2g} between the two weight vectors\n"
            f"speed                {_speed(readings)}\n"
            f"plot                 {picture}\n"
            f"page                 {page_address}{'' if settings.keep else ', until now; --keep leaves it up'}"
        )
        if settings.keep:
            self._keep()
        promised = settings.optimizer == GOAL_RECIPE and settings.lr is None and settings.epochs >= GOAL_EPOCHS
        return 1 if promised and accuracy < GOAL else 0

    def _start(self, name: str, module: str, *arguments: str) -> Child:
        ours = [] if module == WORKER else ["--until-stdin-closes"]
        log = self._folder / f"{name}.log"
        child = Child(name, [module, *arguments, *ours], log=log, on_end=self._ended.put)
        self._children.append(child)
        return child

    def _train(
        self, client: Client, session: Session, total_steps: int, accuracy_of: Callable[[Weights], float]
    ) -> None:
        """Runs the workers to their end, showing how it goes."""
        settings = self._settings
        watch = client.watch([session.session_id], min_interval_s=0.1)
        place = ["--address", client.address, "--session", session.session_id]
        sizes = ["--workers", str(settings.workers), "--epochs", str(settings.epochs)]
        workers = [
            self._start(f"worker {number}", WORKER, *place, "--worker", str(number), *sizes)
            for number in range(settings.workers)
        ]
        failed: list[Child] = []
        waiter = threading.Thread(target=self._wait_for, args=(workers, failed, watch), daemon=True)
        waiter.start()
        rates, accuracy, pulled_s, step = Rates(), 0.0, 0.0, 0
        with watch, display(self._console, total_steps) as shown:
            for reading in itertools.chain(watch, _newest(session)):
                if reading.step == step:
                    continue
                step, now_s = reading.step, time.monotonic()
                if now_s - pulled_s > ACCURACY_EVERY_S or step == total_steps:
                    accuracy, pulled_s = accuracy_of(session.pull().flat), now_s
                steps_per_s, bytes_per_s = rates.after(reading)
                shown.show(Moment(reading=reading, accuracy=accuracy, steps_per_s=steps_per_s, bytes_per_s=bytes_per_s))
        if failed:
            raise failed[0].failure()

    def _wait_for(self, workers: Sequence[Child], failed: list[Child], watch: Watch) -> None:
        """Ends the watch when the workers are done, or when any process ends that should not."""
        left = set(workers)
        while left and not failed:
            child = self._ended.get()
            left.discard(child)
            if child not in workers or child.wait() != 0:
                failed.append(child)
        watch.close()

    def _keep(self) -> None:
        self._console.print("Server and page stay up until Ctrl-C.")
        try:
            raise self._ended.get().failure()
        except KeyboardInterrupt:
            return


def _newest(session: Session) -> Iterator[TelemetryReading]:
    """The last step, which a watch with an interval may leave out; asked for when it is reached."""
    reading = session.telemetry()
    if reading is not None:
        yield reading


def _text(recipe: Recipe) -> str:
    return " ".join([recipe.name, *(f"{name} {value}" for name, value in recipe.items)])


def _speed(readings: Sequence[TelemetryReading]) -> str:
    first, last = readings[0], readings[-1]
    elapsed_s = max(last.time_s - first.time_s, 1e-9)
    steps_per_s = (last.step - first.step) / elapsed_s
    each = last.received_bytes + last.sent_bytes
    return (
        f"{last.step} steps in {elapsed_s:.1f} s: {steps_per_s:.0f} steps/s, {each / 1e3:.0f} kB of gradients and "
        f"weights a step, {steps_per_s * each / 1e6:.1f} MB/s"
    )
