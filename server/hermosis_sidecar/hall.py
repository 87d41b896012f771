"""Hall: the parts of one sidecar, built once, handed to the routes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request

from hermosis_client import Client, errors
from hermosis_sidecar.caller import is_own, token_of, under_token
from hermosis_sidecar.following import Following, Followings
from hermosis_sidecar.history import History, Retention
from hermosis_sidecar.live import Live
from hermosis_sidecar.newest import NewestReadings
from hermosis_sidecar.overviews import Overviews
from hermosis_sidecar.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Hall:
    """Parts of a sidecar, as one caller may use them.

    Attributes:
      client:     for what people and programs ask, with what they bring to show who they are and nothing of our own.
      probe:      with the sidecar's own token: is the server there, and what do the metrics say?
      history:    what the sidecar itself has seen.
      token:      of the caller.
      newest:     readings that the caller may see.
    """

    settings: Settings
    client: Client
    probe: Client
    followings: Followings
    history: History
    overviews: Overviews
    token: str
    newest: NewestReadings

    @property
    def trusts_the_caller(self) -> bool:
        """Whether the caller brings just what the sidecar has, and so may see whatever it has seen."""
        own_token = self.settings.token.get_secret_value()
        if own_token or self.settings.certificate:
            return is_own(self.token, own_token)
        return not self.token


@contextmanager
def opened(settings: Settings) -> Iterator[Hall]:
    """The parts, from first to last. Entered on the event loop that serves the viewers."""
    own_token = settings.token.get_secret_value()
    access = {"ca_file": settings.ca_file, "certificate": settings.certificate, "key": settings.key}
    with (
        # Nothing of the environment: a token that happens to be there must not speak for those who have none.
        Client(settings.server, timeout_s=settings.timeout_s, token="", **access) as client,
        Client(settings.server, timeout_s=settings.ready_timeout_s, token=own_token, **access) as probe,
    ):
        history = History(
            settings.history_database(),
            probe,
            interval_s=settings.live_interval_s,
            look_s=settings.history_look_s,
            retention=Retention(raw_s=settings.history_raw_s, keep_s=settings.history_keep_s),
        )

        def follow(token: str) -> Following:
            newest = NewestReadings()
            is_ours = token == own_token
            live = Live(
                under_token(probe, token),
                newest,
                hear=history.hear if is_ours else history.ids.of,
                followed=history.followed if is_ours else lambda _: None,
                interval_s=settings.live_interval_s,
                retry_s=settings.retry_s,
                capacity=settings.viewer_readings,
            )
            return Following(live, newest)

        try:
            followings = Followings(follow, own_token=own_token, max_viewers=settings.max_viewers)
            history.start(followings.say)
            followings.start()
            try:
                yield Hall(
                    settings=settings,
                    client=client,
                    probe=probe,
                    followings=followings,
                    history=history,
                    overviews=Overviews(
                        lambda token: under_token(probe, token).overview(), interval_s=settings.overview_interval_s
                    ),
                    token=own_token,
                    newest=followings.own.newest,
                )
            finally:
                followings.close()
        finally:
            history.close()


def _hall(request: Request) -> Hall:
    """For one request."""
    hall: Hall = request.app.state.hall
    token = token_of(request)
    if not token and hall.settings.certificate:
        # The server would take our certificate for the caller's.
        raise errors.Unauthenticated("this sidecar asks for a token; send it as 'Authorization: Bearer …'")
    client = under_token(hall.client, token)
    return replace(hall, client=client, token=token, newest=hall.followings.newest(token))


HallOf = Annotated[Hall, Depends(_hall)]


def _own_hall(request: Request) -> Hall:
    """The sidecar itself, for questions that are answered to anybody."""
    hall: Hall = request.app.state.hall
    return hall


OwnHall = Annotated[Hall, Depends(_own_hall)]
