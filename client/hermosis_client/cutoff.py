"""Cutoff: how another thread ends the waiting of a call whose caller has lost interest.

A call runs in a context that holds its cutoff (contextvars); the places where the client waits look for one. Without
one, which is everybody but `hermosis_client.aio`, they wait as ever.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_current: ContextVar["Cutoff | None"] = ContextVar("hermosis_cutoff", default=None)
_NOBODY_CUTS = contextlib.nullcontext()


class CutOff(BaseException):
    """Raised in the call that was cut off. No error of the call, so nothing catches it to try again."""


class Cutoff:
    """Ends one call. `cut` may come before the call waits, while it does, or when it is over."""

    def __init__(self) -> None:
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self._cancel: Callable[[], object] | None = None

    def install(self) -> None:
        """Makes this the cutoff of what runs in the present context."""
        _current.set(self)

    def cut(self) -> None:
        """Ends what the call waits for, now or when it begins to. Does not wait."""
        self._cut.set()
        with self._lock:
            if self._cancel is not None:
                self._cancel()

    def check(self) -> None:
        """CutOff when the call was cut off."""
        if self._cut.is_set():
            raise CutOff

    def sleep(self, seconds: float) -> None:
        """Waits, and raises CutOff as soon as the call is cut off."""
        if self._cut.wait(seconds):
            raise CutOff

    @contextlib.contextmanager
    def waiting(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Waiting that `cancel`, called by another thread, ends; CutOff whatever came of it by then."""
        with self._lock:
            self._cancel = cancel
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._cancel = None
            self.check()


def check() -> None:
    """CutOff when the present call was cut off."""
    if (cutoff := _current.get()) is not None:
        cutoff.check()


def sleep(seconds: float) -> None:
    """As time.sleep, and CutOff as soon as the present call is cut off."""
    cutoff = _current.get()
    (time if cutoff is None else cutoff).sleep(seconds)


def waiting(cancel: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Waiting inside the present call, which `cancel` ends should it be cut off."""
    cutoff = _current.get()
    return _NOBODY_CUTS if cutoff is None else cutoff.waiting(cancel)
