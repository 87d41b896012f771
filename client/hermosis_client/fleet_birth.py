"""Many sessions at once: made all or none, found, and closed."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from hermosis_client.errors import HermosisError, SessionNotFound
from hermosis_client.session import Session

# A call is mostly waiting; beyond this many at a time it is the server that is busy.
CALLS = 16

_Made = TypeVar("_Made")


def each(calls: Iterable[Callable[[], _Made]]) -> list[_Made]:
    """The results of calls, several at a time, in order. After an error no more of them begin, and it is raised."""
    with ThreadPoolExecutor(CALLS, "hermosis-fleet") as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def made(count: int, create: Callable[[int], Session], initialise: Callable[[int, Session], object]) -> list[Session]:
    """Sessions from their indices, all of them or none: what was made before an error is closed again."""
    born: list[Session] = []

    def make(index: int) -> Session:
        session = create(index)
        born.append(session)
        initialise(index, session)
        return session

    try:
        return each(partial(make, index) for index in range(count))
    except BaseException:
        with contextlib.suppress(HermosisError):
            close(born)
        raise


def close(sessions: Sequence[Session]) -> None:
    """Closes sessions on the server, every one that can be; then raises the first error, if there was any.

    One that is not there any more is as closed as the others.
    """

    def attempt(session: Session) -> HermosisError | None:
        try:
            session.close()
        except SessionNotFound:
            return None
        except HermosisError as error:
            return error
        return None

    for error in each(partial(attempt, session) for session in sessions):
        if error is not None:
            raise error
