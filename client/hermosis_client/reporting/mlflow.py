"""MLflow: readings as metrics of a run."""

from typing import Any

from hermosis_client.records import TelemetryReading
from hermosis_client.reporting.scalars import scalars


class MLflowReporter:
    """Logs readings to a run that exists; needs the package mlflow, or mlflow-skinny.

    The run stays open: it is whoever began it that ends it.

    Args:
      run_id:       of the run; empty takes the one that is active here.
      tracking_uri: of the MLflow server; empty is as MLflow is set up.

    Raises:
      ModuleNotFoundError: mlflow is not installed.
      ValueError:          no run was named, and none is active.
    """

    def __init__(self, run_id: str = "", *, tracking_uri: str = "") -> None:
        try:
            import mlflow
            from mlflow.entities import Metric
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"MLflowReporter needs {error.name}; pip install mlflow-skinny", name=error.name
            ) from error
        active = mlflow.active_run()
        if not run_id and active is None:
            raise ValueError("no MLflow run is active; give run_id, or begin one with mlflow.start_run()")
        self._run_id = run_id or active.info.run_id
        self._metric: Any = Metric
        self._client: Any = mlflow.MlflowClient(tracking_uri or None)

    def take(self, reading: TelemetryReading) -> None:
        """Logs all numbers of a step in one request."""
        time_ms = round(reading.time_s * 1000)
        metrics = [self._metric(name, value, time_ms, reading.step) for name, value in scalars(reading).items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """Nothing is left to do."""
