"""Refusals of settings: got, wanted, what to do."""

import math

from hermosis_server.errors import InvalidHyperparameter

ROOT = "optimizer.hamiltonian."


def refuse(field: str, message: str) -> InvalidHyperparameter:
    """The error for one setting of the Hamiltonian; `field` is its path below `optimizer.hamiltonian`."""
    return InvalidHyperparameter(f"{field}: {message}", field=ROOT + field)


def number(
    field: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Refuses a number that is not finite or outside its bounds; `above` and `below` are themselves excluded."""
    bounds = [
        (f"above {above:g}" if above is not None else "", above is None or value > above),
        (f"at least {least:g}" if least is not None else "", least is None or value >= least),
        (f"below {below:g}" if below is not None else "", below is None or value < below),
        (f"at most {most:g}" if most is not None else "", most is None or value <= most),
    ]
    if not math.isfinite(value) or not all(holds for _, holds in bounds):
        wanted = " and ".join(["a finite number", *(words for words, _ in bounds if words)])
        raise refuse(field, f"got {value!r}, wanted {wanted}")
