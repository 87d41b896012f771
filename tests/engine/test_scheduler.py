"""The scheduler: different sessions share a batch, one session's rounds keep their order, jobs keep their place."""

import threading

from hermosis_server.engine.scheduler import Job, ReadyRound, StepQueue


def ready(resident: str, size_bytes: int = 10) -> ReadyRound:
    return ReadyRound(
        resident=resident, contributions=[], lr_scale=1.0, loss=0.0, size_bytes=size_bytes, done=lambda _: None
    )


def drained(queue: StepQueue) -> list[list[str] | str]:
    queue.stop()
    work: list[list[str] | str] = []
    while (item := queue.next()) is not None:
        work.append("job" if isinstance(item, Job) else [r.resident for r in item])
    return work


def queue(batch_bytes: int = 1000, linger_s: float = 0.0) -> StepQueue:
    return StepQueue(batch_bytes=batch_bytes, linger_s=linger_s)


def test_rounds_of_different_sessions_that_wait_are_one_batch() -> None:
    steps = queue()
    for name in "abc":
        steps.put(ready(name))
    assert drained(steps) == [["a", "b", "c"]]


def test_two_rounds_of_one_session_are_two_batches_in_order() -> None:
    steps = queue()
    for name in "abac":
        steps.put(ready(name))
    assert drained(steps) == [["a", "b"], ["c", "a"]]


def test_a_job_sees_all_rounds_before_it_and_none_after() -> None:
    steps = queue()
    steps.put(ready("a"))
    steps.put(Job(lambda: None))
    steps.put(ready("b"))
    assert drained(steps) == [["a"], "job", ["b"]]


def test_a_batch_stays_within_its_bytes_but_one_round_always_goes() -> None:
    steps = queue(batch_bytes=25)
    steps.put(ready("huge", size_bytes=99))
    for name in "abc":
        steps.put(ready(name))
    assert drained(steps) == [["huge"], ["a", "b"], ["c"]]


def test_lingering_waits_for_a_round_that_comes_later() -> None:
    steps = queue(linger_s=30.0)  # a bound that is never reached: the stop below ends the batch
    steps.put(ready("a"))

    def later() -> None:
        steps.put(ready("b"))
        steps.stop()

    threading.Timer(0.05, later).start()
    batch = steps.next()
    assert isinstance(batch, list)
    assert [r.resident for r in batch] == ["a", "b"]
    assert steps.next() is None
