"""Lineage: whether a worker may go on by itself after its server died. One rule; see docs/decisions/0078."""

from hermosis.v1 import gradient_pb2


def goes_on(opened: gradient_pb2.SessionOpened, *, generation: int, step: int | None, following: int) -> bool:
    """Whether a session only recovered from crashes since a generation, and lost nothing that a worker builds on.

    Args:
      opened:     the session as it is now.
      generation: that the worker knows.
      step:       of the parameters that the worker holds; None where it holds none.
      following:  the number of the worker's next contribution; the server may have it already.
    """
    since = generation - (opened.generation - len(opened.recovered_steps))  # recoveries that the worker has seen
    if step is None or generation < opened.replaced_generation or since < 0:
        return False
    unseen = opened.recovered_steps[since:]
    return all(step <= recovered for recovered in unseen) and opened.next_sequence in (following, following + 1)
