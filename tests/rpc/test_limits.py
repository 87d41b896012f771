"""What a client can make the server hold is bounded, and is given back when nothing moves any more."""

import asyncio
import contextlib
import threading
from collections.abc import Hashable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tests.rpc.test_exchange import ASYNC, chunks, opening, vector, whole_in_chunks

from hermosis import wire
from hermosis.v1 import gradient_pb2, session_pb2, types_pb2
from hermosis_server.engine.budget import Budget
from hermosis_server.errors import Overloaded, QuotaExceeded, Stalled
from hermosis_server.rpc import exchange
from hermosis_server.rpc.outbox import MAX_ANSWERS, Outbox
from hermosis_server.rpc.requests import MAX_UNDER_WAY, AnsweredRequests
from hermosis_server.rpc.streams import Streams
from hermosis_server.rpc.turns import LARGE, Turns

Request = gradient_pb2.ExchangeRequest


def used(service: Any) -> int:
    return int(service.inside(lambda engine: engine.budget.used_bytes))


class Halted:
    """A stream with things half-done."""

    def __init__(self, **reached: int) -> None:
        self.reached: dict[Hashable, int] = dict(reached)
        self.given_up: list[Hashable] = []

    def half_done(self) -> dict[Hashable, int]:
        return self.reached

    def stalled(self, thing: Hashable, error: Stalled) -> None:
        assert error.retry_after_s
        self.given_up.append(thing)
        del self.reached[thing]


def test_only_what_has_stood_still_for_the_whole_limit_is_given_up() -> None:
    now = 0.0
    streams = Streams(limit=10, idle_s=10.0, clock=lambda: now)
    idle, moving, stuck = Halted(), Halted(a=0), Halted(b=5, c=0)
    for stream in (idle, moving, stuck):
        streams.enter(stream)
    for _ in range(12):
        now += 1.0
        moving.reached["a"] += 1
        if now == 8:
            stuck.reached["c"] += 1
        streams.sweep()
    assert (idle.given_up, moving.given_up, stuck.given_up) == ([], [], ["b"])
    now = 18.0
    streams.sweep()
    assert stuck.given_up == ["b", "c"]
    streams.leave(stuck)
    assert len(streams) == 2


def test_streams_are_counted_and_one_too_many_hears_so(host: Any, tools: Any) -> None:
    service = host(max_streams=2).server
    session = service.create(4)
    with contextlib.ExitStack() as open_streams:
        for worker in "ab":
            stream = open_streams.enter_context(tools.Dialogue(service, [opening(session, worker=worker)]))
            assert stream.next().opened.window_bytes
        with tools.Dialogue(service, [opening(session, worker="c")]) as third:
            with pytest.raises(grpc.RpcError) as caught:
                third.next()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert tools.reason_of(caught.value) == QuotaExceeded.__name__

    def one_goes() -> bool:
        with tools.Dialogue(service, [opening(session, worker="c")]) as stream:
            try:
                return bool(stream.next().opened.window_bytes)
            except grpc.RpcError:
                return False

    tools.poll(one_goes)


def test_a_half_sent_gradient_that_stands_still_is_given_up_and_its_stream_goes_on(host: Any, tools: Any) -> None:
    service = host(idle_s=0.2).server
    size = 100_000
    session = service.create(size)
    ones = np.ones(size, np.float32)
    with tools.Dialogue(service, [opening(session)]) as stream:
        stream.next()
        first, *rest = chunks(ones, 1, chunk_bytes=100_000)
        stream.send(first)
        refused = stream.next().refused
        assert (refused.sequence, refused.refusal.reason) == (1, Stalled.__name__)
        assert refused.refusal.retry_after_s > 0
        assert used(service) == 0
        commit = Request(commit=gradient_pb2.Commit(sequence=1))
        stream.send(*rest, commit)  # the rest of what was given up, which nobody wants any more
        stream.send(*whole_in_chunks(ones, 1, 0))
        assert stream.next().result.step == 1
        vector(stream, size)
        # With nothing half-done it may stay, however long.
        service.inside(lambda engine: None)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.5), service.loop).result(10)
        stream.send(*whole_in_chunks(ones, 2, 1))
        assert stream.next().result.step == 2


def test_a_chunk_sent_again_and_again_is_no_progress(host: Any, tools: Any) -> None:
    service = host(idle_s=0.2).server
    session = service.create(1000)
    first = chunks(np.ones(1000, np.float32), 1, chunk_bytes=1000)[0]
    with tools.Dialogue(service, [opening(session), first]) as stream:
        stream.next()
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(0.01):
                stream.send(first)

        repeating = threading.Thread(target=repeat)
        repeating.start()
        try:
            assert stream.next().refused.refusal.reason == Stalled.__name__
        finally:
            ended.set()
            repeating.join()


def test_a_stream_whose_answers_nobody_reads_is_ended_and_gives_everything_back(host: Any, tools: Any) -> None:
    service = host(idle_s=0.3).server
    size = 1 << 20
    session = service.create(size, "sgd", consistency=ASYNC)
    sent = iter([opening(session), *(r for n in (1, 2, 3, 4) for r in whole_in_chunks(np.ones(size), n, 0))])
    call = service.gradients.Exchange(sent, timeout=30)
    tools.poll(lambda: service.inside(lambda engine: engine.session(session.session_id).step) == 4)
    tools.poll(lambda: used(service) == 0)
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert tools.reason_of(caught.value) == Stalled.__name__


def test_an_upload_that_stands_still_is_ended(host: Any, tools: Any) -> None:
    service = host(idle_s=0.2).server
    layout = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[1000])])
    spec = session_pb2.SessionSpec(layout=layout, optimizer=tools.recipe_message("sgd", lr=1.0))
    session = service.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=spec), timeout=10).session
    piece = bytes(400)
    ended = threading.Event()

    def uploads() -> Iterator[session_pb2.InitialiseParametersRequest]:
        fields = {"session_id": session.session_id, "crc32": wire.checksum(piece), "payload": piece}
        yield session_pb2.InitialiseParametersRequest(**fields)
        ended.wait(20)

    try:
        with pytest.raises(grpc.RpcError) as caught:
            service.sessions.InitialiseParameters(uploads(), timeout=20)
    finally:
        ended.set()
    assert tools.reason_of(caught.value) == Stalled.__name__
    tools.poll(lambda: used(service) == 0)


def test_workers_of_a_round_on_one_stream_are_not_held_back_by_each_others_answers(host: Any, tools: Any) -> None:
    """Each exchange takes half the window; the round is whole with the last of eight."""
    size = 1 << 18
    service = host(window_bytes=4 << 20).server
    barrier = types_pb2.Consistency(mode=types_pb2.CONSISTENCY_MODE_BARRIER, workers=8)
    session = service.create(size, "sgd", consistency=barrier)
    openings = [opening(session, handle=n, worker=f"w{n}", reply=gradient_pb2.REPLY_NONE) for n in range(8)]
    with tools.Dialogue(service, openings) as stream:
        for _ in range(8):
            stream.next()
        for number in range(8):
            stream.send(*whole_in_chunks(np.ones(size), 1, 0, handle=number))
        assert [stream.next().result.step for _ in range(8)] == [1] * 8


def test_refusals_that_nobody_reads_fill_the_outbox_and_room_comes_with_the_reader() -> None:
    async def scenario() -> None:
        box = Outbox(1 << 30)
        for _ in range(MAX_ANSWERS + 1):
            box.put_now(b"refused")
        assert box.full, "each takes memory beside its few bytes"
        waiting = asyncio.ensure_future(box.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        await box.next()
        box.written()
        await asyncio.wait_for(waiting, 5)

        small = Outbox(100)
        for _ in range(3):
            small.put_now(bytes(40))
        assert small.full, "and its bytes count for the window"

    asyncio.run(scenario())


def test_an_answer_that_waits_for_other_workers_takes_its_part_of_the_window_when_it_comes() -> None:
    async def scenario() -> None:
        box = Outbox(10)
        for _ in range(3):
            box.expect(6, sure=False)
        assert not box.full
        box.put([b""], 6, sure=False)
        assert not box.full
        box.put([b""], 6, sure=False)
        assert box.full

    asyncio.run(scenario())


def test_handles_of_a_stream_are_counted(server: Any, tools: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(exchange, "MAX_HANDLES", 3)
    session = server.create(4)
    with tools.Dialogue(server, [opening(session, handle=n, worker=f"w{n}") for n in range(4)]) as stream:
        for _ in range(3):
            assert stream.next().opened.window_bytes
        with pytest.raises(grpc.RpcError) as caught:
            stream.next()
        assert tools.reason_of(caught.value) == "InvalidRequest"


def test_pulls_and_unary_steps_count_for_the_budget_until_they_are_read(host: Any, tools: Any) -> None:
    size = 200_000
    service = host(staging_bytes=1 << 20, session_bytes=1 << 20).server
    session = service.create(size, "sgd")
    service.inside(lambda engine: engine.budget.hold(900_000))
    with tools.Dialogue(service, [opening(session), Request(pull=gradient_pb2.PullParameters())]) as stream:
        stream.next()
        assert stream.next().refused.refusal.reason == Overloaded.__name__
        with pytest.raises(grpc.RpcError) as caught:
            service.push(session, np.ones(size), 1)
        assert tools.reason_of(caught.value) == Overloaded.__name__
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = [detail.type_url.rpartition(".")[2] for detail in tools.details_of(caught.value).details]
        assert "RetryInfo" in details
        with pytest.raises(grpc.RpcError):
            service.gradients.Pull(gradient_pb2.PullRequest(session_id=session.session_id), timeout=10)
        service.inside(lambda engine: engine.budget.give(900_000))
        stream.send(Request(pull=gradient_pb2.PullParameters()))
        assert len(vector(stream, size)) == size
        request = gradient_pb2.StepRequest(push=tools.push_request(session.session_id, np.ones(size), 1))
        assert service.gradients.Step(request, timeout=10).result.step == 1
        service.gradients.Pull(gradient_pb2.PullRequest(session_id=session.session_id), timeout=10)
    tools.poll(lambda: used(service) == 0)


def test_an_answer_that_comes_after_the_stream_has_gone_gives_its_memory_back() -> None:
    async def scenario() -> None:
        budget, box = Budget(100), Outbox(50)
        budget.hold(60)
        for _ in range(3):
            box.expect(20)
        box.put([b"a"], 20, budget=budget, held_bytes=20)
        box.put([b"b"], 20, budget=budget, held_bytes=20)
        assert box.full
        assert list(await box.next() or ()) == [b"a"]  # being written
        box.close()
        assert budget.used_bytes == 20
        box.put([b"c"], 20, budget=budget, held_bytes=20)
        assert budget.used_bytes == 0

    asyncio.run(scenario())


async def served(arrivals: list[Hashable]) -> list[list[Hashable]]:
    """Whose messages are handled in each pass, if all are there at once."""
    turns, passes, number = Turns(), list[list[Hashable]](), 0

    async def message(who: Hashable) -> None:
        if not turns.take(who):
            await turns.wait(who)
        passes.extend([] for _ in range(number + 1 - len(passes)))
        passes[number].append(who)

    waiting = [asyncio.ensure_future(message(who)) for who in arrivals]
    while not all(each.done() for each in waiting):
        await asyncio.sleep(0)
        number += 1
    await asyncio.wait_for(message("later"), 5)
    return [each for each in passes if each and each != ["later"]]


def test_one_session_alone_has_all_turns() -> None:
    assert asyncio.run(served(["a"] * 5)) == [["a"] * 5]


def test_a_session_that_floods_has_one_turn_a_pass_beside_others() -> None:
    passes = asyncio.run(served(["victim", *["flood"] * 5]))
    assert passes[0] == ["victim", "flood"]
    assert sum(each.count("flood") for each in passes) == 5
    assert len(passes) >= 3, "those of a flood that waited did not come all at once"


def test_large_messages_go_one_a_pass_whoever_sends_them() -> None:
    passes = asyncio.run(served([*[LARGE] * 4, "small"]))
    assert passes[0] == [LARGE, "small"]
    assert passes[1:] == [[LARGE]] * 3


def test_who_goes_while_it_waits_takes_no_turn() -> None:
    async def scenario() -> None:
        turns = Turns()

        async def message() -> None:
            if not turns.take(LARGE):
                await turns.wait(LARGE)

        _, gone, last = (asyncio.ensure_future(message()) for _ in range(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait_for(last, 5)

    asyncio.run(scenario())


def test_management_calls_that_are_being_carried_out_are_counted() -> None:
    async def scenario() -> None:
        requests, gate = AnsweredRequests(), asyncio.Event()

        async def make() -> types_pb2.Refusal:
            await gate.wait()
            return types_pb2.Refusal()

        calls = [asyncio.ensure_future(requests.once(f"r{n}", b"", make)) for n in range(MAX_UNDER_WAY)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await requests.once("one more", b"", make)
        gate.set()
        await asyncio.gather(*calls)
        assert await requests.once("one more", b"", make) == types_pb2.Refusal()

    asyncio.run(scenario())
