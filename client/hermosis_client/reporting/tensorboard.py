"""TensorBoard: readings as event files."""

import os
from typing import Any

from hermosis_client.records import TelemetryReading
from hermosis_client.reporting.scalars import scalars


class TensorBoardReporter:
    """Writes readings for ``tensorboard --logdir FOLDER``; needs the package tensorboard, neither torch nor TensorFlow.

    Args:
      folder: of the event files, made if it is missing; one for each session, or their curves are drawn as one.

    Raises:
      ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"TensorBoardReporter needs {error.name}; pip install tensorboard", name=error.name
            ) from error
        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._writer: Any = EventFileWriter(os.fspath(folder))

    def take(self, reading: TelemetryReading) -> None:
        """Adds a point to each curve, at the time of the step."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars(reading).items()]
        event = self._event(wall_time=reading.time_s, step=reading.step, summary=self._summary(value=values))
        self._writer.add_event(event)

    def close(self) -> None:
        """Writes what is not on disk yet."""
        self._writer.close()
