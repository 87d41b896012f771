"""What the command lines of all peers share."""

import argparse

from benchmarks.peers.child import Voice, keep_freed_memory


def parse() -> tuple[argparse.Namespace, Voice]:
    """Role, sizes and settings; the allocator's are applied here, before the peer's libraries are loaded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "worker"])
    parser.add_argument("--address", default="", help="of the server, for a worker")
    parser.add_argument("--parameters", type=int, required=True, help="P, float32")
    parser.add_argument("--workers", type=int, default=2, help="that will take part")
    parser.add_argument("--rank", type=int, default=0, help="of this worker, from 1")
    parser.add_argument("--keep-memory", action="store_true", help="Hermosis' allocator settings")
    parser.add_argument("--tcp", action="store_true", help="no shared memory, where the peer has a choice")
    asked = parser.parse_args()
    if asked.keep_memory:
        keep_freed_memory()
    return asked, Voice.take()
