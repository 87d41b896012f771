"""Answered requests: one answer an id, failures forgotten, memory bounded."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from hermosis.v1 import session_pb2
from hermosis_server.errors import InvalidRequest, PayloadMismatch
from hermosis_server.rpc.requests import AnsweredRequests


class Maker:
    """Counts how often it was asked."""

    def __init__(self, name: str = "") -> None:
        self.calls = 0
        self.name = name

    async def __call__(self) -> session_pb2.GetSessionRequest:
        self.calls += 1
        await asyncio.sleep(0)
        return session_pb2.GetSessionRequest(session_id=self.name)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_the_same_request_is_made_once_also_while_it_is_being_made() -> None:
    async def scenario() -> None:
        answered, make = AnsweredRequests(), Maker("x")
        answers = await asyncio.gather(*(answered.once("id", b"f", make) for _ in range(5)))
        assert await answered.once("id", b"f", make) is answers[0]
        assert make.calls == 1

    run(scenario())


def test_without_an_id_every_request_is_its_own() -> None:
    async def scenario() -> None:
        answered, make = AnsweredRequests(), Maker()
        await answered.once("", b"f", make)
        await answered.once("", b"f", make)
        assert make.calls == 2

    run(scenario())


def test_a_failure_is_not_an_answer() -> None:
    async def scenario() -> None:
        async def fail() -> session_pb2.GetSessionRequest:
            raise InvalidRequest("no")

        answered = AnsweredRequests()
        with pytest.raises(InvalidRequest):
            await answered.once("id", b"f", fail)
        assert (await answered.once("id", b"f", Maker("now"))).session_id == "now"

    run(scenario())


def test_another_request_under_the_id_is_refused_and_so_is_an_endless_id() -> None:
    async def scenario() -> None:
        answered = AnsweredRequests()
        await answered.once("id", b"f", Maker())
        with pytest.raises(PayloadMismatch):
            await answered.once("id", b"other", Maker())
        with pytest.raises(InvalidRequest):
            await answered.once("x" * 129, b"f", Maker())

    run(scenario())


def test_a_caller_that_goes_away_leaves_the_answer_for_its_repeat() -> None:
    async def scenario() -> None:
        answered, make = AnsweredRequests(), Maker("kept")
        call = asyncio.ensure_future(answered.once("id", b"f", make))
        await asyncio.sleep(0)
        call.cancel()
        assert (await answered.once("id", b"f", make)).session_id == "kept"
        assert make.calls == 1

    run(scenario())


def test_the_oldest_answers_are_forgotten_by_number_and_by_bytes() -> None:
    async def scenario() -> None:
        for answered in (AnsweredRequests(capacity=2), AnsweredRequests(capacity_bytes=2 * 102)):
            makers = [Maker("n" * 100) for _ in range(3)]
            for number, make in enumerate(makers):
                await answered.once(str(number), b"f", make)
            await answered.once("2", b"f", makers[2])
            await answered.once("0", b"f", makers[0])
            assert [make.calls for make in makers] == [2, 1, 1]

    run(scenario())
