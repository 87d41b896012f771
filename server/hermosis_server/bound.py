"""Bound: the call that a log line is about, wherever in the server it is written. Standard library only.

What a call begins inherits it, its stream's tasks included; what the server does of its own accord has none.
"""

from contextvars import ContextVar
from typing import Protocol


class Bound(Protocol):
    """A call as log lines show it; what is empty is left out.

    Attributes:
      call_id:    of this call or stream, made up when it came.
      request_id: by which the caller may repeat it.
      session_id: that it is about, as the caller wrote it.
    """

    @property
    def call_id(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def subject(self) -> str: ...


_current: ContextVar[Bound | None] = ContextVar("hermosis_call", default=None)


def bind(call: Bound) -> None:
    """From here on, in this task and those that it makes, lines are of this call."""
    _current.set(call)


def ids() -> dict[str, object]:
    """The ids of the present call, by the names that they have in a line."""
    call = _current.get()
    if call is None:
        return {}
    return {"call": call.call_id, "request": call.request_id, "subject": call.subject, "session": call.session_id}
