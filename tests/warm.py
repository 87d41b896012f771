"""Warm: what commands and workers of the suite have in common, imported and compiled once, before they are forked."""

import gc
import importlib

gc.disable()
for name in (
    "benchmarks.slow_links.warm",
    "hermosis_server.app",
    "hermosis_server.cli.root",
    "hermosis_server.cli.serve",
    "hermosis_sidecar.__main__",
    "tests.faults.planted",
):
    importlib.import_module(name)

importlib.import_module("torch").set_num_threads(1)  # a fork takes no other threads along
importlib.import_module("hermosis_server.dynamics.fused").warm_up()
gc.freeze()  # a collection that walked through all this would copy its pages for each fork
gc.enable()
