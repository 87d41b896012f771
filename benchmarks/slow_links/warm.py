"""Warm: what every worker has in common, imported once, before it is forked."""

import torch

from benchmarks.slow_links import task, worker

torch.set_num_threads(1)  # a fork takes no other threads along
task.digits()
torch.optim.AdamW([torch.zeros(1)])  # the first optimizer imports a compiler

__all__ = ["task", "worker"]
