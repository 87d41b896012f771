"""Warm: what commands and workers of the suite have in common, imported and compiled once, before they are forked."""

import gc

import torch
from tests.faults import planted

from benchmarks.slow_links import warm as workers
from hermosis_server import app
from hermosis_server.cli import root, serve
from hermosis_server.dynamics import fused
from hermosis_sidecar import __main__ as sidecar

torch.set_num_threads(1)  # a fork takes no other threads along
fused.warm_up()
gc.freeze()  # a collection that walked through all this would copy its pages for each fork

__all__ = ["app", "planted", "root", "serve", "sidecar", "workers"]
