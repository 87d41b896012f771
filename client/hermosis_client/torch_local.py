"""LocalSteps: a worker that takes several steps by itself, and then one together with the others.

Between two rounds an inner torch optimizer trains the model here; a round sends where it began less where it came to,
as if that were a gradient, and the session's optimizer, the outer one, steps once for all workers. So a slow link is
used once in many steps.

Source: Douillard et al. 2023, "DiLoCo"; the outer optimizer there is SGD with Nesterov momentum 0.9 and lr 0.7.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from hermosis_client.exchange import Worker
from hermosis_client.records import StepResult
from hermosis_client.session import Session
from hermosis_client.torch_group import flat_values, layout_of


class LocalSteps:
    """An inner optimizer with a round of the session every few steps.

        outer = client.create_session(dict(model.named_parameters()), Recipe("nesterov", lr=0.7, momentum=0.9),
                                      consistency=Consistency(mode="local", workers=4, local_steps=50))
        local = LocalSteps(torch.optim.AdamW(model.parameters(), lr=1e-3), outer, worker_id="w0")

    Then `local.step()` takes the place of the inner optimizer's. The session is READY when one of the workers has
    uploaded the initial parameters (`session.initialise`); making this object pulls them.

    Args:
      optimizer: the inner one; its parameters, in its order, are the session's.
      session:   whose optimizer is the outer one.
      worker_id: of this worker; a random one when empty.
      steps:     between two rounds; zero takes what the session says.
      options:   of Session.worker, such as gradient_dtype.

    Attributes:
      last_result: what the last round led to; None before the first.

    Raises:
      ValueError: the parameters are not those of the session.
    """

    def __init__(
        self, optimizer: Optimizer, session: Session, *, worker_id: str = "", steps: int = 0, **options: Any
    ) -> None:
        self.optimizer = optimizer
        self.last_result: StepResult | None = None
        self._tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        names = [f"parameter{index}" for index in range(len(self._tensors))]
        shapes = [tensor.shape for tensor in layout_of(names, self._tensors).tensors]
        wanted = [tensor.shape for tensor in session.layout.tensors]
        if shapes != wanted:
            raise ValueError(f"the inner optimizer has parameters of shapes {shapes}, the session {wanted}")
        self._steps = steps or session.info().consistency.local_steps or 1
        self._worker: Worker = session.worker(worker_id, **options)
        self._begin = torch.empty(session.layout.parameter_count)
        self._taken = 0
        self.pull()

    def zero_grad(self) -> None:
        """As the inner optimizer's."""
        self.optimizer.zero_grad()

    def step(self, closure: Callable[[], float] | None = None, *, loss: float | None = None) -> None:
        """A step of the inner optimizer, and when it is time a round.

        Args:
          loss: told at a round, for the session's telemetry.
        """
        self.optimizer.step(closure)
        self._taken += 1
        if self._taken >= self._steps:
            self.exchange(loss=loss)

    def exchange(self, *, loss: float | None = None, sample_count: int = 0) -> StepResult:
        """A round now: how far this worker went out, the parameters that all go on from back into the model."""
        gone = self._begin - flat_values(self._tensors)
        self.last_result, _ = self._worker.exchange(
            gone.numpy(), loss=loss, sample_count=sample_count, out=self._begin.numpy()
        )
        self._land()
        return self.last_result

    def pull(self) -> None:
        """Goes on from the session's present parameters; what was done since the last round is forgotten."""
        self._worker.pull(out=self._begin.numpy())
        self._land()

    def close(self) -> None:
        """Ends the worker's stream; the session lives on."""
        self._worker.close()

    @torch.no_grad()
    def _land(self) -> None:
        self._taken, at = 0, 0
        for tensor in self._tensors:
            tensor.copy_(self._begin[at : at + tensor.numel()].view(tensor.shape))
            at += tensor.numel()
