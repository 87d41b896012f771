"""The machine: what it is, what else it does, and what a process of it has used. Linux; elsewhere load is unknown."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.speed.statistics import Load

PROC = Path("/proc")
PACKAGES = ("grpcio", "protobuf", "numpy", "torch", "numba", "isal", "uvloop")


def _ticks() -> int:
    return os.sysconf("SC_CLK_TCK")


def cpu_seconds(process_id: int) -> float:
    """User and system time a process has used, its threads included; zero once it has gone."""
    try:
        fields = (PROC / str(process_id) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _ticks()


def memory_bytes(process_id: int, *, peak: bool = False) -> int:
    """Resident memory of a process, now or at its highest."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in (PROC / str(process_id) / "status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process_id}/status has no {name}")


def descendants(process_id: int) -> set[int]:
    """A process and all that come from it."""
    parents: dict[int, int] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {process_id}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@dataclass(frozen=True, slots=True)
class LoadMeter:
    """Begins to look at the load when it is made.

    Processes that begin or end meanwhile are counted as others' load, so neither is done while something is measured.
    """

    busy_s: float
    steal_s: float
    total_s: float
    ours: dict[int, float]

    @classmethod
    def start(cls) -> "LoadMeter":
        return cls(*_whole_machine(), {process: cpu_seconds(process) for process in descendants(os.getpid())})

    def read(self) -> Load:
        """The load since."""
        busy_s, steal_s, total_s = _whole_machine()
        passed_s = max(total_s - self.total_s, 1e-9) / (os.cpu_count() or 1)
        used_s = sum(max(0.0, cpu_seconds(process) - before) for process, before in self.ours.items())
        others = max(0.0, busy_s - self.busy_s - used_s) / passed_s
        return Load(steal=(steal_s - self.steal_s) / passed_s, others=others)


def _whole_machine() -> tuple[float, float, float]:
    """Seconds of all cores together: busy, taken by the host, and all."""
    try:
        with (PROC / "stat").open() as stat:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0, 0.0, 0.0
    busy = user + nice + system  # what the loopback does in interrupts belongs to no process
    ticks = _ticks()
    return busy / ticks, steal / ticks, (busy + irq + softirq + idle + iowait + steal) / ticks


def described() -> dict[str, str]:
    """This machine and what is installed, in words."""
    return {
        "processor": next(_cpuinfo("model name"), platform.processor() or "unknown"),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: installed(package) for package in PACKAGES},
    }


def installed(package: str) -> str:
    """Its version, or that there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpuinfo(name: str) -> Iterator[str]:
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return
    yield from (line.partition(":")[2].strip() for line in lines if line.startswith(name))
