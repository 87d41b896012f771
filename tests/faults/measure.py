"""Measure: what durability costs at each step, and how long a recovery takes, on a folder of this machine."""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.faults.servers import Server, Wishes

from hermosis_client import Client, Durability

MODES = {
    "none": ("none", "applied"),
    "snapshot": ("snapshot", "applied"),
    "journal, applied": ("journal", "applied"),
    "journal, durable": ("journal", "durable"),
}
SIZES = {"1 KB": 256, "40 KB": 10_000, "4 MB": 1_000_000}  # parameters of four bytes each
PASSES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Steps a second of one worker, by mode; the modes took turns, pass by pass."""

    size: str
    steps_per_s: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """From the start of the process to its READY line, which takes `idle_s` with an empty folder."""

    what: str
    state_bytes: int
    seconds: float
    idle_s: float


def costs(folder: Path, *, pass_s: float = 1.0) -> list[Cost]:
    """All modes side by side on one server, for each size."""
    server = Server(folder / "costs", folder / "costs.log", Wishes(segment_bytes=64 << 20))
    found = []
    try:
        with Client(server.address, timeout_s=120) as client:
            for size, parameters in SIZES.items():
                workers = {}
                for index, (name, (mode, level)) in enumerate(MODES.items()):
                    session = client.create_session(
                        {"w": (parameters,)},
                        "adamw",
                        session_id=f"s-{parameters}-{index}",
                        durability=Durability(mode=mode),  # type: ignore[arg-type]
                    )
                    session.initialise(np.zeros(parameters, np.float32))
                    workers[name] = session.worker("w", ack_level=level)  # type: ignore[arg-type]
                    workers[name].pull()
                rates: dict[str, list[float]] = {name: [] for name in workers}
                gradient = np.ones(parameters, np.float32)
                for _ in range(PASSES):
                    for name, worker in workers.items():
                        began, count = time.perf_counter(), 0
                        while time.perf_counter() - began < pass_s:
                            worker.exchange(gradient)
                            count += 1
                        rates[name].append(count / (time.perf_counter() - began))
                medians = {name: statistics.median(rate) for name, rate in rates.items()}
                found.append(Cost(size=size, steps_per_s=medians))
    finally:
        server.close()
    return found


def recoveries(folder: Path, *, large_parameters: int = 84_000_000) -> list[Recovery]:
    """A hundred journalled sessions with steps to replay, and one whose state is a gigabyte."""
    idle_s = _start_s(folder / "idle", folder)
    return [
        _recovery(folder, "100 sessions of 40 KB, 20 steps of each in the journal", 100, 10_000, 20, idle_s),
        _recovery(folder, "1 session with 1 GB of state", 1, large_parameters, 0, idle_s),
    ]


def _recovery(folder: Path, what: str, sessions: int, parameters: int, steps: int, idle_s: float) -> Recovery:
    data = folder / f"recovery-{sessions}"
    server = Server(data, folder / "recovery.log", Wishes(segment_bytes=64 << 20, flags=("--snapshot-every-s", "0")))
    try:
        with Client(server.address, timeout_s=300) as client:
            for index in range(sessions):
                session = client.create_session(
                    {"w": (parameters,)}, "adamw", session_id=f"s-{index}", durability=Durability(mode="journal")
                )
                session.initialise(np.zeros(parameters, np.float32))
                with session.worker("w", ack_level="durable") as worker:
                    worker.pull()
                    for _ in range(steps):
                        worker.exchange(np.ones(parameters, np.float32))
    finally:
        server.close()
    state_bytes = sum(path.stat().st_size for path in data.glob("sessions/*/*.safetensors"))
    return Recovery(what=what, state_bytes=state_bytes, seconds=_start_s(data, folder), idle_s=idle_s)


def _start_s(data: Path, folder: Path) -> float:
    began = time.perf_counter()
    server = Server(data, folder / "recovery.log", Wishes())
    try:
        assert server.address
        return time.perf_counter() - began
    finally:
        server.close()


def machine() -> str:
    """What was measured on, and what else it did."""
    return f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} during the measurement"
