"""Weights & Biases: readings as the history of a run."""

from typing import Any

from hermosis_client.records import TelemetryReading
from hermosis_client.reporting.scalars import scalars

STEP = "hermosis_step"


class WandbReporter:
    """Logs readings to a run that exists; needs the package wandb.

    Curves are drawn over ``hermosis_step``, the session's own: W&B's steps never go back, and may be somebody else's.
    The run stays open: it is whoever began it that ends it.

    Args:
      run: of ``wandb.init``; None takes the one that is active here.

    Raises:
      ModuleNotFoundError: wandb is not installed.
      ValueError:          no run was given, and none is active.
    """

    def __init__(self, run: Any = None) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"WandbReporter needs {error.name}; pip install wandb", name=error.name
            ) from error
        self._run = wandb.run if run is None else run
        if self._run is None:
            raise ValueError("no W&B run is active; give one, or begin it with wandb.init()")
        self._run.define_metric(STEP, hidden=True)
        for group in ("energies/*", "step/*"):
            self._run.define_metric(group, step_metric=STEP)

    def take(self, reading: TelemetryReading) -> None:
        """Logs all numbers of a step as one line of the history."""
        self._run.log({STEP: reading.step, **scalars(reading)})

    def close(self) -> None:
        """Nothing is left to do."""
