"""A server over gloo's send and receive: a thread for each worker, each with a process group of its own."""

import os
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

from benchmarks.peers.arguments import parse
from benchmarks.peers.child import MomentumServer, gradient, obey
from benchmarks.peers.rendezvous import open_store, serve_until_told

PATIENCE = timedelta(hours=1)  # an idle peer waits for its turn


def main() -> None:
    asked, voice = parse()
    address = asked.address or open_store(voice)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    world = 1 + asked.workers
    dist.init_process_group("gloo", f"tcp://{address}", rank=asked.rank, world_size=world, timeout=PATIENCE)
    groups = {rank: dist.new_group([0, rank], timeout=PATIENCE) for rank in range(1, world)}
    if asked.role == "worker":
        mine = torch.from_numpy(gradient(asked.parameters))
        weights = torch.zeros(asked.parameters)

        def exchange() -> None:
            dist.send(mine, 0, group=groups[asked.rank])
            dist.recv(weights, 0, group=groups[asked.rank])

        obey(voice, {"one": [exchange]})
        return
    model = MomentumServer(asked.parameters)
    answer = torch.from_numpy(model.weights)

    def serve(rank: int) -> None:
        received = torch.zeros(asked.parameters)
        while True:
            dist.recv(received, rank, group=groups[rank])
            model.step(received.numpy())
            dist.send(answer, rank, group=groups[rank])

    for rank in range(1, world):
        threading.Thread(target=serve, args=(rank,), daemon=True).start()
    serve_until_told(voice)
    os._exit(0)  # nothing that is under way matters


if __name__ == "__main__":
    main()
