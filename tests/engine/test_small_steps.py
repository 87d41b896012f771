"""Small steps on the event loop: only while the device thread has nothing, and nobody can tell but by the clock."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.conftest import bench, floats

from hermosis_server.dynamics.fused import launch
from hermosis_server.engine import executor as executor_module
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.executor import HERE_BYTES
from hermosis_server.engine.session import Session
from hermosis_server.engine.step import Stepped, Stepper
from hermosis_server.records import ConsistencyMode

SMALL = 64
Play = Callable[..., None]


class Recorder(Stepper):
    """Notes on which thread each launch is stepped, and of how many sessions it is."""

    notes: list[tuple[str, int]]

    def begin(self, entries: Any) -> Callable[[], Stepped]:
        self.notes.append(("thread" if threading.current_thread().name == "hermosis-device" else "loop", len(entries)))
        return super().begin(entries)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> list[tuple[str, int]]:
    if device.type != "cpu":
        pytest.skip("a GPU has its thread alone")
    monkeypatch.setattr(executor_module, "Stepper", Recorder)
    Recorder.notes = []
    return Recorder.notes


def gradient(size: int = SMALL, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


async def known(ready: Any, size: int = SMALL, **options: Any) -> Session:
    """A session that has stepped once, so that how long its steps take is known."""
    session: Session = await ready.session(size, "adam", **options)
    await ready.send(session, gradient(size), sequence=1)
    Recorder.notes.clear()
    return session


async def turns(count: int = 20) -> None:
    """Lets the event loop do whatever is ready, that many times."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_small_step_is_taken_on_the_event_loop_and_a_large_one_on_the_thread(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        large = HERE_BYTES // 4 + 1
        sessions = [await known(ready), await known(ready, large), await ready.session(SMALL, "hermosis")]
        for session, size in zip(sessions, (SMALL, large, SMALL), strict=True):
            await ready.send(session, gradient(size), sequence=session.step + 1)
        assert [thread for thread, _ in notes] == ["loop", "thread", "thread"]

    play(scenario)


def test_nobody_steps_on_the_event_loop_while_the_thread_has_anything(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        session, gate = await known(ready), threading.Event()
        held = asyncio.create_task(ready.executor.run(lambda arena: gate.wait(30)))
        await turns()
        fate = ready.send(session, gradient(), sequence=2)
        await turns()
        assert not notes, "the thread has the device, and somebody else stepped"
        gate.set()
        assert (await fate).result.step == 2
        assert notes == [("thread", 1)]
        await held
        await ready.send(session, gradient(), sequence=3)
        assert notes[1:] == [("loop", 1)], "the thread has nothing again"

    play(scenario)


def test_what_is_asked_for_after_a_small_step_sees_it(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        session = await known(ready)
        fate = ready.send(session, gradient(), sequence=2)
        step = await ready.executor.run(lambda arena: session.on_device.step)
        assert step == 2
        assert (await fate).result.step == 2

    play(scenario)


def test_a_small_step_and_a_large_one_of_another_session_go_their_own_ways(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        small, large = await known(ready), await known(ready, HERE_BYTES)
        fates = [ready.send(small, gradient(), sequence=2), ready.send(large, gradient(HERE_BYTES), sequence=2)]
        assert [(await fate).result.step for fate in fates] == [2, 2]
        assert ("thread", 1) in notes

    play(scenario)


def test_small_steps_that_come_at_the_same_moment_are_one_launch(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        sessions = [await known(ready) for _ in range(3)]
        fates = [ready.send(session, gradient(), sequence=2) for session in sessions]
        await asyncio.gather(*fates)
        assert notes == [("loop", 3)]

    play(scenario)


def test_small_steps_that_are_many_go_to_the_thread(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        count = HERE_BYTES // (4 * SMALL) + 1
        sessions = [await known(ready) for _ in range(count)]
        fates = [ready.send(session, gradient(), sequence=2) for session in sessions]
        assert {(await fate).result.step for fate in fates} == {2}
        assert "thread" in {thread for thread, _ in notes}

    play(scenario)


def test_two_small_steps_of_one_session_at_the_same_moment_follow_one_another(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        session = await known(ready, mode=ConsistencyMode.ASYNC)
        fates = [ready.send(session, gradient(seed=n), sequence=n, base_step=1, worker_id="worker") for n in (2, 3)]
        assert [(await fate).result.step for fate in fates] == [2, 3]

    play(scenario)


def test_a_small_step_is_finished_when_the_server_stops_at_that_moment(notes: list[Any], device: torch.device) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(60), bench(device) as ready:
            session = await known(ready)
            fate = ready.send(session, gradient(), sequence=2)
        assert (await fate).result.step == 2

    asyncio.run(scenario())


def test_a_small_step_that_fails_is_told_and_the_next_one_works(
    play: Play, notes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(ready: Any) -> None:
        session = await known(ready)

        def broken(*arguments: Any) -> Any:
            raise MemoryError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(executor_module, "step_batch", broken)
            with pytest.raises(Exception, match="the step failed"):
                await ready.send(session, gradient(), sequence=2)
        assert (await ready.send(session, gradient(), sequence=2)).result.step == 2

    play(scenario)


def test_a_session_that_needs_the_flows_goes_to_the_thread(play: Play, notes: list[Any]) -> None:
    """What cannot be proven to stay finite takes a hundred times as long."""

    async def scenario(ready: Any) -> None:
        session = await ready.session(SMALL, "sgd", start=gradient())
        for sequence, scale in enumerate((1.0, 1e30, 1e30), 1):
            await ready.send(session, gradient() * np.float32(scale), sequence=sequence)
        assert [thread for thread, _ in notes] == ["thread", "loop", "thread"]

    play(scenario)


@pytest.mark.parametrize("recipe", ["sgd", "adamw", "rgd"])
def test_a_step_has_the_same_bits_wherever_it_is_taken(play: Play, notes: list[Any], recipe: str) -> None:
    async def scenario(ready: Any) -> None:
        here, there = [await ready.session(SMALL, recipe, start=gradient(seed=9)) for _ in range(2)]
        for sequence in range(1, 6):
            for session, apart in ((here, False), (there, True)):
                held = asyncio.create_task(ready.executor.run(lambda arena: None)) if apart else None
                await asyncio.sleep(0)
                answer = await ready.send(session, gradient(seed=sequence), sequence=sequence)
                if held is not None:
                    await held
                if session is here:
                    expected = floats(answer)
            np.testing.assert_array_equal(floats(answer), expected)
        assert {"loop", "thread"} == {thread for thread, _ in notes}
        digests = [
            await ready.executor.run(lambda arena, one=session: on_device.digest(arena, one.on_device))
            for session in (here, there)
        ]
        assert digests[0] == digests[1]

    play(scenario)


def test_a_small_step_is_taken_on_the_event_loop_in_the_middle_of_a_heavy_one_of_another_session(
    play: Play, notes: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SLICE_ELEMENTS", 1 << 16)

    async def scenario(ready: Any) -> None:
        small, size = await known(ready), 400_000
        heavy, alone = [await ready.session(size, "adamw") for _ in range(2)]
        pool, in_slice, go_on = ready.executor._stepper._pool, threading.Event(), threading.Event()
        run = pool.run

        def held(shares: Any) -> None:
            in_slice.set()
            go_on.wait(30)
            run(shares)

        monkeypatch.setattr(pool, "run", held)
        stepping = ready.send(heavy, gradient(size), sequence=1)
        try:
            await asyncio.to_thread(in_slice.wait, 30)
            notes.clear()
            for sequence in (2, 3):
                assert (await ready.send(small, gradient(seed=sequence), sequence=sequence)).result.step == sequence
            assert notes == [("loop", 1)] * 2
            assert not stepping.done()
        finally:
            go_on.set()
        await stepping
        await ready.send(alone, gradient(size), sequence=1)
        digests = [await ready.engine.states.digest(each.session_id) for each in (heavy, alone)]
        assert digests[0] == digests[1]

    play(scenario)


def test_a_small_step_waits_for_what_was_asked_for_of_all_sessions_before_it(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        small = await known(ready)
        seen = asyncio.create_task(ready.executor.run(lambda arena: small.on_device.step))
        await turns(1)
        fate = ready.send(small, gradient(), sequence=2)
        assert await seen == 1
        assert (await fate).result.step == 2

    play(scenario)


def test_a_session_that_was_moved_meanwhile_is_not_stepped_on_the_event_loop(play: Play, notes: list[Any]) -> None:
    async def scenario(ready: Any) -> None:
        small = await known(ready)
        fate = ready.send(small, gradient(), sequence=2)
        small.on_device.slot.table = None  # as where its rows are moved
        assert (await fate).result.step == 2
        assert notes == [("thread", 1)]

    play(scenario)
