"""Ledger: what workers were told, and what was promised with it. The checker holds a recovered server against it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.faults.plans import Plan
from tests.faults.race import Race

from hermosis_client import StepResult

PROMISES = {
    "P1": "what was acknowledged as durable survives",
    "P2": "what was acknowledged as applied and lost is told: durable_step, and from where to resume",
    "P3": "no contribution is applied twice or out of order",
    "P4": "the state digest after recovery is the one of the uninterrupted run",
    "P5": "a damaged session is CorruptState, and never served",
    "P6": "what befalls one session changes no other",
    "P7": "no read shows an older step than one acknowledged before it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was not kept."""

    promise: str
    session_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise} ({PROMISES[self.promise]}): session {self.session_id}: {self.what}"


@dataclass(slots=True)
class Page:
    """What was said of one session.

    Attributes:
      durable:   the highest step that was promised to survive.
      heard:     the highest step acknowledged since the server started.
      most:      the highest step that contributions sent so far can lead to.
      recovered: the step that it last came back at; -1 before.
      digests:   told with acknowledgements, by step.
      status:    that an acknowledged call set; None while such a call is under way.
    """

    plan: Plan
    durable: int = 0
    heard: int = 0
    most: int = 0
    recovered: int = -1
    digests: dict[int, set[bytes]] = field(default_factory=dict)
    status: str | None = None
    gone: bool = False


class Ledger:
    """Everything that was heard. Any thread may write.

    Attributes:
      races: what was heard of sessions whose workers wait for nobody, by session.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[str, Page] = {}
        self._violations: list[Violation] = []
        self.races: dict[str, Race] = {}
        self.acknowledgements = 0
        self.losses_told = 0  # times a worker was told to resume from an earlier step
        self.lives = 1  # of the server
        self.checks: dict[str, int] = dict.fromkeys(PROMISES, 0)

    @property
    def violations(self) -> list[Violation]:
        with self._lock:
            return list(self._violations)

    def accuse(self, promise: str, session_id: str, what: str) -> None:
        """Notes that a promise was not kept."""
        with self._lock:
            self._violations.append(Violation(promise=promise, session_id=session_id, what=what))

    def tested(self, promise: str) -> None:
        """Notes that a promise was looked at once more."""
        with self._lock:
            self.checks[promise] += 1

    @contextmanager
    def pages(self) -> Iterator[dict[str, Page]]:
        """All of it, for a reader at rest or a writer."""
        with self._lock:
            yield self._pages

    def opens(self, session_id: str, plan: Plan) -> None:
        """A session's creation and its parameters were acknowledged."""
        with self._lock:
            self._pages[session_id] = Page(plan=plan)

    def closing(self, session_id: str) -> None:
        """A session is about to be closed: from now on it may be there or not."""
        with self._lock:
            del self._pages[session_id]

    def closed(self, session_id: str, plan: Plan) -> None:
        """A session's close was acknowledged: it never comes back."""
        with self._lock:
            self._pages[session_id] = Page(plan=plan, gone=True)

    def set_back(self, session_id: str, step: int) -> None:
        """A call that sets a session back to a step is about to be made, or was."""
        with self._lock:
            page = self._pages[session_id]
            page.durable = page.heard = step
            page.digests.clear()

    def states(self, session_id: str, status: str | None) -> None:
        """A call that sets the status was acknowledged; None before it is made."""
        with self._lock:
            self._pages[session_id].status = status

    def sends(self, session_id: str, base_step: int) -> None:
        """A contribution is about to be sent."""
        with self._lock:
            page = self._pages[session_id]
            page.most = max(page.most, base_step + 1)

    def hears(self, session_id: str, result: StepResult, *, durable: bool) -> None:
        """A contribution was acknowledged."""
        self.hears_step(session_id, result.step, result.step if durable else result.durable_step)
        if durable and result.durable_step < result.step:
            self.accuse(
                "P1", session_id, f"step {result.step} came as durable, with durable_step {result.durable_step}"
            )
        if result.state_digest and not result.duplicate:
            with self._lock:
                self._pages[session_id].digests.setdefault(result.step, set()).add(result.state_digest)

    def hears_step(self, session_id: str, step: int, durable_step: int) -> None:
        """A step was acknowledged, and what of it is durable."""
        with self._lock:
            page = self._pages[session_id]
            self.acknowledgements += 1
            page.heard = max(page.heard, step)
            page.durable = max(page.durable, durable_step)

    def told_to_resume(self, session_id: str = "", held: int = 0) -> None:
        """A worker was told that what it had built on is gone.

        Args:
          session_id: where it is the only worker, so that its step cannot have been taken by others since.
          held:       the step that it held.
        """
        with self._lock:
            self.losses_told += 1
            page = self._pages.get(session_id)
        if page is not None and held <= page.recovered:
            self.accuse("P2", session_id, f"step {held} was called lost, and it came back at step {page.recovered}")

    def races_on(self, race: "Race", worker_id: str, result: StepResult) -> None:
        """A contribution to a race was acknowledged."""
        with self._lock:
            self.acknowledgements += 1
        race.hears(worker_id, result)

    def heard(self, session_id: str) -> int:
        """The highest step acknowledged since the server started."""
        with self._lock:
            return self._pages[session_id].heard

    def restarted(self) -> None:
        """A server has recovered: what was only applied may be gone, and is forgotten here."""
        with self._lock:
            self.lives += 1
            for page in self._pages.values():
                page.heard = page.durable
