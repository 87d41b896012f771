"""Emulated links: they slow bytes down as the formulas say, and change none."""

import math
import random
import socket
import threading

import pytest

from benchmarks.links import SEGMENT_BYTES, Flow, Line, Links, Way

MIB = 1 << 20


def seconds_for(line: Line, size_bytes: int, seed: int = 1) -> float:
    """How long a flow takes that always has something to send, by a clock of its own."""
    flow, now_s, left = Flow(Way(line, random.Random(seed))), 0.0, size_bytes
    while left:
        room = min(flow.room(now_s), left, 16 * SEGMENT_BYTES)
        if room:
            flow.send(now_s, room)
            left -= room
        else:
            now_s = flow.next_room_s()
    return flow.last_s


def test_a_line_without_loss_comes_near_its_rate() -> None:
    line = Line(rtt_s=0.05, rate=2.5e6, loss=0.0)
    assert seconds_for(line, 32 * MIB) == pytest.approx(32 * MIB / line.rate, rel=0.05)


@pytest.mark.parametrize("loss", [0.001, 0.01])
def test_loss_costs_what_it_costs_tcp(loss: float) -> None:
    """Mathis et al. 1997: a flow gets about sqrt(3 / 2p) segments a round trip, whatever the line could carry."""
    line = Line(rtt_s=0.05, rate=1e9, loss=loss)
    expected = SEGMENT_BYTES / line.rtt_s * math.sqrt(1.5 / loss)
    assert 64 * MIB / seconds_for(line, 64 * MIB) == pytest.approx(expected, rel=0.35)


def test_bytes_come_out_as_they_went_in_and_are_counted() -> None:
    sent = random.Random(1).randbytes(100_000)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def echo() -> None:
            with listening.accept()[0] as end:
                got = b""
                while len(got) < len(sent):
                    got += end.recv(65536)
                end.sendall(got)
                end.recv(1)

        thread = threading.Thread(target=echo)
        thread.start()
        line = Line(rtt_s=0.002, rate=1e8, loss=0.01)
        with Links(f"127.0.0.1:{listening.getsockname()[1]}", [line, line]) as links:
            host, _, port = links.addresses[0].rpartition(":")
            with socket.create_connection((host, int(port))) as end:
                end.sendall(sent)
                back = b""
                while len(back) < len(sent):
                    back += end.recv(65536)
            passed = links.passed()
            thread.join()
    assert back == sent
    assert [(each.up, each.down) for each in passed] == [(100_000, 100_000), (0, 0)]
