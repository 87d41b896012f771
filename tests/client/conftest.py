"""One real server for all tests of the client, in a process of its own."""

from collections.abc import Iterator

import pytest
from tests.forking import WarmServer

from hermosis_client import Client


@pytest.fixture(scope="session")
def server() -> Iterator[WarmServer]:
    with WarmServer() as server:
        yield server


@pytest.fixture
def client(server: WarmServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=20.0) as client:
        yield client
