"""Patience: how long a call goes on trying. One rule for unary calls and streams; see docs/decisions/0020."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from hermosis_client import cutoff
from hermosis_client.errors import HermosisError

_Answer = TypeVar("_Answer")

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0


class Patience:
    """The time one piece of work may take up, its retries and waits included.

    An error is worth another attempt when the server said after how long (Overloaded, Recovering, ServerStopping …),
    when it could not be reached, or when bytes came to harm on the way; every other error is final at once. Waits that
    the server did not set double from 50 ms to 2 s, with jitter so that a fleet of workers does not come back as one.

    Args:
      timeout_s: from the first attempt to the last.
      clock:     monotonic seconds.
      sleep:     waits that many seconds.
      jitter:    a number in [0, 1).
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = cutoff.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._attempt_since = clock()
        self._deadline = self._attempt_since + timeout_s
        self._failures = 0

    def remaining_s(self) -> float:
        """What is left for the next attempt; never negative."""
        return max(0.0, self._deadline - self._clock())

    def wait_after(self, error: HermosisError) -> None:
        """Waits until it makes sense to try again; raises the error when it does not, or not in time.

        Trouble is forgotten: after an attempt that went well for longer than the timeout, the time counts anew.
        """
        now = self._clock()
        if now - self._attempt_since > self._timeout_s:
            self._deadline = now + self._timeout_s
            self._failures = 0
        wait_s = self._wait_for(error)
        if wait_s is None or wait_s >= self._deadline - now:
            raise error
        self._sleep(wait_s)
        self._attempt_since = self._clock()

    def _wait_for(self, error: HermosisError) -> float | None:
        if error.retry_after_s is not None:
            return max(error.retry_after_s, _FIRST_WAIT_S)
        if not error.worth_another_attempt:
            return None
        longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return longest * (0.5 + 0.5 * self._jitter())


def patiently(patience: Patience, attempt: Callable[[float], _Answer]) -> _Answer:
    """The answer of the first attempt that succeeds. `attempt` is given its deadline in seconds."""
    while True:
        try:
            return attempt(patience.remaining_s())
        except HermosisError as error:
            patience.wait_after(error)
