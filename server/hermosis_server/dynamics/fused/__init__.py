"""Local stub."""

from hermosis_server.dynamics.fused.tables import Row, Whole, Number, Fate

APPLIED, NON_FINITE_GRADIENT, UNPROVEN = 0, 1, 2


class Pool:
    def __init__(self, threads: int) -> None: ...


def covers(family: object) -> bool:
    return False


def step(*a: object, **k: object) -> object:
    raise NotImplementedError
