"""Every test of the dynamics runs on each device that is here."""

import os
from collections.abc import Iterator

import pytest
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
if DEVICES == ["cpu"]:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton looks once, as it is imported.


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are small; threads of torch only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
