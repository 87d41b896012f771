"""A process of Hermosis workers, over the client's public interface."""

import json
import sys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.child import Exchange, Voice, gradient, obey
from benchmarks.speed.rigs import segment_option
from hermosis_client import Client, Session


def main() -> None:
    address, seats = sys.argv[1], json.loads(sys.argv[2])
    voice = Voice.take()
    cases: dict[str, list[Exchange]] = {}
    with Client(address, timeout_s=300.0) as client:
        sessions: dict[str, Session] = {}
        for seat in seats:
            name = seat["session_id"]
            sessions[name] = sessions.get(name) or client.session(name)
            beside = cases.setdefault(seat["case"], [])
            beside.append(exchange(sessions[name], seat, len(beside)))
        obey(voice, cases)


def exchange(session: Session, seat: dict[str, str], place: int) -> Exchange:
    """One round trip of a seat, the same gradient each time; `place` tells seats of one case apart."""
    size = session.layout.parameter_count
    mine, out = same_gradient(size), same_memory(size, place)
    worker = session.worker(
        seat["worker_id"],
        gradient_dtype=seat["dtype"],  # type: ignore[arg-type]
        reply_dtype=seat["dtype"],  # type: ignore[arg-type]
        **segment_option(bool(seat["shared_memory"])),  # type: ignore[arg-type]
        ack_level=seat["ack_level"],  # type: ignore[arg-type]
    )

    def whole() -> None:
        outcome, _ = worker.exchange(mine, out=out)
        if not outcome.applied:  # it would be fast, and no measurement
            raise RuntimeError(f"the server answered {outcome.outcome.name}")

    return whole


same_gradient = cache(gradient)  # only read


@cache
def same_memory(size: int, place: int) -> NDArray[np.float32]:
    """Where answers land; cases do not run at the same time, so they share it."""
    return np.zeros(size, np.float32)


if __name__ == "__main__":
    main()
