"""Warm: what every server of this suite has in common, imported and compiled once, before it is forked."""

import torch
from tests.faults import planted, servers

from hermosis_server import app
from hermosis_server.cli import root, serve
from hermosis_server.dynamics import fused

torch.set_num_threads(1)  # a fork takes no other threads along
fused.warm_up()

__all__ = ["app", "planted", "root", "serve", "servers"]
