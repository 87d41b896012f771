"""Fairness: how much slower a small session becomes beside those that flood the server.

    python -m benchmarks.fairness [--seconds 4] [--passes 5] [--victim 256]

The victim is one worker of one small session in a process of its own. A flood is another process. Each pass measures
the victim alone, beside the flood on the same server, and with the same flood on *another* server: there they share
the machine's processors and nothing else, so what is slower than that is the server's doing. On a machine with few
cores that is the number to look at.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np

from benchmarks import traffic
from benchmarks.speed.machine import described
from hermosis_client.local_server import LocalServer

RESULTS = Path(__file__).parent / "results"
# name: sessions, workers of each, parameters, gradients under way of each worker
FLOODS = {
    "a 25M-parameter session": (1, 1, 25_000_000, 1),
    "8 async workers, 1M parameters": (1, 8, 1_000_000, 2),
    "8 async workers, 256 parameters": (1, 8, 256, 16),
    "64 chatty sessions": (64, 1, 256, 1),
}
WARM_UP_S = 0.5


async def flood(address: str, name: str) -> None:
    """Floods until it is killed; says a line when it has begun."""
    sessions, workers, parameters, ahead = FLOODS[name]
    gradient = traffic.Gradient.of(parameters)
    async with grpc.aio.insecure_channel(address) as channel:
        calls = []
        for _ in range(sessions):
            session_id = await traffic.create(channel, gradient, mode=traffic.ASYNC if workers > 1 else traffic.BARRIER)
            calls += [await traffic.open_stream(channel, session_id, f"w{number}") for number in range(workers)]
        print("flooding", flush=True)
        await asyncio.gather(*(traffic.exchange_for_ever(call, gradient, ahead=ahead) for call in calls))


async def victim(address: str, parameters: int, seconds: float) -> None:
    """Exchanges for a while, and says its p50 and p99 in seconds."""
    gradient, took = traffic.Gradient.of(parameters), list[float]()
    async with grpc.aio.insecure_channel(address) as channel:
        session_id = await traffic.create(channel, gradient)
        call = await traffic.open_stream(channel, session_id)
        exchanging = asyncio.ensure_future(traffic.exchange_for_ever(call, gradient, told=took.append))
        await asyncio.sleep(WARM_UP_S)
        took.clear()
        await asyncio.wait([exchanging], timeout=seconds)
        print(json.dumps(np.percentile(took, [50, 99]).tolist()))
        exchanging.cancel()
        await traffic.close(channel, session_id)


def _child(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.fairness", *arguments]


@contextlib.contextmanager
def flooded(address: str, name: str) -> Iterator[None]:
    process = subprocess.Popen(_child("--flood", name, "--address", address), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "flooding":
            raise RuntimeError(f"the flood {name!r} did not begin")
        yield
    finally:
        process.kill()
        process.communicate()


def measured(address: str, parameters: int, seconds: float) -> tuple[float, float]:
    arguments = _child("--address", address, "--victim", str(parameters), "--seconds", str(seconds))
    p50_s, p99_s = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
    return p50_s, p99_s


def measure(names: list[str], *, parameters: int, seconds: float, passes: int) -> list[dict[str, object]]:
    """A row for each flood: medians over passes of the victim's milliseconds, and of the ratios of one pass."""
    rows: list[dict[str, object]] = []
    for name in names:
        cases: dict[str, list[tuple[float, float]]] = {"alone": [], "beside": [], "elsewhere": []}
        for _ in range(passes):
            with LocalServer(arguments=["--log-level", "error"]) as here:
                cases["alone"].append(measured(here.address, parameters, seconds))
                with flooded(here.address, name):
                    cases["beside"].append(measured(here.address, parameters, seconds))
                with LocalServer(arguments=["--log-level", "error"]) as there, flooded(there.address, name):
                    cases["elsewhere"].append(measured(here.address, parameters, seconds))
        row: dict[str, object] = {"flood": name}
        for place, what in enumerate(("p50", "p99")):
            of = {case: [each[place] for each in passes_] for case, passes_ in cases.items()}
            row |= {f"{what} {case}, ms": 1e3 * statistics.median(values) for case, values in of.items()}
            for other in ("alone", "elsewhere"):
                ratios = [mine / its for mine, its in zip(of["beside"], of[other], strict=True)]
                row[f"{what} beside/{other}"] = statistics.median(ratios)
        rows.append(row)
    return rows


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
        rows = measure(names, parameters=chosen.victim, seconds=chosen.seconds, passes=chosen.passes)
        print(table(rows))
        if chosen.save:
            today = datetime.now(UTC).date().isoformat()
            record = {"date": today, "machine": described(), "victim": chosen.victim, "rows": rows}
            path = RESULTS / f"fairness-{today}.json"
            path.write_text(json.dumps(record, indent=1) + "\n")
            path.with_suffix(".md").write_text(f"# Fairness, {today}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
