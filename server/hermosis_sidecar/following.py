"""Following: a live stream for each token that somebody watches with, so that it shows what the server shows them.

The sidecar's own stream counts steps for the metrics. It also serves callers who bring the very token that the sidecar
has, or none where it has none itself: what it may see, they may. Anybody else's is opened with their token when they
come, and closed when the last of them leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass

from hermosis_client import errors
from hermosis_sidecar.history import Event, Life
from hermosis_sidecar.live import Live, Viewer
from hermosis_sidecar.newest import NewestReadings


@dataclass(frozen=True, slots=True)
class Following:
    """A stream that is followed, and the readings it has brought."""

    live: Live
    newest: NewestReadings


class Followings:
    """Those of all tokens, changed on the event loop alone.

    Args:
      make:        a stream for a token, not yet started.
      own_token:   of the sidecar; empty for none.
      max_viewers: at a time, of all streams together.
    """

    def __init__(self, make: Callable[[str], Following], *, own_token: str, max_viewers: int) -> None:
        self._make = make
        self._own_token = own_token
        self._max_viewers = max_viewers
        self._by_token = {own_token: make(own_token)}
        self._stopping = False

    @property
    def own(self) -> Following:
        """The sidecar's."""
        return self._by_token[self._own_token]

    @property
    def viewers(self) -> int:
        """How many are viewing now."""
        return sum(following.live.viewers for following in list(self._by_token.values()))

    def newest(self, token: str) -> NewestReadings:
        """Readings that the callers of a token may see, as far as they are followed."""
        following = self._by_token.get(token)
        return NewestReadings() if following is None else following.newest

    def view(self, token: str, session_ids: frozenset[str]) -> Viewer:
        """A new viewer; `leave` ends it.

        Raises:
          Overloaded: there are as many as are allowed.
        """
        if self._stopping:
            raise errors.ServerStopping("the sidecar is stopping", retry_after_s=1)
        if self.viewers >= self._max_viewers:
            raise errors.Overloaded(f"{self._max_viewers} live streams are open, the most allowed", retry_after_s=5)
        following = self._by_token.get(token)
        if following is None:
            following = self._by_token[token] = self._make(token)
            following.live.start()
        return following.live.view(session_ids)

    def leave(self, token: str, viewer: Viewer) -> None:
        """Forgets a viewer, and the stream of a token that nobody views with any more."""
        following = self._by_token[token]
        following.live.leave(viewer)
        if token != self._own_token and not following.live.viewers:
            del self._by_token[token]
            following.live.end()

    def say(self, life: Life, event: Event) -> None:
        """Passes an event on to who may see its session. On whatever thread."""
        for token, following in list(self._by_token.items()):
            # The recorder has the sidecar's own token, so what it knows may be seen with that.
            if token == self._own_token or following.live.sees(life):
                following.live.say(event)

    def end_viewers(self) -> None:
        """Ends every live stream and lets no new one in."""
        self._stopping = True
        for following in self._by_token.values():
            following.live.end_viewers()

    def start(self) -> None:
        """Begins to follow the server."""
        self.own.live.start()

    def close(self) -> None:
        """Ends viewers and threads; waits for the threads as long as one call to the server may take."""
        self.end_viewers()
        for following in self._by_token.values():
            following.live.close()
