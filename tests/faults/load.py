"""Load: everything at once through one door: workers of every kind, a fleet, a reader, and a manager who never rests.

Its threads hold on to their calls while the server is away, as workers do, and note in the ledger what they hear. Each
may go so far as it is allowed and then waits, so that a load that meets no fault comes to rest by itself.
"""

import threading
from collections.abc import Callable

import numpy as np
from tests.faults.ledger import Ledger
from tests.faults.manager import Manager
from tests.faults.plans import ASYNC, BARRIER, BOUNDED, FLEET, JOURNALLED, MANAGED, SNAPSHOTS, Plan
from tests.faults.race import Race

from hermosis_client import Client, Session, Worker
from hermosis_client.errors import StaleGeneration, StaleGradient

PATIENCE_S = 120.0


class Stopped(Exception):
    """The load was told to end."""


class Turns:
    """How far each thread may go."""

    def __init__(self) -> None:
        # Two things to wait for: a thread that stands still must not be woken by another that does, nor wake it.
        lock = threading.Lock()
        self._granted, self._changed = threading.Condition(lock), threading.Condition(lock)
        self._allowed: dict[str, int] = {}
        self._idle: set[str] = set()
        self._stopped = False
        self._broken = False

    def join(self, name: str) -> None:
        with self._changed:
            self._allowed[name] = 0

    def take(self, name: str) -> None:
        """Waits until that thread may take another turn."""
        with self._changed:
            while not self._allowed[name] and not self._stopped:
                self._idle.add(name)
                self._changed.notify_all()
                self._granted.wait()
            self._idle.discard(name)
            if self._stopped:
                raise Stopped
            self._allowed[name] -= 1
            self._changed.notify_all()

    def leave(self, name: str, *, broken: bool) -> None:
        """A thread ends; broken, it could not go on, and nobody should wait for those who wait for it."""
        with self._changed:
            self._broken |= broken
            self._allowed.pop(name, None)
            self._idle.discard(name)
            self._changed.notify_all()

    def allow(self, count: int) -> None:
        """Lets every thread take so many turns more."""
        with self._changed:
            for name in self._allowed:
                self._allowed[name] = count
            self._idle.clear()
            self._granted.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._granted.notify_all()

    def rested(self, until: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
        """Waits until all threads have used their turns or one broke, or something else is the case."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._idle == set(self._allowed) or self._broken or until(), timeout_s
            )

    def wake(self) -> None:
        """Lets whoever waits in `rested` look again."""
        with self._changed:
            self._changed.notify_all()


class Load:
    """The mixed load.

    Args:
      address: of the door.
      ledger:  where what is heard is noted.
    """

    def __init__(self, address: str, ledger: Ledger) -> None:
        self.turns = Turns()
        self._ledger = ledger
        self._client = Client(address, timeout_s=PATIENCE_S)
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Makes the sessions and lets the threads wait for their first turns."""
        for plan in (ASYNC, BOUNDED):
            session, race = self._create(plan), Race(plan=plan)
            self._ledger.races[plan.name] = race
            for worker_id in plan.worker_ids:
                self._thread(f"{plan.name}/{worker_id}", self._racing(session, race, worker_id))
        for plan in (JOURNALLED, BARRIER, SNAPSHOTS):
            session = self._create(plan)
            for worker_id in plan.worker_ids:
                self._thread(f"{plan.name}/{worker_id}", self._contributing(session, plan, worker_id))
        self._thread("fleet", self._fleet([self._create(plan) for plan in FLEET]))
        self._thread("reader", self._reading(self._client.session(JOURNALLED.name)))
        manager = Manager(self._client, self._ledger, MANAGED, lambda: self.turns.take("manager"))
        self._thread("manager", manager.work)

    def stop(self) -> None:
        """Ends the threads; those in a call end with the client."""
        self.turns.stop()
        self._client.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _create(self, plan: Plan) -> Session:
        session = self._client.create_session(
            {"w": (plan.parameters,)},
            plan.recipe,
            session_id=plan.name,
            consistency=plan.consistency,
            durability=plan.durability,
        )
        session.initialise(plan.start())
        if not plan.is_race:
            self._ledger.opens(plan.name, plan)
        return session

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        self.turns.join(name)

        def run() -> None:
            broken = False
            try:
                work()
            except Stopped:
                pass
            except Exception as error:
                broken = not self.turns.stopped  # a call that was under way ends with the client
                if broken:
                    self._ledger.accuse("P2", name, f"it was not told how to go on, but {error!r}")
            finally:
                self.turns.leave(name, broken=broken)

        thread = threading.Thread(target=run, name=f"faults-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _contributing(self, session: Session, plan: Plan, worker_id: str) -> Callable[[], None]:
        def work() -> None:
            worker = session.worker(worker_id, ack_level=plan.ack_level)  # type: ignore[arg-type]
            worker.pull()
            while True:
                self.turns.take(f"{plan.name}/{worker_id}")
                contribute(worker, session.session_id, plan, self._ledger)

        return work

    def _racing(self, session: Session, race: Race, worker_id: str) -> Callable[[], None]:
        plan, ledger = race.plan, self._ledger

        def work() -> None:
            worker = session.worker(worker_id, ack_level=plan.ack_level)  # type: ignore[arg-type]
            worker.pull()
            number = 1
            while True:
                self.turns.take(f"{plan.name}/{worker_id}")
                race.sends(worker_id, number)
                gradient, loss = plan.gradient(worker_id, number), plan.loss(number)
                try:
                    if plan.mode == "async":
                        result, _ = worker.exchange(gradient, loss=loss, want_digest=True)
                    else:  # Who is held back takes parameters of later, and hears their step in place of its own.
                        result = worker.push(gradient, loss=loss, want_digest=True)
                except StaleGeneration:
                    ledger.told_to_resume()
                    worker.pull()
                    counted = {each.worker_id: each.next_sequence for each in session.workers()}
                    number = counted.get(worker_id, 1)
                    continue
                if result.sequence != number:
                    ledger.accuse("P3", plan.name, f"contribution {number} of {worker_id} came as {result.sequence}")
                ledger.races_on(race, worker_id, result)
                number += 1

        return work

    def _fleet(self, sessions: list[Session]) -> Callable[[], None]:
        plans = FLEET

        def work() -> None:
            fleet = self._client.fleet(sessions, worker_id="worker-0")
            fleet.pull()
            while True:
                self.turns.take("fleet")
                steps = [int(step) for step in fleet.steps]
                for plan, step in zip(plans, steps, strict=True):
                    self._ledger.sends(plan.name, step)
                result = fleet.exchange(
                    np.stack([plan.gradient("worker-0", step) for plan, step in zip(plans, steps, strict=True)]),
                    losses=[plan.loss(step) for plan, step in zip(plans, steps, strict=True)],
                )
                for index, plan in enumerate(plans):
                    if index in result.refusals:
                        error = result.refusals[index]
                        if not isinstance(error, StaleGeneration | StaleGradient):
                            raise error
                        self._ledger.told_to_resume(plan.name, steps[index])
                    else:
                        self._went_on(plan, steps[index], int(result.step[index]))
                        self._ledger.hears_step(plan.name, int(result.step[index]), 0)
                if result.refusals:
                    fleet.pull(members=sorted(result.refusals))

        return work

    def _went_on(self, plan: Plan, before: int, after: int) -> None:
        if after != before + 1:
            self._ledger.accuse("P3", plan.name, f"a contribution at step {before} was acknowledged as step {after}")

    def _reading(self, session: Session) -> Callable[[], None]:
        def work() -> None:
            reader = session.worker("reader")
            while True:
                self.turns.take("reader")
                known, life = self._ledger.heard(session.session_id), self._ledger.lives
                reader.pull()
                if life == self._ledger.lives:
                    self._ledger.tested("P7")
                    if (reader.step or 0) < known:
                        self._ledger.accuse(
                            "P7", session.session_id, f"a pull showed step {reader.step} after {known} was acknowledged"
                        )

        return work


def contribute(worker: Worker, session_id: str, plan: Plan, ledger: Ledger) -> None:
    """One contribution, computed at the step that the worker holds; a worker that is told to resume pulls."""
    step = worker.step or 0
    ledger.sends(session_id, step)
    durable = plan.ack_level == "durable"
    try:
        result, _ = worker.exchange(
            plan.gradient(worker.worker_id, step),
            loss=plan.loss(step),
            want_digest=True,
        )
    except (StaleGeneration, StaleGradient):
        ledger.told_to_resume(session_id if plan.workers == 1 else "", step)
        worker.pull()
        return
    if result.step != step + 1:
        ledger.accuse("P3", session_id, f"a contribution at step {step} was acknowledged as step {result.step}")
    ledger.hears(session_id, result, durable=durable)
