"""One worker, in a process of its own: it sends the gradient of its share of each minibatch, or how far it went."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.slow_links import task
from hermosis_client import Client, Session
from hermosis_client.errors import StaleGradient
from hermosis_client.torch_local import LocalSteps

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A place in a run, which a worker takes and, when it was killed, takes again.

    Attributes:
      place:      from 0, of `workers`.
      until_step: of the session, at which the worker ends by itself; zero means never.
      compute_s:  that a gradient takes at least, as if the worker's processor were its own.
      wire:       keywords of Session.worker: dtypes, codec.
    """

    address: str
    session_id: str
    place: int
    workers: int
    until_step: int = 0
    compute_s: float = 0.0
    wire: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worker_id(self) -> str:
        return f"worker-{self.place:02}"


def work(seat: Seat) -> None:
    """Trains until the session is at its last step; the process ends with its parent."""
    _end_with_parent()
    with Client(seat.address, timeout_s=PATIENCE_S) as client, client.session(seat.session_id) as session:
        info = session.info()
        shares = task.shares(seat.place, seat.workers, begin=info.step * max(1, info.consistency.local_steps))
        steps = descend if info.consistency.mode != "local" else descend_alone
        for step in steps(seat, session, task.network(), shares):
            if seat.until_step and step >= seat.until_step:
                return


def descend(seat: Seat, session: Session, model: nn.Module, shares: Iterator[Tensor]) -> Iterator[int]:
    """A gradient for each step; gives what step the session is at when it goes on."""
    landed, parameters = torch.empty(session.layout.parameter_count), list(model.parameters())
    with session.worker(seat.worker_id, **seat.wire) as worker:
        worker.pull(out=landed.numpy())
        for chosen in shares:
            nn.utils.vector_to_parameters(landed, parameters)
            loss = _gradient(model, chosen, seat.compute_s)
            gradient = nn.utils.parameters_to_vector(
                parameter.grad for parameter in parameters if parameter.grad is not None
            )
            try:
                worker.exchange(gradient.numpy(), loss=loss, sample_count=len(chosen), out=landed.numpy())
            except StaleGradient:  # the others went on without this one
                worker.pull(out=landed.numpy())
            yield worker.step or 0


def descend_alone(seat: Seat, session: Session, model: nn.Module, shares: Iterator[Tensor]) -> Iterator[int]:
    """As many steps of AdamW by itself as the session says, then a round; gives what step the session is at."""
    inner = torch.optim.AdamW(model.parameters(), lr=task.LR, weight_decay=0.0)
    local = LocalSteps(inner, session, worker_id=seat.worker_id, **seat.wire)
    for chosen in shares:
        loss, before = _gradient(model, chosen, seat.compute_s), local.last_result
        try:
            local.step(loss=loss)
        except StaleGradient:
            local.pull()
        if local.last_result is not before and local.last_result is not None:
            yield local.last_result.step
    local.close()


def _gradient(model: nn.Module, chosen: Tensor, least_s: float) -> float:
    """Leaves the gradient in the parameters; the loss."""
    began_s = time.monotonic()
    model.zero_grad()
    loss = task.loss_of(model, chosen)
    loss.backward()  # type: ignore[no-untyped-call]
    time.sleep(max(0.0, began_s + least_s - time.monotonic()))
    return float(loss.detach())


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "somebody started it"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
