"""Contribution: one gradient on its way, perhaps still in the making, and what comes back for it."""

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from hermosis_client.dtypes import Float32
from hermosis_client.layout import ParameterLayout, Tensors
from hermosis_client.records import Reply, StepResult
from hermosis_client.stream import ExchangeStream


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """What travels beside a gradient."""

    loss: float | None = None
    sample_count: int = 0
    lr_scale: float | None = None
    want_digest: bool = False
    skipped: tuple[int, ...] = ()  # places of tensors in the layout
    loss_scale: float | None = None


class Abandoned(Exception):
    """Whoever began a contribution does not want it any more."""


class Contribution:
    """A gradient that is sent piece by piece as its elements become ready; `Worker.begin` opens one.

    Whoever computes the gradient writes it into the flat vector and says which elements are `ready`, in any order and
    from any thread; a ready element may not change before `result` has returned. `finish` says the rest; then the
    answer may be waited for, or as much of it as is needed next.

    Args:
      gradient: (P,), being filled.
      layout:   of the session.
      reply:    what comes back.
      changed:  told of everything that happens to it; its worker's.
      numbers:  of a gradient that is there and finished already.
      out:      where its answer lands.
    """

    def __init__(
        self,
        gradient: Float32,
        layout: ParameterLayout,
        reply: Reply,
        changed: threading.Condition,
        *,
        numbers: StepNumbers | None = None,
        out: Float32 | None = None,
    ) -> None:
        self.gradient = gradient
        self.answer = layout if reply is not Reply.NONE else ParameterLayout(())
        self.reply = reply
        self.numbers = numbers  # None until it is finished
        self.out = None if out is None else self.answer.checked(out)
        self._layout = layout
        self._changed = changed
        self._pieces = [] if numbers is None else [(0, gradient.size)]
        self._stream: ExchangeStream | None = None
        self._abandoned = False
        self._result: StepResult | None = None
        self._tensors: Tensors | None = None
        self._landed = -1  # elements of the answer; none before the result
        self._settled = False
        self._error: BaseException | None = None

    # For whoever computes the gradient

    def ready(self, start: int, stop: int) -> None:
        """Elements from `start` up to `stop` have their final values and may be sent. Never waits."""
        if start == stop:
            return
        with self._changed:
            self._pieces.append((start, stop))
            self._changed.notify_all()

    def finish(
        self,
        *,
        loss: float | None = None,
        sample_count: int = 0,
        lr_scale: float | None = None,
        want_digest: bool = False,
        skipped: Collection[str] = (),
        loss_scale: float | None = None,
        out: Float32 | None = None,
    ) -> None:
        """Makes the gradient count. Never waits; arguments as in `Worker.exchange`.

        Raises:
          ValueError: not every element is ready.
        """
        with self._changed:
            count = sum(stop - start for start, stop in self._pieces)
            if count != self.gradient.size:
                raise ValueError(f"{count} of {self.gradient.size} elements are ready; say every one once")
            self.out = None if out is None else self.answer.checked(out)
            self.numbers = StepNumbers(
                loss=loss,
                sample_count=sample_count,
                lr_scale=lr_scale,
                want_digest=want_digest,
                skipped=self._layout.places(skipped),
                loss_scale=loss_scale,
            )
            self._changed.notify_all()

    def abandon(self) -> None:
        """Forgets a gradient that was not finished; the server never counts it. Harmless afterwards."""
        with self._changed:
            if self.numbers is not None or self._settled:
                return
            self._abandoned = True
            stream = self._stream
            self._changed.notify_all()
        if stream is not None:
            stream.cancel()

    def wait(self, stop: int = 0) -> StepResult:
        """The fate of the contribution, as soon as the first `stop` elements of the answer have landed as well.

        Raises:
          HermosisError: it was refused or its fate cannot be learned; so at every call.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._settled or self._landed >= stop)
            if self._error is not None:
                raise self._error
            assert self._result is not None, "what settled without an error has a result"
            return self._result

    def result(self) -> tuple[StepResult, Tensors]:
        """As `Worker.exchange` returns it, when all has landed."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled)
            if self._error is not None:
                raise self._error
            assert self._result is not None, "what settled without an error has a result"
            assert self._tensors is not None, "and an answer"
            return self._result, self._tensors

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to it."""
        return self._settled

    # For whoever carries it

    @property
    def whole(self) -> bool:
        """Whether all elements were ready at once."""
        return self._pieces[:1] == [(0, self.gradient.size)]

    def pieces(self, given_up: Callable[[], bool]) -> Iterator[tuple[int, int]]:
        """Ready elements in the order in which they became it, until it is finished, or given up (see `look_up`)."""
        known = 0
        while True:
            with self._changed:
                while not (given_up() or len(self._pieces) > known or self.numbers is not None):
                    self._changed.wait()
                fresh = () if given_up() else tuple(self._pieces[known:])
            if not fresh:
                return
            known += len(fresh)
            yield from fresh

    def wait_until_finished(self, given_up: Callable[[], bool]) -> None:
        """Comes back when all is ready and finished. Raises Abandoned when it never will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self.numbers is not None or given_up())
            if self.numbers is None:
                raise Abandoned

    def look_up(self) -> None:
        """Lets `pieces` ask again whether it is given up."""
        with self._changed:
            self._changed.notify_all()

    def carried_by(self, stream: ExchangeStream) -> None:
        """Says on which stream it travels. Raises Abandoned when it need not."""
        with self._changed:
            if self._abandoned:
                raise Abandoned
            self._stream = stream

    def require_wanted(self) -> None:
        """Raises Abandoned when it need not travel on."""
        if self._abandoned:
            raise Abandoned

    def answered(self, result: StepResult) -> None:
        """The fate is known."""
        with self._changed:
            self._result = result
            self._landed = max(self._landed, 0)
            self._changed.notify_all()

    def landed(self, elements: int) -> None:
        """So many elements of the answer are in their place; never fewer than before, where it comes anew."""
        with self._changed:
            self._landed = max(self._landed, elements)
            self._changed.notify_all()

    def settle(self, tensors: Tensors | None, error: BaseException | None = None) -> None:
        """All has landed, or nothing more will."""
        with self._changed:
            self._settled, self._tensors, self._error = True, tensors, error
            self._changed.notify_all()

    def wait_until_settled(self) -> None:
        """Comes back when nothing more will happen to it, however it ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._settled)
