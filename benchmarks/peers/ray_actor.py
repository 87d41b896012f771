"""A Ray actor that holds the weights; gradients and weights travel through Ray's shared-memory store."""

import logging
import os
import secrets
import tempfile
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.arguments import parse
from benchmarks.peers.child import MomentumServer, Voice, gradient, obey
from benchmarks.peers.rendezvous import serve_until_told

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
    if asked.role == "server":
        with tempfile.TemporaryDirectory(prefix="benchmark-ray-") as folder:
            serve(voice, asked.parameters, Path(folder) / "token")
        os._exit(0)  # nothing that is under way matters
    else:
        work(voice, asked.address, asked.parameters)


def serve(voice: Voice, parameters: int, token: Path) -> None:
    """A cluster of its own. Whoever joins one may run anything in it, so this one has a token of its own too."""
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    use(token)
    import ray

    context = ray.init(
        num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, namespace="benchmark",
        logging_level=logging.ERROR, log_to_driver=False,
    )  # fmt: skip
    holder = ray.remote(Holder).options(name="holder", num_cpus=0).remote(parameters)
    ray.get(holder.step.remote(gradient(parameters)))
    voice.tell(address=f"{context.address_info['address']},{token}")
    serve_until_told(voice)


def work(voice: Voice, address: str, parameters: int) -> None:
    place, _, token = address.partition(",")
    use(Path(token))
    import ray

    ray.init(address=place, namespace="benchmark", logging_level=logging.ERROR, log_to_driver=False)
    holder = ray.get_actor("holder")
    mine = gradient(parameters)
    weights = np.zeros(parameters, np.float32)

    def view() -> NDArray[np.float32]:
        """The weights as Ray gives them: where they lie in its store, only to be read."""
        answer: NDArray[np.float32] = ray.get(holder.step.remote(mine))
        return answer

    def land() -> None:
        """The weights in memory of the worker's own, as all others have them at the end of an exchange."""
        weights[:] = view()

    obey(voice, {"one": [land], "view": [view]})


def use(token: Path) -> None:
    """Before Ray is imported."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_AUTH_TOKEN", None)


if __name__ == "__main__":
    # The actor's class must have a name that its process can import.
    from benchmarks.peers import ray_actor

    ray_actor.main()
