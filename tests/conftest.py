"""What all tests of a process stand on."""

import gc


def pytest_sessionstart() -> None:
    gc.disable()  # a million objects are imported now, none of them garbage


def pytest_collection_finish() -> None:
    gc.freeze()  # and no collection during the tests shall walk through them: that takes a second each time
    gc.enable()
