"""Packed messages: sessions in one message are each what they would be alone, in what succeeds and what does not."""

import asyncio
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from hermosis import wire
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2
from hermosis_server.rpc.packed import PackedDesk

Request = gradient_pb2.ExchangeRequest
PackedGradients = gradient_pb2.PackedGradients
PackedResults = gradient_pb2.PackedResults
ASYNC = types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_ASYNC)
APPLIED = types_pb2.OUTCOME_APPLIED
ENERGIES = [field.name for field in types_pb2.EnergySample.DESCRIPTOR.fields]
OPTIONAL = {field.name for field in types_pb2.EnergySample.DESCRIPTOR.fields if field.has_presence}
NUMPY = {1: np.float32, 2: np.float16}


def opening(session: Any, handle: int, worker: str = "worker", **changed: Any) -> gradient_pb2.OpenSession:
    fields = {"handle": handle, "session_id": session.session_id, "worker_id": worker}
    return gradient_pb2.OpenSession(**fields | changed)


def many(*openings: gradient_pb2.OpenSession, close: Sequence[int] = ()) -> Request:
    return Request(open_many=gradient_pb2.OpenSessions(open=openings, close=close))


def gradients(
    values: Any, sequence: int = 1, handles: Sequence[int] | None = None, dtypes: Sequence[int] = (), **changed: Any
) -> Request:
    """A packed message; `values` holds a gradient for each handle."""
    dtypes = dtypes or [1] * len(values)
    payload = b"".join(np.asarray(v, NUMPY[d]).tobytes() for v, d in zip(values, dtypes, strict=True))
    count = len(values)
    fields: dict[str, Any] = {
        "number": 7,
        "handles": range(count) if handles is None else handles,
        "sequences": [sequence] * count,
        "base_steps": [sequence - 1] * count,
        "crc32": wire.checksum(payload),
        "payload": payload,
    }
    return Request(packed=PackedGradients(**fields | changed))


def vectors(answer: PackedResults, sizes: Sequence[int]) -> list[np.ndarray]:
    """The replies of an answer, checked."""
    assert wire.checksum(answer.payload) == answer.crc32
    flat = np.frombuffer(answer.payload, np.float32)
    assert len(flat) == sum(sizes)
    return np.split(flat, np.cumsum(sizes)[:-1])


def refusals(answer: PackedResults) -> dict[int, str]:
    return {refused.index: refused.refusal.reason for refused in answer.refusals}


class Lane:
    """A stream with sessions open on it under the handles 0, 1, 2 …"""

    def __init__(self, server: Any, tools: Any, sessions: Sequence[Any], **opened: Any) -> None:
        self._dialogue = tools.Dialogue(server, [many(*(opening(s, i, **opened) for i, s in enumerate(sessions)))])
        self.sizes = [session.parameter_count for session in sessions]

    def __enter__(self) -> "Lane":
        self._dialogue.__enter__()
        answer = self.next().opened_many
        assert [opened.handle for opened in answer.opened] == list(range(len(self.sizes)))
        assert [opened.parameter_count for opened in answer.opened] == self.sizes
        return self

    def __exit__(self, *error: object) -> None:
        self._dialogue.__exit__(*error)

    def send(self, request: Request) -> None:
        self._dialogue.send(request)

    def next(self) -> gradient_pb2.ExchangeResponse:
        return self._dialogue.next()

    def packed(self, request: Request) -> PackedResults:
        self.send(request)
        return self.next().packed


@pytest.fixture
def make(server: Any) -> Any:
    """Several sessions of their own starts, and again the same."""

    def sessions(count: int, size: int = 10, recipe: str = "adam", **spec: Any) -> list[Any]:
        spec.setdefault("parameters", {"lr": 0.1})
        return [server.create(size, recipe, start=float(i), **spec) for i in range(count)]

    return sessions


def normal(count: int, size: int = 10, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def test_each_session_is_what_it_would_be_alone_and_all_step_in_one_launch(server: Any, tools: Any, make: Any) -> None:
    count = 40
    sessions, twins = make(count), make(count)
    numbers = {"losses": np.linspace(0.5, 1.5, count), "lr_scales": np.linspace(0.5, 2.0, count), "want_energies": True}
    with Lane(server, tools, sessions) as lane:
        for step in range(1, 4):
            values = normal(count, seed=step)
            answer = lane.packed(gradients(values, step, sample_counts=[3] * count, **numbers))
            assert answer.number == 7
            assert list(answer.outcomes) == [APPLIED] * count
            assert list(answer.steps) == [step] * count
            assert [*answer.refusals, *answer.duplicates, *answer.reply_steps] == []
            energies = np.reshape(answer.energies, (count, len(ENERGIES)))
            for i, (twin, reply) in enumerate(zip(twins, vectors(answer, lane.sizes), strict=True)):
                push = tools.push_request(twin.session_id, values[i], step)
                push.gradient.commit.loss, push.gradient.commit.lr_scale = numbers["losses"][i], numbers["lr_scales"][i]
                alone = server.gradients.Step(gradient_pb2.StepRequest(push=push), timeout=10)
                assert alone.payload == reply.tobytes()
                sample = alone.result.energies
                for name, value in zip(ENERGIES, energies[i], strict=True):
                    defined = name not in OPTIONAL or sample.HasField(name)
                    assert value == getattr(sample, name) if defined else math.isnan(value), name
    assert [server.digest(s) for s in sessions] == [server.digest(s) for s in twins]
    readings = server.inside(lambda engine: [engine.session(s.session_id).telemetry.latest for s in sessions])
    assert max(reading.batch_sessions for reading in readings) > 1
    assert {(reading.step, reading.received_bytes, reading.sent_bytes) for reading in readings} == {(3, 40, 40)}


def test_refused_contributions_leave_the_others_alone_and_use_no_number(server: Any, tools: Any, make: Any) -> None:
    sessions = make(6, recipe="sgd", parameters={"lr": 1.0})
    server.sessions.PauseSession(session_pb2.PauseSessionRequest(session_id=sessions[4].session_id), timeout=10)
    ones = np.ones((6, 10), np.float32)
    with Lane(server, tools, sessions) as lane:
        answer = lane.packed(
            gradients(
                ones, sequences=[1, 2, 1, 1, 1, 1], base_steps=[0, 0, 9, 0, 0, 0], lr_scales=[1, 1, 1, math.nan, 1, 1]
            )
        )
        reasons = {1: "InvalidRequest", 2: "InvalidRequest", 3: "InvalidHyperparameter", 4: "SessionNotReady"}
        assert refusals(answer) == reasons
        assert answer.refusals[0].refusal.metadata["next_sequence"] == "1"
        assert list(answer.outcomes) == [APPLIED, 0, 0, 0, 0, APPLIED]
        replies = vectors(answer, lane.sizes)
        np.testing.assert_array_equal(replies[5], 4.0 * ones[5])
        assert not replies[1].any(), "zeros where there is no reply"
        server.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=sessions[4].session_id), timeout=10)
        again = lane.packed(gradients(ones[1:5], handles=[1, 2, 3, 4]))
        assert list(again.outcomes) == [APPLIED] * 4


def test_a_gradient_that_is_not_finite_is_nobody_elses_concern(server: Any, tools: Any, make: Any) -> None:
    values = normal(4)
    sessions, twins = make(4), make(4)
    values[1, 3], values[2, 9] = np.nan, -np.inf
    with Lane(server, tools, sessions) as lane:
        answer = lane.packed(gradients(values, want_energies=True))
        bad = types_pb2.OUTCOME_NON_FINITE_GRADIENT
        assert list(answer.outcomes) == [APPLIED, bad, bad, APPLIED]
        assert list(answer.steps) == [1, 0, 0, 1]
        replies = vectors(answer, lane.sizes)
        np.testing.assert_array_equal(replies[1], np.full(10, 1.0))
        energies = np.reshape(answer.energies, (4, -1))
        assert np.isnan(energies[1:3]).all()
        assert np.isfinite(energies[[0, 3], 2]).all()
        for i in (0, 3):
            push = gradient_pb2.StepRequest(push=tools.push_request(twins[i].session_id, values[i], 1))
            assert server.gradients.Step(push, timeout=10).payload == replies[i].tobytes()
        assert list(lane.packed(gradients(normal(4), 2, base_steps=answer.steps)).steps) == [2, 1, 1, 2]


def test_a_repeated_message_finds_what_was_recorded(server: Any, tools: Any, make: Any) -> None:
    sessions = make(4, recipe="sgd", parameters={"lr": 1.0})
    ones = np.ones((4, 10), np.float32)
    with Lane(server, tools, sessions) as lane:
        lane.send(gradients(ones, want_energies=True, losses=[1, 2, 3, 4]))
        first = lane.next().packed
    with Lane(server, tools, sessions) as lane:
        again = lane.packed(gradients(ones, want_energies=True, losses=[1, 2, 3, 4]))
        assert list(again.duplicates) == [0, 1, 2, 3]
        assert again.payload == first.payload
        np.testing.assert_array_equal(again.energies, first.energies)
        assert list(lane.packed(gradients(ones[:2], 2, handles=[2, 3])).steps) == [2, 2]
        # Two of them have gone on: the recorded outcome, the present parameters and their step.
        mixed = lane.packed(gradients(ones))
        assert (list(mixed.steps), list(mixed.reply_steps)) == ([1, 1, 1, 1], [1, 1, 2, 2])
        np.testing.assert_array_equal([v[0] for v in vectors(mixed, lane.sizes)], [-1.0, 0.0, 0.0, 1.0])
        # New ones beside repeats, and one with other bytes.
        mixed = lane.packed(
            gradients([ones[0], ones[1], ones[2], 2 * ones[3]], sequences=[2, 1, 3, 2], base_steps=[1, 0, 2, 1])
        )
        assert list(mixed.steps) == [2, 1, 3, 0]
        assert (list(mixed.duplicates), refusals(mixed)) == ([1], {3: "PayloadMismatch"})
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)


def test_a_repeat_that_comes_before_the_answer_waits_for_it(server: Any, tools: Any, make: Any) -> None:
    sessions = make(3)
    values = normal(3)
    with Lane(server, tools, sessions) as lane, Lane(server, tools, sessions) as other:
        lane.send(gradients(values, number=1))
        lane.send(gradients(values, number=2))
        other.send(gradients(values, number=3))
        answers = [lane.next().packed, lane.next().packed, other.next().packed]
    assert {tuple(answer.duplicates) for answer in answers} == {(), (0, 1, 2)}
    assert len({answer.payload for answer in answers}) == 1
    assert all(list(answer.steps) == [1, 1, 1] for answer in answers)


def test_an_increment_is_repeated_as_it_was(server: Any, tools: Any) -> None:
    on_worker = {"parameters_on": types_pb2.PARAMETERS_ON_WORKER}
    sessions = [server.create(5, "sgd", **on_worker), server.create(3, "sgd", **on_worker)]
    values = [np.full(5, 2.0), np.full(3, np.inf)]
    with Lane(server, tools, sessions) as lane:
        first = lane.packed(gradients(values))
        np.testing.assert_array_equal(np.concatenate(vectors(first, lane.sizes)), [-2.0] * 5 + [0.0] * 3)
        again = lane.packed(gradients(values))
        assert (again.payload, list(again.duplicates)) == (first.payload, [0, 1])
        lane.packed(gradients(values, 2, base_steps=[1, 0]))
        assert refusals(lane.packed(gradients(values))) == {0: "StaleGradient"}


@pytest.fixture
def lane(server: Any, tools: Any, make: Any) -> Iterator[Lane]:
    with Lane(server, tools, make(3, recipe="sgd")) as lane:
        yield lane
        answer = lane.packed(gradients(np.ones((3, 10))))
        assert list(answer.outcomes) == [APPLIED] * 3, "nothing was counted, and the stream goes on"
        assert not answer.duplicates


GOOD = np.ones((3, 10), np.float32)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (gradients(GOOD, crc32=1), "CorruptChunk"),
        (gradients(GOOD[:, :9]), "LayoutMismatch"),
        (gradients(GOOD, handles=[0, 1, 9]), "InvalidRequest"),
        (gradients(GOOD, handles=[0, 1, 1]), "InvalidRequest"),
        (gradients(GOOD, sequences=[1, 1]), "InvalidRequest"),
        (gradients(GOOD, base_steps=[]), "InvalidRequest"),
        (gradients(GOOD, losses=[1.0]), "InvalidRequest"),
        (gradients(GOOD, lr_scales=[1.0] * 4), "InvalidRequest"),
        (Request(packed=PackedGradients(number=7)), "InvalidRequest"),
    ],
    ids=["crc", "size", "unknown handle", "handle twice", "sequences", "base_steps", "losses", "lr_scales", "empty"],
)
def test_what_cannot_be_right_as_a_whole_is_refused_as_a_whole(lane: Lane, message: Request, reason: str) -> None:
    answer = lane.packed(message)
    assert (answer.number, answer.refusal.reason) == (7, reason)
    assert (len(answer.outcomes), answer.payload) == (0, b"")


def test_a_handle_that_was_refused_or_closed_is_not_open(server: Any, tools: Any, make: Any) -> None:
    first, second, third = make(3)
    nowhere = session_pb2.Session(session_id="nowhere")
    with tools.Dialogue(server, [many(opening(first, 0), opening(nowhere, 1), opening(second, 2))]) as stream:
        answer = stream.next().opened_many
        assert [opened.handle for opened in answer.opened] == [0, 2]
        assert [(r.handle, r.refusal.reason) for r in answer.refused] == [(1, "SessionNotFound")]
        stream.send(gradients(normal(3)))
        assert stream.next().packed.refusal.reason == "InvalidRequest"
        stream.send(gradients(normal(2), handles=[0, 2]))
        assert list(stream.next().packed.outcomes) == [APPLIED] * 2
        stream.send(many(opening(third, 2), close=[2]))
        assert stream.next().opened_many.opened[0].next_sequence == 1
        stream.send(gradients(normal(2), handles=[0, 2], sequences=[2, 1], base_steps=[1, 0]))
        assert list(stream.next().packed.steps) == [2, 1], "the handle is the new session's"


def test_layouts_dtypes_and_replies_may_differ(server: Any, tools: Any) -> None:
    sizes = [3, 7, 2, 5]
    sessions = [server.create(size, "sgd", start=1.0) for size in sizes]
    openings = [
        opening(sessions[0], 0),
        opening(sessions[1], 1, gradient_dtype=2),
        opening(sessions[2], 2, reply=gradient_pb2.REPLY_NONE),
        opening(sessions[3], 3, reply=gradient_pb2.REPLY_INCREMENT, reply_dtype=2),
    ]
    values = [np.full(size, size / 2) for size in sizes]
    with tools.Dialogue(server, [many(*openings)]) as stream:
        stream.next()
        stream.send(gradients(values, dtypes=[1, 2, 1, 1]))
        answer = stream.next().packed
    assert list(answer.outcomes) == [APPLIED] * 4
    expected = np.full(3, -0.5, np.float32).tobytes() + np.full(7, -2.5, np.float32).tobytes()
    assert answer.payload == expected + np.full(5, -2.5, np.float16).tobytes()


def test_a_reply_can_be_done_without(server: Any, tools: Any, make: Any) -> None:
    with Lane(server, tools, make(3, recipe="sgd")) as lane:
        answer = lane.packed(gradients(np.ones((3, 10)), without_reply=True))
        assert (list(answer.steps), answer.payload) == ([1, 1, 1], b"")
        again = lane.packed(gradients(np.ones((3, 10)), without_reply=True))
        assert (list(again.duplicates), answer.payload) == ([0, 1, 2], b"")
        lane.send(Request(packed_pull=gradient_pb2.PackedPull(number=9, handles=[2, 0])))
        pulled = lane.next().packed
        assert (pulled.number, list(pulled.steps)) == (9, [1, 1])
        np.testing.assert_array_equal(np.concatenate(vectors(pulled, [10, 10])), np.float32([1.9] * 10 + [-0.1] * 10))


def test_a_pull_tells_who_has_nothing_to_give(server: Any, tools: Any) -> None:
    sessions = [server.create(3, "sgd", start=2.0), server.create(4, parameters_on=types_pb2.PARAMETERS_ON_WORKER)]
    with Lane(server, tools, sessions) as lane:
        lane.send(Request(packed_pull=gradient_pb2.PackedPull(handles=[0, 1])))
        pulled = lane.next().packed
        assert refusals(pulled) == {1: "SessionNotReady"}
        np.testing.assert_array_equal(vectors(pulled, [3, 4])[0], np.full(3, 2.0))
        lane.send(Request(packed_pull=gradient_pb2.PackedPull(handles=[0, 5])))
        assert lane.next().packed.refusal.reason == "InvalidRequest"


def test_rounds_of_several_workers_and_steps_at_any_time_go_beside_the_others(
    server: Any, tools: Any, make: Any
) -> None:
    alone, pair, anytime = make(1)[0], *make(2, recipe="sgd", consistency=types_pb2.Consistency(workers=2))
    anytime = server.create(10, "sgd", consistency=ASYNC)
    sessions = [alone, pair, anytime]
    with Lane(server, tools, sessions, worker="a") as first, Lane(server, tools, sessions[1:], worker="b") as second:
        first.send(gradients(np.ones((3, 10))))
        tools.poll(lambda: server.inside(lambda engine: engine.session(anytime.session_id).step) == 1)
        answer = second.packed(gradients(3 * np.ones((2, 10))))
        assert (list(answer.steps), list(answer.contributions)) == ([1, 2], [2, 1])
        assert list(answer.stalenesses) == [0, 1]
        own = first.next().packed
        assert (list(own.steps), list(own.contributions)) == ([1, 1, 1], [1, 2, 1])
        np.testing.assert_array_equal(vectors(own, first.sizes)[1], vectors(answer, second.sizes)[0])


def test_two_workers_of_one_session_in_one_message(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd", consistency=types_pb2.Consistency(workers=2))
    free = server.create(4, "sgd", consistency=ASYNC)
    openings = [opening(session, 0, "a"), opening(session, 1, "b"), opening(free, 2, "a"), opening(free, 3, "b")]
    with tools.Dialogue(server, [many(*openings)]) as stream:
        stream.next()
        stream.send(gradients(np.arange(16.0).reshape(4, 4)))
        answer = stream.next().packed
    assert list(answer.contributions) == [2, 2, 1, 1]
    assert (sorted(answer.steps[2:]), list(answer.steps[:2])) == ([1, 2], [1, 1])


def test_received_is_answered_without_the_step(server: Any, tools: Any) -> None:
    session = server.create(4, "sgd", consistency=types_pb2.Consistency(workers=2))
    with Lane(server, tools, [session], ack_level=types_pb2.ACK_LEVEL_RECEIVED) as lane:
        answer = lane.packed(gradients(np.ones((1, 4))))
        assert list(answer.outcomes) == [types_pb2.OUTCOME_RECEIVED]
        assert answer.payload == bytes(16)
    server.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id=session.session_id), timeout=10)


def test_an_import_fences_off_who_knew_the_old_state(server: Any, tools: Any, make: Any) -> None:
    sessions = make(2)
    with Lane(server, tools, sessions) as lane:
        lane.packed(gradients(normal(2)))
        request = session_pb2.ExportSessionRequest(session_id=sessions[0].session_id)
        state, *rest = server.sessions.ExportSession(request, timeout=10)
        parts = [session_pb2.ImportSessionRequest(session_id=sessions[0].session_id, state=state.state)]
        parts += [session_pb2.ImportSessionRequest(chunk=part.chunk) for part in rest]
        server.sessions.ImportSession(iter(parts), timeout=10)
        assert refusals(lane.packed(gradients(normal(2), 2))) == {0: "StaleGeneration"}
        lane.send(many(opening(sessions[0], 0, generation=2), close=[0]))
        assert lane.next().opened_many.opened[0].next_sequence == 2
        assert list(lane.packed(gradients(normal(1), 2)).steps) == [2]
        server.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id=sessions[1].session_id), timeout=10)
        assert refusals(lane.packed(gradients(normal(2), 3))) == {1: "SessionNotFound"}


def test_everything_is_refused_while_there_is_no_room_for_it(host: Any, tools: Any) -> None:
    service = host(staging_bytes=1 << 20).server
    size = 100_000
    sessions = [service.create(size, "sgd") for _ in range(3)]
    with Lane(service, tools, sessions) as lane:
        answer = lane.packed(gradients(np.ones((3, size))))
        assert answer.refusal.reason == "Overloaded"
        assert answer.refusal.retry_after_s > 0
        assert list(lane.packed(gradients(np.ones((2, size)))).steps) == [1, 1]
    tools.poll(lambda: service.inside(lambda engine: engine.budget.used_bytes) == 0)


def test_an_answer_that_would_not_fit_a_message_is_not_begun(server: Any, tools: Any) -> None:
    sessions = [server.create(300_000, "sgd", consistency=ASYNC) for _ in range(4)]
    halves = [np.ones(300_000)] * 4
    with Lane(server, tools, sessions, gradient_dtype=2) as lane:
        assert lane.packed(gradients(halves, dtypes=[2] * 4)).refusal.reason == "InvalidRequest"
        assert list(lane.packed(gradients(halves, dtypes=[2] * 4, without_reply=True)).steps) == [1] * 4


def test_a_worker_that_sends_and_never_reads_is_held_back(host: Any, tools: Any) -> None:
    service = host(window_bytes=1 << 20, staging_bytes=16 << 20).server
    size = 100_000
    sessions = [service.create(size, "sgd", consistency=ASYNC)]
    with Lane(service, tools, sessions) as lane:
        for number in range(1, 61):
            lane.send(gradients(np.ones((1, size)), number, base_steps=[0], number=number))
        steps = {lane.next().packed.steps[0] for _ in range(60)}
    assert steps == set(range(1, 61))


def test_pulls_that_nobody_reads_are_not_all_carried_out(host: Any, tools: Any, monkeypatch: Any) -> None:
    taken: list[int] = []
    pull = PackedDesk.pull
    monkeypatch.setattr(
        PackedDesk, "pull", lambda desk, number, handles: taken.append(number) or pull(desk, number, handles)
    )
    service = host(window_bytes=4 << 20).server
    session = service.create(1 << 18, "sgd")  # 1 MiB
    with Lane(service, tools, [session]) as lane:
        for number in range(200):
            lane.send(Request(packed_pull=gradient_pb2.PackedPull(number=number, handles=[0])))
        tools.poll(lambda: len(taken) > 4)
        before = -1
        while before != len(taken):  # two readings alike in a row: the server has stopped
            before = len(taken)
            threading.Event().wait(0.3)
        assert before < 50, "nothing held the worker back"
        assert [lane.next().packed.number for _ in range(200)] == list(range(200))


def test_a_stream_that_ends_early_leaves_nothing_behind(server: Any, tools: Any, make: Any) -> None:
    sessions = make(5)
    for _ in range(3):
        with Lane(server, tools, sessions) as lane:
            lane.send(gradients(normal(5)))
    tools.poll(lambda: server.inside(lambda engine: engine.budget.used_bytes) == 0)
    tools.poll(lambda: server.inside(lambda engine: engine.session(sessions[0].session_id).stepping) == 0)


def test_a_watcher_hears_of_packed_steps(server: Any, tools: Any, make: Any) -> None:
    sessions = make(3)
    watch = server.inside(lambda engine: engine.watch((sessions[1].session_id,), min_interval_s=0.0))
    with Lane(server, tools, sessions) as lane:
        lane.packed(gradients(normal(3), losses=[1.0, 2.0, 3.0]))
    server.inside(lambda _: watch.end())
    readings = asyncio.run_coroutine_threadsafe(watch.next(), server.loop).result(10)
    server.inside(lambda engine: engine.unwatch(watch))
    assert [(reading.session_id, reading.energies.loss) for reading in readings] == [(sessions[1].session_id, 2.0)]


def test_too_many_openings_in_one_message_end_the_stream(server: Any, tools: Any, make: Any) -> None:
    session = make(1)[0]
    openings = many(*(opening(session, i) for i in range(1025)))
    with tools.Dialogue(server, [openings]) as stream, pytest.raises(grpc.RpcError, match="1024 at most"):
        stream.next()
