"""Telemetry: a bounded history, thinned evenly, and watchers that never hold a step up."""

import asyncio
import itertools

import pytest

from hermosis_server.engine.telemetry import MOST_AT_A_TIME, Shelf, TelemetryRing, Watch, thinned
from hermosis_server.records import EnergySample, TelemetryReading


def reading(step: int, session_id: str = "s", time_s: float | None = None) -> TelemetryReading:
    return TelemetryReading(
        session_id=session_id,
        step=step,
        time_s=float(step) if time_s is None else time_s,
        energies=EnergySample(loss=1.0),
        contributions=1,
        staleness=0,
        received_bytes=4,
        sent_bytes=4,
        device_s=0.1,
        batch_sessions=1,
        wait_s=0.0,
    )


def test_the_ring_keeps_the_newest() -> None:
    ring = TelemetryRing("s", Shelf(3))
    for step in range(1, 6):
        ring.append(reading(step))
    assert ring.oldest_step == 3
    assert ring.latest is not None
    assert ring.latest.step == 5
    assert [r.step for r in ring.history(after_step=3, max_readings=10)] == [4, 5]


@pytest.mark.parametrize(("count", "at_most"), [(10, 3), (1000, 7), (5, 5), (4, 10), (7, 1)])
def test_thinning_spreads_evenly_and_keeps_the_newest(count: int, at_most: int) -> None:
    steps = [r.step for r in thinned([reading(step) for step in range(count)], at_most)]
    assert len(steps) == min(count, at_most)
    assert steps[-1] == count - 1
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_watch_sees_only_what_it_asked_for_and_not_too_often() -> None:
    async def scenario() -> list[tuple[str, int]]:
        watch = Watch(["a"], min_interval_s=2.0, capacity=10)
        for step in range(6):
            for session_id in ("a", "b"):
                one = reading(step, session_id)
                watch.offer(session_id, one.time_s, one)
        return [(r.session_id, r.step) for r in await watch.next()]

    assert asyncio.run(scenario()) == [("a", 0), ("a", 2), ("a", 4)]


def test_a_slow_watcher_loses_the_oldest() -> None:
    async def scenario() -> list[int]:
        watch = Watch([], min_interval_s=0.0, capacity=3)
        for step in range(10):
            watch.offer("a", step, reading(step, "a"))
        return [r.step for r in await watch.next()]

    assert asyncio.run(scenario()) == [7, 8, 9]


def test_a_watcher_hears_of_many_steps_in_bundles_and_misses_none() -> None:
    async def scenario() -> list[list[int]]:
        watch = Watch([], min_interval_s=0.0, capacity=1000)
        waiting = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        for step in range(MOST_AT_A_TIME + 10):  # while it gathers
            watch.offer("a", step, reading(step, "a"))
            await asyncio.sleep(0)
        watch.end()
        bundles = [await waiting]
        while more := await watch.next():
            bundles.append(more)
        return [[r.step for r in bundle] for bundle in bundles]

    bundles = asyncio.run(scenario())
    assert list(map(len, bundles)) == [MOST_AT_A_TIME, 10]
    assert list(itertools.chain(*bundles)) == list(range(MOST_AT_A_TIME + 10))


def test_a_watch_that_waits_is_woken_and_ended() -> None:
    async def scenario() -> list[list[int]]:
        watch = Watch([], min_interval_s=0.0, capacity=3)
        waiting = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        watch.offer("a", 1.0, reading(1, "a"))
        first = await waiting
        watch.end()
        return [[r.step for r in first], [r.step for r in await watch.next()]]

    assert asyncio.run(scenario()) == [[1], []]
