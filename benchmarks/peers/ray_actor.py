"""A Ray actor that holds the weights; gradients and weights travel through Ray's shared-memory store."""

import logging
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.arguments import parse
from benchmarks.peers.child import MomentumServer, gradient, obey
from benchmarks.peers.rendezvous import join

STORE_BYTES = 2 << 30


class Holder:
    """The actor."""

    def __init__(self, parameters: int) -> None:
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._model = MomentumServer(parameters)

    def step(self, gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.step(gradient)


def main() -> None:
    asked, voice = parse()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False} if asked.role == "server" else {}
    if asked.role == "server":
        context = ray.init(
            num_cpus=2, object_store_memory=STORE_BYTES, logging_level=logging.ERROR, log_to_driver=False,
            namespace="benchmark", **quiet,
        )  # fmt: skip
        holder = ray.remote(Holder).options(name="holder", num_cpus=0).remote(asked.parameters)
        ray.get(holder.step.remote(gradient(asked.parameters)))
        voice.tell(address=context.address_info["address"])
        join(voice)
        return
    ray.init(address=asked.address, namespace="benchmark", logging_level=logging.ERROR, log_to_driver=False)
    holder = ray.get_actor("holder")
    mine = gradient(asked.parameters)

    def exchange() -> None:
        ray.get(holder.step.remote(mine))

    obey(voice, {"one": [exchange]})


if __name__ == "__main__":
    # The actor's class must have a name that its process can import.
    from benchmarks.peers import ray_actor

    ray_actor.main()
