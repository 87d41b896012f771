"""The engine: rounds, exactly-once, batches that nobody notices, and refusals that change nothing."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.dynamics import Exponential
from hermosis_server.engine.arena import Arena, staging_buffer
from hermosis_server.engine.engine import Engine, SessionEdit
from hermosis_server.engine.executor import Executor
from hermosis_server.engine.scheduler import StepQueue
from hermosis_server.errors import (
    HermosisError,
    InternalError,
    InvalidHyperparameter,
    InvalidRequest,
    LayoutMismatch,
    OutOfDeviceMemory,
    Overloaded,
    PayloadMismatch,
    QuotaExceeded,
    ServerStopping,
    SessionExists,
    SessionNotFound,
    SessionNotReady,
    StaleGradient,
)
from hermosis_server.records import AckLevel, ConsistencyMode, Limits, Outcome, ParametersOn, Reply, SessionStatus

from .conftest import Bench

Play = Callable[..., None]
ONES = np.ones(5, np.float32)


def random(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def values(answer: Any) -> np.ndarray:
    return np.frombuffer(answer.vector.payload, np.float32)


def test_plain_sgd_is_numpy_arithmetic(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        start = random(150, 0)
        session = await bench.session(150, "sgd", lr=0.5, start=start)
        answer = await bench.send(session, ONES.repeat(30), sequence=1, loss=2.0)
        np.testing.assert_array_equal(values(answer), start - np.float32(0.5) * ONES.repeat(30))
        assert answer.result.step == session.step == 1
        assert answer.result.outcome is Outcome.APPLIED
        assert answer.result.energies.loss == 2.0

    play(scenario)


def test_a_barrier_round_waits_for_all_and_sums_in_worker_order(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        parts = [random(70, seed) for seed in range(3)]
        final = []
        for order in ((0, 1, 2), (2, 0, 1)):
            session = await bench.session(70, "adamw", workers=3)
            waits = [
                asyncio.ensure_future(bench.send(session, parts[i], sequence=1, worker_id=f"w{i}", loss=float(i)))
                for i in order
            ]
            await asyncio.sleep(0)
            answers = await asyncio.gather(*waits)
            assert {a.result.step for a in answers} == {1}
            assert answers[0].result.contributions == 3
            assert answers[0].result.energies.loss == pytest.approx(1.0)
            final.append(values(answers[0]).tobytes())
        assert final[0] == final[1]

    play(scenario)


def test_a_round_does_not_step_before_its_last_worker(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, workers=2)
        first = asyncio.ensure_future(bench.send(session, ONES, sequence=1, worker_id="a"))
        await bench.engine.pull(session.session_id, Dtype.FLOAT32)  # all that was queued before has been done
        assert not first.done()
        assert session.step == 0
        await bench.send(session, ONES, sequence=1, worker_id="b")
        assert (await first).result.step == 1

    play(scenario)


def test_sample_counts_weight_the_mean_when_all_are_given(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        for counts, expected in (((3, 1), 0.75 * 4.0), ((3, 0), 0.5 * 4.0)):
            session = await bench.session(1, "sgd", workers=2, lr=1.0)
            big, zero = np.array([4.0], np.float32), np.zeros(1, np.float32)
            a = bench.send(session, big, sequence=1, worker_id="a", sample_count=counts[0])
            b = bench.send(session, zero, sequence=1, worker_id="b", sample_count=counts[1])
            answers = await asyncio.gather(a, b)
            assert values(answers[0])[0] == -expected

    play(scenario)


@pytest.mark.parametrize("recipe", ["sgd", "adam", "adamw", "rmsprop", "rgd", "hermosis"])
def test_a_batch_of_sessions_equals_each_session_alone_bit_for_bit(recipe: str, play: Play) -> None:
    sizes = [1, 63, 64, 65, 200, 1000]

    async def run(bench: Any, together: bool) -> tuple[list[bytes], int]:
        sessions = [await bench.session(size, recipe, start=random(size, size)) for size in sizes]
        largest = 0
        for step in range(4):
            jobs = []
            for session, size in zip(sessions, sizes, strict=True):
                send = bench.send(session, random(size, 100 * step + size), sequence=step + 1, loss=1.0 + step)
                if together:
                    jobs.append(send)
                else:
                    await send
            await asyncio.gather(*jobs)
            largest = max(largest, *(s.telemetry.latest.batch_sessions for s in sessions))
        return [await bench.engine.states.digest(s.session_id) for s in sessions], largest

    async def scenario(bench: Any) -> None:
        alone, one = await run(bench, together=False)
        batched, many = await run(bench, together=True)
        assert one == 1
        assert many > 1
        assert alone == batched

    play(scenario)


def test_a_repeat_is_answered_and_not_applied_twice(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, lr=1.0)
        first = await bench.send(session, ONES, sequence=1)
        digest = await bench.engine.states.digest(session.session_id)
        again = await bench.send(session, ONES, sequence=1)
        assert again.result.duplicate
        assert not first.result.duplicate
        assert again.result.step == 1
        assert again.result.energies == first.result.energies
        np.testing.assert_array_equal(values(again), values(first))
        assert await bench.engine.states.digest(session.session_id) == digest
        assert bench.engine.budget.used_bytes == 0

    play(scenario)


def test_a_repeat_while_the_round_waits_joins_it(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, workers=2, lr=1.0)
        first = asyncio.ensure_future(bench.send(session, ONES, sequence=1, worker_id="a"))
        again = asyncio.ensure_future(bench.send(session, ONES, sequence=1, worker_id="a"))
        await bench.send(session, ONES, sequence=1, worker_id="b")
        assert (await first).result.step == 1
        assert (await again).result.duplicate
        assert session.step == 1

    play(scenario)


def test_the_last_increment_is_kept_for_a_repeat(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, parameters_on=ParametersOn.WORKER, lr=0.5)
        first = await bench.send(session, ONES, sequence=1, reply=Reply.INCREMENT)
        again = await bench.send(session, ONES, sequence=1, reply=Reply.INCREMENT)
        assert values(again).tobytes() == values(first).tobytes() == (-0.5 * ONES).tobytes()
        await bench.send(session, ONES, sequence=2, reply=Reply.INCREMENT)
        with pytest.raises(StaleGradient, match="no longer held"):
            await bench.send(session, ONES, sequence=1, reply=Reply.INCREMENT)

    play(scenario)


def test_parameters_on_the_worker_follow_those_on_the_server_bit_for_bit(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        for recipe in ("sgd", "adam", "hermosis"):
            start = random(100, 1)
            server = await bench.session(100, recipe, start=start)
            worker = await bench.session(100, recipe, parameters_on=ParametersOn.WORKER)
            mine = start.copy()
            for step in range(5):
                gradient = random(100, 10 + step)
                there = await bench.send(server, gradient, sequence=step + 1)
                here = await bench.send(worker, gradient, sequence=step + 1, reply=Reply.INCREMENT)
                mine += values(here)
                assert values(there).tobytes() == mine.tobytes()
            assert worker.resident.slot.size_bytes < server.resident.slot.size_bytes

    play(scenario)


def test_weight_decay_on_worker_held_parameters_is_refused_by_name(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        with pytest.raises(InvalidHyperparameter) as caught:
            await bench.session(5, "adamw", parameters_on=ParametersOn.WORKER)
        assert "weight_decay" in caught.value.field
        assert list(bench.engine.sessions()) == []

    play(scenario)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_is_a_typed_outcome_and_touches_nobody(bad: float, play: Play) -> None:
    async def scenario(bench: Any) -> None:
        ill = await bench.session(5, "adamw", start=random(5, 1))
        well = await bench.session(5, "adamw", start=random(5, 2))
        before = await bench.engine.states.digest(ill.session_id)
        poison = ONES.copy()
        poison[3] = bad
        sick, fine = await asyncio.gather(
            bench.send(ill, poison, sequence=1), bench.send(well, ONES, sequence=1, loss=1.0)
        )
        assert sick.result.outcome is Outcome.NON_FINITE_GRADIENT
        assert sick.result.step == ill.step == 0
        assert sick.result.energies is None
        assert await bench.engine.states.digest(ill.session_id) == before
        assert fine.result.outcome is Outcome.APPLIED
        assert np.isfinite(values(fine)).all()
        # The number is used: the worker goes on with the next one.
        healed = await bench.send(ill, ONES, sequence=2)
        assert healed.result.step == 1

    play(scenario)


def test_a_finite_gradient_that_would_overflow_the_state_is_a_typed_outcome(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, "adam")
        before = await bench.engine.states.digest(session.session_id)
        answer = await bench.send(session, np.full(5, 3e38, np.float32), sequence=1)
        assert answer.result.outcome is Outcome.NON_FINITE_STATE
        assert await bench.engine.states.digest(session.session_id) == before

    play(scenario)


def test_a_loss_that_is_not_finite_counts_as_unknown(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5)
        answer = await bench.send(session, ONES, sequence=1, loss=math.inf)
        assert answer.result.outcome is Outcome.APPLIED
        assert math.isnan(answer.result.energies.loss)

    play(scenario)


REFUSED = [
    ({"sequence": 3}, InvalidRequest, "2 is next"),
    ({"sequence": 0}, InvalidRequest, "2 is next"),
    ({"sequence": 2, "base_step": 7}, InvalidRequest, "ahead"),
    ({"sequence": 2, "base_step": 0}, StaleGradient, "pull the parameters"),
    ({"sequence": 2, "lr_scale": math.nan}, InvalidHyperparameter, "lr_scale"),
    ({"sequence": 2, "lr_scale": -1.0}, InvalidHyperparameter, "lr_scale"),
]


@pytest.mark.parametrize(("sent", "error", "words"), REFUSED)
def test_a_refused_contribution_leaves_the_digest(
    sent: dict[str, Any], error: type[HermosisError], words: str, play: Play
) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5)
        await bench.send(session, ONES, sequence=1)
        before = await bench.engine.states.digest(session.session_id)
        with pytest.raises(error, match=words):
            await bench.send(session, ONES, **sent)
        assert await bench.engine.states.digest(session.session_id) == before
        assert bench.engine.budget.used_bytes == 0
        assert (await bench.send(session, ONES, sequence=2)).result.step == 2

    play(scenario)


def test_other_bytes_under_a_counted_number_are_refused(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5)
        await bench.send(session, ONES, sequence=1)
        before = await bench.engine.states.digest(session.session_id)
        with pytest.raises(PayloadMismatch):
            await bench.send(session, 2 * ONES, sequence=1)
        assert await bench.engine.states.digest(session.session_id) == before

    play(scenario)


def test_a_second_gradient_for_the_same_round_is_refused(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, workers=2)
        first = asyncio.ensure_future(bench.send(session, ONES, sequence=1, worker_id="a"))
        with pytest.raises(StaleGradient, match="already"):
            await bench.send(session, ONES, sequence=2, worker_id="a")
        await bench.send(session, ONES, sequence=1, worker_id="b")
        await first

    play(scenario)


def test_async_contributions_are_each_a_step_and_know_their_staleness(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, mode=ConsistencyMode.ASYNC, workers=3, max_staleness=2)
        sends = (bench.send(session, ONES, sequence=1, base_step=0, worker_id=worker) for worker in "abc")
        results = [(await send).result for send in sends]
        assert [(r.step, r.staleness) for r in results] == [(1, 0), (2, 1), (3, 2)]
        with pytest.raises(StaleGradient, match="3 steps behind"):
            await bench.send(session, ONES, sequence=2, base_step=0, worker_id="a")

    play(scenario)


def test_async_contributions_may_be_in_flight_together(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, mode=ConsistencyMode.ASYNC)
        waits = [bench.send(session, ONES, sequence=n, base_step=0) for n in (1, 2, 3)]
        steps = [answer.result.step for answer in await asyncio.gather(*waits)]
        assert steps == [1, 2, 3]

    play(scenario)


def test_received_is_answered_before_the_round_is_complete(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, workers=2)
        answer = await bench.send(session, ONES, sequence=1, worker_id="a", level=AckLevel.RECEIVED)
        assert answer.result.outcome is Outcome.RECEIVED
        await bench.send(session, ONES, sequence=1, worker_id="b")
        assert session.step == 1

    play(scenario)


def test_lr_scale_multiplies_the_worker_s_with_the_session_s(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(1, lr=1.0)
        one = np.ones(1, np.float32)
        await bench.engine.update_session(session.session_id, SessionEdit(lr_scale=0.5))
        answer = await bench.send(session, one, sequence=1, lr_scale=0.25)
        assert values(answer)[0] == -0.125
        assert answer.result.energies.learning_rate == 0.125

    play(scenario)


def test_an_edit_based_on_an_old_reading_is_refused(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(1)
        etag = str(session.revision)
        await bench.engine.update_session(session.session_id, SessionEdit(display_name="a"), etag=etag)
        with pytest.raises(PayloadMismatch, match="etag"):
            await bench.engine.update_session(session.session_id, SessionEdit(display_name="b"), etag=etag)
        assert session.spec.display_name == "a"

    play(scenario)


def test_of_two_edits_at_once_based_on_the_same_reading_one_is_refused(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(1)
        edits = [SessionEdit(thermal=Exponential(momentum_retention=mu), display_name=str(mu)) for mu in (0.5, 0.6)]
        outcomes = await asyncio.gather(
            *(bench.engine.update_session(session.session_id, edit, etag=str(session.revision)) for edit in edits),
            return_exceptions=True,
        )
        assert [isinstance(outcome, PayloadMismatch) for outcome in outcomes] == [False, True]
        assert session.spec.display_name == "0.5"
        assert session.spec.optimizer.thermal == session.on_device.hamiltonian.thermal == edits[0].thermal

    play(scenario)


def test_the_thermal_profile_can_be_changed_between_steps(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, "adam")
        first = await bench.send(session, ONES, sequence=1)
        await bench.engine.update_session(session.session_id, SessionEdit(thermal=Exponential(momentum_retention=0.5)))
        second = await bench.send(session, ONES, sequence=2)
        assert first.result.energies.retention == pytest.approx(0.9)
        assert second.result.energies.retention == pytest.approx(0.5)

    play(scenario)


def test_pause_and_resume(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5)
        await bench.engine.pause_session(session.session_id)
        with pytest.raises(SessionNotReady, match="resume"):
            await bench.send(session, ONES, sequence=1)
        await bench.engine.pull(session.session_id, Dtype.FLOAT32)
        await bench.engine.resume_session(session.session_id)
        assert (await bench.send(session, ONES, sequence=1)).result.step == 1

    play(scenario)


def test_a_session_creating_takes_no_gradient_and_no_second_parameters(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        ready = await bench.session(5)
        with pytest.raises(SessionNotReady, match="set once"):
            bench.engine.begin_parameters(ready.session_id, Dtype.FLOAT32)
        creating = await bench.engine.create_session(ready.spec)
        assert creating.status is SessionStatus.CREATING
        with pytest.raises(SessionNotReady, match="upload"):
            await bench.send(creating, ONES, sequence=1)
        with pytest.raises(SessionNotReady):
            await bench.engine.pull(creating.session_id, Dtype.FLOAT32)

    play(scenario)


def test_initial_parameters_that_are_not_finite_or_not_whole_leave_the_session_creating(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        spec = (await bench.session(5)).spec
        session = await bench.engine.create_session(spec)
        for chunk, error in ((np.array([1, np.nan, 0, 0, 0]), InvalidRequest), (np.ones(4), LayoutMismatch)):
            upload = bench.engine.begin_parameters(session.session_id, Dtype.FLOAT32)
            payload = chunk.astype(np.float32).tobytes()
            upload.add(offset=0, dtype=Dtype.FLOAT32, crc32=wire.checksum(payload), payload=payload)
            with pytest.raises(error):
                await bench.engine.initialise(session.session_id, upload)
            upload.release()
            assert session.status is SessionStatus.CREATING

    play(scenario)


def test_closing_gives_everything_back_and_tells_whoever_waits(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, workers=2, session_id="mine")
        waiting = asyncio.ensure_future(bench.send(session, ONES, sequence=1, worker_id="a"))
        await asyncio.sleep(0)
        await bench.engine.close_session("mine")
        with pytest.raises(SessionNotReady, match="closed"):
            await waiting
        assert bench.engine.budget.used_bytes == 0
        assert await bench.engine.free_device_bytes() == bench.engine.limits.device_bytes
        with pytest.raises(SessionNotFound):
            bench.engine.session("mine")
        with pytest.raises(SessionNotReady):
            await bench.send(session, ONES, sequence=1, worker_id="b")
        await bench.session(5, session_id="mine")

    play(scenario)


def test_names_and_counts_are_limited(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, session_id="taken")
        with pytest.raises(SessionExists):
            await bench.session(5, session_id="taken")
        for name in ("Upper", "../etc", "a" * 64, "-a", "a b"):
            with pytest.raises(InvalidRequest):
                await bench.session(5, session_id=name)
        await bench.session(5)
        with pytest.raises(QuotaExceeded, match="sessions"):
            await bench.session(5)
        for number in range(3):
            session.join(f"w{number}")
        with pytest.raises(QuotaExceeded, match="workers"):
            session.join("one too many")

    play(scenario, max_sessions=2, max_workers=3)


def test_device_and_staging_memory_are_limited(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        with pytest.raises(OutOfDeviceMemory):
            await bench.session(1 << 20)
        assert list(bench.engine.sessions()) == []
        session = await bench.session(100, workers=2, mode=ConsistencyMode.BARRIER)
        waiting = asyncio.ensure_future(bench.send(session, random(100, 1), sequence=1, worker_id="a"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await bench.send(session, random(100, 1), sequence=1, worker_id="b")
        waiting.cancel()

    play(scenario, device_bytes=1 << 20, staging_bytes=600)


def test_export_and_import_continue_bit_for_bit_elsewhere_and_fence_the_old_workers(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        original = await bench.session(100, "adamw", start=random(100, 0))
        for step in range(3):
            await bench.send(original, random(100, step), sequence=step + 1, loss=1.0)
        state = await bench.engine.states.exported(original.session_id)
        assert state.digest == await bench.engine.states.digest(original.session_id)
        heir = await bench.engine.create_session(original.spec)
        assert heir.generation == 1
        await bench.engine.states.replaced_by(heir.session_id, state)
        assert (heir.generation, heir.step, heir.status) == (2, 3, SessionStatus.READY)
        assert await bench.engine.states.digest(heir.session_id) == state.digest
        assert (await bench.send(heir, random(100, 2), sequence=3, base_step=2)).result.duplicate
        for session in (original, heir):
            await bench.send(session, random(100, 9), sequence=4, loss=2.0)
        digests = [await bench.engine.states.digest(s.session_id) for s in (original, heir)]
        assert digests[0] == digests[1] != state.digest
        cold = await bench.session(100, "adamw", start=random(100, 0))
        assert await bench.engine.states.digest(cold.session_id) != state.digest

    play(scenario)


def test_a_state_that_does_not_reach_its_digest_is_refused_and_changes_nothing(play: Play) -> None:
    from dataclasses import replace

    from hermosis_server.errors import CorruptState

    async def scenario(bench: Any) -> None:
        session = await bench.session(10, "adam", start=random(10, 0))
        await bench.send(session, random(10, 1), sequence=1)
        state = await bench.engine.states.exported(session.session_id)
        await bench.send(session, random(10, 2), sequence=2)
        before = await bench.engine.states.digest(session.session_id)
        buffer, memory = next(iter(state.buffers.items()))
        changed = bytearray(memory)
        changed[5] ^= 1
        broken = replace(state, buffers={**state.buffers, buffer: memoryview(changed)})
        with pytest.raises(CorruptState):
            await bench.engine.states.replaced_by(session.session_id, broken)
        assert await bench.engine.states.digest(session.session_id) == before
        assert session.status is SessionStatus.READY
        assert (await bench.send(session, ONES.repeat(2), sequence=3)).result.step == 3

    play(scenario)


def test_a_step_that_fails_leaves_the_session_and_frees_the_number(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hermosis_server.engine import device, step

    async def scenario(bench: Any) -> None:
        session = await bench.session(5, "hermosis")
        before = await bench.engine.states.digest(session.session_id)

        def broken(*arguments: Any, **options: Any) -> None:
            raise MemoryError("planted")

        with monkeypatch.context() as patch:
            patch.setattr(step, "advance_", broken)
            patch.setattr(step.fused, "step", broken)
            patch.setattr(step.Solo, "step", broken)
            patch.setattr(device.Copies, "gradients", broken)
            with pytest.raises(InternalError):
                await bench.send(session, ONES, sequence=1)
        assert "planted" in caplog.text
        assert await bench.engine.states.digest(session.session_id) == before
        assert bench.engine.budget.used_bytes == 0
        assert (await bench.send(session, ONES, sequence=1)).result.step == 1

    play(scenario)


def test_telemetry_of_every_step_reaches_the_watchers(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(5, "hermosis")
        watch = bench.engine.watch((), min_interval_s=0.0)
        for step in range(3):
            await bench.send(session, ONES, sequence=step + 1, loss=3.0 - step)
        readings = await watch.next()
        assert [r.step for r in readings] == [1, 2, 3]
        assert [r.energies.loss for r in readings] == [3.0, 2.0, 1.0]
        assert readings[0].received_bytes == readings[0].sent_bytes == 20
        assert all(math.isfinite(number) for number in readings[1].energies)
        bench.engine.unwatch(watch)

    play(scenario)


def test_stopping_finishes_complete_rounds_and_refuses_the_rest(play: Play) -> None:
    async def scenario(bench: Any) -> None:
        whole = await bench.session(5)
        half = await bench.session(5, workers=2)
        done = asyncio.ensure_future(bench.send(whole, ONES, sequence=1))
        waiting = asyncio.ensure_future(bench.send(half, ONES, sequence=1))
        await asyncio.sleep(0)
        await bench.engine.stop()
        assert (await done).result.step == 1
        with pytest.raises(ServerStopping):
            await waiting
        with pytest.raises(ServerStopping):
            await bench.send(whole, ONES, sequence=2)

    play(scenario)


def test_sessions_are_placed_where_most_memory_is_free(device: torch.device) -> None:
    async def whole() -> None:
        limits = Limits()
        executors = [
            Executor(Arena(device, limit_bytes=limit), StepQueue(batch_bytes=1 << 26, linger_s=0.0))
            for limit in (1 << 20, 1 << 20)
        ]
        engine = Engine(executors, limits=limits, allocate=lambda size: staging_buffer(size, pinned=False))
        try:
            rig = Bench(engine, executors[0])
            sessions = [await rig.session(10_000, start=np.ones(10_000, np.float32)) for _ in range(4)]
            assert [executors.index(session.executor) for session in sessions] == [0, 1, 0, 1]
            gradient = np.ones(10_000, np.float32)
            for session in sessions:
                assert (await rig.send(session, gradient, sequence=1)).result.step == 1
            assert len({await engine.states.digest(session.session_id) for session in sessions}) == 1
            assert await engine.free_device_bytes() == sum(executor.free_bytes for executor in executors)
            with pytest.raises(OutOfDeviceMemory):
                await rig.session(250_000)
        finally:
            await engine.stop()

    asyncio.run(whole())
