"""Over crashes and cuts: who lost nothing goes on by itself, to the bit; everybody else is told, and pulls."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.faults.plans import Plan
from tests.faults.proxy import Proxy, proxy
from tests.faults.servers import Server, Wishes
from tests.faults.twin import Twin

from hermosis_client import Client, Durability, Fleet, FleetResult, Outcome
from hermosis_client.errors import HermosisError, SessionNotFound, StaleGeneration

RECIPES = ("adamw", "sgd", "rmsprop", "adam", "nesterov", "adagrad")
WORKER = "worker-0"
# Where a server dies, one after another: counted, not stepped; stepped; written in part; on disk and not told; told.
DEATHS = (
    "intake.admitted=kill@15",
    "intake.stepped=kill@8",
    "journal.half=kill@3",
    "journal.synced=kill@4",
    "keeper.before_acknowledging=kill@9",
    "keeper.after_acknowledging=kill@3",
    "intake.answered=kill@10",
)


def plans(durability: Durability, name: str) -> list[Plan]:
    return [
        Plan(name=f"{name}-{index}", recipe=recipe, parameters=40, durability=durability)
        for index, recipe in enumerate(RECIPES)
    ]


class House:
    """Servers that follow one another on one folder, behind one door.

    Attributes:
      deaths: of servers that were armed.
    """

    def __init__(self, folder: Path, door: Proxy) -> None:
        self.deaths = 0
        self.server = Server(folder / "data", folder / "log", Wishes())
        self.door = door
        self._folder = folder
        door.open(self.server.address)

    def kill(self, failpoints: str = "") -> None:
        """SIGKILL, and the next server, before the door lets anybody in."""
        self.door.shut()
        self.server.close()
        self.server = Server(self._folder / "data", self._folder / "log", Wishes(failpoints=failpoints))
        self.door.open(self.server.address)

    @contextmanager
    def mortal(self, deaths: Sequence[str]) -> Iterator[None]:
        """Servers that die where they are armed to, each followed by the next; the last one lives."""
        self.kill(deaths[0])
        done = threading.Event()

        def follow() -> None:
            for following in (*deaths[1:], ""):
                while not self.server.ended(0.1):
                    if done.is_set():
                        return
                self.deaths += 1
                self.kill(following)

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        self.server.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with proxy() as door:
        made = House(tmp_path, door)
        yield made
        made.close()


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.door.address, timeout_s=60) as made:
        yield made


def begun(client: Client, chosen: Sequence[Plan]) -> list[str]:
    """The sessions of plans, ready for their first contribution; their ids."""
    for plan in chosen:
        client.create_session(
            {"w": (plan.parameters,)}, plan.recipe, session_id=plan.name, durability=plan.durability
        ).initialise(plan.start())
    return [plan.name for plan in chosen]


def stepped(fleet: Fleet, chosen: Sequence[Plan]) -> FleetResult:
    """A contribution of each member, at the step that the fleet holds of it."""
    steps = fleet.steps.tolist()
    return fleet.exchange(
        np.stack([plan.gradient(WORKER, step) for plan, step in zip(chosen, steps, strict=True)]),
        losses=[plan.loss(step) for plan, step in zip(chosen, steps, strict=True)],
    )


def uncrashed(folder: Path, chosen: Sequence[Plan], steps: int) -> NDArray[np.float32]:
    """(steps, M, P) what a fleet gets of a server that nobody kills."""
    calm = [replace(plan, durability=Durability(mode="none")) for plan in chosen]
    server = Server(folder / "calm", folder / "calm.log", Wishes())
    try:
        with Client(server.address, timeout_s=60) as client:
            fleet = client.fleet(begun(client, calm), worker_id=WORKER)
            fleet.pull()
            return np.stack([np.array(stepped(fleet, calm).parameters) for _ in range(steps)])
    finally:
        server.close()


def refused(result: FleetResult) -> dict[int, type[HermosisError]]:
    return {index: type(error) for index, error in result.refusals.items()}


def test_a_durable_fleet_goes_on_over_every_kill_as_if_there_had_been_none(
    house: House, client: Client, twin: Twin, tmp_path: Path
) -> None:
    chosen, steps = plans(Durability(mode="journal", snapshot_every_steps=5), "kept"), 24
    right = uncrashed(tmp_path, chosen, steps)
    fleet = client.fleet(begun(client, chosen), worker_id=WORKER, ack_level="durable")
    fleet.pull()
    repeats = 0
    with house.mortal(DEATHS):
        for step in range(1, steps + 1):
            result = stepped(fleet, chosen)
            assert not result.refusals
            assert (result.step == step).all()
            assert (result.durable_step >= step).all()
            np.testing.assert_array_equal(result.parameters, right[step - 1])
            repeats += int(result.duplicate.sum())
    assert repeats, "of some the answer alone was lost"
    assert house.deaths == len(DEATHS)
    for plan in chosen:
        assert client.session(plan.name).digest() in twin.digests(plan, steps)


def test_each_member_is_told_what_a_kill_took_of_it_and_the_others_go_on(
    house: House, client: Client, twin: Twin
) -> None:
    chosen = [
        *plans(Durability(mode="snapshot", snapshot_every_steps=1000), "written"),
        replace(plans(Durability(mode="none"), "unkept")[0], name="unkept"),
    ]
    fleet = client.fleet(begun(client, chosen), worker_id=WORKER)
    fleet.pull()
    for step in range(1, 4):
        assert (stepped(fleet, chosen).step == step).all()
    for session in fleet.sessions[:3]:
        session.snapshot()
    house.kill()
    result = stepped(fleet, chosen)
    assert refused(result) == {**dict.fromkeys((3, 4, 5), StaleGeneration), 6: SessionNotFound}
    assert result.step[:3].tolist() == [4, 4, 4]
    assert result.refusals[3].metadata["step"] == "0"
    assert refused(stepped(fleet, chosen)) == refused(result), "until they are pulled"
    _, refusals = fleet.pull()
    assert list(refusals) == [6]
    assert fleet.steps[:6].tolist() == [5, 5, 5, 0, 0, 0]
    assert list(stepped(fleet, chosen).refusals) == [6]
    for plan, step in zip(chosen[:6], [6, 6, 6, 1, 1, 1], strict=True):
        assert client.session(plan.name).digest() in twin.digests(plan, step)


def test_a_worker_whose_counted_gradient_is_gone_is_told_until_it_pulls(house: House, client: Client) -> None:
    """It holds the step that the session is at; what is missing is a contribution that it was told of."""
    plan = replace(plans(Durability(mode="journal"), "counted")[0], workers=2)
    session = client.create_session(
        {"w": (plan.parameters,)}, plan.recipe, session_id=plan.name, workers=2, durability=plan.durability
    )
    session.initialise(plan.start())
    worker = session.worker(WORKER, ack_level="received", reply="none")
    worker.pull()
    assert worker.push(plan.gradient(WORKER, 0)).outcome is Outcome.RECEIVED
    house.kill()
    for _ in range(2):
        with pytest.raises(StaleGeneration):
            worker.push(plan.gradient(WORKER, 0))
    worker.pull()
    assert worker.push(plan.gradient(WORKER, 0)).sequence == 1


def test_connections_that_are_cut_in_the_middle_of_packed_messages_cost_no_step_and_add_none(
    house: House, client: Client, twin: Twin
) -> None:
    chosen = plans(Durability(mode="journal"), "cut")
    fleet = client.fleet(begun(client, chosen), worker_id=WORKER)
    fleet.pull()
    stepped(fleet, chosen)
    size = 4 * sum(plan.parameters for plan in chosen)
    for step in range(2, 12):
        cut = house.door.cut_after(1 + size * (step - 2) // 10)
        result = stepped(fleet, chosen)
        assert cut.is_set()
        assert not result.refusals
        assert (result.step == step).all()
    for plan in chosen:
        assert client.session(plan.name).digest() in twin.digests(plan, 11)
