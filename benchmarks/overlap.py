"""Overlap: how long a training step takes when the gradient leaves during backward and parameters land during forward.

    python -m benchmarks.overlap [--passes 5] [--steps 3] [--minibatch 512] [--save]

Two copies of one model train with the same data, one with overlap and one without, in turns on the same server, so that
what else the machine does meets both. A pass also times forward and backward alone: no step can be shorter than that,
nor than what the link needs for the bytes. At the end the weights of both are compared.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from benchmarks.speed.machine import described
from hermosis_client import Recipe
from hermosis_client.local_server import LocalServer
from hermosis_client.torch_optimizer import RemoteOptimizer

RESULTS = Path(__file__).parent / "results"
LAYERS, WIDTH = 12, 1443  # 25.0M parameters
SHARED_MEMORY = "HERMOSIS_SHARED_MEMORY"
PIECE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Way:
    """How the worker reaches its server."""

    name: str
    shared_memory: bool = False
    rate: float = 0.0  # bytes/s each way; zero leaves the loopback as it is
    delay_s: float = 0.0  # one way


WAYS = (
    Way("shared memory", shared_memory=True),
    Way("loopback"),
    Way("2 Gbit/s, 1 ms", rate=250e6, delay_s=1e-3),
    Way("1 Gbit/s, 5 ms", rate=125e6, delay_s=5e-3),
)


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    """Passes bytes on at the rate of the link, each piece after its delay."""
    flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(2 + int(way.rate * way.delay_s / PIECE_BYTES))
    now = asyncio.get_running_loop().time

    async def land() -> None:
        while True:
            due, piece = await flying.get()
            await asyncio.sleep(max(0.0, due - now()))
            writer.write(piece)
            await writer.drain()

    landing = asyncio.ensure_future(land())
    free = now()
    try:
        while piece := await reader.read(PIECE_BYTES):
            free = max(free, now()) + len(piece) / way.rate
            await asyncio.sleep(max(0.0, free - now()))
            await flying.put((free + way.delay_s, piece))
    finally:
        landing.cancel()
        writer.close()


async def serve_link(address: str, way: Way) -> None:
    """A slow link to an address, until it is killed; says where it begins."""
    host, _, port = address.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            back, there = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, there, way), pump(back, writer, way))

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=PIECE_BYTES)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def link(address: str, way: Way) -> Iterator[str]:
    """The address to connect to, of a process that is the link; the server's own where the way is no slower."""
    if not way.rate:
        yield address
        return
    command = [sys.executable, "-m", "benchmarks.overlap", "--link", way.name, "--address", address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])


def turn(net: nn.Module, optimizer: RemoteOptimizer | None, inputs: torch.Tensor, steps: int) -> float:
    """Seconds of a step, until its parameters are there; without an optimizer those of forward and backward."""
    began = time.perf_counter()
    for _ in range(steps):
        net.zero_grad()
        net(inputs).square().mean().backward()
        if optimizer is not None:
            optimizer.step()
    if optimizer is not None:
        optimizer.wait()
    return (time.perf_counter() - began) / steps


def measure(way: Way, *, minibatch: int, steps: int, passes: int) -> dict[str, object]:
    """A row: medians over passes, and of the ratios of one pass."""
    os.environ[SHARED_MEMORY] = str(int(way.shared_memory))
    inputs = torch.randn(minibatch, WIDTH, generator=torch.Generator().manual_seed(1))
    nets = {False: network(), True: network()}
    bare = network()
    took: dict[bool | None, list[float]] = {None: [], False: [], True: []}
    with (
        LocalServer(arguments=["--log-level", "error"]) as server,
        link(server.address, way) as address,
        contextlib.ExitStack() as stack,
    ):
        recipe = Recipe("sgd", lr=0.01, momentum=0.9)
        optimizers = {
            on: stack.enter_context(RemoteOptimizer(net.parameters(), optimizer=recipe, address=address, overlap=on))
            for on, net in nets.items()
        }
        for number in range(-1, passes):  # the first is to get warm
            order = (False, True) if number % 2 else (True, False)
            seconds = {on: turn(nets[on], optimizers[on], inputs, steps) for on in order}
            alone = turn(bare, None, inputs, steps)
            if number >= 0:
                for key, value in (*seconds.items(), (None, alone)):
                    took[key].append(value)
    same = all(torch.equal(a, b) for a, b in zip(nets[False].parameters(), nets[True].parameters(), strict=True))
    ratios = [without / with_ for without, with_ in zip(took[False], took[True], strict=True)]
    return {
        "way": way.name,
        "forward and backward, ms": 1e3 * statistics.median(took[None]),
        "step without overlap, ms": 1e3 * statistics.median(took[False]),
        "step with overlap, ms": 1e3 * statistics.median(took[True]),
        "faster by": statistics.median(ratios),
        "least to most": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "same weights": "yes" if same else "NO",
    }


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each optimizer in a pass")
    parser.add_argument("--minibatch", type=int, default=512, help="rows; more of them make a step compute longer")
    parser.add_argument("--only", choices=[way.name for way in WAYS], action="append", help="these ways")
    parser.add_argument("--save", action="store_true", help=f"also into {RESULTS.name}/")
    parser.add_argument("--link", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    ways = {way.name: way for way in WAYS}
    if chosen.link:
        asyncio.run(serve_link(chosen.address, ways[chosen.link]))
        return
    rows = [
        measure(ways[name], minibatch=chosen.minibatch, steps=chosen.steps, passes=chosen.passes)
        for name in chosen.only or ways
    ]
    print(table(rows))
    if chosen.save:
        today = datetime.now(UTC).date().isoformat()
        count = sum(tensor.numel() for tensor in network().parameters())
        said = "\n".join(f"- {name}: {value}" for name, value in described().items())
        text = (
            f"# Overlap, {today}\n\n{count:,} parameters, minibatches of {chosen.minibatch}, {chosen.passes} passes of "
            f"{chosen.steps} steps each way, in turns.\n\n{table(rows)}\n\n{said}\n"
        )
        (RESULTS / f"overlap-{today}.md").write_text(text)


if __name__ == "__main__":
    main()
