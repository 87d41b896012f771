"""``hermosis up``: server and sidecar as two processes that live and end together."""

import os
import queue
import sys

from hermosis_server.processes import Child, ChildFailed, sigterm_as_interrupt, waited_for

START_S = 120.0


def run(*, port: int, page_port: int, data_folder: str | None, device: str | None) -> int:
    """Runs both until Ctrl-C or until one ends. Returns the exit status."""
    server_flags = ["--port", str(port)]
    history_flags: list[str] = []
    if data_folder is not None:
        server_flags += ["--data-folder", data_folder]
        history_flags = ["--history-folder", f"{os.path.normpath(data_folder)}-history"]  # beside it
    if device is not None:
        server_flags += ["--device", device]
    ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
    children: list[Child] = []
    try:
        with sigterm_as_interrupt():
            children.append(_child("server", ["hermosis_server", "serve", *server_flags], ended))
            address = children[0].address(START_S)
            page_flags = ["--server", address, "--port", str(page_port), *history_flags]
            children.append(_child("sidecar", ["hermosis_sidecar", *page_flags], ended))
            page = children[1].address(START_S)
            print(f"server   {address}   (gRPC)\npage     {page}\nCtrl-C stops both.", flush=True)
            raise waited_for(ended).failure()
    except ChildFailed as error:
        print(f"hermosis: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        # The page first: it would only complain about a server that is gone.
        for child in reversed(children):
            child.close()


def _child(name: str, arguments: list[str], ended: "queue.SimpleQueue[Child]") -> Child:
    return Child(name, [*arguments, "--until-stdin-closes"], on_end=ended.put)
