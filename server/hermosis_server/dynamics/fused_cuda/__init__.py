"""The fused step on CUDA: whole rows of the arena through a step in one or two passes, by Triton.

The flows are the definition, and the scalars are theirs: integrators.take_step runs both. Triton is imported as the
first step is taken, so a house without it can ask whether it is there.
"""

from hermosis_server.dynamics.fused_cuda.bounds import stays_finite
from hermosis_server.dynamics.fused_cuda.launch import Groups, Rows, Stepped, available, covers, step

__all__ = ["Groups", "Rows", "Stepped", "available", "covers", "stays_finite", "step"]
