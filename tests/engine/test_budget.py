"""Budgets: refused above the limit, taken again below three quarters of it, and never a wait without an end."""

from typing import Any

import numpy as np
import pytest

from hermosis import wire
from hermosis.wire import Dtype
from hermosis_server.engine.assembler import FREE_PARTS, PAID_PARTS, PART_BYTES, Assembler, StagingBudget
from hermosis_server.engine.budget import Budget
from hermosis_server.engine.telemetry import LEAST_READINGS, MAX_WATCHES, Shelf, TelemetryRing, Watch, Watchers
from hermosis_server.errors import Overloaded, QuotaExceeded
from hermosis_server.records import ConsistencyMode, EnergySample, ParametersOn, Reply, TelemetryReading


def test_beyond_the_limit_nothing_is_taken_until_a_quarter_is_free() -> None:
    budget = Budget(100)
    budget.take(60)
    budget.take(40)
    with pytest.raises(Overloaded) as caught:
        budget.take(1)
    assert caught.value.retry_after_s
    budget.give(20)
    with pytest.raises(Overloaded, match="above 75"):
        budget.take(1)
    budget.give(5)
    budget.take(25)
    assert budget.used_bytes == 100


def test_one_that_is_too_large_leaves_the_door_open_for_small_ones() -> None:
    budget = Budget(100)
    budget.take(50)
    with pytest.raises(Overloaded):
        budget.take(60)
    budget.take(30)


def test_what_others_wait_for_is_only_stopped_by_the_limit_itself() -> None:
    budget = Budget(100)
    budget.take(90)  # a worker's part of a round, which stays until the other one's has come
    with pytest.raises(Overloaded):
        budget.take(20)
    budget.take(10, awaited=True)
    with pytest.raises(Overloaded):
        budget.take(1, awaited=True)


def test_what_a_part_uses_counts_for_the_whole_and_a_refusal_by_either_counts_nothing() -> None:
    whole = Budget(100)
    one, other = Budget(80, owner="session one", whole=whole), Budget(80, whole=whole)
    one.take(70)
    other.hold(20)
    with pytest.raises(Overloaded, match="of the server"):
        other.take(20)
    with pytest.raises(Overloaded, match="of session one"):
        one.take(20)
    assert (whole.used_bytes, one.used_bytes, other.used_bytes) == (90, 70, 20)
    one.give(70)
    other.give(20)
    assert (whole.used_bytes, whole.refusing, one.refusing) == (0, False, False)


def test_a_vector_in_tiny_pieces_pays_for_what_is_remembered_of_them() -> None:
    size = 4 * FREE_PARTS
    budget = StagingBudget(4 * size + (FREE_PARTS + PAID_PARTS) * PART_BYTES, lambda n: memoryview(bytearray(n)))
    assembler = Assembler(size, Dtype.FLOAT32, wire.MAX_CHUNK_BYTES, budget.stage(4 * size), budget)
    element = np.ones(1, np.float32).tobytes()

    def send_all() -> None:
        for offset in range(size):
            assembler.add(offset=offset, dtype=Dtype.FLOAT32, crc32=wire.checksum(element), payload=element)

    with pytest.raises(Overloaded):
        send_all()
    assert FREE_PARTS <= assembler.received < size
    assembler.release()
    assembler.release()
    assert budget.used_bytes == 0


def test_a_gradient_in_sensible_pieces_fits_a_budget_of_its_own_size() -> None:
    size = 1 << 16
    budget = StagingBudget(4 * size, lambda n: memoryview(bytearray(n)))
    assembler = Assembler(size, Dtype.FLOAT32, wire.MAX_CHUNK_BYTES, budget.stage(4 * size), budget)
    piece = bytes(4096)
    for offset in range(0, size, 1024):
        assembler.add(offset=offset, dtype=Dtype.FLOAT32, crc32=wire.checksum(piece), payload=piece)
    assert assembler.complete


def test_a_session_cannot_take_the_room_of_others_and_a_round_of_its_own_always_fits(play: Any) -> None:
    size = 1000

    async def scenario(bench: Any) -> None:
        greedy = await bench.session(size, mode=ConsistencyMode.ASYNC)
        begun: list[Any] = []

        def begin(number: int) -> None:
            worker = greedy.join(f"w{number}")
            begun.append(bench.engine.intake.begin_gradient(greedy, worker, 1, Dtype.FLOAT32))

        for number in range(8):
            begin(number)
        with pytest.raises(Overloaded, match=f"session {greedy.session_id}"):
            begin(8)
        other = await bench.session(size)
        assert (await bench.send(other, np.ones(size), sequence=1)).result.step == 1
        for gradient in begun:
            gradient.release()

        many = await bench.session(size, workers=20)
        fates = [bench.send(many, np.ones(size), sequence=1, worker_id=f"w{number}") for number in range(20)]
        assert (await fates[0]).result.contributions == 20

    play(scenario, session_bytes=8 * 4 * size, staging_bytes=1 << 20)


def test_increments_of_workers_that_vanished_are_kept_as_long_as_there_is_room(play: Any) -> None:
    async def scenario(bench: Any) -> None:
        session = await bench.session(1000, mode=ConsistencyMode.ASYNC, parameters_on=ParametersOn.WORKER, recipe="sgd")
        for number in range(10):
            await bench.send(
                session, np.ones(1000), sequence=1, worker_id=f"w{number}", base_step=0, reply=Reply.INCREMENT
            )
        held = [name for name, worker in session.workers.items() if worker.increments]
        assert held == [f"w{number}" for number in range(6, 10)]

    play(scenario, session_bytes=4 * 8 * 1000)


def reading(step: int, session_id: str = "s") -> TelemetryReading:
    return TelemetryReading(
        session_id=session_id, step=step, time_s=step, energies=EnergySample(), contributions=1, staleness=0,
        received_bytes=0, sent_bytes=0, device_s=0.0, batch_sessions=1, wait_s=0.0,
    )  # fmt: skip


def test_readings_of_all_sessions_together_are_bounded() -> None:
    shelf = Shelf(1000, together=4 * LEAST_READINGS)
    rings: list[TelemetryRing] = []
    for number in range(20):
        rings.append(TelemetryRing(f"s{number}", shelf))
        shelf.share(len(rings), rings)
        for step in range(1000):
            rings[-1].append(reading(step))
        assert sum(map(len, rings)) <= max(4 * LEAST_READINGS, LEAST_READINGS * len(rings))
    assert rings[-1].latest == reading(999), "the newest stay"


def test_a_watch_of_everything_forgets_sessions_that_are_no_more_and_watches_are_counted() -> None:
    watchers = Watchers()
    watch = watchers.add(Watch((), min_interval_s=0.5, capacity=10))
    for number in range(100):
        watchers.offer(f"s{number}", 1.0, reading(1, f"s{number}"))
        watchers.forget(f"s{number}")
    assert not watch._last_s
    for _ in range(MAX_WATCHES - 1):
        watchers.add(Watch((), min_interval_s=0.0, capacity=10))
    with pytest.raises(QuotaExceeded):
        watchers.add(Watch((), min_interval_s=0.0, capacity=10))
