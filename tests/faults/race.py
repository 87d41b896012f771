"""Race: what was heard of a session whose workers wait for nobody, so that the order of its steps is not known before.

Each step is one contribution of one worker, the n-th of that worker, and acknowledgements tell which. What was under
way when the server died, one contribution of each worker at the most, is told by the sequence table of the session that
came back. So the order of all steps is known, and a calm server that is given the same must come to the same digest,
the table included: nothing was lost, counted twice or reordered.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.faults.plans import Plan

from hermosis_client import StepResult

# Of a worker: the number of a contribution, and the step that it made.
Last = Mapping[str, tuple[int, int]]


@dataclass(eq=False, slots=True, kw_only=True)
class Race:
    """One session. Any thread may write.

    Attributes:
      settled:    the step that it last came back at; what led there was compared, and is never lost again.
      generation: that it went on with then.
      sent:       the highest number that each worker has sent.
      safe:       the highest number of each that was promised to survive.
    """

    plan: Plan
    settled: int = 0
    generation: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    safe: dict[str, int] = field(default_factory=dict)
    _told: dict[int, tuple[str, int]] = field(default_factory=dict)  # whose contribution made a step, since then
    _digests: dict[int, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sends(self, worker_id: str, number: int) -> None:
        """A contribution is about to be sent."""
        with self._lock:
            self.sent[worker_id] = max(number, self.sent.get(worker_id, 0))

    def hears(self, worker_id: str, result: StepResult) -> None:
        """A contribution was acknowledged."""
        number, step = result.sequence, result.step
        with self._lock:
            if result.durable_step >= step:
                self.safe[worker_id] = max(number, self.safe.get(worker_id, 0))
            if step <= self.settled or result.generation < self.generation:
                return  # said by a server that was dead already when this was read
            self._told[step] = worker_id, number
            if result.state_digest:
                self._digests[step] = result.state_digest

    def problems(self, step: int, last: Last) -> list[tuple[str, str]]:
        """Promises that a session does not keep that came back at a step, with the last contribution of each worker."""
        with self._lock:
            sent, safe, told = dict(self.sent), dict(self.safe), dict(self._told)
        found = []
        if step < self.settled:
            found.append(("P1", f"step {self.settled} came back once, it is back at {step}"))
        for worker_id, number in safe.items():
            if number > last.get(worker_id, (0, 0))[0]:
                found.append(("P1", f"contribution {number} of {worker_id} was promised, and is not counted"))
        for worker_id, (number, _) in last.items():
            if number > sent.get(worker_id, 0):
                found.append(("P3", f"contribution {number} of {worker_id} is counted, and was never sent"))
        counted = sum(number for number, _ in last.values())
        if counted != step:
            found.append(("P3", f"{counted} contributions are counted, and {step} steps were taken"))
        for worker_id, (number, at) in last.items():
            if at in told and told[at] != (worker_id, number):
                found.append(("P3", f"step {at} was told as {told[at]}, and is contribution {number} of {worker_id}"))
        known = told.keys() | {at for _, at in last.values()}
        missing = [at for at in range(self.settled + 1, step + 1) if at not in known]
        found += [("P3", f"step {at} was taken, and nobody contributed to it") for at in missing]
        return found or self._too_far_ahead(self.order(step, last))

    def order(self, step: int, last: Last) -> list[tuple[str, int]]:
        """Whose contribution made each step since the settled one."""
        with self._lock:
            known = self._told | {at: (worker_id, number) for worker_id, (number, at) in last.items()}
        return [known[at] for at in range(self.settled + 1, step + 1)]

    def told_digests(self, step: int) -> Iterator[tuple[int, bytes]]:
        """Digests that were told with steps up to this one, since the settled one."""
        with self._lock:
            return iter([(at, digest) for at, digest in self._digests.items() if at <= step])

    def settle(self, step: int, generation: int) -> None:
        """What was heard of steps after this one is of a life that is over."""
        with self._lock:
            self.settled, self.generation = step, generation
            self._told.clear()
            self._digests.clear()

    def _too_far_ahead(self, order: list[tuple[str, int]]) -> list[tuple[str, str]]:
        """Whether a worker of a bounded race went further ahead than it may; each life counts anew."""
        if self.plan.mode != "bounded":
            return []
        counts = dict.fromkeys(self.plan.worker_ids, 0)
        for worker_id, number in order:
            counts[worker_id] += 1
            if max(counts.values()) - min(counts.values()) > self.plan.max_staleness + 1:  # the last one is held back
                return [("P3", f"{worker_id} contributed {number}, further ahead than {self.plan.max_staleness}")]
        return []
