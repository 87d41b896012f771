"""When contributions become a step, and what becomes of those that come late, hostile, or not at all."""

import contextlib
import itertools
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tests.rpc.conftest import push_request

from hermosis.v1 import gradient_pb2, session_pb2, types_pb2

DEADLINE_S = 20.0
GRADIENTS = np.random.default_rng(5).standard_normal((8, 5)).astype(np.float32)


def rule(mode: str, workers: int = 1, **fields: Any) -> types_pb2.Consistency:
    for name, prefix in (("late", "LATE_POLICY"), ("staleness_weight", "STALENESS_WEIGHT")):
        if name in fields:
            fields[name] = f"{prefix}_{fields[name]}"
    return types_pb2.Consistency(mode=f"CONSISTENCY_MODE_{mode}", workers=workers, **fields)


def mixing(name: str, **fields: Any) -> types_pb2.Aggregation:
    return types_pb2.Aggregation(rule=f"AGGREGATION_RULE_{name}", **fields)


class Pusher:
    """Workers of one session, each with its own numbers."""

    def __init__(self, server: Any, session: Any) -> None:
        self._server, self._session = server, session
        self._sequences: dict[str, int] = {}

    def send(self, worker: str, values: Any, *, base_step: int = 0, **changed: Any) -> grpc.Future:
        self._sequences[worker] = sequence = self._sequences.get(worker, 0) + 1
        request = push_request(
            self._session.session_id, values, sequence, base_step=base_step, worker_id=worker, **changed
        )
        return self._server.gradients.Push.future(request, timeout=DEADLINE_S)

    def push(self, worker: str, values: Any, *, base_step: int = 0, **changed: Any) -> Any:
        return self.send(worker, values, base_step=base_step, **changed).result().result

    def refused(self, worker: str, values: Any, *, base_step: int, reason: str, tools: Any) -> None:
        future = self.send(worker, values, base_step=base_step)
        assert tools.reason_of(future.exception()) == reason
        self._sequences[worker] -= 1

    def workers(self) -> dict[str, session_pb2.Worker]:
        request = session_pb2.ListWorkersRequest(session_id=self._session.session_id)
        return {each.worker_id: each for each in self._server.sessions.ListWorkers(request, timeout=10).workers}

    def update(self, consistency: types_pb2.Consistency) -> session_pb2.Session:
        request = session_pb2.UpdateSessionRequest(session_id=self._session.session_id)
        request.edit.consistency.CopyFrom(consistency)
        request.update_mask.paths.append("consistency")
        return self._server.sessions.UpdateSession(request, timeout=10).session


def waits(future: grpc.Future, seconds: float = 0.15) -> bool:
    try:
        future.result(timeout=seconds)
    except grpc.FutureTimeoutError:
        return True
    return False


def pair(server: Any, recipe: str = "sgd", **spec: Any) -> tuple[Any, Pusher]:
    session = server.create(5, recipe, start=1.0, parameters={"lr": 0.1}, **spec)
    return session, Pusher(server, session)


# Rounds


def test_a_quorum_steps_without_the_last_and_drops_what_comes_late(server: Any) -> None:
    session, pusher = pair(server, consistency=rule("QUORUM", 3, quorum=2))
    first = pusher.send("a", GRADIENTS[0])
    assert pusher.push("b", GRADIENTS[1]).contributions == 2
    assert first.result().result.step == 1
    before = server.digest(session)
    late = pusher.push("c", GRADIENTS[2])
    assert (late.outcome, late.step) == (types_pb2.OUTCOME_DROPPED, 1)
    assert server.digest(session) == before
    third = pusher.send("c", GRADIENTS[2], base_step=1)
    assert pusher.push("a", GRADIENTS[3], base_step=1).step == 2
    assert third.result().result.outcome == types_pb2.OUTCOME_APPLIED


def test_a_dropped_contribution_is_told_again_as_dropped(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("QUORUM", 2, quorum=1))
    pusher.push("a", GRADIENTS[0])
    assert pusher.push("b", GRADIENTS[1]).outcome == types_pb2.OUTCOME_DROPPED
    pusher._sequences["b"] = 0
    again = pusher.push("b", GRADIENTS[1])
    assert (again.outcome, again.duplicate) == (types_pb2.OUTCOME_DROPPED, True)


def test_a_round_steps_at_its_deadline_with_what_it_has(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("QUORUM", 3, deadline_s=0.2))
    assert pusher.push("a", GRADIENTS[0]).contributions == 1


def test_late_gradients_are_carried_into_the_next_round(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("QUORUM", 3, quorum=2, late="CARRY", max_staleness=1))
    first = pusher.send("a", GRADIENTS[0])
    pusher.push("b", GRADIENTS[1])
    first.result()
    late = pusher.send("c", GRADIENTS[2])
    assert waits(late), "it waits for the next round"
    assert pusher.push("a", GRADIENTS[3], base_step=1).contributions == 2
    carried = late.result().result
    assert (carried.outcome, carried.staleness, carried.step) == (types_pb2.OUTCOME_APPLIED, 1, 2)
    assert pusher.push("c", GRADIENTS[4]).outcome == types_pb2.OUTCOME_DROPPED, "two steps behind is too late"


def test_a_barrier_has_the_same_bits_in_any_order(server: Any) -> None:
    digests = set()
    for order in itertools.permutations("abc"):
        session, pusher = pair(server, "adamw", consistency=rule("BARRIER", 3))
        for step in range(2):
            values = dict(zip("abc", GRADIENTS[3 * step :], strict=False))
            for future in [pusher.send(worker, values[worker], base_step=step) for worker in order]:
                assert future.result().result.contributions == 3
        digests.add(server.digest(session))
    assert len(digests) == 1


# Bounded


def test_the_fast_waits_for_the_slow(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("BOUNDED", 2, max_staleness=1))
    assert pusher.push("fast", GRADIENTS[0]).step == 1
    second = pusher.send("fast", GRADIENTS[1], base_step=1)
    assert waits(second)
    assert pusher.push("slow", GRADIENTS[2]).outcome == types_pb2.OUTCOME_APPLIED
    assert second.result().result.outcome == types_pb2.OUTCOME_APPLIED
    assert waits(pusher.send("fast", GRADIENTS[3], base_step=3))


def test_nobody_waits_for_a_slow_one_that_is_lost(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("BOUNDED", 2, max_staleness=0, lease_s=0.3))
    first = pusher.send("fast", GRADIENTS[0])
    assert pusher.push("slow", GRADIENTS[1]).step == 2
    first.result()
    assert pusher.push("fast", GRADIENTS[2], base_step=2).step == 3
    assert pusher.workers()["slow"].lost


# Workers that come and go


def test_a_round_does_not_wait_for_a_dead_worker(server: Any, tools: Any) -> None:
    _, pusher = pair(server, consistency=rule("BARRIER", 2, lease_s=0.4))
    first = pusher.send("a", GRADIENTS[0])
    pusher.push("b", GRADIENTS[1])
    first.result()
    second = pusher.send("a", GRADIENTS[2], base_step=1)
    tools.poll(lambda: pusher.workers()["b"].awaited)
    assert second.result().result.contributions == 1
    assert pusher.workers()["b"].lost
    pusher.refused("b", GRADIENTS[3], base_step=1, reason="StaleGradient", tools=tools)
    third = pusher.send("a", GRADIENTS[4], base_step=2)
    assert pusher.push("b", GRADIENTS[5], base_step=2).contributions == 2, "it is back under its name"
    third.result()
    assert not pusher.workers()["b"].lost


def test_who_has_waited_for_a_round_is_not_lost_by_that(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("BARRIER", 3, lease_s=0.6))
    for future in [pusher.send(worker, GRADIENTS[0]) for worker in "abc"]:
        future.result()
    for future in [pusher.send(worker, GRADIENTS[1], base_step=1) for worker in "ab"]:
        assert future.result().result.contributions == 2, "it waits for the lease of c"
    third = pusher.send("a", GRADIENTS[2], base_step=2)
    assert waits(third)
    assert pusher.push("b", GRADIENTS[3], base_step=2).contributions == 2
    assert third.result().result.contributions == 2


@pytest.mark.parametrize("mode", ["BARRIER", "BOUNDED"])
def test_nobody_waits_longer_than_a_lease_for_those_that_never_came(server: Any, mode: str) -> None:
    _, pusher = pair(server, consistency=rule(mode, 3, lease_s=0.4))
    first = [pusher.send(worker, GRADIENTS[0]) for worker in "ab"]
    assert waits(first[0]), "it may come yet"
    for future in first:
        assert future.result().result.outcome == types_pb2.OUTCOME_APPLIED
    base = max(future.result().result.step for future in first)
    second = [pusher.send(worker, GRADIENTS[1], base_step=base) for worker in "ab"]
    assert {future.result().result.outcome for future in second} == {types_pb2.OUTCOME_APPLIED}
    assert pusher.push("c", GRADIENTS[2], base_step=second[0].result().result.step).outcome, "it may come late"


@pytest.mark.parametrize("mode", ["BARRIER", "BOUNDED"])
def test_nobody_waits_for_one_that_only_reads(server: Any, mode: str) -> None:
    session, pusher = pair(server, consistency=rule(mode, 2, lease_s=30.0))
    with reading(server, session):
        for step in range(4):
            futures = [
                pusher.send(worker, GRADIENTS[step], base_step=step if mode == "BARRIER" else 2 * step)
                for worker in "ab"
            ]
            assert {future.result().result.outcome for future in futures} == {types_pb2.OUTCOME_APPLIED}


def test_one_that_was_silent_for_long_does_not_hold_the_others_back(server: Any) -> None:
    """It begins again where the slowest of the others is, and not where it was."""
    _, pusher = pair(server, consistency=rule("BOUNDED", 2, max_staleness=1, lease_s=0.3))
    for worker in "ab":
        pusher.push(worker, GRADIENTS[0])
    step = 2
    for _ in range(4):
        step = pusher.push("a", GRADIENTS[1], base_step=step).step
    assert pusher.workers()["b"].lost
    step = pusher.push("b", GRADIENTS[2], base_step=step).step
    assert not waits(pusher.send("a", GRADIENTS[3], base_step=step), 0.2)


def test_a_round_waits_for_ever_where_no_lease_is_asked_for(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("BARRIER", 2))
    assert waits(pusher.send("a", GRADIENTS[0]), 0.6)


@contextlib.contextmanager
def reading(server: Any, session: Any) -> Iterator[None]:
    """A stream that pulls the parameters and stays, as a client does that evaluates."""
    messages: queue.SimpleQueue[gradient_pb2.ExchangeRequest | None] = queue.SimpleQueue()
    call = server.gradients.Exchange(iter(messages.get, None), timeout=2 * DEADLINE_S)
    opening = gradient_pb2.OpenSession(handle=1, session_id=session.session_id, worker_id="reader")
    messages.put(gradient_pb2.ExchangeRequest(open=opening))
    messages.put(gradient_pb2.ExchangeRequest(pull=gradient_pb2.PullParameters(handle=1)))
    assert next(call).HasField("opened")
    assert next(call).HasField("chunk")
    yield
    messages.put(None)
    call.cancel()


# Staleness


@pytest.mark.parametrize("crashes", [False, True])
def test_a_late_gradient_counts_as_in_its_own_time(server: Any, host: Any, tmp_path: Any, crashes: bool) -> None:
    """Its weight is the product of the retentions since: 0.9 ** a where momentum is 0.9 (THEORY 6)."""
    if crashes:
        server = host(folder=tmp_path / "first").server
    durability = types_pb2.Durability(mode=types_pb2.DURABILITY_MODE_JOURNAL, snapshot_every_s=1e6)
    digests = []
    for weight in ("AS_THEN", "AS_NOW"):
        spec = {"consistency": rule("ASYNC", 2, staleness_weight=weight)}
        if crashes:
            spec["durability"] = durability
        session = server.create(5, "sgd", start=1.0, parameters={"lr": 0.1, "momentum": 0.9}, **spec)
        pusher = Pusher(server, session)
        retention = 0.0
        for step in range(3):
            retention = pusher.push("a", GRADIENTS[step], base_step=step).energies.retention
        assert retention == pytest.approx(0.9)
        late = GRADIENTS[5]
        if weight == "AS_NOW":
            late = np.float32(retention * retention) * late
        done = pusher.push("b", late, base_step=1, ack_level=types_pb2.ACK_LEVEL_DURABLE if crashes else 0)
        assert done.staleness == 2
        digests.append((server.digest(session), session))
    if not crashes:
        # The sequence tables differ by the checksum of the late gradient; what was learned does not.
        assert parameters(server, digests[0][1]) == parameters(server, digests[1][1])
        return
    import shutil

    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = host(folder=tmp_path / "second").server
    assert second.digest(digests[0][1]) == digests[0][0], "the journal knows what it counted"


def parameters(server: Any, session: Any) -> bytes:
    request = gradient_pb2.PullRequest(session_id=session.session_id, worker_id="reader")
    return bytes(server.gradients.Pull(request, timeout=10).payload)


def test_what_is_too_far_behind_is_dropped_where_that_is_wanted(server: Any, tools: Any) -> None:
    for late, reason in (("DROP", None), ("REFUSE", "StaleGradient")):
        _, pusher = pair(server, consistency=rule("ASYNC", 2, max_staleness=1, late=late))
        for step in range(2):
            pusher.push("a", GRADIENTS[step], base_step=step)
        if reason:
            pusher.refused("b", GRADIENTS[3], base_step=0, reason=reason, tools=tools)
        else:
            assert pusher.push("b", GRADIENTS[3]).outcome == types_pb2.OUTCOME_DROPPED
        assert pusher.push("b", GRADIENTS[3], base_step=1).step == 3


# Robust aggregation


def stepped(server: Any, aggregation: types_pb2.Aggregation, gradients: Any) -> tuple[np.ndarray, list[Any], Pusher]:
    """How far plain gradient descent with lr 1 goes from zero, which is the gradient of the round, negated."""
    spec = {"consistency": rule("BARRIER", len(gradients)), "aggregation": aggregation}
    session = server.create(5, "sgd", parameters={"lr": 1.0}, **spec)
    pusher = Pusher(server, session)
    futures = [pusher.send(f"w{place}", values) for place, values in enumerate(gradients)]
    results = [future.result().result for future in futures]
    return -np.frombuffer(parameters(server, session), np.float32), results, pusher


HONEST = GRADIENTS[:4]
HOSTILE = np.full(5, 1e6, np.float32)


def test_median_and_trimmed_mean_withstand_a_hostile_worker(server: Any) -> None:
    five = [*HONEST, HOSTILE]
    found, _, pusher = stepped(server, mixing("MEDIAN"), five)
    assert np.array_equal(found, np.median(np.stack(five), axis=0))
    assert pusher.workers()["w4"].influence == 0
    found, _, pusher = stepped(server, mixing("TRIMMED_MEAN", byzantine=1), five)
    inner = np.sort(np.stack(five), axis=0)[1:-1]
    np.testing.assert_allclose(found, inner.mean(axis=0), rtol=1e-6)
    assert sum(each.influence for each in pusher.workers().values()) == pytest.approx(1)
    found, _, _ = stepped(server, mixing("MEDIAN"), five[:4])
    np.testing.assert_allclose(found, np.median(np.stack(five[:4]), axis=0), rtol=1e-6)


def test_krum_takes_one_among_its_neighbours(server: Any) -> None:
    near = [GRADIENTS[0] + np.float32(0.01) * GRADIENTS[place] for place in range(1, 5)]
    found, _, pusher = stepped(server, mixing("KRUM", byzantine=1), [*near, HOSTILE])
    assert any(np.array_equal(found, each) for each in near)
    assert pusher.workers()["w4"].influence == 0
    found, _, _ = stepped(server, mixing("MULTI_KRUM", byzantine=1), [*near, HOSTILE])
    np.testing.assert_allclose(found, np.mean(near, axis=0), rtol=1e-5)


def test_contributions_and_rounds_are_shortened_to_a_length(server: Any) -> None:
    long = np.float32(100) * GRADIENTS[0]
    found, _, _ = stepped(server, mixing("CLIPPED_MEAN", max_norm=1.0), [long, long])
    np.testing.assert_allclose(found, long / np.linalg.norm(long), rtol=1e-5)
    found, results, _ = stepped(server, types_pb2.Aggregation(clip_norm=0.5), [long])
    assert np.linalg.norm(found) == pytest.approx(0.5)
    assert results[0].energies.gradient_norm == pytest.approx(0.5)
    short = np.float32(0.01) * GRADIENTS[0]
    found, _, _ = stepped(server, types_pb2.Aggregation(clip_norm=0.5), [short])
    assert np.array_equal(found, short)


def test_a_gradient_that_is_not_finite_is_left_out_alone(server: Any) -> None:
    ill = np.array([1, np.nan, 1, 1, 1], np.float32)
    found, results, pusher = stepped(server, types_pb2.Aggregation(quarantine=True), [*HONEST[:2], ill])
    np.testing.assert_allclose(found, HONEST[:2].mean(axis=0), rtol=1e-6)
    fates = [result.outcome for result in results]
    assert fates == [types_pb2.OUTCOME_APPLIED] * 2 + [types_pb2.OUTCOME_NON_FINITE_GRADIENT]
    assert [pusher.workers()[f"w{place}"].influence for place in range(3)] == [0.5, 0.5, 0]
    _, results, _ = stepped(server, types_pb2.Aggregation(quarantine=True), [ill, ill])
    assert {result.outcome for result in results} == {types_pb2.OUTCOME_NON_FINITE_GRADIENT}
    _, results, _ = stepped(server, types_pb2.Aggregation(), [HONEST[0], ill])
    assert {result.outcome for result in results} == {types_pb2.OUTCOME_NON_FINITE_GRADIENT}


# Switching, and what cannot be


def test_the_rule_can_be_changed_while_a_round_is_in_the_making(server: Any) -> None:
    _, pusher = pair(server, consistency=rule("BARRIER", 2))
    waiting = pusher.send("a", GRADIENTS[0])
    assert waits(waiting)
    changed = pusher.update(rule("ASYNC", 2))
    assert changed.spec.consistency.mode == types_pb2.CONSISTENCY_MODE_ASYNC
    assert waiting.result().result.contributions == 1
    assert pusher.push("b", GRADIENTS[1]).step == 2
    pusher.update(rule("BARRIER", 2))
    again = pusher.send("a", GRADIENTS[2], base_step=2)
    assert waits(again)
    assert pusher.push("b", GRADIENTS[3], base_step=2).contributions == 2


def test_more_workers_have_more_room(host: Any) -> None:
    """A round of eight is four times what a session of one worker may have on its way."""
    server = host(session_bytes=1 << 20).server
    session = server.create(100_000, consistency=rule("BARRIER", 1))
    pusher = Pusher(server, session)
    pusher.update(rule("BARRIER", 8))
    gradient = np.ones(100_000, np.float32)
    futures = [pusher.send(f"w{place}", gradient) for place in range(8)]
    assert {future.result().result.contributions for future in futures} == {8}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"consistency": rule("QUORUM", 2, quorum=3)}, "spec.consistency.quorum"),
        ({"consistency": rule("BARRIER", 2, quorum=1)}, "spec.consistency.quorum"),
        ({"consistency": rule("ASYNC", 2, deadline_s=1)}, "spec.consistency.deadline_s"),
        ({"consistency": rule("QUORUM", 2, deadline_s=float("nan"))}, "spec.consistency.deadline_s"),
        ({"consistency": rule("BARRIER", 2, lease_s=-1)}, "spec.consistency.lease_s"),
        ({"consistency": rule("BARRIER", 2, local_steps=5)}, "spec.consistency.local_steps"),
        ({"consistency": rule("ASYNC", 2, late="CARRY")}, "spec.consistency.late"),
        ({"consistency": rule("BARRIER", 2, max_staleness=1)}, "spec.consistency.max_staleness"),
        ({"aggregation": mixing("CLIPPED_MEAN")}, "spec.aggregation.max_norm"),
        ({"aggregation": mixing("MEAN", clip_norm=float("inf"))}, "spec.aggregation.clip_norm"),
        ({"aggregation": mixing("KRUM", byzantine=1)}, "spec.aggregation.byzantine"),
        (
            {"consistency": rule("QUORUM", 2), "parameters_on": types_pb2.PARAMETERS_ON_WORKER},
            "spec.parameters_on",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rule_that_nobody_can_follow_is_refused_by_its_field(server: Any, tools: Any, spec: Any, field: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.create(5, **spec)
    assert tools.reason_of(caught.value) == "InvalidRequest"
    assert field in str(caught.value.details()) or field in str(tools.details_of(caught.value))
