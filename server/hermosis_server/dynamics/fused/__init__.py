"""The fused pass: a batch's step on a processor, over the arena's rows themselves.

The flows of dynamics are the definition; here they follow one another on each row while it lies in the cache, compiled.
Before a session is touched its step is proven to stay finite. Float32 rows in host memory only.
"""

from hermosis_server.dynamics.fused.launch import Pool, Stepped, covers, step, warm_up
from hermosis_server.dynamics.fused.tables import APPLIED, NON_FINITE_GRADIENT, UNPROVEN, Number, Row, Whole

__all__ = [
    "APPLIED",
    "NON_FINITE_GRADIENT",
    "UNPROVEN",
    "Number",
    "Pool",
    "Row",
    "Stepped",
    "Whole",
    "covers",
    "step",
    "warm_up",
]
