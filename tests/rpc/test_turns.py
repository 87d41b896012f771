"""Turns: a session that floods the server has one message a pass while another one is there, and all of them alone."""

import asyncio
import contextlib

from hermosis_server.rpc.turns import COMPANY_S, IN_HAND_S, LARGE, PATIENCE_S, Turns

WORKERS = 8


async def _messages_a_pass(turns: Turns, who: object, *, seconds: float) -> list[int]:
    """How many messages of one who floods are served in each pass of the loop, for a while."""
    served = [0]

    async def flood() -> None:
        while True:
            if not turns.take(who):
                await turns.wait(who)
            served[-1] += 1
            await asyncio.sleep(0)

    workers = [asyncio.ensure_future(flood()) for _ in range(WORKERS)]
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0)
        served.append(0)
    for worker in workers:
        worker.cancel()
    return served[3:-1]


async def _now_and_then(turns: Turns, who: str, *, pause_s: float) -> None:
    """One worker that waits for its answer: a message, and then none for a while."""
    while True:
        if not turns.take(who):
            await turns.wait(who)
        await asyncio.sleep(pause_s)


def test_who_floods_alone_is_served_as_it_comes() -> None:
    async def scenario() -> list[int]:
        turns = Turns()
        await _messages_a_pass(turns, "flood", seconds=2 * COMPANY_S)
        return await _messages_a_pass(turns, "flood", seconds=COMPANY_S)

    assert max(asyncio.run(scenario())) == WORKERS


def test_who_floods_has_one_message_a_pass_while_another_is_there_that_mostly_waits() -> None:
    async def scenario() -> list[int]:
        turns = Turns()
        other = asyncio.ensure_future(_now_and_then(turns, "other", pause_s=COMPANY_S / 10))
        await asyncio.sleep(COMPANY_S / 2)
        served = await _messages_a_pass(turns, "flood", seconds=4 * COMPANY_S)
        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other
        return served[100:]

    served = asyncio.run(scenario())
    assert max(served) == 1
    assert sum(served) > len(served) // 2, "it is served in nearly every pass"


def test_large_messages_go_one_a_pass_whoever_sends_them() -> None:
    async def scenario() -> list[int]:
        return await _messages_a_pass(Turns(), LARGE, seconds=COMPANY_S)

    assert max(asyncio.run(scenario())) == 1


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
        assert turns.take("flood")
        waiting = asyncio.ensure_future(turns.wait("flood"))
        for _ in range(10 * at_once):
            await asyncio.sleep(0)
        before = waiting.done()
        turns.end("a stream")
        for _ in range(2 * at_once):
            await asyncio.sleep(0)
        return at_once, before, waiting.done()

    at_once, before, after = asyncio.run(scenario())
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

    assert asyncio.run(scenario()) >= PATIENCE_S / 2


def test_the_first_large_message_waits_likewise() -> None:
    async def scenario() -> bool:
        turns = Turns()
        turns.begin("a stream", "other")
        return turns.take(LARGE)

    assert not asyncio.run(scenario())


def test_nobody_waits_for_what_is_in_hand_of_its_own() -> None:
    async def scenario() -> int:
        turns = Turns()
        turns.begin("a stream", "flood")
        return await _passes_until_served(turns, "flood")

    assert asyncio.run(scenario()) <= 4


def test_what_is_answered_by_nobody_is_soon_no_longer_in_hand() -> None:
    async def scenario() -> bool:
        turns = Turns()
        turns.begin("a stream", "other")
        await asyncio.sleep(2 * IN_HAND_S)
        return turns.take(LARGE)

    assert asyncio.run(scenario())


def test_large_and_small_messages_of_one_session_are_no_company() -> None:
    async def scenario() -> list[bool]:
        turns, several = Turns(), []
        for session in ("one", "one", "another"):
            for who in (LARGE, session):
                turns.take(who, session)
                await asyncio.sleep(0.001)
                several.append(turns.several)
        return several

    assert asyncio.run(scenario()) == [False] * 4 + [True] * 2
