"""REST: schemathesis asks the sidecar whatever its OpenAPI document allows and forbids, and holds it to the document.

A real server process, and a real sidecar process before it. No answer may be a 500, each must have a documented status,
content type and shape, and what the document forbids must be refused. What it allows may be refused all the same: it
does not know physics. The live stream has no end, so it has tests of its own in tests/sidecar.
"""

import contextlib
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.forking import WarmServer
from tests.sidecar.conftest import Sidecar

from hermosis_client import Client, Recipe
from hermosis_client.errors import SessionExists, SessionNotFound

CALL_S = 20.0
ENDLESS = "/v1/live"
SESSIONS = ("rest-new", "rest-ready")


class Hall:
    """A server and its sidecar, with two sessions to ask about."""

    def __init__(self) -> None:
        self.cases = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Hall":
        with contextlib.ExitStack() as stack:
            self._server = stack.enter_context(WarmServer(arguments=["--device", "cpu", "--max-parameters", "100000"]))
            self._client = stack.enter_context(Client(self._server.address))
            self._sidecar = stack.enter_context(Sidecar(self._server.address))
            schema = schemathesis.openapi.from_url(f"{self._sidecar.address}/openapi.json")
            operations = [found.ok() for found in schema.get_all_operations()]
            self.operations = [operation for operation in operations if operation.path != ENDLESS]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def requests(self) -> "st.SearchStrategy[tuple[Any, str | None]]":
        """A request of any operation, and a session that there is, to ask it of instead of a drawn one."""
        return st.tuples(
            st.one_of([operation.as_strategy() for operation in self.operations]), st.sampled_from([None, *SESSIONS])
        )

    def check(self, request: tuple[Any, str | None]) -> None:
        """Asks, and holds the answer to the document."""
        case, session_id = request
        self.cases += 1
        self._lay_out()
        if session_id is not None and "session_id" in (case.path_parameters or {}):
            case.path_parameters["session_id"] = session_id
        case.call_and_validate(timeout=CALL_S, excluded_checks=[positive_data_acceptance])
        log = self._server.log_tail(100_000)
        assert "internal_error" not in log, log

    def _lay_out(self) -> None:
        for info in self._client.sessions():
            if info.session_id not in SESSIONS:
                with contextlib.suppress(SessionNotFound):
                    self._client.session(info.session_id).close()
        for session_id in SESSIONS:
            with contextlib.suppress(SessionExists):
                self._client.create_session(
                    {"w": (3,)},
                    Recipe("sgd", lr=0.1),
                    session_id=session_id,
                    parameters_on="worker" if session_id == "rest-ready" else "server",
                )
