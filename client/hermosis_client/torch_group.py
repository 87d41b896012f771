"""RemoteGroup: one param_group of a RemoteOptimizer and the session behind it."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from hermosis_client.dtypes import own_dtype
from hermosis_client.exchange import Worker
from hermosis_client.layout import ParameterLayout, TensorSpec
from hermosis_client.records import ParametersOn, RecipeValue, StepResult
from hermosis_client.session import Session
from hermosis_client.state import ExportedState


class GroupState(TypedDict):
    """One group in a state_dict; tensors only, so that torch.load(weights_only=True) takes it."""

    head: Tensor  # uint8, the bytes of ExportedState.head
    buffers: dict[str, Tensor]  # float32 (P,)
    worker_parameters: Tensor | None  # float32 (P,), where the worker holds them


def trainable(group: Mapping[str, Any]) -> tuple[list[str], list[Tensor]]:
    """Names and tensors of a param_group that are to be optimized: frozen ones stay out of the session.

    Raises:
      ValueError: nothing is left.
      TypeError:  a parameter is not of real floating point.
    """
    names = group.get("param_names") or [f"parameter{index}" for index in range(len(group["params"]))]
    kept = [(name, tensor) for name, tensor in zip(names, group["params"], strict=True) if tensor.requires_grad]
    if not kept:
        raise ValueError("a param_group has no parameter that requires a gradient")
    for name, tensor in kept:
        if not tensor.is_floating_point():
            raise TypeError(f"parameter {name} is {tensor.dtype}; a session holds real floating-point numbers")
    return [name for name, _ in kept], [tensor for _, tensor in kept]


def layout_of(names: Sequence[str], tensors: Sequence[Tensor]) -> ParameterLayout:
    """The layout of named tensors, in their order."""
    return ParameterLayout(
        tuple(
            TensorSpec(name=name, shape=tuple(tensor.shape), dtype=own_dtype(tensor.dtype))
            for name, tensor in zip(names, tensors, strict=True)
        )
    )


def flat_values(tensors: Sequence[Tensor]) -> Tensor:
    """All elements as one float32 vector (P,) in host memory."""
    return torch.cat([tensor.detach().to("cpu", torch.float32).reshape(-1) for tensor in tensors])


class RemoteGroup:
    """Carries gradients of some tensors to a session, and parameters back into them.

    Attributes:
      base_lr:     the session's own learning rate, which lr_scale is relative to.
      settings:    recipe parameters the session was made with; they cannot change.
      last_result: what the last step led to; None before the first, and where nothing was sent.

    Args:
      tensors: in the order of the session's layout.
      frozen:  of the same param_group, which were left out of the session.
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
        self.session = session
        self.base_lr = base_lr
        self.settings = dict(settings)
        self._last_result: StepResult | None = None
        self._worker = worker
        self._tensors = list(tensors)
        self._frozen = list(frozen)
        self._worker_holds = session.parameters_on is ParametersOn.WORKER
        count = session.layout.parameter_count
        self._gradient = torch.empty(count)
        self._landed = torch.empty(count)
        self._gradient_views = self._views(self._gradient)
        self._landed_views = self._views(self._landed)
        # float32 whatever the model's dtype: increments would be lost in the rounding of a narrower one.
        self._master = flat_values(tensors) if self._worker_holds else None
        self._master_views = None if self._master is None else self._views(self._master)

    @property
    def last_result(self) -> StepResult | None:
        return self._last_result

    def step(self, *, lr: float, loss: float | None, sample_count: int, loss_scale: float | None) -> None:
        """One exchange: gradients out, parameters back into the tensors; nothing where there is nothing to send."""
        skipped = self._collect()
        if len(skipped) == len(self._tensors) and not self._is_awaited():
            self._last_result = None
            return
        self._last_result, _ = self._worker.exchange(
            self._gradient.numpy(),
            loss=loss,
            sample_count=sample_count,
            lr_scale=self._lr_scale(lr),
            skipped=skipped,
            loss_scale=loss_scale,
            out=self._landed.numpy(),
        )
        for index in range(len(self._tensors)):
            self._land(index, self._last_result)

    def pull(self) -> None:
        """The session's present parameters into the tensors; where the worker holds them, only its place in time."""
        if self._worker_holds:
            self._worker.resync()
            return
        self._worker.pull(out=self._landed.numpy())
        self._write(self._landed)

    def export(self) -> GroupState:
        """The whole optimizer state, and the parameters where the worker holds them."""
        exported = self.session.export_state()
        return GroupState(
            head=torch.frombuffer(bytearray(exported.head), dtype=torch.uint8),
            buffers={name: torch.from_numpy(values) for name, values in exported.buffers.items()},
            worker_parameters=None if self._master is None else self._master.clone(),
        )

    def adopt(self, state: GroupState) -> None:
        """Replaces the whole optimizer state, and the values of the tensors."""
        saved = state["worker_parameters"]
        if (saved is None) == self._worker_holds:
            raise ValueError("the state was saved with another parameters_on; make the optimizer with the same one")
        buffers = {
            name: values.to("cpu", torch.float32).contiguous().numpy() for name, values in state["buffers"].items()
        }
        head = state["head"].cpu().numpy().tobytes()
        self.session.import_state(ExportedState(head=head, buffers=buffers))
        if self._master is None or saved is None:
            self.pull()
        else:
            self._write(self._master.copy_(saved))

    def _is_awaited(self) -> bool:
        """Whether other workers wait for this one."""
        consistency = self.session.info().consistency
        return consistency.workers > 1 and consistency.mode != "async"

    def _collect(self) -> set[str]:
        """Lays the gradients side by side; gives the names of tensors that have none."""
        self._check_frozen()
        for index in range(len(self._tensors)):
            self._take(index)
        return self._without_gradient()

    def _without_gradient(self) -> set[str]:
        specs = self.session.layout.tensors
        return {spec.name for spec, tensor in zip(specs, self._tensors, strict=True) if tensor.grad is None}

    def _check_frozen(self) -> None:
        if any(tensor.grad is not None for tensor in self._frozen):
            raise RuntimeError(
                "a parameter that was frozen when the optimizer was made has a gradient now; add it as a param_group "
                "when it is unfrozen, or make the optimizer anew"
            )

    def _take(self, index: int) -> None:
        """Copies the gradient of one tensor to its place."""
        view, gradient = self._gradient_views[index], self._tensors[index].grad
        if gradient is None:
            view.zero_()
        else:
            view.copy_(gradient.to_dense() if gradient.is_sparse else gradient)

    @torch.no_grad()
    def _land(self, index: int, result: StepResult) -> None:
        """Copies what has landed of one tensor into it."""
        landed = self._landed_views[index]
        if self._master_views is None:
            self._tensors[index].copy_(landed)
        elif result.applied:
            self._tensors[index].copy_(self._master_views[index].add_(landed))

    def _lr_scale(self, lr: float) -> float | None:
        return None if lr == self.base_lr else lr / self.base_lr

    def _write(self, flat: Tensor) -> None:
        with torch.no_grad():
            for view, tensor in zip(self._views(flat), self._tensors, strict=True):
                tensor.copy_(view)

    def _views(self, flat: Tensor) -> list[Tensor]:
        places = self.session.layout.slices.values()
        return [flat[place].view(tensor.shape) for place, tensor in zip(places, self._tensors, strict=True)]
