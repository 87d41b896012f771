"""Twin: the same contributions on a calm server that nobody disturbs. Its digests are what recovery must lead to."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.plans import Plan
from tests.faults.race import Race
from tests.faults.servers import Server, Wishes

from hermosis.v1 import dynamics_pb2
from hermosis_client import Client, Durability, Session, Worker


def edited_profile() -> dynamics_pb2.ThermalProfile:
    """What a plan that is edited goes on with."""
    return dynamics_pb2.ThermalProfile(exponential=dynamics_pb2.ExponentialProfile(momentum_retention=0.8))


@dataclass(slots=True)
class _Line:
    """One plan's uninterrupted run, as far as anybody asked."""

    session: Session
    workers: list[Worker]
    digests: list[set[bytes]] = field(default_factory=list)  # by step; two where an edit came at that step


class Twin:
    """Digests of plans by step, found out when they are asked for. Any thread may ask."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._races: dict[Race, tuple[Session, dict[str, Worker], list[bytes]]] = {}

    def digests(self, plan: Plan, step: int) -> set[bytes]:
        """What the state digest can be after so many steps: before an edit there, and after it."""
        with self._lock:
            line = self._lines.get(plan.name)
            if line is None:
                line = self._lines[plan.name] = self._begun(plan)
            while len(line.digests) <= step:
                self._go_on(plan, line)
            return set(line.digests[step])

    def follow(self, race: Race, order: Sequence[tuple[str, int]]) -> list[bytes]:
        """Digests of all steps so far, after further contributions: worker and number of each, in their order."""
        with self._lock:
            if race not in self._races:
                session = self._session(race.plan, "")
                workers = {name: session.worker(name, shared_memory=False) for name in race.plan.worker_ids}
                self._races[race] = session, workers, [session.digest()]
            _, workers, digests = self._races[race]
            for worker_id, number in order:
                worker = workers[worker_id]
                result = worker.push(
                    race.plan.gradient(worker_id, number), loss=race.plan.loss(number), want_digest=True
                )
                digests.append(result.state_digest)
            return list(digests)

    def forget(self, races: Iterable[Race]) -> None:
        """Ends what was followed."""
        with self._lock:
            for race in races:
                if race in self._races:
                    self._races.pop(race)[0].close()

    def _session(self, plan: Plan, session_id: str) -> Session:
        session = self._client.create_session(
            {"w": (plan.parameters,)},
            plan.recipe,
            session_id=session_id,
            consistency="async" if plan.is_race else plan.consistency,
            durability=Durability(mode="none"),
        )
        session.initialise(plan.start())
        return session

    def _begun(self, plan: Plan) -> _Line:
        session = self._session(plan, plan.name)
        # Without memory that it shares: a twin lives as long as the tests do, and some of them count such memory.
        workers = [session.worker(worker_id, shared_memory=False) for worker_id in plan.worker_ids]
        return _Line(session, workers, [{session.digest()}])

    def _go_on(self, plan: Plan, line: _Line) -> None:
        step = len(line.digests) - 1
        told: list[bytes] = []

        def push(worker: Worker) -> None:
            gradient = plan.gradient(worker.worker_id, step)
            told.append(worker.push(gradient, loss=plan.loss(step), want_digest=True).state_digest)

        first, *others = line.workers
        threads = [threading.Thread(target=push, args=(worker,)) for worker in others]
        for thread in threads:
            thread.start()
        push(first)
        for thread in threads:
            thread.join()
        for worker in line.workers:
            worker.step = step + 1
        line.digests.append(set(told))
        if step + 1 == plan.edited_from:
            line.session.update(lr_scale=plan.lr_scale(step + 1), thermal_profile=edited_profile())
            line.digests[-1].add(line.session.digest())


@contextmanager
def calm_twin(folder: Path) -> Iterator[Twin]:
    """A twin with a server of its own."""
    server = Server(folder / "twin", folder / "twin.log", Wishes())
    try:
        with Client(server.address, timeout_s=120) as client:
            yield Twin(client)
    finally:
        server.close()
