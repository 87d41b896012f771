"""The step of a batch on the CPU, fused: one pass over the rows, in place, where the flows make many over copies.

The flows remain the definition. Compiled by Numba; a row is named by its address, so nothing is gathered.
"""

from hermosis_server.dynamics.fused.bounds import largest
from hermosis_server.dynamics.fused.launch import Alone, Stepped, step, warm_up
from hermosis_server.dynamics.fused.mean import mean_of
from hermosis_server.dynamics.fused.pool import SHARED_ELEMENTS, Pool
from hermosis_server.dynamics.fused.tables import ABSENT, Fate, Number, Row, Whole
from hermosis_server.dynamics.fused.traits import covers

__all__ = [
    "ABSENT",
    "SHARED_ELEMENTS",
    "Alone",
    "Fate",
    "Number",
    "Pool",
    "Row",
    "Stepped",
    "Whole",
    "covers",
    "largest",
    "mean_of",
    "step",
    "warm_up",
]
