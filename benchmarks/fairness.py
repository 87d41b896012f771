"""Fairness: how much slower a small session becomes beside those that flood the server.

    python -m benchmarks.fairness [--seconds 4] [--passes 5] [--victim 256] [--elsewhere]

The victim is one worker of one small session in a process of its own. A flood is another process. Each pass measures
the victim alone and beside the flood.

Workers live on machines of their own, so a flood's must not take processors from the server here: server and victim
come before all else (undisturbed.py), the flood has what they leave. How many of its gradients are answered is measured
with the victim and without, since a server could be fair to one by starving the other. Exchanges during which the
machine itself stood still are left out, with and without a flood. With --elsewhere the flood is on another server of
this machine: what it costs then is the machine's doing.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np

from benchmarks import traffic
from benchmarks.speed.machine import described
from benchmarks.undisturbed import BEFORE_IT, first, watched
from hermosis_client.local_server import LocalServer

RESULTS = Path(__file__).parent / "results"
# name: sessions, workers of each, parameters, gradients under way of each worker
FLOODS = {
    "a 25M-parameter session": (1, 1, 25_000_000, 1),
    "8 async workers, 1M parameters": (1, 8, 1_000_000, 2),
    "8 async workers, 256 parameters": (1, 8, 256, 16),
    "one worker, 256 parameters, 64 ahead": (1, 1, 256, 64),
    "64 chatty sessions": (64, 1, 256, 1),
}
WARM_UP_S = 0.5
QUIETLY = ["--log-level", "error"]


async def flood(address: str, name: str) -> None:
    """Floods until it is killed; says how many gradients were answered, at first and for every line it hears."""
    answered = 0

    def count(_: float) -> None:
        nonlocal answered
        answered += 1

    sessions, workers, parameters, ahead = FLOODS[name]
    gradient = traffic.Gradient.of(parameters)
    async with grpc.aio.insecure_channel(address) as channel:
        calls = []
        for _ in range(sessions):
            session_id = await traffic.create(
                channel, gradient, mode=traffic.ASYNC if workers * ahead > 1 else traffic.BARRIER
            )
            calls += [await traffic.open_stream(channel, session_id, f"w{number}") for number in range(workers)]
        asyncio.get_running_loop().add_reader(sys.stdin, lambda: (sys.stdin.readline(), print(answered, flush=True)))
        print(answered, flush=True)
        await asyncio.gather(*(traffic.exchange_for_ever(call, gradient, ahead=ahead, told=count) for call in calls))


async def victim(address: str, parameters: int, seconds: float) -> None:
    """Exchanges for a while, and says when each began and ended."""
    gradient, spans = traffic.Gradient.of(parameters), list[tuple[float, float]]()

    def note(took_s: float) -> None:
        now = time.monotonic()
        spans.append((now - took_s, now))

    async with grpc.aio.insecure_channel(address) as channel:
        session_id = await traffic.create(channel, gradient)
        call = await traffic.open_stream(channel, session_id)
        exchanging = asyncio.ensure_future(traffic.exchange_for_ever(call, gradient, told=note))
        await asyncio.sleep(WARM_UP_S)
        print("measuring", flush=True)
        spans.clear()
        await asyncio.wait([exchanging], timeout=seconds)
        print(json.dumps(spans))
        exchanging.cancel()
        await traffic.close(channel, session_id)


def _child(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.fairness", *arguments]


class Flood:
    """A flood that goes on in a process of its own."""

    def __init__(self, address: str, name: str) -> None:
        command = _child("--flood", name, "--address", address)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answered()

    def _answered(self) -> int:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the flood has ended")
        return int(line)

    def _count(self) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answered()

    @contextlib.contextmanager
    def counted(self, rates: list[float]) -> Iterator[None]:
        """Appends the gradients a second that are answered in here."""
        before, began_s = self._count(), time.perf_counter()
        yield
        rates.append((self._count() - before) / (time.perf_counter() - began_s))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def flooded(address: str, name: str) -> Iterator[Flood]:
    flood = Flood(address, name)
    try:
        yield flood
    finally:
        flood.stop()


def measured(
    address: str, parameters: int, seconds: float, meanwhile: contextlib.AbstractContextManager[object]
) -> tuple[float, float, float]:
    """The victim's p50 and p99 in seconds, and the part of its exchanges that was left out."""
    arguments = _child("--address", address, "--victim", str(parameters), "--seconds", str(seconds))
    with watched() as stalls, first(BEFORE_IT):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        with meanwhile:
            line = process.stdout.readline()
        process.communicate()
    if not line:
        raise RuntimeError("the victim has ended without a result")
    spans = np.array(json.loads(line))
    kept = stalls.outside(spans)
    p50_s, p99_s = np.percentile(np.diff(spans[kept]), [50, 99]).tolist()
    return p50_s, p99_s, 1 - kept.mean()


def measure(
    names: list[str], *, parameters: int, seconds: float, passes: int, elsewhere: bool
) -> list[dict[str, object]]:
    """A row for each flood: medians over passes of the victim's milliseconds, of the flood's gradients a second, and of
    the ratios of one pass."""
    rows: list[dict[str, object]] = []
    for name in names:
        alone, beside, ratios, rates = [], [], [], list[list[float]]()
        for _ in range(passes):
            with contextlib.ExitStack() as stack:
                with first():
                    server = stack.enter_context(LocalServer(arguments=QUIETLY))
                    other = stack.enter_context(LocalServer(arguments=QUIETLY)) if elsewhere else server
                alone.append(measured(server.address, parameters, seconds, contextlib.nullcontext()))
                with flooded(other.address, name) as flood:
                    rates.append([])
                    time.sleep(WARM_UP_S)
                    with flood.counted(rates[-1]):
                        time.sleep(seconds)
                    beside.append(measured(server.address, parameters, seconds, flood.counted(rates[-1])))
                    rates[-1].append(rates[-1][1] / rates[-1][0])
            ratios.append([mine / its for mine, its in zip(beside[-1][:2], alone[-1][:2], strict=True)])
        row: dict[str, object] = {"flood": name}
        for what, *columns in zip(("p50", "p99"), *(_medians(each) for each in (alone, beside, ratios)), strict=False):
            row |= {f"{what} alone, ms": 1e3 * columns[0], f"{what} beside, ms": 1e3 * columns[1]}
            row[f"{what} beside/alone"] = columns[2]
        row["left out"] = _medians(beside)[2]
        names_of_rates = ("flood by itself, gradients/s", "flood beside, gradients/s", "flood beside/by itself")
        rows.append(row | dict(zip(names_of_rates, _medians(rates), strict=True)))
    return rows


def _medians(passes: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*passes, strict=True)]


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="of the victim in each case of a pass")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--victim", type=int, default=256, help="parameters of its session")
    parser.add_argument("--only", choices=list(FLOODS), action="append", help="these floods")
    parser.add_argument("--elsewhere", action="store_true", help="the flood is on another server")
    parser.add_argument("--save", action="store_true", help=f"also into {RESULTS.name}/")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.flood:
        asyncio.run(flood(chosen.address, chosen.flood))
    elif chosen.address:
        asyncio.run(victim(chosen.address, chosen.victim, chosen.seconds))
    else:
        names = chosen.only or list(FLOODS)
        rows = measure(
            names, parameters=chosen.victim, seconds=chosen.seconds, passes=chosen.passes, elsewhere=chosen.elsewhere
        )
        print(table(rows))
        if chosen.save:
            today = datetime.now(UTC).date().isoformat()
            record = {
                "date": today,
                "machine": described(),
                "victim": chosen.victim,
                "elsewhere": chosen.elsewhere,
                "rows": rows,
            }
            path = RESULTS / f"{'elsewhere' if chosen.elsewhere else 'fairness'}-{today}.json"
            path.write_text(json.dumps(record, indent=1) + "\n")
            path.with_suffix(".md").write_text(f"# Fairness, {today}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
