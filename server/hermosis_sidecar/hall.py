"""Hall: the parts of one sidecar, built once, handed to the routes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from hermosis_client import Client
from hermosis_sidecar.live import Live
from hermosis_sidecar.newest import NewestReadings
from hermosis_sidecar.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Hall:
    """Parts of a sidecar.

    Attributes:
      client: for what people and programs ask.
      probe:  for questions that need an answer at once: is the server there?
    """

    settings: Settings
    client: Client
    probe: Client
    newest: NewestReadings
    live: Live


@contextmanager
def opened(settings: Settings) -> Iterator[Hall]:
    """The parts, from first to last. Entered on the event loop that serves the viewers."""
    newest = NewestReadings()
    with (
        Client(settings.server, timeout_s=settings.timeout_s) as client,
        Client(settings.server, timeout_s=settings.ready_timeout_s) as probe,
    ):
        live = Live(
            probe,
            newest,
            interval_s=settings.live_interval_s,
            retry_s=settings.retry_s,
            capacity=settings.viewer_readings,
            max_viewers=settings.max_viewers,
        )
        live.start()
        try:
            yield Hall(settings=settings, client=client, probe=probe, newest=newest, live=live)
        finally:
            live.close()


def _hall(request: Request) -> Hall:
    hall: Hall = request.app.state.hall
    return hall


HallOf = Annotated[Hall, Depends(_hall)]
