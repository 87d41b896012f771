"""RemoteOptimizer: a torch.optim.Optimizer whose steps are taken by a Hermosis server."""

import contextlib
import uuid
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from hermosis_client.coded import Codec, CodecName
from hermosis_client.loss_scale import LossScale
from hermosis_client.records import Consistency, ParametersOn, Recipe, RecipeValue, StepResult
from hermosis_client.session import LR, Session, WireDtype
from hermosis_client.session_plan import SessionMaker, SessionPlan, connected, merged_recipe, not_finite, warned_of
from hermosis_client.torch_group import GroupState, RemoteGroup, flat_values, layout_of, trainable
from hermosis_client.torch_overlap import OverlappedGroup


class RemoteOptimizer(Optimizer):
    """Sends each step's gradients to a server and copies the new parameters back into the tensors.

        optimizer = RemoteOptimizer(model.parameters(), optimizer="adamw", lr=1e-3)

    takes the place of ``torch.optim.AdamW(model.parameters(), lr=1e-3)`` in an existing loop. Without an address it
    starts a private server on this machine, which ends with the optimizer, at the latest with this process.

    Where it differs from torch.optim:

    - The weights live on the server (unless parameters_on="worker"): what else changes them between two steps is
      overwritten by the next one.
    - The tensors hold the point that the next gradient belongs to, as the server publishes it. Under the leapfrog and
      conformal schemes (hermosis, rgd and nesterov_ode by default) that is half a drift ahead of the end of the last
      step, and half of a step's drift still has the learning rate of the step before. Evaluate and save the tensors as
      they are; for the end of the last step there is no call, because nothing goes on from there.
    - Each param_group is a session of its own, stepped by itself as in torch. Its ``lr`` counts at every step, so
      learning-rate schedulers work; its other settings cannot change once the session is made, which is refused.
    - A parameter without a gradient is skipped as in torch: nothing of it moves. Its bias correction counts the steps
      of its session, where torch counts its own. Where no parameter of a group has a gradient nothing is sent, unless
      other workers wait for this one. Parameters that do not require one when their group is added stay out.
    - A gradient with NaN or infinity changes nothing; `last_result` says so, and a warning the first time.

    Several workers train one model when each makes a RemoteOptimizer with the same session, optimizer and workers, and
    a worker_id of its own: the first one creates the session from its weights, the others take those over. With a
    session and no optimizer it only joins.

    Args:
      params:         as for every torch optimizer; named parameters give the session's tensors their names.
      session:        a Session to join, or the id of one to create or join; further param_groups add "-1", "-2" …
      optimizer:      a Recipe or the name of one; None joins a session that exists.
      address:        host:port of the server; None starts a private one.
      worker_id:      of this worker. Rounds are summed in the order of worker ids; a random one when empty.
      workers:        that take part in a round, where `consistency` is a word.
      consistency:    "barrier" steps when every worker has sent its gradient, "async" on each arrival; or a rule in
                      full, such as Consistency(mode="quorum", workers=4, quorum=3).
      lr:             learning rate; None means the recipe's default.
      gradient_dtype: of gradients on the wire.
      reply_dtype:    of parameters or increments on the wire; with a narrower one the model holds rounded parameters,
                      while the server's stay float32.
      codec:          makes gradients smaller: "int8", "top_k", "random_k" or "deflate", or a Codec with its fraction.
      reply_codec:    the same for the parameters that come back.
      parameters_on:  "server", or "worker" to keep the weights here, in float32 whatever the model's dtype.
      sample_count:   that each gradient is the mean of, to weigh workers by; zero means alike.
      clip_norm:      Euclidean length that the server shortens the gradient of a param_group to, the mean of all
                      workers; zero means not. To clip over all groups call torch.nn.utils.clip_grad_norm_ as ever.
      loss_scale:     that losses are multiplied by before the backward pass, for a narrow gradient_dtype: a number, or
                      "dynamic", or a LossScale. The server divides by it; `loss_scale` tells the present one.
      overlap:        sends each gradient while backward goes on, and lets forward wait only for the tensors that it
                      reads; docs/overlap.md. Changes no numbers.
      timeout_s:      the time one call may take up, its retries included.
      parameters:     of the recipe, such as weight_decay; a param_group may hold its own.

    Raises:
      HermosisError: the server will not have it, or cannot be reached; see hermosis_client.errors.
    """

    def __init__(
        self,
        params: ParamsT,
        *,
        session: Session | str | None = None,
        optimizer: Recipe | str | None = None,
        address: str | None = None,
        worker_id: str = "",
        workers: int = 1,
        consistency: Literal["barrier", "async"] | Consistency = "barrier",
        lr: float | None = None,
        gradient_dtype: WireDtype = "float32",
        reply_dtype: WireDtype = "float32",
        codec: Codec | CodecName = "plain",
        reply_codec: Codec | CodecName = "plain",
        parameters_on: Literal["server", "worker"] = "server",
        sample_count: int = 0,
        clip_norm: float = 0.0,
        loss_scale: LossScale | float | Literal["dynamic"] | None = None,
        overlap: bool = False,
        timeout_s: float = 30.0,
        **parameters: RecipeValue,
    ) -> None:
        self._stepped = 0  # groups that the last step was of
        self._groups: list[RemoteGroup] = []
        self._overlap = overlap
        self._worker_id = worker_id or f"worker-{uuid.uuid4().hex[:12]}"
        self._gradient_dtype: WireDtype = gradient_dtype
        self._reply_dtype: WireDtype = reply_dtype
        self._codec = codec
        self._reply_codec = reply_codec
        self._sample_count = sample_count
        self._scale = _loss_scale(loss_scale)
        self._warned = False
        self._resources = contextlib.ExitStack()
        self._end = weakref.finalize(self, self._resources.close)
        recipe = merged_recipe(optimizer, lr, parameters)
        plan = SessionPlan(
            session=session,
            recipe=recipe,
            workers=workers,
            consistency=consistency,
            parameters_on=parameters_on,
            clip_norm=clip_norm,
        )
        plan.check(address=address, given=parameters)
        try:
            client = None if isinstance(session, Session) else connected(self._resources, address, timeout_s)
            self._sessions = SessionMaker(plan, client, timeout_s)
            super().__init__(params, {"lr": lr, **(recipe.parameters if recipe else {})})
        except BaseException:
            self._end()
            raise

    @property
    def sessions(self) -> tuple[Session, ...]:
        """The session behind each param_group."""
        return tuple(group.session for group in self._groups)

    @property
    def last_results(self) -> tuple[StepResult | None, ...]:
        """What the last step led to, by param_group, None where nothing was sent; waits for it where steps overlap."""
        results = tuple(remote.last_result for remote in self._groups[: self._stepped])
        self._warn_if_non_finite(results)
        return results

    @property
    def last_result(self) -> StepResult | None:
        """What the last step led to, in the first param_group; None before it, and where nothing was sent."""
        results = self.last_results
        return results[0] if results else None

    @property
    def loss_scale(self) -> float:
        """What to multiply the next loss by before its backward pass; 1 where nothing is scaled."""
        return 1.0 if self._scale is None else self._scale.value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds tensors, with a session of their own."""
        super().add_param_group(param_group)
        try:
            self._groups.append(self._open(self.param_groups[-1]))
        except BaseException:
            self.param_groups.pop()
            raise

    def step(  # type: ignore[override]  # torch types its step by two overloads; further keywords are allowed.
        self,
        closure: Callable[[], float] | None = None,
        *,
        loss: float | Tensor | None = None,
        sample_count: int | None = None,
        loss_scale: float | None = None,
    ) -> float | None:
        """Takes one step on the server with the tensors' gradients.

        Args:
          closure:      evaluates the model again and returns the loss, as in torch.
          loss:         at the present parameters, where there is no closure; the server's telemetry shows it, and some
                        optimizers need it.
          sample_count: that this gradient is the mean of; None means the optimizer's own setting.
          loss_scale:   that the gradients were multiplied by with the loss; None means the optimizer's own.

        Returns:
          What the closure returned.
        """
        value: float | None = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        told = loss if value is None else value
        number = None if told is None else float(told.detach() if isinstance(told, Tensor) else told)
        scale = self._scale.value if loss_scale is None and self._scale is not None else loss_scale
        self.wait()
        for group, remote in zip(self.param_groups, self._groups, strict=True):
            remote.step(
                lr=_checked_lr(group, remote),
                loss=number,
                sample_count=self._sample_count if sample_count is None else sample_count,
                loss_scale=scale,
            )
        self._stepped = len(self._groups)
        if self._scale is not None:
            self._scale.note(finite=not any(map(not_finite, self.last_results)))
        if not self._overlap:
            self._warn_if_non_finite(self.last_results)
        return value

    def wait(self) -> None:
        """Comes back when the tensors hold what the last step made of them.

        Only steps that overlap need it, before code reads parameters behind torch's back. Raises what became of a step.
        """
        for remote in self._overlapped():
            remote.wait()
        if self._overlap:
            self._warn_if_non_finite(self.last_results)

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward sends nothing inside; what it leaves in the tensors goes with the step.

        For every backward but the last of several whose gradients add up, and for one whose gradients are changed
        before the step. Without overlap all goes with the step, so this does nothing.
        """
        for remote in self._overlapped():
            remote.holding = True
        try:
            yield
        finally:
            for remote in self._overlapped():
                remote.holding = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch; what backward has sent since the last step is taken back."""
        for remote in self._overlapped():
            remote.forget()
        super().zero_grad(set_to_none)

    def pull(self) -> None:
        """Takes the sessions' present parameters over; the way on after StaleGradient or StaleGeneration."""
        for remote in self._groups:
            remote.pull()

    def state_dict(self) -> dict[str, Any]:
        """The param_groups and each session's whole optimizer state, its parameters included."""
        state = {**super().state_dict(), "sessions": [remote.export() for remote in self._groups]}
        return state if self._scale is None else {**state, "loss_scale": asdict(self._scale)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict` as if nothing had happened, to the bit; the tensors get its parameters.

        It replaces the state of the sessions on the server, so one worker of several loads it and the others `pull`.
        """
        states: list[GroupState] | None = state_dict.get("sessions")
        if states is None or len(states) != len(self._groups):
            raise ValueError(
                f"the state_dict holds {len(states or ())} sessions, this optimizer has {len(self._groups)}; only a "
                "state_dict of a RemoteOptimizer with the same param_groups can be loaded"
            )
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        if self._scale is not None and "loss_scale" in state_dict:
            self._scale = LossScale(**state_dict["loss_scale"])
        for remote, state in zip(self._groups, states, strict=True):
            remote.adopt(state)

    def close(self) -> None:
        """Disconnects, and stops a private server. Sessions on another server live on. Harmless when repeated."""
        try:
            self.wait()
        finally:
            self._end()

    def __enter__(self) -> "RemoteOptimizer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # What went wrong inside may be why the last step never ends.
            for remote in self._overlapped():
                remote.give_up()
            self._end()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a RemoteOptimizer holds connections and cannot be copied or pickled; use state_dict()")

    def _open(self, group: dict[str, Any]) -> RemoteGroup:
        """The session of a new param_group, with its weights there, or taken over from there."""
        names, tensors = trainable(group)
        recipe = self._sessions.recipe_of(group)
        session, created = self._sessions.create_or_join(len(self._groups), layout_of(names, tensors), recipe)
        worker = session.worker(
            self._worker_id,
            gradient_dtype=self._gradient_dtype,
            reply_dtype=self._reply_dtype,
            codec=self._codec,
            reply_codec=self._reply_codec,
        )
        self._resources.callback(worker.close)
        base_lr = session.learning_rate()
        if group["lr"] is None:
            group["lr"] = base_lr
        remote = (OverlappedGroup if self._overlap else RemoteGroup)(
            session,
            worker,
            tensors,
            frozen=[tensor for tensor in group["params"] if not tensor.requires_grad],
            base_lr=base_lr,
            settings=recipe.parameters if recipe else {},
        )
        if isinstance(remote, OverlappedGroup):
            self._resources.callback(remote.release)
        if not created:
            remote.pull()
        elif session.parameters_on is ParametersOn.SERVER:
            session.initialise(flat_values(tensors).numpy())
        return remote

    def _overlapped(self) -> list[OverlappedGroup]:
        return [remote for remote in self._groups if isinstance(remote, OverlappedGroup)]

    def _warn_if_non_finite(self, results: tuple[StepResult | None, ...]) -> None:
        searching = self._scale is not None and self._scale.growth_steps > 0  # It finds its way by them.
        self._warned = self._warned or (not searching and warned_of(results))


def _loss_scale(wanted: LossScale | float | Literal["dynamic"] | None) -> LossScale | None:
    if wanted is None or isinstance(wanted, LossScale):
        return wanted
    return LossScale() if wanted == "dynamic" else LossScale(value=float(wanted), growth_steps=0)


def _checked_lr(group: dict[str, Any], remote: RemoteGroup) -> float:
    """The learning rate of a group; ValueError when another of its settings is not what the session was made with."""
    for name, value in remote.settings.items():
        if name != LR and group.get(name, value) != value:
            raise ValueError(
                f"{name} of a param_group was changed from {value!r} to {group[name]!r}, but only lr can change while "
                "the session runs; a scheduler that cycles it has an option to leave it alone"
            )
    return float(group["lr"])
