"""A light round steps in the middle of a heavy one, and neither can tell from its result."""

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from hermosis_server.dynamics.fused import launch
from hermosis_server.engine import scheduler
from hermosis_server.records import ConsistencyMode

HEAVY = 400_000


@pytest.fixture(autouse=True)
def thin_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SLICE_ELEMENTS", 1 << 16)
    monkeypatch.setattr(scheduler, "LIGHT_BYTES", 1 << 20)


def gradient(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


# One sweep; two, because a norm is needed before the drift; and a mean of two workers.
@pytest.mark.parametrize(("recipe", "workers"), [("adamw", 1), ("hermosis", 1), ("adamw", 2)])
def test_a_light_round_is_answered_while_a_heavy_one_is_stepped(
    play: Any, device: torch.device, recipe: str, workers: int
) -> None:
    if device.type != "cpu":
        pytest.skip("a device works by itself; nobody waits for it in slices")

    async def scenario(bench: Any) -> None:
        both, alone = [], []
        for sessions in (both, alone):
            sessions.append(await bench.session(HEAVY, recipe, workers=workers, mode=ConsistencyMode.BARRIER))
            sessions.append(await bench.session(100, recipe))
        heavy, light = both
        order: list[str] = []

        def submit_light() -> asyncio.Future[Any]:
            fate: asyncio.Future[Any] = bench.send(light, gradient(100, 1), sequence=1)
            fate.add_done_callback(lambda _: order.append("light"))
            return fate

        # The light one is asked for when the first slice is done, from where every other one is: the event loop.
        loop, pool, fates = asyncio.get_running_loop(), bench.executor._stepper._pool, list[Any]()
        between, asked = pool.between, False

        def ask_first() -> None:
            nonlocal asked
            if not asked:
                asked = True

                async def ask() -> None:
                    fates.append(submit_light())

                asyncio.run_coroutine_threadsafe(ask(), loop).result(10)
            between()

        pool.between = ask_first
        stepping = [
            bench.send(heavy, gradient(HEAVY, 7 + number), sequence=1, worker_id=f"w{number}")
            for number in range(workers)
        ]
        stepping[0].add_done_callback(lambda _: order.append("heavy"))
        await asyncio.gather(*stepping)
        await fates[0]
        pool.between = None
        assert order == ["light", "heavy"]

        await asyncio.gather(
            *(
                bench.send(alone[0], gradient(HEAVY, 7 + number), sequence=1, worker_id=f"w{number}")
                for number in range(workers)
            )
        )
        await bench.send(alone[1], gradient(100, 1), sequence=1)
        for mine, its in zip(both, alone, strict=True):
            assert await bench.engine.states.digest(mine.session_id) == await bench.engine.states.digest(its.session_id)

    play(scenario)


def test_a_session_in_host_memory_is_not_fetched_into_the_middle_of_a_step(play: Any) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(10)
        heavy = await bench.session(20)
        executor, item = bench.executor, type("Item", (), {})()
        item.residents = [session.on_device]
        executor._stepping = {id(heavy.on_device)}
        assert executor._may_step_between(item)
        session.on_device.slot.resident = False
        assert not executor._may_step_between(item)
        session.on_device.slot.resident = True
        item.residents = [heavy.on_device]
        assert not executor._may_step_between(item)

    play(scenario)
