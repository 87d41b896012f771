"""Turns: a session that floods the server has one message a pass while another one is there, and all of them alone."""

import asyncio
import contextlib
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from hermosis_server.rpc.turns import COMPANY_S, IN_HAND_S, LARGE, PATIENCE_S, QUIET_S, REST_S, Turns

T = TypeVar("T")

WORKERS = 8
PASS_S = 1e-5


class Clock(asyncio.SelectorEventLoop):
    """A loop whose time is counted: a pass takes ten microseconds, and where all wait, the next timer is there."""

    def __init__(self) -> None:
        self._counted_s = 0.0
        super().__init__(_Passing(self))

    def time(self) -> float:
        return self._counted_s

    def passes(self, timeout_s: float | None) -> None:
        assert timeout_s is not None, "nothing will ever happen again"
        self._counted_s += max(timeout_s, PASS_S)


class _Passing(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._clock.passes(timeout)
        return []


def run(scenario: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(scenario)


async def _flood(turns: Turns, who: object, served: list[int], *, ahead: bool = False) -> None:
    """A worker that never stops, one of several or one that sends ahead; counts in the last place."""
    while True:
        if not turns.take(who, ahead=ahead):
            await turns.wait(who)
        served[-1] += 1
        await asyncio.sleep(0)


async def _messages_a_pass(turns: Turns, who: object, *, seconds: float, workers: int = WORKERS) -> list[int]:
    """How many messages of one who floods are served in each pass of the loop, for a while."""
    served = [0]
    flood = [asyncio.ensure_future(_flood(turns, who, served, ahead=workers == 1)) for _ in range(workers)]
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0)
        served.append(0)
    for worker in flood:
        worker.cancel()
    return served[3:-1]


async def _quiet(turns: Turns, who: str, *, pause_s: float) -> None:
    """One worker that waits for its answer: a message, which is answered at once, and then none for a while."""
    while True:
        if turns.take(who):
            turns.begin(who, who)
        else:
            await turns.wait(who)
        turns.end(who)
        await asyncio.sleep(pause_s)


def test_who_floods_alone_is_served_as_it_comes() -> None:
    async def scenario() -> list[int]:
        turns = Turns()
        await _messages_a_pass(turns, "flood", seconds=2 * COMPANY_S)
        return await _messages_a_pass(turns, "flood", seconds=COMPANY_S)

    assert max(run(scenario())) == WORKERS


def test_who_floods_has_one_message_a_pass_while_another_does_so_as_well() -> None:
    async def scenario() -> list[int]:
        turns = Turns()
        others = [asyncio.ensure_future(_flood(turns, "other", [0])) for _ in range(WORKERS)]
        await _messages_a_pass(turns, "flood", seconds=COMPANY_S)
        served = await _messages_a_pass(turns, "flood", seconds=4 * COMPANY_S)
        for other in others:
            other.cancel()
        return served[100:]

    served = run(scenario())
    assert max(served) == 1
    assert sum(served) > len(served) // 2, "it is served in nearly every pass"


@pytest.mark.parametrize(("who", "workers"), [("flood", WORKERS), ("sends ahead", 1), (LARGE, WORKERS), (LARGE, 1)])
def test_who_floods_rests_between_turns_while_another_is_there_that_mostly_waits(who: object, workers: int) -> None:
    async def scenario(who: object, workers: int) -> int:
        turns = Turns()
        other = asyncio.ensure_future(_quiet(turns, "other", pause_s=QUIET_S / 4))
        await _messages_a_pass(turns, who, seconds=COMPANY_S, workers=workers)
        served = await _messages_a_pass(turns, who, seconds=4 * COMPANY_S, workers=workers)
        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other
        return sum(served)

    assert 5 < run(scenario(who, workers)) <= 4 * COMPANY_S / REST_S + 1


def test_who_begins_to_flood_does_not_rest_for_its_own_last_message() -> None:
    async def scenario() -> list[int]:
        turns = Turns()
        others = [asyncio.ensure_future(_flood(turns, "other", [0])) for _ in range(WORKERS)]
        await _messages_a_pass(turns, "another", seconds=COMPANY_S)
        assert turns.take("flood")
        turns.begin("a stream", "flood")
        turns.end("a stream")
        served = await _messages_a_pass(turns, "flood", seconds=QUIET_S / 2)
        for other in others:
            other.cancel()
        return served

    served = run(scenario())
    assert sum(served) > len(served) // 2


def test_who_never_has_two_messages_at_a_time_does_not_rest() -> None:
    async def scenario() -> list[bool]:
        turns, at_once = Turns(), []
        for _ in range(50):
            for who in ("one", "another"):
                at_once.append(turns.take(who))
                turns.begin(who, who)
                await asyncio.sleep(REST_S / 10)
                turns.end(who)
        return at_once

    assert all(run(scenario()))


def test_who_no_longer_floods_does_not_rest() -> None:
    async def scenario() -> list[bool]:
        turns, at_once = Turns(), []
        other = asyncio.ensure_future(_quiet(turns, "other", pause_s=QUIET_S / 4))
        await _messages_a_pass(turns, "flood", seconds=COMPANY_S)
        for _ in range(100):
            await asyncio.sleep(REST_S / 2)
            at_once.append(turns.take("flood") or await turns.wait("flood") or False)
        other.cancel()
        return at_once

    assert all(run(scenario())[-30:])


def test_large_messages_go_one_a_pass_whoever_sends_them() -> None:
    async def scenario() -> list[int]:
        return await _messages_a_pass(Turns(), LARGE, seconds=COMPANY_S)

    assert max(run(scenario())) == 1


async def _passes_until_served(turns: Turns, who: object) -> int:
    """For one who has had its turn and wants another."""
    assert turns.take(who), "the first is free"
    waiting, passes = asyncio.ensure_future(turns.wait(who)), 0
    while not waiting.done():
        await asyncio.sleep(0)
        passes += 1
    return passes


def test_another_turn_waits_for_the_answer_that_is_in_hand() -> None:
    async def scenario() -> tuple[int, bool, bool]:
        turns = Turns()
        at_once = await _passes_until_served(turns, "flood")
        turns.begin("a stream", "other")
        assert not turns.take("flood")
        waiting = asyncio.ensure_future(turns.wait("flood"))
        for _ in range(10 * at_once):
            await asyncio.sleep(0)
        before = waiting.done()
        turns.end("a stream")
        for _ in range(2 * at_once):
            await asyncio.sleep(0)
        return at_once, before, waiting.done()

    at_once, before, after = run(scenario())
    assert at_once <= 4
    assert not before
    assert after


def test_it_waits_no_longer_than_it_has_patience_for_answers_that_do_not_come() -> None:
    async def scenario() -> float:
        turns, loop = Turns(), asyncio.get_running_loop()
        turns.begin("a stream", "other")
        began_s = loop.time()
        await _passes_until_served(turns, "flood")
        return loop.time() - began_s

    assert PATIENCE_S <= run(scenario()) < REST_S + PATIENCE_S + 0.002


def test_the_first_large_message_waits_likewise() -> None:
    async def scenario() -> bool:
        turns = Turns()
        turns.begin("a stream", "other")
        return turns.take(LARGE)

    assert not run(scenario())


def test_the_next_large_message_waits_likewise() -> None:
    async def scenario() -> list[bool]:
        turns = Turns()
        first = turns.take(LARGE)
        turns.begin("a stream", "other")
        await asyncio.sleep(0)
        return [first, turns.take(LARGE)]

    assert run(scenario()) == [True, False]


def test_nobody_waits_for_what_is_in_hand_of_its_own() -> None:
    async def scenario() -> int:
        turns = Turns()
        turns.begin("a stream", "flood")
        return await _passes_until_served(turns, "flood")

    assert run(scenario()) <= 4


def test_what_is_answered_by_nobody_is_soon_no_longer_in_hand() -> None:
    async def scenario() -> int:
        turns = Turns()
        turns.begin("a stream", "other")
        await asyncio.sleep(2 * IN_HAND_S)
        return await _passes_until_served(turns, "flood")

    assert run(scenario()) <= 4


def test_large_and_small_messages_of_one_session_are_no_company() -> None:
    async def scenario() -> list[bool]:
        turns, several = Turns(), []
        for session in ("one", "one", "another"):
            for who in (LARGE, session):
                turns.take(who, session)
                await asyncio.sleep(0.001)
                several.append(turns.several)
        return several

    assert run(scenario()) == [False] * 4 + [True] * 2
