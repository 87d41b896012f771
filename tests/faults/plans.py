"""Plans: sessions whose every contribution is known beforehand, so that what a run must lead to is known.

A worker that comes back after a crash computes the gradient of the step it is told to go on from, and gets the bytes
that it would have had without the crash. So after n steps a session has one right digest, however often it was killed,
and one contribution too many, too few or out of order leaves another.

Of a race, whose workers wait for nobody, the n-th contribution of each worker is known, and not whose turn comes when:
see race.py.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hermosis_client import Consistency, Durability

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One session of a load.

    Attributes:
      recipe:      its optimizer.
      parameters:  P.
      workers:     that make a step; of a race, that take part.
      mode:        of its consistency.
      max_staleness: of a bounded one.
      durability:  what the server keeps.
      ack_level:   that its workers ask for.
      edited_from: the step after which its learning rate is half as large, and its temperature another; 0 is never.
    """

    name: str
    recipe: str = "adamw"
    parameters: int = 300
    workers: int = 1
    mode: Literal["barrier", "async", "bounded"] = "barrier"
    max_staleness: int = 0
    durability: Durability
    ack_level: str = "applied"
    edited_from: int = 0

    @property
    def worker_ids(self) -> list[str]:
        return [f"worker-{index}" for index in range(self.workers)]

    @property
    def is_race(self) -> bool:
        """Whether each contribution is a step."""
        return self.mode != "barrier"

    @property
    def consistency(self) -> Consistency:
        return Consistency(mode=self.mode, workers=self.workers, max_staleness=self.max_staleness)

    def start(self) -> Float32:
        """(P,) initial parameters."""
        return self._draw("start", 0)

    def gradient(self, worker_id: str, step: int) -> Float32:
        """(P,) of a worker at the parameters after so many steps; in a race, of its contribution of that number."""
        return self._draw(worker_id, step)

    def loss(self, step: int) -> float:
        return 1.0 / (1 + step)

    def is_edited(self, step: int) -> bool:
        """Whether the contribution that leads on from this step is made under the edited settings."""
        return bool(self.edited_from) and step >= self.edited_from

    def lr_scale(self, step: int) -> float:
        return 0.5 if self.is_edited(step) else 1.0

    def _draw(self, who: str, step: int) -> Float32:
        seed = zlib.crc32(f"{self.name} {who}".encode())
        return np.random.default_rng([seed, step]).standard_normal(self.parameters, np.float32)


JOURNALLED = Plan(name="journalled", durability=Durability(mode="journal", snapshot_every_steps=5), ack_level="durable")
BARRIER = Plan(name="barrier", recipe="adam", workers=2, durability=Durability(mode="journal", snapshot_every_steps=7))
SNAPSHOTS = Plan(name="snapshots", recipe="hermosis", durability=Durability(mode="snapshot", snapshot_every_steps=4))
ASYNC = Plan(
    name="async",
    recipe="adam",
    parameters=60,
    workers=3,
    mode="async",
    durability=Durability(mode="journal", snapshot_every_steps=8),
    ack_level="durable",
)
BOUNDED = Plan(
    name="bounded",
    parameters=60,
    workers=2,
    mode="bounded",
    max_staleness=4,  # more than their turns can be apart when all have rested
    durability=Durability(mode="journal", snapshot_every_steps=9),
)
FLEET = [
    Plan(
        name=f"fleet-{index}",
        recipe="sgd" if index % 2 else "rmsprop",
        parameters=40,
        durability=Durability(mode="journal" if index < 2 else "snapshot", snapshot_every_steps=3 + index),
    )
    for index in range(4)
]
MANAGED = Plan(
    name="managed", parameters=60, durability=Durability(mode="journal", snapshot_every_steps=2), edited_from=3
)
