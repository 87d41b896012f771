"""Listing: which sessions a caller sees, in which order, page by page.

A page begins behind the last row of the page before, by what that was sorted by and its id, not by its number: sessions
that come and go in between shift nothing. Those that were set aside as damaged have nothing to sort by; they come last.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from hermosis.v1 import session_pb2
from hermosis_server.engine.session import Session
from hermosis_server.errors import InvalidRequest
from hermosis_server.records import RecipeChoice, SessionStatus
from hermosis_server.rpc.codec import enums
from hermosis_server.rpc.codec import session as session_codec
from hermosis_server.rpc.reach import Reach

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_SEARCH_BYTES = 256

_KEYS: dict[str, Callable[[Session], float | str]] = {
    "create_time": lambda session: session.created_s,
    "session_id": lambda session: session.session_id,
    "step": lambda session: session.step,
}
_DESCENDING = " desc"


class Row(NamedTuple):
    """Where a session stands in the list.

    Attributes:
      rank: 1 for those that come last in any order.
      key:  what is sorted by.
      name: decides between equal keys.
    """

    rank: int
    key: float | str
    name: str


class Order(NamedTuple):
    """By what the list is sorted."""

    name: str
    descending: bool

    def row(self, session: Session) -> Row:
        """Where a session stands."""
        return Row(0, _KEYS[self.name](session), session.session_id)

    def sorted(self, rows: Iterable[Row]) -> list[Row]:
        """In this order; the names of equal keys always rise."""
        by_name = sorted(rows, key=lambda row: row.name)
        by_key = sorted(by_name, key=lambda row: row.key, reverse=self.descending)
        return sorted(by_key, key=lambda row: row.rank)

    def is_behind(self, row: Row, mark: Row) -> bool:
        """Whether a row comes after another."""
        if row.rank != mark.rank:
            return row.rank > mark.rank
        if row.key != mark.key:
            return (row.key > mark.key) is not self.descending  # type: ignore[operator]  # of one order: one type
        return row.name > mark.name


def page(request: session_pb2.ListSessionsRequest, reach: Reach) -> session_pb2.ListSessionsResponse:
    """A page of what one caller can reach.

    Raises:
      InvalidRequest: an order that is none, or the token of another list.
    """
    size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
    order = _order(request.order_by)
    sought = _sought(request.search)
    found = {order.row(session): session for session in reach.sessions() if _matches(session, request, sought)}
    damaged = dict(_damaged(request, reach, order, sought))
    mark = _mark(request.page_token, order)
    rows = order.sorted(row for row in (*found, *damaged) if mark is None or order.is_behind(row, mark))
    shown = rows[:size]
    messages = [damaged[row] if row.rank else session_codec.session(found[row]) for row in shown]
    return session_pb2.ListSessionsResponse(
        sessions=messages, next_page_token=_token(shown[-1], order) if len(rows) > size else ""
    )


def _damaged(
    request: session_pb2.ListSessionsRequest, reach: Reach, order: Order, sought: str
) -> Iterator[tuple[Row, session_pb2.Session]]:
    """Those that were set aside: nothing is known of them but their ids."""
    if not request.labels and request.status in (0, int(SessionStatus.FAILED)):
        nothing = "" if order.name == "session_id" else 0.0
        for session_id, reason in reach.set_aside():
            if sought in session_id.casefold():
                yield Row(1, nothing, session_id), session_codec.set_aside(session_id, reason)


def _matches(session: Session, request: session_pb2.ListSessionsRequest, sought: str) -> bool:
    if request.status and session.status is not enums.known(
        SessionStatus, request.status, default=session.status, field="status"
    ):
        return False
    if any(session.spec.labels.get(key) != value for key, value in request.labels.items()):
        return False
    return not sought or any(sought in text.casefold() for text in _texts(session))


def _texts(session: Session) -> Iterator[str]:
    """What a search looks at."""
    yield session.session_id.rpartition(".")[2]
    yield session.spec.display_name
    if isinstance(session.spec.optimizer, RecipeChoice):
        yield session.spec.optimizer.name
    for key, value in session.spec.labels.items():
        yield f"{key}={value}"


def _sought(search: str) -> str:
    if len(search.encode()) > MAX_SEARCH_BYTES:
        raise InvalidRequest(
            f"search has {len(search.encode())} bytes; at most {MAX_SEARCH_BYTES} are looked for", field="search"
        )
    return search.casefold()


def _order(order_by: str) -> Order:
    name = order_by.removesuffix(_DESCENDING) or "create_time"
    if name not in _KEYS:
        raise InvalidRequest(
            f"order_by is {order_by[:80]!r}; wanted one of {', '.join(_KEYS)}, followed by {_DESCENDING!r} or nothing",
            field="order_by",
        )
    return Order(name, order_by.endswith(_DESCENDING))


def _token(row: Row, order: Order) -> str:
    return base64.urlsafe_b64encode(json.dumps([*order, *row]).encode()).decode()


def _mark(token: str, order: Order) -> Row | None:
    """The last row of the page before.

    Raises:
      InvalidRequest: the token is none, or of a list in another order.
    """
    if not token:
        return None
    try:
        name, descending, rank, key, last = json.loads(base64.b64decode(token.encode(), b"-_", validate=True))
        numeric = name != "session_id"
        if (name, descending) != order or isinstance(key, float | int) is not numeric or not isinstance(last, str):
            raise ValueError
        return Row(int(rank), key, last)
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequest(
            "page_token is not one that this server gave for this order; begin again without it", field="page_token"
        ) from None
