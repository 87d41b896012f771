"""The scheduler: different sessions share a batch, one session's rounds keep their order, jobs keep their place."""

import threading

from hermosis_server.engine.scheduler import ITEM_BYTES, LIGHT_BYTES, Job, ReadyFleet, ReadyRound, StepQueue
from hermosis_server.records import Reply, ReplyWish


def ready(resident: str, size_bytes: int = 10) -> ReadyRound:
    return ReadyRound(
        resident=resident, contributions=[], lr_scale=1.0, loss=0.0, size_bytes=size_bytes, done=lambda _: None
    )


def fleet(names: str, number: int) -> ReadyFleet:
    count = len(names)
    return ReadyFleet(
        residents=list(names), parts=[None] * count, losses=[0.0] * count, lr_scales=[1.0] * count,
        wish=ReplyWish(reply=Reply.NONE), worker_id="w", sequences=[number] * count, checksums=[0] * count,
        size_bytes=10 * count, done=lambda _: None,
    )  # fmt: skip


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


def test_a_session_that_floods_the_queue_waits_for_itself() -> None:
    steps = queue(batch_bytes=1)
    for _ in range(8):
        steps.put(ready("flood", size_bytes=1000))
    steps.put(ready("victim"))
    assert drained(steps)[:2] == [["flood"], ["victim"]]


def test_who_steps_much_goes_as_many_bytes_as_who_steps_little() -> None:
    steps = queue(batch_bytes=1)
    for _ in range(20):
        steps.put(ready("large", size_bytes=9 * ITEM_BYTES))
        steps.put(ready("small", size_bytes=0))
    order = [batch[0] for batch in drained(steps)]
    assert order[:22].count("small") in range(17, 21), "ten small ones cost as much as a large one"
    assert order.count("large") == 20


def test_a_session_that_was_away_has_saved_nothing() -> None:
    steps = queue(batch_bytes=1)
    steps.put(ready("busy"))
    for _ in range(5):
        steps.put(ready("busy"))
    assert [steps.next()[0].resident for _ in range(4)] == ["busy"] * 4
    for _ in range(5):
        steps.put(ready("back"))
    assert [batch[0] for batch in drained(steps)][:4] in (
        ["busy", "back", "busy", "back"],
        ["back", "busy", "back", "busy"],
    )


def test_a_job_of_a_session_keeps_its_place_among_that_sessions_steps_only() -> None:
    steps = queue(batch_bytes=1)
    order: list[str] = []
    for item in ("a", "a", Job(lambda: order.append("read a"), ["a"]), "a", "b"):
        steps.put(ready(item) if isinstance(item, str) else item)
    steps.put(Job(lambda: order.append("of nobody"), ()))
    steps.stop()
    while (work := steps.next()) is not None:
        if isinstance(work, Job):
            work.run()
        else:
            order.extend(one.resident for one in work)
    mine = [what for what in order if what in ("a", "read a")]
    assert mine == ["a", "a", "read a", "a"]
    assert order.index("b") < order.index("read a"), "b does not wait for what a asked for before"
    assert order.index("of nobody") < order.index("read a")


def test_a_job_of_nobody_in_particular_is_overtaken_by_nothing() -> None:
    steps = queue(batch_bytes=1)
    for name in "aab":
        steps.put(ready(name))
    steps.put(Job(lambda: None))
    for name in "cab":
        steps.put(ready(name))
    work = drained(steps)
    place = work.index("job")
    assert sorted(batch[0] for batch in work[:place]) == ["a", "a", "b"]
    assert sorted(batch[0] for batch in work[place + 1 :]) == ["a", "b", "c"]


def test_fleets_and_rounds_of_a_session_keep_their_order() -> None:
    steps = queue(batch_bytes=1)
    for number, names in enumerate(["ab", "a", "bc", "ca", "b"]):
        steps.put(fleet(names, number))
    steps.stop()
    went: dict[str, list[int]] = {}
    while (batch := steps.next()) is not None:
        for one in batch:
            for name in one.residents:
                went.setdefault(name, []).append(one.sequences[0])
    assert went == {"a": [0, 1, 3], "b": [0, 2, 4], "c": [2, 3]}


def test_a_light_round_does_not_wait_in_a_heavy_batch() -> None:
    steps = queue(batch_bytes=1 << 30)
    steps.put(ready("heavy", size_bytes=LIGHT_BYTES + 1))
    steps.put(ready("light"))
    steps.put(ready("heavy too", size_bytes=LIGHT_BYTES + 1))
    assert drained(steps) == [["heavy"], ["light"], ["heavy too"]]


def test_between_two_slices_light_rounds_go_that_may_and_nobody_passes_itself() -> None:
    steps = queue(batch_bytes=1 << 30)
    heavy = LIGHT_BYTES + 1
    steps.put(ready("heavy", size_bytes=heavy))
    assert [one.resident for one in steps.next()] == ["heavy"]  # it is being stepped now
    for name, size in (("heavy", heavy), ("a", 10), ("a", 10), ("c", heavy), ("c", 10), ("b", 10)):
        steps.put(ready(name, size_bytes=size))
    between = steps.light(lambda one: one.resident != "heavy")
    assert [one.resident for one in between] == ["a", "b"]
    steps.put(Job(lambda: None))
    steps.put(ready("later"))
    assert [one.resident for one in steps.light(lambda one: True)] == ["a"]
    rest = drained(steps)
    assert rest.index(["c"]) < len(rest) - 2
    assert rest[-2:] == ["job", ["later"]]
