"""A calm twin for all tests of a process, and servers that follow one another on one folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.faults.plans import Plan
from tests.faults.servers import SEGMENT_BYTES, Server, Wishes
from tests.faults.twin import Twin, calm_twin

from hermosis_client import Client, Session, Worker
from hermosis_client.errors import HermosisError

Start = Callable[..., tuple[Server, Client]]


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    with calm_twin(tmp_path_factory.mktemp("twin")) as made:
        yield made


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a server on the test's folder, with a client of its own; the one before is killed."""
    running: list[tuple[Server, Client]] = []

    def end() -> None:
        for server, client in running:
            client.close()
            server.close()
        running.clear()

    def begin(
        failpoints: str = "",
        *,
        timeout_s: float = 60.0,
        folder: Path | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> tuple[Server, Client]:
        end()
        wishes = Wishes(failpoints=failpoints, segment_bytes=segment_bytes)
        server = Server(folder or tmp_path / "data", tmp_path / "log", wishes)
        running.append((server, Client(server.address, timeout_s=timeout_s)))
        return running[-1]

    yield begin
    end()


def begun(client: Client, plan: Plan) -> Session:
    """A plan's session, ready for its first contribution."""
    session = client.create_session(
        {"w": (plan.parameters,)},
        plan.recipe,
        session_id=plan.name,
        workers=plan.workers,
        durability=plan.durability,
    )
    session.initialise(plan.start())
    return session


def stepped(worker: Worker, plan: Plan, count: int = 1) -> int:
    """So many contributions of the plan, each at the step that the worker holds; gives the step."""
    if worker.step is None:
        worker.pull()
    for _ in range(count):
        step = worker.step or 0
        result, _ = worker.exchange(plan.gradient(worker.worker_id, step), loss=plan.loss(step))
        assert result.step == step + 1
    return worker.step or 0


def until_refused(worker: Worker, plan: Plan, count: int) -> tuple[int, HermosisError]:
    """Contributions until one fails: the last step that was acknowledged, and the failure."""
    acknowledged = worker.step or 0
    try:
        for _ in range(count):
            acknowledged = stepped(worker, plan)
    except HermosisError as error:
        return acknowledged, error
    raise AssertionError(f"{count} steps were acknowledged, and nothing has failed")
