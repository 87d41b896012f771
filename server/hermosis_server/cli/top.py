"""``hermosis top``: the sessions of a server as a table that follows them, the fastest first."""

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hermosis_server.cli.sessions import DEFAULT_ADDRESS, Address, Ca, Json, Token, connected

if TYPE_CHECKING:
    from hermosis_client import Client, SessionInfo, TelemetryReading

COLUMNS = (
    "session", "status", "step", "steps/s", "loss", "smoothed", "temperature", "energy defect", "workers", "bytes/s",
)  # fmt: skip
_HEAD_ROWS = 4  # of the screen, that are no sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One session between two looks at it.

    Attributes:
      steps_per_s: since the look before; None where there was none, or it was set back meanwhile.
      reading:     of the newest step; None before the first.
    """

    info: "SessionInfo"
    steps_per_s: float | None
    reading: "TelemetryReading | None"

    @property
    def bytes_per_s(self) -> float | None:
        """Gradients received and answers sent, at the newest step's size."""
        if self.reading is None or self.steps_per_s is None:
            return None
        return self.steps_per_s * (self.reading.received_bytes + self.reading.sent_bytes)


class Looks:
    """Looks at a server again and again.

    Args:
      client: of the server.
      clock:  monotonic seconds.
    """

    def __init__(self, client: "Client", clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._seen: dict[tuple[str, int], tuple[int, float]] = {}  # step and time, by session and generation
        self._readings: dict[str, TelemetryReading] = {}

    def look(self, most: int) -> list[Line]:
        """The fastest sessions now, at most so many, and those that rest by their age, the newest first."""
        now = self._clock()
        infos = list(self._client.sessions(order_by="create_time desc"))
        rates = {info.session_id: self._rate(info, now) for info in infos}
        self._seen = {(info.session_id, info.generation): (info.step, now) for info in infos}
        shown = sorted(infos, key=lambda info: -(rates[info.session_id] or 0.0))[:most]
        self._readings = {info.session_id: reading for info in shown if (reading := self._reading(info)) is not None}
        return [
            Line(info=info, steps_per_s=rates[info.session_id], reading=self._readings.get(info.session_id))
            for info in shown
        ]

    def _rate(self, info: "SessionInfo", now: float) -> float | None:
        before = self._seen.get((info.session_id, info.generation))
        if before is None or info.step < before[0] or now <= before[1]:
            return None
        return (info.step - before[0]) / (now - before[1])

    def _reading(self, info: "SessionInfo") -> "TelemetryReading | None":
        from hermosis_client.errors import CorruptState, SessionNotFound

        known = self._readings.get(info.session_id)
        if info.step == 0 or (known is not None and known.step == info.step):
            return known if info.step else None
        with contextlib.suppress(SessionNotFound, CorruptState):  # gone since it was listed
            return self._client.session(info.session_id).telemetry()
        return None


def top(
    context: typer.Context,
    interval_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    most: Annotated[
        int | None, typer.Option("--limit", min=1, help="Sessions to show.", show_default="what fits")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show one table and end, as it does in a pipe.")] = False,
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
    token: Token = None,
    ca: Ca = None,
) -> None:
    """Follow all sessions of a server in one table, the fastest first; q or Ctrl-C ends.

    With --json each look is one line: a list of sessions.
    """
    context.obj = {"token": token, "ca_file": ca}
    with connected(context, address) as client, contextlib.suppress(KeyboardInterrupt):
        looks = Looks(client)
        looks.look(1)  # a rate needs two
        if json or once or not sys.stdout.isatty():
            _print(looks, interval_s, most or sys.maxsize, as_json=json, for_ever=json and not once)
        else:
            _follow(looks, interval_s, most, address)


def _print(looks: Looks, interval_s: float, most: int, *, as_json: bool, for_ever: bool) -> None:
    from hermosis_server.cli import text

    while True:
        time.sleep(interval_s)
        lines = looks.look(most)
        if as_json:
            text.print_json([facts(line) for line in lines])
        else:
            text.print_rows(COLUMNS, [row(line) for line in lines])
        if not for_ever:
            return


def _follow(looks: Looks, interval_s: float, most: int | None, address: str) -> None:
    from rich.live import Live
    from rich.table import Table

    with _keys() as quits, Live(screen=True, auto_refresh=False) as live:
        while not quits(interval_s):
            lines = looks.look(most or max(1, live.console.height - _HEAD_ROWS))
            table = Table(box=None, pad_edge=False, header_style="bold", title=f"{address}   q ends")
            for column in COLUMNS:
                table.add_column(column, no_wrap=True, justify="left" if column in ("session", "status") else "right")
            for line in lines:
                table.add_row(*row(line))
            live.update(table, refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Gives a function that waits so many seconds, and at once says whether somebody pressed q."""
    if not sys.stdin.isatty():
        yield lambda seconds: threading.Event().wait(seconds)  # nobody presses anything
        return
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def quits(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([file], [], [], left)[0]:
                pressed = os.read(file, 64)
                if not pressed or b"q" in pressed.lower():
                    return True
        return False

    try:
        tty.setcbreak(file)
        yield quits
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def row(line: Line) -> list[str]:
    """A line of the table."""
    from hermosis_server.cli import text

    energies = line.reading.energies if line.reading else None
    return [
        line.info.session_id,
        line.info.status.name,
        str(line.info.step),
        text.number(float("nan") if line.steps_per_s is None else line.steps_per_s),
        text.number(energies.loss) if energies else "-",
        text.number(energies.smoothed_loss) if energies else "-",
        text.temperature(energies.log_beta) if energies else "-",
        text.number(energies.energy_defect) if energies else "-",
        f"{line.info.workers}/{line.info.expected_workers}",
        "-" if line.bytes_per_s is None else f"{line.bytes_per_s:,.0f}",
    ]


def facts(line: Line) -> dict[str, Any]:
    """A line for JSON; null for what does not exist."""
    energies = line.reading.energies if line.reading else None
    return {
        "session_id": line.info.session_id,
        "status": line.info.status.name,
        "step": line.info.step,
        "steps_per_s": line.steps_per_s,
        "loss": energies and energies.loss,
        "smoothed_loss": energies and energies.smoothed_loss,
        "log_beta": energies and energies.log_beta,
        "energy_defect": energies and energies.energy_defect,
        "workers": line.info.workers,
        "expected_workers": line.info.expected_workers,
        "bytes_per_s": line.bytes_per_s,
    }
