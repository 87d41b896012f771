"""One real server for all tests of the client, in a process of its own."""

from collections.abc import Iterator

import pytest

from hermosis_client import Client
from hermosis_client.local_server import LocalServer


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout_s=20.0) as client:
        yield client
