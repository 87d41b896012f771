"""What all tests of a process stand on."""

import gc
import os

# Of torch, here and in programs that tests start; a server says its own number. Threads of OpenMP wait by spinning, and
# where every core has a test process of its own, that was half of what the tests with larger tensors took.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_sessionstart() -> None:
    gc.disable()  # a million objects are imported now, none of them garbage


def pytest_collection_finish() -> None:
    gc.freeze()  # and no collection during the tests shall walk through them: that takes a second each time
    gc.enable()
