"""The device thread begins a batch while the one before is under way, and nobody can tell but by the clock."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.engine.test_step import PARAMETERS, House, fleet

from hermosis_server.engine.executor import Executor
from hermosis_server.engine.scheduler import StepQueue
from hermosis_server.engine.step import Stepped, Stepper
from hermosis_server.records import Outcome


class Recorder(Stepper):
    """Notes what begins and what ends; as a device would, it is done only when it is asked."""

    notes: list[tuple[str, int]]
    device: Any

    def begin(self, entries: Any) -> Callable[[], Stepped]:
        number = entries[0].resident.slot.elements(1)
        self.notes.append(("begin", number))
        end = super().begin(entries)

        def ended() -> Stepped:
            self.notes.append(("end", number))
            return end()

        return ended


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_batch_begins_before_the_one_before_has_ended(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, overlaps: bool
) -> None:
    house = House(device)
    monkeypatch.setattr("hermosis_server.engine.executor.Stepper", Recorder)
    # Of a matrix metric, which only the flows step: here a device is but a word.
    sessions = [house.session("hermosis", size, shapes=[(size, 1)]) for size in (3, 4, 5)]
    Recorder.notes = []

    async def scenario() -> list[Any]:
        queue = StepQueue(batch_bytes=1, linger_s=0.0)  # each by itself
        executor = Executor(house.arena, queue)
        executor._stepper.device = object() if overlaps else None  # type: ignore[assignment]
        gate, told, done = threading.Event(), list[Any](), asyncio.Event()

        def hear(result: Any) -> None:
            told.append(result)
            if len(told) == 4:
                done.set()

        waiting = asyncio.create_task(executor.run(lambda arena: gate.wait(10)))
        await asyncio.sleep(0)  # in the queue first
        for number, index in enumerate((2, 0, 1, 1)):
            executor.submit(replace(fleet([sessions[index]], PARAMETERS, [number], number + 1), done=hear))
        gate.set()
        await waiting
        await done.wait()
        await executor.stop()
        return told

    told = asyncio.run(scenario())
    assert [one.outcomes for one in told] == [[Outcome.APPLIED]] * 4
    assert [one.after.tolist() for one in told] == [[1], [1], [1], [2]], "a session's second step waits for its first"
    order = [f"{what} {number}" for what, number in Recorder.notes]
    if overlaps:
        assert order == ["begin 5", "begin 3", "end 5", "begin 4", "end 3", "end 4", "begin 4", "end 4"]
    else:
        assert order == [f"{what} {number}" for number in (5, 3, 4, 4) for what in ("begin", "end")]
