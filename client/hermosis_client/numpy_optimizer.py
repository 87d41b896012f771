"""NumpyOptimizer: NumPy arrays whose steps are taken by a Hermosis server."""

import contextlib
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hermosis_client.coded import Codec, CodecName
from hermosis_client.dtypes import Float32
from hermosis_client.layout import ParameterLayout, Tensors
from hermosis_client.records import Consistency, ParametersOn, Recipe, RecipeValue, StepResult
from hermosis_client.session import Session, WireDtype
from hermosis_client.session_plan import SessionMaker, SessionPlan, connected, merged_recipe, warned_of

Array = NDArray[np.floating[Any]]


class NumpyOptimizer:
    """Sends each step's gradients to a server and writes the new parameters into the arrays.

        parameters = {"w": np.zeros((3, 4)), "b": np.zeros(4)}
        with NumpyOptimizer(parameters, "adamw", lr=1e-3) as optimizer:
            for _ in range(100):
                loss, gradients = value_and_gradients(parameters)
                optimizer.step(gradients, loss=loss)

    Without an address it starts a private server on this machine, which ends with the optimizer, at the latest with
    this process. The parameters live on the server (unless parameters_on="worker"): what else changes the arrays
    between two steps is overwritten by the next one. They hold the point that the next gradient belongs to.

    Several workers train one model when each makes a NumpyOptimizer with the same session, optimizer and workers, and a
    worker_id of its own: the first one creates the session from its arrays, the others take those over. With a session
    and no optimizer it only joins.

    Checkpoints are the session's: `optimizer.session.export_state()`, and `import_state` followed by `pull`.

    Args:
      parameters:     arrays of floating point by name, changed in place; float32 is what travels and what is optimized.
      optimizer:      a Recipe or the name of one; None joins a session that exists.
      session:        a Session to join, or the id of one to create or join.
      address:        host:port of the server; None starts a private one.
      worker_id:      of this worker. Rounds are summed in the order of worker ids; a random one when empty.
      workers:        that take part in a round, where `consistency` is a word.
      consistency:    "barrier" steps when every worker has sent its gradient, "async" on each arrival; or a rule in
                      full, such as Consistency(mode="quorum", workers=4, quorum=3).
      lr:             learning rate; None means the recipe's default.
      gradient_dtype: of gradients on the wire.
      reply_dtype:    of parameters or increments on the wire.
      codec:          makes gradients smaller: "int8", "top_k", "random_k" or "deflate", or a Codec with its fraction.
      reply_codec:    the same for the parameters that come back.
      parameters_on:  "server", or "worker" to keep the parameters here.
      sample_count:   that each gradient is the mean of, to weigh workers by; zero means alike.
      timeout_s:      the time one call may take up, its retries included.
      settings:       of the recipe, such as weight_decay.

    Attributes:
      parameters:  the arrays.
      lr:          learning rate of the next step; assign to it to follow a schedule.
      session:     behind the arrays.
      last_result: what the last step led to; None before it.

    Raises:
      HermosisError: the server will not have it, or cannot be reached; see hermosis_client.errors.
      TypeError:     a parameter is no array of floating point that can be written to.
      ValueError:    the session has tensors of other shapes, or other settings.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        optimizer: Recipe | str | None = None,
        *,
        session: Session | str | None = None,
        address: str | None = None,
        worker_id: str = "",
        workers: int = 1,
        consistency: Literal["barrier", "async"] | Consistency = "barrier",
        lr: float | None = None,
        gradient_dtype: WireDtype = "float32",
        reply_dtype: WireDtype = "float32",
        codec: Codec | CodecName = "plain",
        reply_codec: Codec | CodecName = "plain",
        parameters_on: Literal["server", "worker"] = "server",
        sample_count: int = 0,
        timeout_s: float = 30.0,
        **settings: RecipeValue,
    ) -> None:
        for name, array in parameters.items():
            _check(name, array)
        self.last_result: StepResult | None = None
        self.parameters = dict(parameters)
        self._layout = ParameterLayout.of(self.parameters)
        self._sample_count = sample_count
        self._warned = False
        self._resources = contextlib.ExitStack()
        self._end = weakref.finalize(self, self._resources.close)
        plan = SessionPlan(
            session=session,
            recipe=merged_recipe(optimizer, lr, settings),
            workers=workers,
            consistency=consistency,
            parameters_on=parameters_on,
        )
        plan.check(address=address, given=settings)
        try:
            client = None if isinstance(session, Session) else connected(self._resources, address, timeout_s)
            maker = SessionMaker(plan, client, timeout_s)
            self.session, created = maker.create_or_join(0, self._layout, plan.recipe)
            self._worker = self.session.worker(
                worker_id,
                gradient_dtype=gradient_dtype,
                reply_dtype=reply_dtype,
                codec=codec,
                reply_codec=reply_codec,
            )
            self._resources.callback(self._worker.close)
            self.lr = self._base_lr = self.session.learning_rate()
            self._landed = np.empty(self._layout.parameter_count, np.float32)
            # float32 whatever the arrays' dtype: increments would be lost in the rounding of a narrower one.
            self._master: Float32 | None = None
            if self.session.parameters_on is ParametersOn.WORKER:
                self._master = self._layout.flat(self.parameters)
            if not created:
                self.pull()
            elif self._master is None:
                self.session.initialise(self._layout.flat(self.parameters))
        except BaseException:
            self._end()
            raise

    def step(
        self, gradients: Mapping[str, ArrayLike], *, loss: float | None = None, sample_count: int | None = None
    ) -> StepResult:
        """Takes one step on the server.

        Args:
          gradients:    by name, of the shapes of the parameters. Nothing moves of those that have none.
          loss:         at the present parameters; the server's telemetry shows it, and some optimizers need it.
          sample_count: that the gradient is the mean of; None means the optimizer's own setting.

        Returns:
          What it led to. A gradient with NaN or infinity changes nothing, which is told by `StepResult.outcome` and the
          first time by a warning.
        """
        skipped = [name for name in self.parameters if name not in gradients]
        result, _ = self._worker.exchange(
            self._layout.flat(gradients, without=self._layout.places(skipped)),
            loss=None if loss is None else float(loss),
            sample_count=self._sample_count if sample_count is None else sample_count,
            lr_scale=None if self.lr == self._base_lr else self.lr / self._base_lr,
            skipped=skipped,
            out=self._landed,
        )
        if self._master is None:
            self._write(self._landed)
        elif result.applied:
            self._master += self._landed
            self._write(self._master)
        self.last_result = result
        self._warned = self._warned or warned_of([result])
        return result

    def pull(self) -> None:
        """Takes the session's present parameters over; the way on after StaleGradient or StaleGeneration.

        Where the worker holds them it only follows the session to its present step.
        """
        if self._master is not None:
            self._worker.resync()
            return
        self._worker.pull(out=self._landed)
        self._write(self._landed)

    def close(self) -> None:
        """Disconnects, and stops a private server. A session on another server lives on. Harmless when repeated."""
        self._end()

    def __enter__(self) -> "NumpyOptimizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, flat: Float32) -> None:
        for name, values in Tensors(self._layout, flat).items():
            self.parameters[name][...] = values


def _check(name: str, array: Array) -> None:
    if not isinstance(array, np.ndarray) or not array.flags.writeable:
        raise TypeError(f"parameter {name} is {type(array).__name__}; it is changed in place, so give a writable array")
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"parameter {name} is {array.dtype}; a session holds real floating-point numbers")
