"""Flower over its gRPC: in a round the server sends the weights to its clients, and they send their gradients back.

Flower's server leads, so the order to run goes to it and not to a worker. The round is the library's own
(`Server.fit_round` over client proxies); what surrounds it, choosing clients at random and evaluating, is left out.
"""

import logging
import os
import queue
import socket
from typing import Any

from benchmarks.peers.arguments import parse
from benchmarks.peers.child import MomentumServer, Voice, end_with_stdin, gradient, obey


def main() -> None:
    asked, voice = parse()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if asked.role == "server":
        serve(voice, asked.parameters, asked.workers)
    else:
        work(voice, asked.address, asked.parameters)


def serve(voice: Voice, parameters: int, workers: int) -> None:
    import numpy as np
    from flwr.common import FitIns, FitRes, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.client_manager import SimpleClientManager
    from flwr.server.client_proxy import ClientProxy
    from flwr.server.server import Server
    from flwr.server.strategy import FedAvg
    from flwr.server.superlink.fleet.grpc_bidi.grpc_server import start_grpc_server

    model = MomentumServer(parameters)
    taking_part = 1

    class Momentum(FedAvg):  # type: ignore[misc]
        def configure_fit(
            self, server_round: int, parameters: Parameters, client_manager: Any
        ) -> list[tuple[ClientProxy, FitIns]]:
            clients = list(client_manager.all().values())[:taking_part]
            return [(client, FitIns(parameters, {})) for client in clients]

        def aggregate_fit(
            self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: Any
        ) -> tuple[Parameters | None, dict[str, Any]]:
            if failures or len(results) != taking_part:
                raise RuntimeError(f"a Flower client failed: {failures}")
            gradients = [parameters_to_ndarrays(result.parameters)[0] for _, result in results]
            mean: Any = gradients[0] if len(gradients) == 1 else np.mean(gradients, axis=0, dtype=np.float32)
            return ndarrays_to_parameters([model.step(mean)]), {}

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    manager = SimpleClientManager()
    serving = start_grpc_server(manager, address)
    server = Server(client_manager=manager, strategy=Momentum())
    server.parameters = ndarrays_to_parameters([model.weights])
    voice.tell(address=address)
    manager.wait_for(workers, timeout=120)

    def exchange(clients: int) -> None:
        nonlocal taking_part
        taking_part = clients
        outcome = server.fit_round(server_round=1, timeout=600)
        if outcome is None or outcome[0] is None:
            raise RuntimeError("the Flower round came to nothing")
        server.parameters = outcome[0]

    obey(voice, {str(clients): [lambda clients=clients: exchange(clients)] for clients in range(1, workers + 1)})  # type: ignore[misc]
    serving.stop(None)


def work(voice: Voice, address: str, parameters: int) -> None:
    from flwr.client import NumPyClient, start_client

    mine = gradient(parameters)

    class Worker(NumPyClient):  # type: ignore[misc]
        def fit(self, parameters: Any, config: Any) -> tuple[Any, int, dict[str, Any]]:
            return [mine], 1, {}

    end_with_stdin()
    told: queue.SimpleQueue[None] = queue.SimpleQueue()
    voice.tell(ready=True)
    start_client(server_address=address, client=Worker().to_client(), insecure=True)
    told.get()


if __name__ == "__main__":
    main()
