"""A case: one mode and one codec over slow links, until the loss is reached or the time is over."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.links import Line, Links
from benchmarks.slow_links import task
from benchmarks.slow_links.crew import Crew
from benchmarks.slow_links.worker import Seat
from hermosis_client import Client, Codec, Consistency, Recipe, Session

WORKERS = 4
SLOWER = 10.0  # the last worker: its processor and its line
LOOK_S = 0.2

LEASE_S = 8.0
FRACTION = 0.05  # of the elements, where a codec sends some only
MODES = {
    "barrier": Consistency(mode="barrier", workers=WORKERS, lease_s=LEASE_S),
    "quorum": Consistency(mode="quorum", workers=WORKERS, quorum=WORKERS - 1, late="carry", lease_s=LEASE_S),
    "async": Consistency(mode="async", workers=WORKERS, lease_s=LEASE_S),
    "bounded": Consistency(mode="bounded", workers=WORKERS, max_staleness=4, lease_s=LEASE_S),
    "local": Consistency(
        mode="local", workers=WORKERS, quorum=WORKERS - 1, local_steps=8, late="drop", lease_s=LEASE_S
    ),
}
# Where a contribution by itself is a step, at parameters that others have moved meanwhile, half; chosen once.
LR = dict.fromkeys(MODES, task.LR) | {"async": task.LR / 2, "bounded": task.LR / 2}
# Keywords of Session.worker, both ways; what comes back under random_k is int8, since weights are all wanted.
CODECS: dict[str, Mapping[str, Any]] = {
    "float32": {},
    "bfloat16": {"gradient_dtype": "bfloat16", "reply_dtype": "bfloat16"},
    "float16": {"gradient_dtype": "float16", "reply_dtype": "float16"},
    "deflate": {"codec": "deflate", "reply_codec": "deflate"},
    "int8": {"codec": "int8", "reply_codec": "int8"},
    "top_k": {"codec": Codec("top_k", FRACTION), "reply_codec": Codec("top_k", FRACTION)},
    "random_k": {"codec": Codec("random_k", FRACTION), "reply_codec": "int8"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What the workers are up against.

    Attributes:
      target:       loss at which the case is over.
      limit_s:      after which it is over all the same.
      compute_s:    that a gradient takes on all but the last worker.
      kill_every_s: one of the others is killed, in turns; zero means none.
      away_s:       until a killed worker is started again.
    """

    line: Line = field(default_factory=Line)
    target: float = 0.4
    limit_s: float = 25.0
    compute_s: float = 0.05
    kill_every_s: float = 4.0
    away_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How a case went.

    Attributes:
      reached_s:     when the loss was first seen at the target; None where it was not.
      contributions: of all workers that were counted, dropped ones included.
      up_bytes:      from the workers, a contribution, all that TCP carried.
      down_bytes:    to them.
      curve:         (seconds, step, loss) as seen.
    """

    mode: str
    codec: str
    reached_s: float | None
    seconds: float
    steps: int
    contributions: int
    final_loss: float
    up_bytes: float
    down_bytes: float
    kills: int
    curve: list[tuple[float, int, float]] = field(default_factory=list)


def measure(
    client: Client, mode: str, codec: str, trouble: Trouble, look: Callable[[float], None] = lambda _: None
) -> Measured:
    """Runs a case on the client's server, with workers that come by links of their own.

    Args:
      look: hears the loss now and then.
    """
    model = task.network()
    arrays = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    recipe = Recipe("adamw", lr=LR[mode], weight_decay=0.0) if mode != "local" else Recipe("sgd", lr=1.0)
    lines = [trouble.line] * (WORKERS - 1) + [replace(trouble.line, rate=trouble.line.rate / SLOWER)]
    with (
        client.create_session(arrays, recipe, consistency=MODES[mode]) as session,
        Links(client.address, lines) as links,
        Crew() as crew,
    ):
        session.initialise(arrays)
        seats = [
            Seat(
                address=link,
                session_id=session.session_id,
                place=place,
                workers=WORKERS,
                compute_s=trouble.compute_s * (SLOWER if place == WORKERS - 1 else 1),
                wire={**CODECS[codec], "shared_memory": False},  # it would go past the link
            )
            for place, link in enumerate(links.addresses)
        ]
        for seat in seats:
            crew.start(seat)
        began_s, curve = time.monotonic(), list[tuple[float, int, float]]()
        reaper = Reaper(crew, seats[:-1], trouble)
        while True:
            now_s = time.monotonic() - began_s
            reaper.look()
            crew.check()
            loss, step = _seen(session, model)
            curve.append((round(now_s, 2), step, loss))
            look(loss)
            if loss <= trouble.target or now_s >= trouble.limit_s:
                break
            time.sleep(LOOK_S)
        contributions = sum(worker.next_sequence - 1 for worker in session.workers())
        passed = links.passed()
    return Measured(
        mode=mode,
        codec=codec,
        reached_s=curve[-1][0] if curve[-1][2] <= trouble.target else None,
        seconds=curve[-1][0],
        steps=curve[-1][1],
        contributions=contributions,
        final_loss=curve[-1][2],
        up_bytes=sum(each.up for each in passed) / max(1, contributions),
        down_bytes=sum(each.down for each in passed) / max(1, contributions),
        kills=reaper.kills,
        curve=curve,
    )


class Reaper:
    """Kills one worker after the other, and starts each again a while later."""

    def __init__(self, crew: Crew, seats: Sequence[Seat], trouble: Trouble) -> None:
        self.kills = 0
        self._crew, self._seats, self._trouble = crew, seats, trouble
        self._next_s = time.monotonic() + trouble.kill_every_s
        self._away: Seat | None = None

    def look(self) -> None:
        """Does what is due."""
        if not self._trouble.kill_every_s or time.monotonic() < self._next_s:
            return
        if self._away is not None:
            self._crew.start(self._away)
            self._away = None
            self._next_s += self._trouble.kill_every_s - self._trouble.away_s
        else:
            self._away = self._seats[self.kills % len(self._seats)]
            self._crew.kill(self._away)
            self.kills += 1
            self._next_s += self._trouble.away_s


def _seen(session: Session, model: torch.nn.Module) -> tuple[float, int]:
    torch.nn.utils.vector_to_parameters(torch.from_numpy(session.pull().flat), model.parameters())
    return round(task.measured(model), 4), session.info().step
