"""Client: the way to one server and its sessions."""

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from hermosis.v1 import session_pb2, telemetry_pb2, types_pb2
from hermosis_client import codec, fleet_birth, kept
from hermosis_client.access import Access
from hermosis_client.access_calls import AccessCalls
from hermosis_client.connection import Connection, new_request_id
from hermosis_client.dtypes import Float32
from hermosis_client.errors import HermosisError
from hermosis_client.fleet import Fleet
from hermosis_client.layout import ParameterLayout, Shaped
from hermosis_client.records import (
    Aggregation,
    Capabilities,
    Consistency,
    Durability,
    Optimizer,
    Overview,
    ParametersOn,
    RecipeDescription,
    SessionInfo,
    SessionStatus,
    SnapshotInfo,
)
from hermosis_client.session import Session, WireDtype
from hermosis_client.state import ExportedState
from hermosis_client.watch import Watch


class Client(AccessCalls):
    """A server's sessions, telemetry and description. Safe to share between threads.

    Making one sends nothing: the first call connects. What is safe to repeat is repeated, for at most `timeout_s`, when
    the server cannot be reached or asks to come back later; then the typed error is raised (`hermosis_client.errors`).

    Args:
      address:   host:port of the server.
      timeout_s: the time one call may take up, its retries included. Waiting for other workers of a round is not
                 limited.
      token, ca_file, certificate, key: what is shown to the server and asked of it; see `hermosis_client.access`. None
                 takes HERMOSIS_TOKEN, HERMOSIS_CA, HERMOSIS_CERTIFICATE or HERMOSIS_KEY from the environment, "" none.

    Raises:
      ValueError: arguments that make no sense, such as a token that would travel in clear text.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        token: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        access = Access.of(token=token, ca_file=ca_file, certificate=certificate, key=key)
        self._connection = Connection(address, timeout_s, access)

    def with_token(self, token: str) -> "Client":
        """The same connection under another token, for who passes on what others ask; "" is none.

        Closing it ends nothing.

        Raises:
          ValueError: what was given is no token, or would travel in clear text.
        """
        other = copy.copy(self)
        other._connection = self._connection.sharing(token)
        return other

    @property
    def address(self) -> str:
        """host:port of the server."""
        return self._connection.address

    def capabilities(self) -> Capabilities:
        """What this server is and what it allows."""
        request = session_pb2.GetCapabilitiesRequest()
        response = self._connection.call(self._connection.sessions.GetCapabilities, request)
        return codec.capabilities(response.capabilities)

    def overview(self, *, max_sessions: int = 100) -> Overview:
        """How the whole server does. Of sessions only the caller's are named, those with the most memory first.

        Args:
          max_sessions: of each device to name, 1 to 10 000.
        """
        request = telemetry_pb2.GetOverviewRequest(max_sessions=max_sessions)
        response = self._connection.call(self._connection.telemetry.GetOverview, request)
        return codec.overview(response.overview)

    def recipes(self) -> list[RecipeDescription]:
        """The named optimizers and what their parameters mean."""
        response = self._connection.call(self._connection.sessions.GetRecipes, session_pb2.GetRecipesRequest())
        return [codec.recipe_description(recipe) for recipe in response.recipes]

    def create_session(
        self,
        layout: ParameterLayout | Mapping[str, Shaped | Sequence[int]],
        optimizer: Optimizer | str,
        *,
        session_id: str = "",
        workers: int = 1,
        consistency: Literal["barrier", "async"] | Consistency = "barrier",
        parameters_on: Literal["server", "worker"] = "server",
        durability: Durability | None = None,
        aggregation: Aggregation | None = None,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Session:
        """Makes a session, which then waits for `Session.initialise`.

        Args:
          layout:        arrays (only their shapes count) or shapes by name, in the order of the flat vector.
          optimizer:     a recipe, the name of one, or a hermosis.v1 Hamiltonian message.
          session_id:    1 to 63 of a-z, 0-9 and "-"; the server chooses when empty.
          workers:       that take part in a round, where `consistency` is a word.
          consistency:   "barrier" steps when every worker has sent its gradient, "async" on each arrival; or a rule in
                         full.
          parameters_on: "server", or "worker" to get increments and keep the weights oneself.
          durability:    what the server keeps on disk; None leaves it to the server.
          aggregation:   how the gradients of a round become one; None means their mean.
          display_name:  for people.
          labels:        for filters.

        Raises:
          InvalidRequest, SessionExists, QuotaExceeded, OutOfDeviceMemory: the server will not have it.
        """
        spec = session_pb2.SessionSpec(
            layout=codec.layout_message(_layout(layout)),
            optimizer=codec.optimizer_message(optimizer),
            consistency=codec.consistency_message(
                consistency if isinstance(consistency, Consistency) else Consistency(mode=consistency, workers=workers)
            ),
            aggregation=codec.aggregation_message(aggregation),
            durability=codec.durability_message(durability),
            parameters_on=types_pb2.ParametersOn.ValueType(_named(ParametersOn, parameters_on)),
            display_name=display_name,
            labels=labels,
        )
        request = session_pb2.CreateSessionRequest(request_id=new_request_id(), session_id=session_id, spec=spec)
        response = self._connection.call(self._connection.sessions.CreateSession, request)
        return Session(self._connection, codec.session_info(response.session), created=True)

    def session(self, session_id: str) -> Session:
        """A session that exists already.

        Raises:
          SessionNotFound: there is none of that id.
        """
        request = session_pb2.GetSessionRequest(session_id=session_id)
        response = self._connection.call(self._connection.sessions.GetSession, request)
        return Session(self._connection, codec.session_info(response.session), created=False)

    def import_session(self, exported: ExportedState, session_id: str = "") -> Session:
        """Makes a session that goes on where an exported one was, on this server or another.

        Args:
          session_id: of the new session; the server chooses when empty.

        Raises:
          InvalidRequest, SessionExists, QuotaExceeded, OutOfDeviceMemory: the server will not have it.
          CorruptState: the state is not the one that its digest speaks of. No session was made.
        """
        spec = session_pb2.SessionState.FromString(exported.head).spec
        request = session_pb2.CreateSessionRequest(request_id=new_request_id(), session_id=session_id, spec=spec)
        response = self._connection.call(self._connection.sessions.CreateSession, request)
        session = Session(self._connection, codec.session_info(response.session), created=True)
        try:
            session.import_state(exported)
        except BaseException:
            with contextlib.suppress(HermosisError):
                session.close()
            raise
        return session

    def create_fleet(
        self,
        parameters: Float32 | Sequence[Mapping[str, ArrayLike]],
        optimizers: Optimizer | str | Sequence[Optimizer | str],
        *,
        layout: ParameterLayout | Mapping[str, Shaped | Sequence[int]] | None = None,
        session_ids: Sequence[str] = (),
        workers: int = 1,
        consistency: Literal["barrier", "async"] | Consistency = "barrier",
        parameters_on: Literal["server", "worker"] = "server",
        durability: Durability | None = None,
        aggregation: Aggregation | None = None,
        display_names: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        worker_id: str = "",
        gradient_dtype: WireDtype = "float32",
        reply_dtype: WireDtype = "float32",
        reply: Literal["default", "parameters", "increment", "none"] = "default",
        ack_level: Literal["applied", "durable"] = "applied",
    ) -> Fleet:
        """Makes S sessions, all of them or none, uploads their parameters, and gives a worker of them all.

        Args:
          parameters:  (S, P), a session a line; or for each session arrays by name, which may differ in their shapes.
                       Where the workers hold the parameters only the shapes count.
          optimizers:  one for each session, or one for all.
          layout:      of the lines of `parameters`; None means one tensor, "parameters".
          session_ids, display_names: one for each session; empty leaves them to the server.
          workers, consistency, parameters_on, durability, aggregation, labels: of each session, as in
            `create_session`.
          worker_id, gradient_dtype, reply_dtype, reply, ack_level: of the worker, as in `Session.worker`. Contributions
            that wait for the disk are stepped one by one, not in one launch.

        Raises:
          ValueError: lengths that do not fit each other; nothing was made.
          InvalidRequest, SessionExists, QuotaExceeded, OutOfDeviceMemory: the server will not have one of them.
        """
        count = len(parameters)
        if isinstance(optimizers, Sequence) and not isinstance(optimizers, str):
            chosen = list(optimizers)
        else:
            chosen = [optimizers] * count
        for name, given in (("optimizers", chosen), ("session_ids", session_ids), ("display_names", display_names)):
            if len(given) != count and (len(given) or name == "optimizers"):
                raise ValueError(f"{len(given)} {name} were given for {count} sessions")
        if isinstance(parameters, np.ndarray):
            if parameters.ndim != 2:
                raise ValueError(f"parameters have shape {parameters.shape}; wanted (S, P), or arrays by name")
            layouts = [_layout(layout or {"parameters": (parameters.shape[1],)})] * count
            start = np.ascontiguousarray(parameters, np.float32)
        else:
            layouts = [ParameterLayout.of({name: np.asarray(a) for name, a in arrays.items()}) for arrays in parameters]

        def create(index: int) -> Session:
            return self.create_session(
                layouts[index],
                chosen[index],
                session_id=session_ids[index] if session_ids else "",
                workers=workers,
                consistency=consistency,
                parameters_on=parameters_on,
                durability=durability,
                aggregation=aggregation,
                display_name=display_names[index] if display_names else "",
                labels=labels,
            )

        def initialise(index: int, session: Session) -> None:
            if parameters_on == "server":
                session.initialise(start[index] if isinstance(parameters, np.ndarray) else parameters[index])

        sessions = fleet_birth.made(count, create, initialise)
        try:
            return Fleet(
                self._connection,
                sessions,
                worker_id=worker_id,
                gradient_dtype=gradient_dtype,
                reply_dtype=reply_dtype,
                reply=reply,
                ack_level=ack_level,
                created=True,
            )
        except ValueError:
            fleet_birth.close(sessions)
            raise

    def fleet(
        self,
        sessions: Sequence[Session | str],
        *,
        worker_id: str = "",
        gradient_dtype: WireDtype = "float32",
        reply_dtype: WireDtype = "float32",
        reply: Literal["default", "parameters", "increment", "none"] = "default",
        ack_level: Literal["applied", "durable"] = "applied",
    ) -> Fleet:
        """A worker of sessions that exist already, given as such or by their ids.

        Raises:
          SessionNotFound: there is none of one of these ids.
        """
        found = fleet_birth.each(partial(self._found, session) for session in sessions)
        return Fleet(
            self._connection,
            found,
            worker_id=worker_id,
            gradient_dtype=gradient_dtype,
            reply_dtype=reply_dtype,
            reply=reply,
            ack_level=ack_level,
        )

    def sessions(
        self,
        *,
        status: SessionStatus = SessionStatus.UNKNOWN,
        labels: Mapping[str, str] | None = None,
        search: str = "",
        order_by: str = "",
    ) -> Iterator[SessionInfo]:
        """All sessions, or those that are asked for; fetched page by page.

        Args:
          status, labels: that they have.
          search:   text in the id, the display name, the name of the recipe or a label written key=value.
          order_by: "create_time", "session_id" or "step", followed by " desc" for the other way round; empty means
                    in order of creation.
        """
        token = ""
        while True:
            page, token = self.session_page(
                status=status, labels=labels, search=search, order_by=order_by, page_token=token
            )
            yield from page
            if not token:
                return

    def session_page(
        self,
        *,
        status: SessionStatus = SessionStatus.UNKNOWN,
        labels: Mapping[str, str] | None = None,
        search: str = "",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[list[SessionInfo], str]:
        """One page of what `sessions` gives, and the token of the next one; empty where this is the last.

        Args:
          page_size:  the most to give, up to 1000; zero means 100.
          page_token: of the page before, asked for in the same words.
        """
        request = session_pb2.ListSessionsRequest(
            page_size=page_size,
            page_token=page_token,
            status=types_pb2.SessionStatus.ValueType(status),
            labels=labels,
            search=search,
            order_by=order_by,
        )
        response = self._connection.call(self._connection.sessions.ListSessions, request)
        return [codec.session_info(session) for session in response.sessions], response.next_page_token

    def snapshots(self, session_id: str) -> list[SnapshotInfo]:
        """`Session.snapshots` of a session that may be set aside as damaged."""
        return kept.snapshots(self._connection, session_id)

    def restore(self, session_id: str, snapshot_id: str = "") -> SessionInfo:
        """`Session.restore` of a session that may be set aside as damaged, or left as a copy only."""
        return kept.restore(self._connection, session_id, snapshot_id)

    def watch(self, session_ids: Sequence[str] = (), *, min_interval_s: float = 0.0) -> Watch:
        """Readings as steps are applied, of these sessions or of all, those created later included.

        Args:
          session_ids:    to watch; empty means all.
          min_interval_s: between two readings of one session; zero means every step.
        """
        return Watch(self._connection, session_ids, min_interval_s)

    def close(self) -> None:
        """Ends the connection and all that runs over it; sessions live on. Harmless when repeated."""
        self._connection.close()

    def _found(self, session: Session | str) -> Session:
        return session if isinstance(session, Session) else self.session(session)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _layout(layout: ParameterLayout | Mapping[str, Shaped | Sequence[int]]) -> ParameterLayout:
    return layout if isinstance(layout, ParameterLayout) else ParameterLayout.of(layout)


def _named(choices: type[ParametersOn], name: str) -> int:
    if name.upper() not in choices.__members__ or name.upper() == "UNKNOWN":
        known = ", ".join(repr(choice.name.lower()) for choice in choices if choice)
        raise ValueError(f"{name!r} is not one of {known}")
    return int(choices[name.upper()])
