"""Report: follows a session and hands every reading to a reporter, on a thread of its own."""

import threading
from types import TracebackType

from hermosis_client.errors import SessionNotFound
from hermosis_client.records import TelemetryReading
from hermosis_client.reporting.scalars import Reporter
from hermosis_client.session import Session

MOST_MISSED = 10_000  # readings; the server holds no more


def report(session: Session, *, to: Reporter, min_interval_s: float = 0.0) -> "Report":
    """Reports each step from here on, until the report is closed.

    Args:
      session:        to follow.
      to:             where readings go; it is closed with the report.
      min_interval_s: between two readings; zero means every step, also those that a broken connection swallowed, as
                      far as the server still holds them.
    """
    return Report(session, to, min_interval_s)


class Report:
    """Readings on their way. A context manager: leaving it waits until every step taken so far is reported."""

    def __init__(self, session: Session, to: Reporter, min_interval_s: float) -> None:
        self._session = session
        self._to = to
        self._whole = min_interval_s == 0.0
        self._last_step = session.info().step  # before the watch: what falls between the two is filled in
        self._watch = session.watch(min_interval_s=min_interval_s)
        self._error: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._follow, name="hermosis-report", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reports what is left and closes the reporter. Harmless when repeated.

        Raises:
          HermosisError: the server was away for longer than the client's patience; what came before is reported.
          Exception:     whatever the reporter raised; it was given nothing since.
        """
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        self._thread.join()
        try:
            if self._error is not None:
                raise self._error
            self._fill(None)
        finally:
            self._to.close()

    def _follow(self) -> None:
        try:
            for reading in self._watch:
                if reading.step > self._last_step + 1:
                    self._fill(reading.step)
                self._hand(reading)
        except Exception as error:
            self._error = error
            self._watch.close()

    def _fill(self, before: int | None) -> None:
        """Reports the steps after the last one, up to one that is known; to all that there are where none is."""
        if not self._whole:
            return
        try:
            missed = self._session.history(after_step=self._last_step, max_readings=MOST_MISSED)
        except SessionNotFound:  # it was closed, and its history with it
            return
        for reading in missed:
            if before is None or reading.step < before:
                self._hand(reading)

    def _hand(self, reading: TelemetryReading) -> None:
        self._to.take(reading)
        self._last_step = reading.step

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as other:  # what went wrong first is what should be seen
            error.add_note(f"and the report ended early: {other}")
