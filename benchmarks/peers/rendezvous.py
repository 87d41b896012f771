"""How processes of torch.distributed find one another."""

import os
import socket

from benchmarks.peers.child import Voice


def open_store(voice: Voice) -> str:
    """A free port for the server's store, told to the harness; the workers are started with it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    voice.tell(address=address)
    return address


def serve_until_told(voice: Voice) -> None:
    """Returns when the harness closes standard input, which is also when it has gone."""
    voice.tell(ready=True)
    while os.read(0, 4096):
        pass
