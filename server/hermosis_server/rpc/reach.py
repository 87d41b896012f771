"""Reach: the sessions of the engine that one caller can name. Others are as if they were not there."""

from collections.abc import Iterable

from hermosis_server.engine.engine import Engine
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.engine.survey import survey
from hermosis_server.engine.telemetry import Watch
from hermosis_server.errors import PermissionDenied, SessionNotFound
from hermosis_server.identity import EVERY_SESSION, Identity, shown_id
from hermosis_server.records import Overview


class Reach:
    """What one caller can reach. All that comes from a request goes through here before it names a session."""

    def __init__(self, engine: Engine, identity: Identity) -> None:
        self._engine = engine
        self._identity = identity

    def name(self, session_id: str) -> str:
        """By which the engine knows a session that the caller calls so.

        Raises:
          SessionNotFound: it cannot be the caller's, whether it is anybody's or not.
        """
        name = self._identity.full_name(session_id)
        if name is None:
            raise SessionNotFound(f"there is no session {session_id[:80]!r}; list the sessions or create it")
        return name

    def session(self, session_id: str) -> Session:
        """The session; raises SessionNotFound."""
        return self._engine.session(self.name(session_id))

    def sessions(self) -> Iterable[Session]:
        """All of the caller's, in order of creation."""
        return (session for session in self._engine.sessions() if self._identity.sees(session.session_id))

    def set_aside(self) -> Iterable[tuple[str, str]]:
        """Those of the caller's that were found damaged, as they call them, and why."""
        held = sorted(self._engine.quarantined.items())
        return ((shown_id(name), found.problem) for name, found in held if self._identity.sees(name))

    async def create(self, spec: SessionSpec, session_id: str, *, request: tuple[str, bytes]) -> Session:
        """Makes a session of the caller's tenant; `request` as in `Engine.create_session`."""
        self._require_name(session_id)
        return await self._engine.create_session(
            spec, session_id=session_id, tenant=self._identity.tenant, request=request
        )

    def heir(self, session_id: str, fork_id: str) -> str:
        """The full name of a session to be forked, by a caller who may give the new one that id."""
        parent = self.session(session_id).session_id
        self._require_name(fork_id)
        return parent

    def _require_name(self, session_id: str) -> None:
        """Raises PermissionDenied where the caller may not give a session that name."""
        pattern = self._identity.sessions
        if pattern != EVERY_SESSION and self._identity.full_name(session_id) is None:
            raise PermissionDenied(
                f"{self._identity.subject} may create sessions called {pattern} only; give such a session_id",
                field="session_id",
            )

    def watch(self, session_ids: Iterable[str], *, min_interval_s: float) -> Watch:
        """Readings of these sessions, or of all of the caller's; give it back to `Engine.unwatch`."""
        names = tuple(map(self.name, session_ids))
        return self._engine.watch(names, min_interval_s=min_interval_s, sees=self._identity.sees)

    async def overview(self, *, max_sessions: int) -> Overview:
        """How the server does; of sessions only the caller's are named, `max_sessions` a device at most."""
        return await survey(self._engine, sees=self._identity.sees, max_sessions=max_sessions)
