"""Soak: what clients of every kind do to the server's memory, as a curve.

    python -m benchmarks.soak [--quick] [--save]

A real server with small budgets; its resident memory is sampled while one kind of trouble after another comes in waves.
The first wave may fill what the server keeps for later use (its allocator gives nothing back); the others should add
nothing. Prints a table, and with --save writes the numbers and the curve into results/.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from benchmarks import traffic
from benchmarks.speed.machine import described, memory_bytes
from hermosis import wire
from hermosis.v1 import dynamics_pb2, gradient_pb2, session_pb2, session_pb2_grpc, types_pb2
from hermosis_client.local_server import LocalServer

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
STAGING, SESSION, WINDOW = 128 * MIB, 64 * MIB, 8 * MIB
SAMPLE_S = 0.05
STILL_S = 0.5  # without a byte sent
STREAMS_A_CONNECTION = 100
UNREAD = 100  # gradients of a slow reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything."""

    waves: int = 5
    readers: int = 64
    streams: int = 10_000
    sessions: int = 1000
    killed: int = 200
    steps: int = 1000
    parameters: int = 1_000_000


QUICK = Scale(waves=5, readers=16, streams=300, sessions=60, killed=8, steps=20, parameters=500_000)


@dataclass(slots=True)
class Bed:
    """The server under the soak.

    Attributes:
      curve: (seconds since the start, bytes, what was going on).
    """

    address: str
    process_id: int
    curve: list[tuple[float, int, str]] = field(default_factory=list)
    now: str = "start"

    @property
    def memory_bytes(self) -> int:
        return memory_bytes(self.process_id)

    async def sample(self) -> None:
        """Adds to the curve until it is cancelled."""
        began = time.monotonic()
        while True:
            self.curve.append((time.monotonic() - began, self.memory_bytes, self.now))
            await asyncio.sleep(SAMPLE_S)

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A connection of its own."""
        async with grpc.aio.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel


# Scenarios: each does one wave of its trouble, and gives numbers worth telling.

Scenario = Callable[[Bed, Scale], Awaitable[dict[str, float]]]


async def slow_readers(bed: Bed, scale: Scale) -> dict[str, float]:
    """Workers that send as fast as they can and read nothing, until nobody can send any more.

    Who is refused for want of room could go on for very long, since refusals are short: each sends a hundred at most.
    """
    gradient, sent = traffic.Gradient.of(traffic.WHOLE_BYTES // 4), 0

    async def send(call: Any) -> None:
        nonlocal sent
        for number in range(1, UNREAD + 1):
            (message,) = gradient.messages(number, 0)
            await call.write(message)
            sent += message.ByteSize()

    async with bed.channel() as channel:
        sessions = [await traffic.create(channel, gradient, mode=traffic.ASYNC) for _ in range(4)]
        calls = [
            await traffic.open_stream(channel, sessions[number % len(sessions)], f"w{number}")
            for number in range(scale.readers)
        ]
        sending = [asyncio.ensure_future(send(call)) for call in calls]
        before = -1
        while before != sent:
            before = sent
            await asyncio.wait(sending, timeout=STILL_S)
        await _gone(calls, sending)
        for session in sessions:
            await traffic.close(channel, session)
    return {"sent, MiB": sent / MIB}


async def announced(bed: Bed, scale: Scale) -> dict[str, float]:
    """Terabytes that are spoken of and never come."""
    gradient, refused = traffic.Gradient.of(1000), 0
    async with bed.channel() as channel:
        sessions = session_pb2_grpc.SessionServiceStub(channel)
        optimizer = dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name="adamw"))
        for shape in ([1 << 34], [1 << 62], [1 << 31, 1 << 31], [1 << 20] * 3):
            layout = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=shape)])
            spec = session_pb2.SessionSpec(layout=layout, optimizer=optimizer)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await sessions.CreateSession(session_pb2.CreateSessionRequest(spec=spec))
                raise AssertionError(f"a session of shape {shape} was taken")
            refused += 1
        session_id = await traffic.create(channel, gradient)
        for offset in (1000, 1 << 40, (1 << 64) - 1):
            chunk = gradient_pb2.GradientChunk(sequence=1, offset=offset, payload=bytes(4), crc32=0)
            refused += await _refusals(channel, session_id, traffic.Request(chunk=chunk))
        many = gradient_pb2.PackedGradients(number=1, handles=[0] * 900_000)
        refused += await _refusals(channel, session_id, traffic.Request(packed=many))
        # The first four bytes of vectors of which the rest never comes; all of them at a time.
        size = SESSION // 8
        large = await traffic.create(channel, traffic.Gradient.of(size // 4), mode=traffic.ASYNC)
        calls = [await traffic.open_stream(channel, large, f"w{number}") for number in range(7)]
        before = bed.memory_bytes
        for call in calls:
            chunk = gradient_pb2.GradientChunk(sequence=1, payload=bytes(4), crc32=wire.checksum(bytes(4)))
            await call.write(traffic.Request(chunk=chunk))
            # What is answered at once, so that the chunk before has been taken in.
            await call.write(traffic.Request(open=gradient_pb2.OpenSession(handle=1, session_id="none")))
        for call in calls:
            answer = await call.read()
            if answer.refused.handle != 1:
                raise AssertionError(f"a half-sent vector was refused: {answer!s:.300}")
        taken = (bed.memory_bytes - before) / MIB
        await _gone(calls, ())
        for each in (session_id, large):
            await traffic.close(channel, each)
    return {"refused": refused, "announced, MiB": 7 * size / MIB, "taken, MiB": taken}


async def idle_streams(bed: Bed, scale: Scale) -> dict[str, float]:
    """Streams that are opened and left alone."""
    gradient = traffic.Gradient.of(4)
    async with contextlib.AsyncExitStack() as stack:
        channel = await stack.enter_async_context(bed.channel())
        session_id, before = await traffic.create(channel, gradient), bed.memory_bytes
        calls = []
        for number in range(scale.streams):
            if number % STREAMS_A_CONNECTION == 0:
                channel = await stack.enter_async_context(bed.channel())
            calls.append(await traffic.open_stream(channel, session_id, f"w{number % 1000}"))
        each = (bed.memory_bytes - before) / scale.streams
        await _gone(calls, ())
        await traffic.close(channel, session_id)
    return {"streams": scale.streams, "bytes a stream": each}


async def sessions_come_and_go(bed: Bed, scale: Scale) -> dict[str, float]:
    """Sessions that are made, used once, and closed."""
    gradient = traffic.Gradient.of(256)
    async with bed.channel() as channel:
        before, made = bed.memory_bytes, []
        for _ in range(scale.sessions):
            made.append(await traffic.create(channel, gradient))
            call = await traffic.open_stream(channel, made[-1])
            await call.write(gradient.messages(1, 0)[0])
            await traffic.answer(call, gradient)
            call.cancel()
        each = (bed.memory_bytes - before) / scale.sessions
        for session_id in made:
            await traffic.close(channel, session_id)
    return {"sessions": scale.sessions, "bytes a session": each}


async def killed_workers(bed: Bed, scale: Scale) -> dict[str, float]:
    """Workers whose connection breaks in the middle of a gradient."""
    gradient = traffic.Gradient.of(scale.parameters)
    async with bed.channel() as channel:
        session_id = await traffic.create(channel, gradient, mode=traffic.ASYNC)
        for number in range(scale.killed):
            async with bed.channel() as own:
                call = await traffic.open_stream(own, session_id, f"w{number}")
                await call.write(gradient.messages(1, 0)[0])
        await traffic.close(channel, session_id)
    return {"killed": scale.killed}


async def rounds(bed: Bed, scale: Scale) -> dict[str, float]:
    """Eight workers of one session that do all as it should be."""
    gradient = traffic.Gradient.of(scale.parameters)
    async with bed.channel() as channel:
        session_id = await traffic.create(channel, gradient, workers=8)
        calls = [await traffic.open_stream(channel, session_id, f"w{number}") for number in range(8)]

        async def work(call: Any) -> None:
            for step in range(scale.steps // scale.waves):
                for message in gradient.messages(step + 1, step):
                    await call.write(message)
                reached = await traffic.answer(call, gradient)
                if reached != step + 1:
                    raise RuntimeError(f"step {step + 1} was refused; budgets may not stop a round")

        await asyncio.gather(*map(work, calls))
        await _gone(calls, ())
        await traffic.close(channel, session_id)
    return {"steps": scale.steps // scale.waves}


SCENARIOS: dict[str, Scenario] = {
    "announced terabytes": announced,
    "rounds of 8 workers": rounds,
    "slow readers": slow_readers,
    "sessions that come and go": sessions_come_and_go,
    "killed workers": killed_workers,
    "idle streams": idle_streams,
}


async def _refusals(channel: grpc.aio.Channel, session_id: str, message: gradient_pb2.ExchangeRequest) -> int:
    call = await traffic.open_stream(channel, session_id)
    await call.write(message)
    answer = await call.read()
    call.cancel()
    kind = answer.WhichOneof("message")
    if not (kind == "refused" or (kind == "packed" and answer.packed.HasField("refusal"))):
        raise AssertionError(f"{message!s:.80} was answered by {answer!s:.200}")
    return 1


async def _gone(calls: Sequence[Any], tasks: Sequence["asyncio.Future[None]"]) -> None:
    for each in (*calls, *tasks):
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# The whole


async def soak(bed: Bed, scale: Scale, names: Sequence[str]) -> list[dict[str, object]]:
    """A row for each scenario: growth in the first wave, in all later ones together, and at the peak, in MiB."""
    rows: list[dict[str, object]] = []
    sampling = asyncio.ensure_future(bed.sample())
    for name in names:
        bed.now = name
        first = len(bed.curve)
        begin, after = bed.memory_bytes, list[int]()
        told: dict[str, float] = {}
        for wave in range(scale.waves):
            print(f"{name}, wave {wave + 1} of {scale.waves}", file=sys.stderr, flush=True)
            found = await SCENARIOS[name](bed, scale)
            told = told or found  # per-piece costs show while nothing is kept yet
            after.append(bed.memory_bytes)
        peak = max([size for _, size, _ in bed.curve[first:]] + after)
        rows.append(
            {
                "scenario": name,
                "first wave, MiB": (after[0] - begin) / MIB,
                "later waves, MiB": (after[-1] - after[0]) / MIB,
                "peak, MiB": (peak - begin) / MIB,
                "told": told,
            }
        )
    sampling.cancel()
    return rows


def run(scale: Scale, names: Sequence[str] = tuple(SCENARIOS)) -> tuple[list[dict[str, object]], Bed]:
    """Soaks a server of its own."""
    limits = {"staging": STAGING, "session": SESSION, "window": WINDOW}
    arguments = [word for name, size in limits.items() for word in (f"--{name}-bytes", str(size))]
    with LocalServer(arguments=["--log-level", "error", "--max-sessions", "20000", *arguments]) as server:
        process_id = server.process_id
        bed = Bed(server.address, process_id)
        return asyncio.run(soak(bed, scale, names)), bed


def draw(path: Path, bed: Bed) -> None:
    """The curve, scenario by scenario."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    for name in dict.fromkeys(what for _, _, what in bed.curve):
        points = [(at, size / MIB) for at, size, what in bed.curve if what == name]
        axis.plot(*zip(*points, strict=True), label=name)
    axis.axhline((bed.curve[0][1] + STAGING) / MIB, color="0.6", ls=":", label="start + staging_bytes")
    axis.set(xlabel="seconds", ylabel="resident memory of the server, MiB", ylim=(0, None))
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as Markdown."""
    lines = ["| scenario | first wave, MiB | later waves, MiB | peak, MiB | |", "|---|---|---|---|---|"]
    for row in rows:
        told = row["told"]
        assert isinstance(told, dict)
        said = ", ".join(f"{name}: {value:,.0f}" for name, value in told.items())
        numbers = " | ".join(f"{row[name]:.1f}" for name in ("first wave, MiB", "later waves, MiB", "peak, MiB"))
        lines.append(f"| {row['scenario']} | {numbers} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a little of everything, in some twenty seconds")
    parser.add_argument("--only", choices=list(SCENARIOS), action="append", help="these scenarios")
    parser.add_argument("--save", action="store_true", help=f"numbers and curve into {RESULTS.name}/")
    chosen = parser.parse_args()
    rows, bed = run(QUICK if chosen.quick else Scale(), chosen.only or tuple(SCENARIOS))
    print(table(rows))
    if chosen.save:
        today = datetime.now(UTC).date().isoformat()
        path = RESULTS / f"soak-{today}.json"
        record = {"date": today, "machine": described(), "rows": rows, "curve": bed.curve}
        path.write_text(json.dumps(record) + "\n")
        draw(path.with_suffix(".png"), bed)
        page = f"# Memory of the server, {today}\n\n{table(rows)}\n\n![resident memory](soak-{today}.png)\n"
        path.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
