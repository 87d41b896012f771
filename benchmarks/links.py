"""Links: slow and lossy lines between workers and a server, emulated by a TCP proxy.

    python -m benchmarks.links --to 127.0.0.1:50051 --links 3 [--rtt-ms 50] [--mbit 20] [--loss 0.01]

Says one line of JSON with the addresses to connect to, one for each link, and a line with the bytes that have passed
for each line that it reads. Ends when its standard input does.

What is emulated is the time at which bytes come out, as arithmetic over the bytes that go in; no packet is dropped.
Each direction of each connection is a TCP flow that the loss of packets slows down as it does CUBIC where the round
trip is short (RFC 9438, section 4.3): a window of segments is under way at most; it doubles each round trip until the
first loss, then grows by 0.53 a round trip; a loss costs a round trip (or, with fewer than four segments under way,
the 0.2 s of a timeout), during which what came behind waits, and leaves 0.7 of the window. All flows of one direction
share the line's rate. Not emulated: lost acknowledgements, jitter, and queues that overflow.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

SEGMENT_BYTES = 1460
FIRST_WINDOW = 10.0  # segments, RFC 6928
LEAST_WINDOW = 2.0
GROWTH = 0.53  # segments a round trip, RFC 9438: with the 0.7 it takes the share that Reno would
KEPT = 0.7
TIMEOUT_S = 0.2  # the least that Linux waits before it sends again
FEWEST_ACKNOWLEDGED = 4.0  # segments under way, below which a loss shows by a timeout only
PIECE_BYTES = 16 * SEGMENT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a link is like, the same both ways.

    Attributes:
      rtt_s: from a byte's leaving until its acknowledgement, at an idle line.
      rate:  bytes a second.
      loss:  the probability of a segment of 1460 bytes to be lost.
    """

    rtt_s: float = 0.05
    rate: float = 20e6 / 8
    loss: float = 0.01


@dataclass(slots=True)
class Way:
    """One direction of a link.

    Attributes:
      free_s: when the line has put out what it was given.
      passed: bytes so far.
    """

    line: Line
    chance: random.Random
    free_s: float = 0.0
    passed: int = 0


@dataclass(slots=True)
class Flow:
    """One direction of one TCP connection: when bytes arrive that leave now. It has no clock and no socket."""

    way: Way
    window: float = FIRST_WINDOW
    threshold: float = float("inf")
    last_s: float = 0.0  # when the last byte so far arrives; bytes keep their order
    recovered_s: float = 0.0  # losses before that belong to the one that was answered
    under_way: deque[tuple[float, int]] = field(default_factory=deque)  # when acknowledged, segments

    def room(self, now_s: float) -> int:
        """Bytes that may leave now."""
        while self.under_way and self.under_way[0][0] <= now_s:
            self.under_way.popleft()
        if not self.under_way and now_s - self.last_s > max(TIMEOUT_S, self.way.line.rtt_s):
            self.window = min(self.window, FIRST_WINDOW)  # it has been idle
        free = int(self.window) - sum(segments for _, segments in self.under_way)
        return max(0, free) * SEGMENT_BYTES

    def next_room_s(self) -> float:
        """When there will be more; only where something is under way."""
        return self.under_way[0][0]

    def send(self, now_s: float, size_bytes: int) -> float:
        """When that many bytes arrive, all of them."""
        way, line = self.way, self.way.line
        segments = -(-size_bytes // SEGMENT_BYTES)
        way.free_s = max(now_s, way.free_s) + size_bytes / line.rate
        way.passed += size_bytes
        arrives_s = way.free_s + line.rtt_s / 2
        if way.chance.random() < 1 - (1 - line.loss) ** segments:
            arrives_s += line.rtt_s if self.window >= FEWEST_ACKNOWLEDGED else max(TIMEOUT_S, line.rtt_s)
            if now_s >= self.recovered_s:
                self.window = self.threshold = max(LEAST_WINDOW, KEPT * self.window)
                self.recovered_s = arrives_s
        elif self.window < self.threshold:
            self.window += segments
        else:
            self.window += GROWTH * segments / self.window
        self.last_s = arrives_s = max(arrives_s, self.last_s)
        self.under_way.append((arrives_s + line.rtt_s / 2, segments))
        return arrives_s


class Link:
    """One listening port, and the line from there to the server. Used on one event loop."""

    def __init__(self, line: Line, host: str, port: int, seed: int) -> None:
        self.line = line
        self.up, self.down = Way(line, random.Random(2 * seed)), Way(line, random.Random(2 * seed + 1))
        self._target = host, port

    async def listen(self) -> str:
        """Opens the port; its address."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=PIECE_BYTES)
        host, port = server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other: asyncio.StreamWriter | None = None
        try:
            await asyncio.sleep(self.line.rtt_s)  # the handshake
            back, other = await asyncio.open_connection(*self._target, limit=PIECE_BYTES)
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(reader, other, Flow(self.up), both))
                both.create_task(_carry(back, writer, Flow(self.down), both))
        except* OSError:
            pass  # one end has gone, so goes the other
        finally:
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: Flow, group: asyncio.TaskGroup
) -> None:
    """Takes what the window allows, and lets it out when it has arrived; ends with ConnectionResetError."""
    now_s = asyncio.get_running_loop().time
    arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    group.create_task(_deliver(arriving, writer))
    while True:
        while not (room := flow.room(now_s())):
            await asyncio.sleep(max(0.0, flow.next_room_s() - now_s()))
        try:
            piece = await reader.read(min(room, PIECE_BYTES))
        except OSError:
            piece = b""
        if not piece:
            arriving.put_nowait((max(flow.last_s, now_s() + flow.way.line.rtt_s / 2), b""))
            return
        arriving.put_nowait((flow.send(now_s(), len(piece)), piece))


async def _deliver(arriving: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    now_s = asyncio.get_running_loop().time
    while True:
        arrives_s, piece = await arriving.get()
        await asyncio.sleep(max(0.0, arrives_s - now_s()))
        if not piece:
            raise ConnectionResetError
        writer.write(piece)
        await writer.drain()


@dataclass(frozen=True, slots=True)
class Passed:
    """Bytes that a link has carried, with all that TCP carries: frames and headers of HTTP/2 too."""

    up: int
    down: int


class Links:
    """The proxy as a process of its own, so that nobody's Python slows it down.

    Args:
      address: of the server.
      lines:   a link for each.

    Attributes:
      addresses: of the links, in their order.
    """

    def __init__(self, address: str, lines: Sequence[Line]) -> None:
        described = json.dumps([asdict(line) for line in lines])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.links", "--to", address, "--lines", described],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for whoever began this
        )
        self.addresses: list[str] = self._line()

    def passed(self) -> list[Passed]:
        """What each has carried so far."""
        assert self._process.stdin is not None, "asked for above"
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [Passed(*each) for each in self._line()]

    def close(self) -> None:
        """Cuts all connections. Harmless when repeated."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *trouble: object) -> None:
        self.close()

    def _line(self) -> list[str]:
        assert self._process.stdout is not None, "asked for above"
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the links ended by themselves; their error is above")
        found: list[str] = json.loads(line)
        return found


async def serve(address: str, lines: Sequence[Line]) -> None:
    """Carries bytes until standard input ends."""
    host, _, port = address.rpartition(":")
    links = [Link(line, host, int(port), seed) for seed, line in enumerate(lines)]
    print(json.dumps([await link.listen() for link in links]), flush=True)

    def answer() -> None:
        for _ in sys.stdin:
            print(json.dumps([(link.up.passed, link.down.passed) for link in links]), flush=True)
        os._exit(0)

    threading.Thread(target=answer, daemon=True).start()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--to", required=True, help="host:port of the server")
    parser.add_argument("--links", type=int, default=1, help="how many, all alike")
    parser.add_argument("--rtt-ms", type=float, default=50.0, help="round trip, in milliseconds")
    parser.add_argument("--mbit", type=float, default=20.0, help="rate of each direction, in megabits a second")
    parser.add_argument("--loss", type=float, default=0.01, help="part of the segments that are lost, from 0 to 1")
    parser.add_argument("--lines", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    line = Line(rtt_s=chosen.rtt_ms / 1e3, rate=chosen.mbit * 1e6 / 8, loss=chosen.loss)
    lines = [Line(**each) for each in chosen.lines] if chosen.lines else [line] * chosen.links
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(chosen.to, lines))


if __name__ == "__main__":
    main()
