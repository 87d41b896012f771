"""Worker processes on a real task, in every mode: they come to the loss that one process alone comes to."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tests.forking import WarmServer, warm_up

from benchmarks.slow_links import task
from benchmarks.slow_links.crew import Crew
from benchmarks.slow_links.worker import Seat
from hermosis_client import Client, Consistency, Recipe, Session

STEPS = 30
MEAN = Recipe("sgd", lr=1.0)  # the outer step of workers that go by themselves: the mean of where they came to
LEASE_S = 1.5
FINISH_S = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[WarmServer]:
    warm_up()
    with WarmServer() as server:
        yield server


@pytest.fixture
def start(server: WarmServer) -> Iterator[Callable[..., tuple[Session, list[Seat]]]]:
    """Makes a session at the task's first weights, and the seats of its workers."""
    with Client(server.address, timeout_s=20.0) as client:

        def begin(consistency: Consistency, **seat: Any) -> tuple[Session, list[Seat]]:
            # Where each contribution is a step there are as many times more of them.
            steps = consistency.workers if consistency.mode in ("async", "bounded") else 1
            adamw = Recipe("adamw", lr=task.LR / steps, weight_decay=0.0)
            recipe = adamw if consistency.mode != "local" else MEAN
            arrays = {name: tensor.detach().numpy() for name, tensor in task.network().named_parameters()}
            session = client.create_session(arrays, recipe, consistency=consistency)
            session.initialise(arrays)
            taken = Seat(
                address=server.address, session_id=session.session_id, place=0, workers=consistency.workers, **seat
            )
            return session, [replace(taken, place=place) for place in range(consistency.workers)]

        yield begin


@cache
def alone(steps: int) -> float:
    return task.alone(steps)


def loss_of(session: Session) -> float:
    """Mean cross-entropy at the session's parameters, over all images."""
    model = task.network()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(session.pull().flat), model.parameters())
    return task.measured(model)


def becomes(true: Callable[[], bool], timeout_s: float = FINISH_S) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def reaches(session: Session, step: int, timeout_s: float = FINISH_S) -> bool:
    return becomes(lambda: session.info().step >= step, timeout_s)


def rule(mode: str, workers: int) -> tuple[Consistency, int]:
    """A rule, and how many of its steps see as many images as STEPS whole minibatches; three times as many where
    gradients are of parameters that others have moved meanwhile, twice as many where only those of the late are."""
    if mode == "quorum":
        quorum = max(1, workers - 1)
        rule = Consistency(mode="quorum", workers=workers, quorum=quorum, late="carry", lease_s=LEASE_S)
        return rule, 2 * STEPS * workers // quorum
    if mode == "local":
        return Consistency(mode="local", workers=workers, local_steps=3), STEPS // 3
    if mode == "bounded":
        return Consistency(mode="bounded", workers=workers, max_staleness=2, lease_s=LEASE_S), 3 * STEPS * workers
    if mode == "async":
        return Consistency(mode="async", workers=workers), 3 * STEPS * workers
    return Consistency(mode="barrier", workers=workers), STEPS


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["barrier", "quorum", "async", "bounded", "local"])
def test_workers_come_to_the_loss_of_one_alone(start: Any, mode: str, workers: int) -> None:
    consistency, steps = rule(mode, workers)
    session, seats = start(consistency, until_step=steps)
    with Crew(seats) as crew:
        assert crew.finish(FINISH_S), f"still at step {session.info().step} of {steps}"
    assert session.info().step >= steps
    reached = loss_of(session)
    if mode == "barrier":
        assert reached == pytest.approx(alone(STEPS), rel=0.02)
    # What is late scatters the loss of so few steps by half: a quorum has twice of them, and must come as far as one.
    assert reached < alone(STEPS if mode == "quorum" else STEPS // 2), f"alone it is {alone(STEPS)} after {STEPS} steps"


def test_a_barrier_has_the_same_bits_whoever_is_fast(start: Any) -> None:
    digests = set()
    for delays_s in ((0.0, 0.004, 0.008), (0.008, 0.0, 0.004)):
        session, seats = start(Consistency(mode="barrier", workers=3), until_step=STEPS)
        with Crew(replace(seat, compute_s=delay_s) for seat, delay_s in zip(seats, delays_s, strict=True)) as crew:
            assert crew.finish(FINISH_S)
        digests.add(session.digest())
    assert len(digests) == 1


@pytest.mark.parametrize("mode", ["barrier", "quorum", "async", "bounded", "local"])
def test_workers_may_be_killed_and_come_back(start: Any, mode: str) -> None:
    """Whoever is killed is not waited for, and takes its seat again under its name."""
    consistency, steps = rule(mode, 3)
    session, seats = start(replace(consistency, lease_s=LEASE_S), compute_s=0.01)
    with Crew(seats) as crew:
        for number in range(6):
            seat = seats[number % 3]
            assert reaches(session, (number + 1) * steps // 7), session.workers()
            crew.kill(seat)
            if number % 2:
                assert reaches(session, session.info().step + 2), "nobody waits for the dead"
            crew.start(seat)
        assert reaches(session, steps), session.workers()
        crew.check()
    assert loss_of(session) < alone(STEPS // 2)
    assert {worker.worker_id for worker in session.workers() if worker.next_sequence > 1} == {
        seat.worker_id for seat in seats
    }


@pytest.mark.parametrize("mode", ["barrier", "quorum", "bounded"])
def test_nobody_waits_for_a_worker_that_died_before_its_first_gradient(start: Any, mode: str) -> None:
    session, seats = start(replace(rule(mode, 3)[0], lease_s=LEASE_S))
    with Crew([replace(seats[0], compute_s=60.0), *seats[1:]]) as crew:
        assert becomes(lambda: len(session.workers()) == 3)
        crew.kill(seats[0])
        assert reaches(session, 20), session.workers()


@pytest.mark.parametrize("mode", ["barrier", "bounded"])
def test_nobody_waits_for_one_that_only_reads(start: Any, mode: str) -> None:
    session, seats = start(replace(rule(mode, 2)[0], lease_s=20.0))
    with Crew(seats):
        assert reaches(session, 4)
        session.pull()
        assert reaches(session, session.info().step + 20, timeout_s=10.0), session.workers()


@pytest.mark.parametrize("mode", ["barrier", "bounded"])
def test_a_worker_that_stands_still_is_not_waited_for_and_takes_part_again(start: Any, mode: str) -> None:
    session, seats = start(replace(rule(mode, 3)[0], lease_s=LEASE_S), compute_s=0.005)

    def contributions() -> int:
        return next(each.next_sequence for each in session.workers() if each.worker_id == seats[0].worker_id)

    with Crew(seats) as crew:
        assert reaches(session, 5)
        crew.freeze(seats[0])
        assert reaches(session, session.info().step + 30), session.workers()
        before = contributions()
        crew.thaw(seats[0])
        assert becomes(lambda: contributions() >= before + 5), session.workers()
        crew.check()


def test_workers_join_late_and_leave(start: Any) -> None:
    session, seats = start(Consistency(mode="barrier", workers=2, lease_s=LEASE_S), compute_s=0.005)
    late = replace(seats[0], place=2)

    def together(count: int) -> bool:
        return becomes(lambda: session.history()[-1].contributions == count)

    with Crew(seats) as crew:
        assert reaches(session, 5)
        for _ in range(2):
            assert together(2), session.workers()
            crew.start(late)
            assert together(3), session.workers()
            crew.kill(late)
        crew.check()
