"""OverlappedGroup: gradients leave while backward makes them, parameters land while forward reads them."""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hermosis_client.contribution import Contribution
from hermosis_client.exchange import Worker
from hermosis_client.records import RecipeValue, StepResult
from hermosis_client.session import Session
from hermosis_client.torch_group import GroupState, RemoteGroup
from hermosis_client.torch_pending import arrived, can_wait, expect

# Elements of a gradient that are compared with what was sent.
SAMPLE = 64


class OverlappedGroup(RemoteGroup):
    """A RemoteGroup whose `step` waits for nothing but the step before.

    A tensor's gradient is copied when backward has finished it, and leaves with what else makes up a chunk. After a
    step the tensors are pending: whoever reads one waits until it has landed. There are two gradient vectors, so that
    one can be collected while the other may have to be sent again.

    Attributes:
      holding: gradients wait for `step`, since backward will add to them.
    """

    def __init__(
        self,
        session: Session,
        worker: Worker,
        tensors: Sequence[Tensor],
        *,
        frozen: Sequence[Tensor],
        base_lr: float,
        settings: Mapping[str, RecipeValue],
    ) -> None:
        super().__init__(session, worker, tensors, frozen=frozen, base_lr=base_lr, settings=settings)
        self.holding = False
        self._lock = threading.RLock()  # hooks run on threads of autograd, and anybody may read a tensor
        self._places = list(session.layout.slices.values())
        self._spare = torch.empty_like(self._gradient)
        self._contribution: Contribution | None = None  # of the step to come, once some of it has come
        self._taken: dict[int, tuple[Tensor, int]] = {}  # by tensor: its gradient and the version of it that was copied
        self._pending: Contribution | None = None  # of the last step, until all has landed
        self._expected: set[int] = set()  # tensors that have not landed
        self._hooks = [
            tensor.register_post_accumulate_grad_hook(partial(self._came, index))  # type: ignore[no-untyped-call]
            for index, tensor in enumerate(self._tensors)
        ]

    @property
    def last_result(self) -> StepResult | None:
        with self._lock:
            return self._last_result if self._pending is None else self._until(self._pending, 0)

    def step(self, *, lr: float, loss: float | None, sample_count: int, loss_scale: float | None) -> None:
        """Sends what has not gone yet; the parameters land later."""
        with self._lock:
            self.wait()
            try:
                self._check_frozen()
                self._check_unchanged()
                skipped = self._without_gradient()
                if len(skipped) == len(self._tensors) and not self._is_awaited():
                    self._last_result = None
                    return
                contribution = self._begun()
                for index, place in enumerate(self._places):
                    if index not in self._taken:
                        self._take(index)
                        contribution.ready(place.start, place.stop)
                contribution.finish(
                    loss=loss,
                    sample_count=sample_count,
                    lr_scale=self._lr_scale(lr),
                    skipped=skipped,
                    loss_scale=loss_scale,
                    out=self._landed.numpy(),
                )
            except BaseException:
                self.forget()
                raise
            self._contribution, self._pending = None, contribution
            self._taken.clear()
            self._gradient, self._spare = self._spare, self._gradient
            self._gradient_views = self._views(self._gradient)
            self._expected = set(range(len(self._tensors)))
            at_once = []
            for index, tensor in enumerate(self._tensors):
                if can_wait(tensor):
                    expect(tensor, partial(self._arrive, index))
                else:
                    at_once.append(index)
            for index in at_once:
                self._arrive(index)

    def wait(self) -> None:
        """Comes back when the tensors hold what the last step made of them. Raises what became of the step, once."""
        with self._lock:
            for index in sorted(self._expected):
                self._arrive(index)

    def forget(self) -> None:
        """Takes back what has gone of a gradient that no step will be taken with."""
        with self._lock:
            self._taken.clear()
            if self._contribution is not None:
                self._contribution.abandon()
                self._contribution = None

    def give_up(self) -> None:
        """Waits no more for a step whose answer is still to come; the tensors are as before it."""
        with self._lock:
            if self._pending is not None and not self._pending.settled:
                self._stop_waiting()

    def pull(self) -> None:
        self.forget()
        self.wait()
        super().pull()

    def export(self) -> GroupState:
        self.wait()
        return super().export()

    def adopt(self, state: GroupState) -> None:
        self.forget()
        self.wait()
        super().adopt(state)

    def release(self) -> None:
        """Lets go of the tensors, once they hold what the last step made of them."""
        for hook in self._hooks:
            hook.remove()
        self.forget()
        with contextlib.suppress(Exception):  # `wait` has raised it before, or nobody asks any more
            self.wait()

    def _came(self, index: int, tensor: Tensor) -> None:
        """Called by torch when backward has added all that it has to a tensor's gradient."""
        gradient = tensor.grad
        if self.holding or gradient is None:
            return
        with self._lock:
            if index in self._taken:
                self.forget()
                raise RuntimeError(
                    f"backward came to {self._name(index)} a second time before the step, when its gradient had been "
                    "sent; run every backward but the last of a step under optimizer.no_sync()"
                )
            contribution, place = self._begun(), self._places[index]
            self._take(index)
            self._taken[index] = gradient, gradient._version
            contribution.ready(place.start, place.stop)

    def _begun(self) -> Contribution:
        if self._contribution is None:
            self._contribution = self._worker.begin(self._gradient.numpy())
        return self._contribution

    def _check_unchanged(self) -> None:
        for index in self._taken:
            if not self._is_as_sent(index):
                raise RuntimeError(
                    f"the gradient of {self._name(index)} was changed after backward, when it had been sent; to clip "
                    "or unscale gradients before the step, run backward under optimizer.no_sync()"
                )

    def _is_as_sent(self, index: int) -> bool:
        """Whether a gradient is what was copied: by its version, and by its values where a function counts no version.

        Some do not, `GradScaler.unscale_` among them. They change all elements, so a few that are not zero tell.
        """
        sent, version = self._taken[index]
        gradient = self._tensors[index].grad
        if gradient is not sent or gradient._version != version:
            return False
        if gradient.is_sparse:
            return True
        values, copied = gradient.detach().reshape(-1), self._gradient_views[index].reshape(-1)
        for stride in (max(1, values.numel() // SAMPLE), 1):
            some, theirs = values[::stride].to("cpu", torch.float32), copied[::stride]
            if theirs.any():
                return torch.allclose(some, theirs, rtol=0, atol=0, equal_nan=True)
        return not values.any()

    def _arrive(self, index: int) -> None:
        """Lands one tensor, and waits for it if need be."""
        with self._lock:
            if index not in self._expected or self._pending is None:
                return
            result = self._until(self._pending, self._places[index].stop)
            self._expected.discard(index)
            arrived(self._tensors[index])
            self._land(index, result)
            if not self._expected:
                self._last_result, _ = self._pending.result()
                self._pending = None

    def _until(self, pending: Contribution, stop: int) -> StepResult:
        """The result, when so many elements have landed. After an error the tensors are as before the step."""
        try:
            return pending.wait(stop)
        except Exception:
            self._stop_waiting()
            self.forget()
            raise

    def _stop_waiting(self) -> None:
        for index in self._expected:
            arrived(self._tensors[index])
        self._expected.clear()
        self._pending = None

    def _name(self, index: int) -> str:
        return f"parameter {self.session.layout.tensors[index].name}"
