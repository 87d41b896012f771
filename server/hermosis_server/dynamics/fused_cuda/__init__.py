"""The fused step on CUDA: whole rows of the arena through a step in one or two passes, by Triton.

The flows are the definition, the scalars are theirs: integrators.take_step runs both. Nothing here is imported before
`step` is called, so that a house without Triton can ask.
"""

import functools
import importlib.util

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.kinetic import KineticKind, NormScope

__all__ = ["available", "covers"]


@functools.cache
def available() -> bool:
    """Whether Triton is installed; it comes with the CUDA builds of torch."""
    return importlib.util.find_spec("triton") is not None


def covers(family: Family) -> bool:
    """Whether the kernels know the family's rows, and a step can be foreseen, since the profile does not feed back."""
    if family.matrix or family.needs_loss:
        return False
    if family.norm_scope is not NormScope.COORDINATE:
        return True
    known = family.kinetic in (KineticKind.CLASSICAL, KineticKind.RELATIVISTIC)
    return known and not family.conformal
