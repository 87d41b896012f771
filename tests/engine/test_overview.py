"""Overview: the counters by an injected clock, and by an engine that steps."""

import asyncio
import math

import numpy as np
import pytest

from hermosis_server.engine.alerts import Facts, alerts
from hermosis_server.engine.batch import Launch
from hermosis_server.engine.overview import BOUNDS, LEAST_GROWN_ROUNDS, MARK_S, MARKS, Activity, quantile
from hermosis_server.engine.survey import survey
from hermosis_server.records import Alert, AlertSeverity, DeviceOverview
from hermosis_server.storage.disk import DiskUse


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def step(activity: Activity, clock: Clock, seconds: float, *, sessions: int = 1, applied: int = 1) -> None:
    """A launch that ends now, whose last contribution was counted so many seconds ago."""
    activity.queued(sessions, 8 * sessions)
    launch = Launch(started_s=clock.now_s - seconds, device_s=seconds, sessions=sessions)
    activity.stepped(launch, sessions, 8 * sessions, applied=applied, counted_s=clock.now_s - seconds)


def test_what_was_queued_is_in_the_queue_until_it_is_stepped_or_dropped() -> None:
    activity, clock = Activity(), Clock()
    activity.queued(3, 300)
    activity.queued(2, 20)
    assert (activity.queue_rounds, activity.queue_bytes) == (5, 320)
    activity.dropped(2, 20)
    activity.stepped(Launch(clock.now_s, 0.1, 3), 3, 300, applied=2, counted_s=clock.now_s)
    assert (activity.queue_rounds, activity.queue_bytes, activity.steps) == (0, 0, 2)


def test_rounds_of_one_launch_make_one_launch() -> None:
    clock = Clock()
    activity = Activity(clock)
    launch = Launch(started_s=clock.now_s, device_s=0.001, sessions=3)
    for _ in range(3):
        activity.queued(1, 8)
        activity.stepped(launch, 1, 8, applied=1, counted_s=clock.now_s)
    step(activity, clock, 0.001)
    assert (activity.launches, activity.launched_sessions, activity.steps) == (2, 4, 4)
    assert activity.pace().batch_sessions == 2.0


def test_rates_are_of_the_last_seconds_and_die_away() -> None:
    clock = Clock()
    activity = Activity(clock)
    for _ in range(200):
        clock.now_s += 0.1
        activity.received_bytes += 70
        step(activity, clock, 0.001)
    assert activity.pace().steps_per_s == pytest.approx(10, rel=0.02)
    assert activity.pace().received_bytes_per_s == pytest.approx(700, rel=0.02)
    clock.now_s += 2 * MARK_S
    assert activity.pace().steps_per_s == 0.0
    assert activity.pace().step_p50_s == pytest.approx(0.001, rel=0.42)  # in the last minute there were some
    clock.now_s += 65
    assert math.isnan(activity.pace().step_p50_s)
    assert math.isnan(activity.pace().batch_sessions)
    assert activity.steps == 200


def test_a_first_step_after_a_long_rest_is_one_step_in_the_last_seconds() -> None:
    clock = Clock()
    activity = Activity(clock)
    step(activity, clock, 1.0)
    clock.now_s += 3600
    step(activity, clock, 0.001)
    clock.now_s += 1
    pace = activity.pace()
    assert pace.steps_per_s == pytest.approx(1 / MARK_S, rel=0.5)
    assert pace.step_p99_s == pytest.approx(0.001, rel=0.42)  # The one of an hour ago is long past.


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_quantiles_are_exact_to_the_width_of_a_bucket(part: float) -> None:
    clock = Clock()
    activity = Activity(clock)
    seconds = np.exp(np.random.default_rng(0).normal(-6, 1, 5000))
    for one in seconds:
        step(activity, clock, float(one))
    found, true = quantile(activity.step_counts, part), float(np.quantile(seconds, part))
    assert true / 1.42 < found < true * 1.42


def test_steps_beyond_the_bounds_are_counted_at_the_ends() -> None:
    clock = Clock()
    activity = Activity(clock)
    step(activity, clock, 1e-7)
    step(activity, clock, 1e4)
    assert activity.step_counts[0] == activity.step_counts[-1] == 1
    assert BOUNDS[0] < 20e-6
    assert BOUNDS[-1] > 60


def test_a_queue_that_is_longer_in_all_of_the_later_half_of_a_minute_grows() -> None:
    clock = Clock()
    growing, steady = Activity(clock), Activity(clock)
    steady.queued(10 * LEAST_GROWN_ROUNDS, 0)
    for _ in range(MARKS - 1):
        assert not growing.pace().queue_grows
        clock.now_s += MARK_S
        growing.queued(LEAST_GROWN_ROUNDS, 0)
        growing.pace()
        steady.pace()
    clock.now_s += MARK_S
    assert growing.pace().queue_grows
    assert not steady.pace().queue_grows


GOOD = Facts(
    storage_failure="",
    set_aside={},
    blocked={},
    refusing=False,
    queue_rounds=0,
    queue_grows=False,
    devices=[DeviceOverview(name="cpu", capacity_bytes=100, used_bytes=95, free_bytes=5, sessions=[])],
    disk=DiskUse(capacity_bytes=1 << 40, free_bytes=1 << 36),
)


def test_nothing_is_said_while_all_is_well() -> None:
    assert alerts(GOOD) == []


@pytest.mark.parametrize(
    ("rule", "severity", "session_id", "changed"),
    [
        ("storage_failed", AlertSeverity.CRITICAL, "", {"storage_failure": "the disk failed"}),
        ("session_set_aside", AlertSeverity.CRITICAL, "a", {"set_aside": {"a": "its record is damaged"}}),
        ("session_blocked", AlertSeverity.CRITICAL, "a", {"blocked": {"a": "the disk is full"}}),
        ("staging_full", AlertSeverity.WARNING, "", {"refusing": True}),
        ("queue_grows", AlertSeverity.WARNING, "", {"queue_grows": True, "queue_rounds": 77}),
        ("disk_low", AlertSeverity.WARNING, "", {"disk": DiskUse(capacity_bytes=1 << 40, free_bytes=1 << 30)}),
        (
            "device_full",
            AlertSeverity.WARNING,
            "",
            {"devices": [DeviceOverview(name="cpu", capacity_bytes=100, used_bytes=96, free_bytes=4, sessions=[])]},
        ),
    ],
)
def test_each_rule_finds_what_it_is_for(
    rule: str, severity: AlertSeverity, session_id: str, changed: dict[str, object]
) -> None:
    facts = {name: getattr(GOOD, name) for name in Facts.__dataclass_fields__}
    (found,) = alerts(Facts(**{**facts, **changed}))
    assert (found.rule, found.severity, found.session_id) == (rule, severity, session_id)
    assert found.text


def test_the_gravest_come_first() -> None:
    facts = {name: getattr(GOOD, name) for name in Facts.__dataclass_fields__}
    found = alerts(Facts(**{**facts, "refusing": True, "blocked": {"a": "the disk is full"}}))
    assert [alert.severity for alert in found] == [AlertSeverity.CRITICAL, AlertSeverity.WARNING]
    assert isinstance(found[0], Alert)


def test_an_engine_counts_its_steps_and_names_the_sessions_with_the_most_memory(play) -> None:
    async def scenario(bench) -> None:
        small, large = await bench.session(4), await bench.session(4096, "adamw")
        for sequence in (1, 2, 3):
            await bench.send(small, np.ones(4, np.float32), sequence=sequence)
        refused = await bench.send(small, np.full(4, np.nan, np.float32), sequence=4)
        assert refused.result.step == 3
        await asyncio.gather(bench.send(small, np.ones(4), sequence=5), bench.send(large, np.ones(4096), sequence=1))
        seen = await survey(bench.engine, sees=lambda name: True, max_sessions=1)
        assert seen.steps == sum(bench.engine.activity.step_counts) == 5
        assert (seen.queue_rounds, seen.queue_bytes) == (0, 0)
        assert 1.0 <= seen.batch_sessions <= 2.0
        assert 0 < seen.step_p50_s < 10
        (device,) = seen.devices
        assert device.used_bytes == large.on_device.slot.size_bytes + small.on_device.slot.size_bytes
        assert device.capacity_bytes == device.used_bytes + device.free_bytes
        (held,) = device.sessions
        assert (held.session_id, held.device_bytes) == (large.session_id, large.on_device.slot.size_bytes)
        hidden = await survey(bench.engine, sees=lambda name: name == small.session_id, max_sessions=9)
        assert [each.session_id for each in hidden.devices[0].sessions] == [small.session_id]

    play(scenario)
