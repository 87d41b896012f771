"""Manager: every management call in turn, on sessions that come and go; each call is repeated until it is answered.

It knows what must be there after each answer, and that every state it passes is one of its plan's uninterrupted run.
"""

import contextlib
import itertools
from collections.abc import Callable

import numpy as np
from tests.faults.ledger import Ledger
from tests.faults.plans import Plan
from tests.faults.twin import edited_profile

from hermosis_client import Client, Session, Worker
from hermosis_client.errors import InvalidRequest, SessionNotFound, StaleGeneration, StaleGradient


class Manager:
    """One life of a session after another: create, edit, pause, import, restore, fork, close.

    Args:
      turn: waits until the next call may be made.
    """

    def __init__(self, client: Client, ledger: Ledger, plan: Plan, turn: Callable[[], None]) -> None:
        self._client = client
        self._ledger = ledger
        self._plan = plan
        self._turn = turn

    def work(self) -> None:
        """Goes on until `turn` raises."""
        for number in itertools.count():
            self._life(f"{self._plan.name}-{number}")

    def _life(self, session_id: str) -> None:
        plan, ledger = self._plan, self._ledger
        self._turn()
        session = self._client.create_session(
            {"w": (plan.parameters,)}, plan.recipe, session_id=session_id, durability=plan.durability
        )
        session.initialise(plan.start())
        ledger.opens(session_id, plan)
        worker = session.worker("worker-0", ack_level="durable")
        worker.pull()
        self._to(session, worker, 1)
        exported = session.export_state()
        self._to(session, worker, 2)
        self._pause(session)
        self._turn()
        ledger.set_back(session_id, 1)
        session.import_state(exported)
        ledger.set_back(session_id, 1)
        worker.pull()
        self._to(session, worker, plan.edited_from)
        self._turn()
        session.update(lr_scale=plan.lr_scale(plan.edited_from))
        session.update(thermal_profile=edited_profile())
        self._to(session, worker, plan.edited_from + 2)
        self._restore(session, worker)
        self._fork(session)
        self._turn()
        ledger.closing(session_id)
        self._close(session)
        ledger.closed(session_id, plan)

    def _to(self, session: Session, worker: Worker, step: int) -> None:
        while (worker.step or 0) < step:
            self._turn()
            at = worker.step or 0
            self._ledger.sends(session.session_id, at)
            try:
                result, _ = worker.exchange(
                    self._plan.gradient(worker.worker_id, at), loss=self._plan.loss(at), want_digest=True
                )
            except (StaleGeneration, StaleGradient):
                worker.pull()
                continue
            self._ledger.hears(session.session_id, result, durable=True)

    def _pause(self, session: Session) -> None:
        self._turn()
        self._ledger.states(session.session_id, None)
        session.pause()
        self._ledger.states(session.session_id, "PAUSED")
        self._turn()
        self._ledger.states(session.session_id, None)
        session.resume()
        self._ledger.states(session.session_id, "READY")

    def _restore(self, session: Session, worker: Worker) -> None:
        self._turn()
        snapshot = session.snapshot()
        self._to(session, worker, snapshot.step + 1)
        self._turn()
        self._ledger.set_back(session.session_id, snapshot.step)
        try:
            session.restore(snapshot.snapshot_id)
        except InvalidRequest:
            if snapshot.snapshot_id in {kept.snapshot_id for kept in session.snapshots()}:
                raise
            # Two are kept, and servers that came and went meanwhile wrote later ones.
            self._restore(session, worker)
            return
        self._ledger.set_back(session.session_id, snapshot.step)
        worker.pull()
        if session.digest() != snapshot.state_digest:
            self._ledger.accuse("P4", session.session_id, f"restored step {snapshot.step} is not what was written")
        self._to(session, worker, snapshot.step + 1)

    def _fork(self, session: Session) -> None:
        """A fork has its parent's vectors to the bit, and does not disturb it."""
        self._turn()
        fork = session.fork(f"{session.session_id}-fork")
        ours, theirs = session.export_state().buffers, fork.export_state().buffers
        if any(not np.array_equal(ours[name], theirs[name]) for name in ours):
            self._ledger.accuse("P6", fork.session_id, "a fork has other vectors than its parent")
        self._turn()
        self._close(fork)

    def _close(self, session: Session) -> None:
        with contextlib.suppress(SessionNotFound):  # the answer of the call before was lost
            session.close()
