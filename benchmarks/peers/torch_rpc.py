"""A parameter server of torch.distributed.rpc: the gradient as the argument of a remote call, the weights returned."""

import os

import numpy as np
import torch

from benchmarks.peers.arguments import parse
from benchmarks.peers.child import MomentumServer, gradient, obey
from benchmarks.peers.rendezvous import open_store, serve_until_told

model: MomentumServer


def step(gradient: torch.Tensor) -> torch.Tensor:
    """Runs in the server."""
    return torch.from_numpy(model.step(gradient.numpy()))


def main() -> None:
    global model
    asked, voice = parse()
    from torch.distributed import rpc

    serves = asked.role == "server"
    address = asked.address or open_store(voice)
    os.environ["TP_SOCKET_IFNAME"] = "lo"
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://{address}",
        rpc_timeout=600,
        _transports=["uv"] if asked.tcp else None,
        _channels=["basic"] if asked.tcp else None,
    )
    if serves:
        model = MomentumServer(asked.parameters)
    name = "server" if serves else f"worker{asked.rank}"
    torch.set_num_threads(1)
    rpc.init_rpc(name, rank=asked.rank, world_size=1 + asked.workers, rpc_backend_options=options)  # type: ignore[no-untyped-call]
    if serves:
        serve_until_told(voice)
        os._exit(0)  # nothing that is under way matters
    mine = torch.from_numpy(gradient(asked.parameters))
    weights = np.zeros(asked.parameters, np.float32)

    def exchange() -> None:
        weights[:] = rpc.rpc_sync("server", step, args=(mine,)).numpy()

    obey(voice, {"one": [exchange]})


if __name__ == "__main__":
    # What is called in the server must be found there under the same name.
    from benchmarks.peers import torch_rpc

    torch_rpc.main()
