"""The demo from beginning to end: processes up, training followed, compared, drawn, and everything down again."""

import itertools
import os
import queue
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from hermosis_client import Client, HermosisError, Recipe, Session, TelemetryReading, Watch
from hermosis_server.demo.display import Display, Moment, Rates, display
from hermosis_server.demo.recipes import settings_for
from hermosis_server.processes import Child, ChildFailed, sigterm_as_interrupt, waited_for

WORKER = "hermosis_server.demo.worker"
ACCURACY_EVERY_S = 0.5
START_S = 120.0
UNWIND_S = 1.0
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
    statuses: queue.SimpleQueue[int] = queue.SimpleQueue()
    with (
        sigterm_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="hermosis-demo-", ignore_cleanup_errors=True) as folder,
    ):
        demo = _Demo(settings, console, Path(folder))
        # Not in this thread: Ctrl-C in the middle of a gRPC call would leave a channel that never closes.
        body = threading.Thread(target=lambda: statuses.put(demo.outcome()), name="hermosis-demo", daemon=True)
        try:
            body.start()
            status = waited_for(statuses)
        except KeyboardInterrupt:
            status = 0 if demo.kept.is_set() else 130
        demo.end()
        body.join(UNWIND_S)
    if status == 130:
        console.print("Stopped; nothing is left running.")
    if body.is_alive():
        # It is inside an import or a call; the interpreter's own end would tear its C++ frames apart.
        console.show_cursor()
        sys.stdout.flush()
        os._exit(status)
    return status


class _Demo:
    """What goes on behind.

    Attributes:
      stopping: set when processes are being stopped; what goes wrong from then on is of no interest.
      kept:     set when all is done and server and page are only kept up.
    """

    def __init__(self, settings: DemoSettings, console: Console, folder: Path) -> None:
        self.stopping = threading.Event()
        self.kept = threading.Event()
        self._settings = settings
        self._console = console
        self._folder = folder
        self._images = folder / "training.npz"
        self._children: list[Child] = []
        self._starting = threading.Lock()
        self._ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._recipe = Recipe(settings.optimizer, **settings_for(settings.optimizer, settings.lr))

    def end(self) -> None:
        """Stops the processes that were started; no other is started from here on."""
        with self._starting:  # One that is just being started is waited for, or it would be forgotten.
            self.stopping.set()
        # Last come, first gone: the end of the workers ends the watch, and a server without calls stops at once.
        for child in reversed(self._children):
            child.close()

    def outcome(self) -> int:
        """The exit status of a run, with what went wrong on standard error."""
        try:
            return self.run()
        except (ChildFailed, HermosisError) as error:
            if not self.stopping.is_set():
                print(f"hermosis demo: {error}", file=sys.stderr)
        except SystemExit:  # rich's answer to a reader that has gone
            pass
        except Exception:
            if not self.stopping.is_set():
                traceback.print_exc()
        return 1

    def run(self) -> int:
        settings, console = self._settings, self._console
        console.print("Starting a server and its page …")
        data_folder = str(self._folder / "data")
        server = self._start("server", "hermosis_server", "serve", "--port", "0", "--data-folder", data_folder)
        # These imports take seconds; the server starts meanwhile.
        from hermosis_server.demo import digits, plot
        from hermosis_server.demo.alone import train_alone

        training, test = digits.load()
        digits.write(training, self._images)
        model = digits.network()
        address = server.address(START_S)
        page = self._start("page", "hermosis_sidecar", "--server", address, "--port", "0")

        with Client(address) as client:
            session = client.create_session(
                dict(model.named_parameters()), self._recipe, session_id="digits", workers=settings.workers
            )
            session.initialise(digits.flat_parameters(model).numpy())
            page_address = page.address(START_S)
            console.print(f"  server   {address}\n  page     {page_address}")
            console.print(
                f"Training {session.layout.parameter_count} weights on {len(training)} pictures of handwritten digits "
                f"with {_text(self._recipe)} and {_counted(settings.workers, 'worker process', 'worker processes')} …"
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
        workers = _counted(settings.workers, "remote worker", "remote workers")
        console.print(
            f"\ntest accuracy        {accuracy:.2%} with {workers}, "
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
        with self._starting:
            if self.stopping.is_set():
                raise ChildFailed(f"no {name}: the demo is being stopped")
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
        sizes = ["--workers", str(settings.workers), "--epochs", str(settings.epochs), "--images", str(self._images)]
        workers = [
            self._start(f"worker {number}", WORKER, *place, "--worker", str(number), *sizes)
            for number in range(settings.workers)
        ]
        failed: list[Child] = []
        waiter = threading.Thread(target=self._wait_for, args=(workers, failed, watch, client), daemon=True)
        waiter.start()
        try:
            with watch, display(self._console, total_steps) as shown:
                self._follow(watch, session, shown, total_steps, accuracy_of)
        except (HermosisError, RuntimeError):
            if not failed:  # Otherwise it is only that the client was closed: the end of a process is the news.
                raise
        if failed:
            raise failed[0].failure()

    def _follow(
        self,
        watch: Watch,
        session: Session,
        shown: Display,
        total_steps: int,
        accuracy_of: Callable[[Weights], float],
    ) -> None:
        rates, accuracy, pulled_s, step = Rates(), 0.0, 0.0, 0
        for reading in itertools.chain(watch, _newest(session)):
            if reading.step == step:
                continue
            step, now_s = reading.step, time.monotonic()
            if now_s - pulled_s > ACCURACY_EVERY_S or step == total_steps:
                accuracy, pulled_s = accuracy_of(session.pull().flat), now_s
            steps_per_s, bytes_per_s = rates.after(reading)
            shown.show(Moment(reading=reading, accuracy=accuracy, steps_per_s=steps_per_s, bytes_per_s=bytes_per_s))

    def _wait_for(self, workers: Sequence[Child], failed: list[Child], watch: Watch, client: Client) -> None:
        """Ends the watch when the workers are done, and all calls when any process ends that should not."""
        left = set(workers)
        while left and not failed:
            child = self._ended.get()
            left.discard(child)
            if child not in workers or child.wait() != 0:
                failed.append(child)
        watch.close()
        if failed:
            client.close()

    def _keep(self) -> None:
        self._console.print("Server and page stay up until Ctrl-C.")
        self.kept.set()
        raise self._ended.get().failure()


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


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
