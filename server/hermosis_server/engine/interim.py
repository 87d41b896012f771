"""Stands in for the engine's own way of stepping a fleet, one round at a time."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hermosis.wire import Dtype
from hermosis_server.engine.assembler import Assembler, Staging
from hermosis_server.engine.rounds import Contribution, StepTicket, WorkerRecord
from hermosis_server.engine.scheduler import ReadyRound
from hermosis_server.records import Commit, EnergySample, Outcome, ReplyWish


class Part(NamedTuple):
    memory: memoryview
    address: int
    dtype: Dtype
    peak: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    started_s: float
    device_s: float
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyFleet:
    residents: Sequence[Any]
    parts: Sequence[Any]
    losses: Sequence[float]
    lr_scales: Sequence[float]
    wish: ReplyWish
    worker_id: str
    sequences: Sequence[int]
    checksums: Sequence[int]
    size_bytes: int
    done: Callable[[Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDone:
    outcomes: Sequence[Outcome]
    failed: dict[int, Exception]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    samples: NDArray[np.float64]
    replies: Sequence[memoryview | None]
    launch: Launch


def address_of(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).__array_interface__["data"][0])


def submit_fleet(executor: Any, ready: ReadyFleet) -> None:
    fates: dict[int, Any] = {}

    def one(index: int, done: Any) -> None:
        fates[index] = done
        if len(fates) == len(ready.residents):
            ready.done(_together(ready, [fates[place] for place in range(len(fates))]))

    worker = WorkerRecord(ready.worker_id)
    for index, part in enumerate(ready.parts):
        gradient = Assembler(len(part.memory) // part.dtype.itemsize, part.dtype, 1 << 22, Staging(part.memory, None))
        contribution = Contribution(
            worker=worker,
            commit=Commit(sequence=ready.sequences[index], base_step=0),
            wish=ready.wish,
            gradient=gradient,
            ticket=StepTicket(ready.checksums[index]),
            counted_s=0.0,
        )
        executor.submit(
            ReadyRound(
                resident=ready.residents[index],
                contributions=[contribution],
                lr_scale=ready.lr_scales[index],
                loss=ready.losses[index],
                size_bytes=len(part.memory),
                done=functools.partial(one, index),
            )
        )


def _together(ready: ReadyFleet, fates: list[Any]) -> FleetDone:
    failed = {index: fate for index, fate in enumerate(fates) if isinstance(fate, Exception)}
    good = [None if index in failed else fate for index, fate in enumerate(fates)]
    replies: list[memoryview | None] = []
    for fate in good:
        vector = fate.vectors.get(ready.wish) if fate else None
        replies.append(memoryview(vector.payload) if vector else None)
    last = max((fate for fate in good if fate), key=lambda fate: fate.started_s, default=None)
    return FleetDone(
        outcomes=[fate.outcome if fate else Outcome.DROPPED for fate in good],
        failed=failed,
        before=np.array([fate.base_step if fate else 0 for fate in good]),
        after=np.array([fate.step if fate else 0 for fate in good]),
        samples=np.array([fate.energies if fate else EnergySample() for fate in good]),
        replies=replies,
        launch=Launch(
            started_s=last.started_s if last else time.monotonic(),
            device_s=sum(fate.device_s for fate in good if fate),
            sessions=last.batch_sessions if last else 0,
        ),
    )
