"""A calm twin for all tests of a process."""

from collections.abc import Iterator

import pytest
from tests.faults.twin import Twin, calm_twin


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    with calm_twin(tmp_path_factory.mktemp("twin")) as made:
        yield made
