"""Viewers: what the sidecar and those who look at it cost the steps of the server.

    python -m benchmarks.viewers [--sessions 200] [--viewers 50] [--save]

A fleet of sessions steps at an even pace. Each pass measures the server's steps with nobody looking, with a sidecar
that follows them all and keeps their history, and with viewers of its live stream, each of a session of its own. What
is compared is the server's own number, from a round's last contribution to the end of its step, and the round trip of
the fleet's packed message. Everything shares this machine's processors.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.speed.machine import described
from hermosis_client import Client, Fleet
from hermosis_client.local_server import LocalServer

RESULTS = Path(__file__).parent / "results"
PARAMETERS = 256
PACE_S = 0.2  # between two steps of each session
CASES = ("nobody", "sidecar", "viewers")


@contextlib.contextmanager
def sidecar(server: str) -> Iterator[str]:
    """A sidecar of its own process; gives its address."""
    with tempfile.TemporaryDirectory(prefix="hermosis-history-") as history:
        process = subprocess.Popen(
            [sys.executable, "-m", "hermosis_sidecar", "--port", "0", "--until-stdin-closes", "--server", server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HERMOSIS_SIDECAR_HISTORY_FOLDER": history},
        )
        try:
            assert process.stdout is not None
            yield process.stdout.readline().rpartition("address=")[2].strip()
        finally:
            process.communicate(timeout=30)


async def look(address: str, session_id: str, heard: list[int]) -> None:
    """One viewer: reads the live stream of a session and counts its events."""
    place = urllib.parse.urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(f"GET /v1/live?session_id={session_id} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
    try:
        while line := await reader.readline():
            heard[0] += line.startswith(b"event: reading")
    finally:
        writer.close()


@contextlib.contextmanager
def looking(address: str, session_ids: list[str]) -> Iterator[list[int]]:
    """Viewers on a thread; gives how many readings they have heard of."""
    heard, loop = [0], asyncio.new_event_loop()

    async def look_all() -> None:
        await asyncio.gather(*(look(address, each, heard) for each in session_ids))

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    viewers = asyncio.run_coroutine_threadsafe(look_all(), loop)
    try:
        yield heard
    finally:
        viewers.cancel()
        # The cancelled ones end in the passes before the one that stops.
        loop.call_soon_threadsafe(loop.call_later, 0.1, loop.stop)
        thread.join()
        loop.close()


def stepped(client: Client, fleet: Fleet, seconds: float) -> dict[str, float]:
    """Steps the fleet at an even pace; its round trips, and the server's own numbers."""
    gradients = np.full((len(fleet), PARAMETERS), 1e-3, np.float32)
    took, end = list[float](), time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        fleet.exchange(gradients)
        took.append(time.monotonic() - began)
        time.sleep(max(0.0, began + PACE_S - time.monotonic()))
    return {
        "round trip p50, ms": 1e3 * statistics.median(took),
        "round trip p99, ms": 1e3 * float(np.percentile(took, 99)),
        "step p50, ms": 1e3 * client.overview().step_p50_s,
    }


def measure(sessions: int, viewers: int, seconds: float, passes: int) -> list[dict[str, object]]:
    """A row a case: medians over the passes, and the ratio to nobody looking, pass by pass."""
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(passes):
        for case in CASES:
            with LocalServer(arguments=["--log-level", "error"]) as server, Client(server.address) as client:
                start = np.zeros((sessions, PARAMETERS), np.float32)
                fleet = client.create_fleet(start, "adamw", session_ids=[f"s-{place}" for place in range(sessions)])
                with contextlib.ExitStack() as stack:
                    heard = [1]
                    if case != "nobody":
                        address = stack.enter_context(sidecar(server.address))
                        if case == "viewers":
                            seen = [f"s-{place % sessions}" for place in range(viewers)]
                            heard = stack.enter_context(looking(address, seen))
                    stepped(client, fleet, 1.0)
                    found[case].append(stepped(client, fleet, seconds) | {"readings heard": heard[0]})
                    if not heard[0]:
                        raise RuntimeError("the viewers heard nothing")
    rows: list[dict[str, object]] = []
    for case in CASES:
        row: dict[str, object] = {"looking": {"viewers": f"a sidecar and {viewers} viewers"}.get(case, case)}
        for name in found[case][0]:
            row[name] = statistics.median(each[name] for each in found[case])
            if name != "readings heard":
                ratios = [mine[name] / its[name] for mine, its in zip(found[case], found["nobody"], strict=True)]
                row[f"{name.partition(',')[0]}, of nobody's"] = statistics.median(ratios)
        rows.append(row)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each case in a pass")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--save", action="store_true", help=f"also into {RESULTS.name}/")
    chosen = parser.parse_args()
    rows = measure(chosen.sessions, chosen.viewers, chosen.seconds, chosen.passes)
    print(table(rows))
    if chosen.save:
        today = datetime.now(UTC).date().isoformat()
        path = RESULTS / f"viewers-{today}.json"
        path.write_text(json.dumps({"date": today, "machine": described(), "rows": rows}, indent=1) + "\n")
        path.with_suffix(".md").write_text(
            f"# Viewers, {today}\n\n{chosen.sessions} sessions of {PARAMETERS} parameters, each a step every "
            f"{PACE_S} s.\n\n{table(rows)}\n"
        )


if __name__ == "__main__":
    main()
