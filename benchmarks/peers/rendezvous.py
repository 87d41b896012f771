"""How processes of torch.distributed find one another."""

import socket
import threading

from benchmarks.peers.child import Voice, end_with_stdin


def open_store(voice: Voice) -> str:
    """A free port for the server's store, told to the harness; the workers are started with it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    voice.tell(address=address)
    return address


def join(voice: Voice) -> None:
    """Serves on until the harness closes standard input."""
    voice.tell(ready=True)
    end_with_stdin()
    threading.Event().wait()
