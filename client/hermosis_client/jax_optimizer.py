"""remote: an optax.GradientTransformation whose steps are taken by a Hermosis server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import io_callback

from hermosis_client.coded import Codec, CodecName
from hermosis_client.numpy_optimizer import Array, NumpyOptimizer
from hermosis_client.records import Consistency, Recipe, RecipeValue
from hermosis_client.session import Session, WireDtype

_Params = TypeVar("_Params")


@dataclass(frozen=True)
class RemoteState:
    """What optax carries from step to step. A pytree of one leaf, `step`; the rest goes along as it is.

    Attributes:
      step:      updates so far, int32.
      optimizer: the worker's end of the session, made by `init`: its last_result, its session, its `close`. It
                 disconnects, and stops a private server, at the latest with this process.
    """

    step: jax.Array
    optimizer: NumpyOptimizer

    def pull(self, params: _Params) -> _Params:
        """The session's present parameters, as a pytree like `params`: where one begins that joins others."""
        self.optimizer.pull()
        leaves, tree = jax.tree.flatten(params)
        present = self.optimizer.parameters.values()
        # Copies: JAX would take aligned memory over as it is, and the next step writes into it.
        arrays = [jnp.array(array, leaf.dtype) for array, leaf in zip(present, leaves, strict=True)]
        pulled: _Params = jax.tree.unflatten(tree, arrays)
        return pulled


jax.tree_util.register_dataclass(RemoteState, data_fields=["step"], meta_fields=["optimizer"])


def remote(
    optimizer: Recipe | str | None = None,
    *,
    session: Session | str | None = None,
    address: str | None = None,
    worker_id: str = "",
    workers: int = 1,
    consistency: Literal["barrier", "async"] | Consistency = "barrier",
    lr: float | optax.Schedule | None = None,
    gradient_dtype: WireDtype = "float32",
    reply_dtype: WireDtype = "float32",
    codec: Codec | CodecName = "plain",
    reply_codec: Codec | CodecName = "plain",
    parameters_on: Literal["server", "worker"] = "server",
    sample_count: int = 0,
    timeout_s: float = 30.0,
    **settings: RecipeValue,
) -> optax.GradientTransformationExtraArgs:
    """Sends each step's gradients to a server; the updates lead to the parameters that it answers with.

        transformation = optax.chain(optax.clip_by_global_norm(1.0), remote("adamw", lr=1e-3))
        state = transformation.init(params)
        updates, state = transformation.update(gradients, state, params, value=loss)
        params = optax.apply_updates(params, updates)

    `init` makes or joins the session, of the leaves of `params` under the names of their paths, and is called outside
    jit; without an address it starts a private server. `update` works inside jit and scan, by an ordered callback, and
    outside; there a server's error is raised as it is, inside it comes as JAX wraps errors of callbacks. It needs
    `params`; `value`, which may be left out, is the loss. It comes last in a chain.

    An update is the server's new parameter less the one given. Where one is at most twice the other their sum is the
    server's to the bit (Sterbenz); elsewhere the sum is rounded by at most the update's own last place, which the next
    update makes good, so nothing adds up. For leaves narrower than float32 updates are float32, and `apply_updates`
    rounds the sum.

    Several workers train one model when each makes one with the same session, optimizer and workers, and a worker_id
    of its own; those that join begin from `state.pull(params)`.

    Args:
      lr:       learning rate, or a schedule of it over this worker's steps; None means the recipe's default.
      settings: of the recipe, such as weight_decay. All others as for `NumpyOptimizer`.
    """
    # What a schedule says is sent with each step as a multiple of the session's own rate.
    rate = 1.0 if callable(lr) else lr

    def init(params: optax.Params) -> RemoteState:
        end = NumpyOptimizer(
            _arrays(params),
            optimizer,
            session=session,
            address=address,
            worker_id=worker_id,
            workers=workers,
            consistency=consistency,
            lr=rate,
            gradient_dtype=gradient_dtype,
            reply_dtype=reply_dtype,
            codec=codec,
            reply_codec=reply_codec,
            parameters_on=parameters_on,
            sample_count=sample_count,
            timeout_s=timeout_s,
            **settings,
        )
        return RemoteState(jnp.zeros((), jnp.int32), end)

    def update(
        updates: optax.Updates,
        state: RemoteState,
        params: optax.Params | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **others: object,
    ) -> tuple[optax.Updates, RemoteState]:
        if params is None:
            raise ValueError("a remote transformation answers with what is added to the parameters: give update params")

        def step(
            gradients: Sequence[jax.Array], old: Sequence[jax.Array], loss: jax.Array | None, now: jax.Array | None
        ) -> list[Array]:
            if now is not None:
                state.optimizer.lr = float(now)
            parameters = state.optimizer.parameters
            state.optimizer.step(
                {name: np.asarray(leaf) for name, leaf in zip(parameters, gradients, strict=True)},
                loss=None if loss is None else float(loss),
            )
            return [
                new - np.asarray(leaf, shape.dtype)
                for new, leaf, shape in zip(parameters.values(), old, shapes, strict=True)
            ]

        old, tree = jax.tree.flatten(params)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in old]
        now = lr(state.step) if callable(lr) else None
        words = (tree.flatten_up_to(updates), old, value, now)
        if _traced((words, state)):
            differences = io_callback(step, shapes, *words, ordered=True)
        else:  # A callback outside jit would be compiled at every step.
            differences = [jnp.asarray(each) for each in step(*words)]
        return jax.tree.unflatten(tree, differences), RemoteState(state.step + 1, state.optimizer)

    return optax.GradientTransformationExtraArgs(init, update)


def _traced(tree: object) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _arrays(params: optax.Params) -> Mapping[str, Array]:
    """float32 copies of the leaves, by their paths; a pytree that is a leaf is called "parameters"."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if _traced(leaves):
        raise TypeError("init of a remote transformation makes a session; call it outside jit")
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "parameters": np.array(leaf, np.float32)
        for path, leaf in leaves
    }
