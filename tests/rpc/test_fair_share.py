"""A session that floods the server beside one that waits for each answer, on real streams. Counted, not timed."""

import gc
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.rpc.test_exchange import ASYNC, in_one, opening, whole_in_chunks

from hermosis import wire
from hermosis_server.rpc import exchange, turns

WORKERS, AHEAD, EXCHANGES = 8, 16, 100
SMALL = 256


class Beside:
    """Counts what is received of other streams between a message of the victim and its answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.victim: Any = None
        self.others: list[int] = []
        self.flood = 0
        self._in_hand = False
        receive, begin, end = exchange.ExchangeStream._receive, turns.Turns.begin, turns.Turns.end

        def received(stream: Any, raw: bytes) -> None:
            if self.victim is not None and stream is not self.victim:
                self.flood += 1
                if self._in_hand:
                    self.others[-1] += 1
            receive(stream, raw)

        def begun(of: Any, stream: Any, who: Any) -> None:
            if stream is self.victim:
                self._in_hand = True
                self.others.append(0)
            begin(of, stream, who)

        def ended(of: Any, stream: Any) -> None:
            if stream is self.victim:
                self._in_hand = False
            end(of, stream)

        monkeypatch.setattr(exchange.ExchangeStream, "_receive", received)
        monkeypatch.setattr(turns.Turns, "begin", begun)
        monkeypatch.setattr(turns.Turns, "end", ended)


def exchange_each_in_turn(stream: Any, size: int, *, until: Callable[[int], bool]) -> None:
    """A worker that waits for each answer."""
    step, values = 0, np.full(size, 1e-3, np.float32)
    while not until(step):
        stream.send(in_one(values, step + 1, step))
        step = stream.next().whole.result.step


def flood(stream: Any, stop: threading.Event) -> None:
    """A worker that sends far ahead."""
    values, sent, step = np.full(SMALL, 1e-3, np.float32), 0, 0
    for _ in range(AHEAD):
        sent += 1
        stream.send(in_one(values, sent, step))
    while not stop.is_set():
        step = stream.next().whole.result.step
        sent += 1
        stream.send(in_one(values, sent, step))


@pytest.mark.parametrize("workers", [WORKERS, 1])
def test_an_answer_in_hand_meets_hardly_a_message_of_a_flood(
    server: Any, tools: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    # However slow the machine, so that only the order of things is looked at.
    monkeypatch.setattr(turns, "PATIENCE_S", 5.0)
    monkeypatch.setattr(turns, "IN_HAND_S", 5.0)
    beside, stop = Beside(monkeypatch), threading.Event()
    victim, flooding = server.create(SMALL), server.create(SMALL, consistency=ASYNC)
    streams = [tools.Dialogue(server, [opening(flooding, worker=f"w{number}")]) for number in range(workers)]
    threads = [threading.Thread(target=flood, args=(stream, stop)) for stream in streams]
    try:
        with tools.Dialogue(server, [opening(victim)]) as stream:
            stream.next()
            beside.victim = server.inside(lambda _: _stream_of(victim.session_id))
            for each in streams:
                each.next()
            for thread in threads:
                thread.start()
            exchange_each_in_turn(stream, SMALL, until=lambda step: step == EXCHANGES)
            beside.victim = None
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
        for each in streams:
            each.__exit__(None, None, None)
    assert len(beside.others) >= EXCHANGES // 4, "its messages do not wait for their turn, as a rule"
    assert beside.flood > EXCHANGES // 10, "there was a flood"
    # A flood that is slow for a moment, as on a busy machine, is none: not the mean.
    assert statistics.median(beside.others) <= 1, beside.others


def _stream_of(session_id: str) -> Any:
    return next(
        each
        for each in gc.get_objects()
        if type(each) is exchange.ExchangeStream
        and any(link.session.session_id == session_id for link in each._links.values())
    )


def test_vectors_go_out_in_smaller_pieces_while_another_session_is_there(server: Any, tools: Any) -> None:
    size = 1_000_000
    large, small = server.create(size), server.create(SMALL)
    gradient, done = np.zeros(size, np.float32), threading.Event()

    def pieces(stream: Any, step: int) -> list[int]:
        stream.send(*whole_in_chunks(gradient, step, step - 1))
        assert stream.next().result.step == step
        lengths: list[int] = []
        while sum(lengths) < 4 * size:
            lengths.append(len(stream.next().chunk.payload))
        return lengths

    with tools.Dialogue(server, [opening(large)]) as stream, tools.Dialogue(server, [opening(small)]) as other:
        stream.next(), other.next()
        time.sleep(2 * turns.COMPANY_S)  # until the opening of the other one is forgotten
        assert max(pieces(stream, 1)) == wire.DEFAULT_CHUNK_BYTES
        company = threading.Thread(
            target=exchange_each_in_turn, args=(other, SMALL), kwargs={"until": lambda _: done.is_set()}
        )
        company.start()
        try:
            beside = [pieces(stream, step) for step in range(2, 12)]
        finally:
            done.set()
            company.join(20)
    assert min(max(each) for each in beside) == exchange.COMPANY_CHUNK_BYTES
