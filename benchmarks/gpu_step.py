"""The step alone on a CUDA device, against the device's own copy bandwidth and against torch's fused optimizers.

    python3 benchmarks/gpu_step.py                    prints a table, and writes build/gpu_step.json
    python3 benchmarks/gpu_step.py --rehearse         tiny sizes, to see that it runs; figures mean nothing

It needs torch, triton, numba and numpy, and this folder's project beside it; nothing has to be installed. Gradients are
on the device already: what is measured is a launch as the server makes it, numbers and energies included, from the
second one on. GB/s count the bytes that the step must move: 20 for each parameter with momentum (read g, X, w; write X,
w), 28 with Adam's second moment, in float32; a bfloat16 reply takes what a bfloat16 gradient saves.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("proto", "server", "client")]

from hermosis.wire import Dtype  # noqa: E402
from hermosis_server.dynamics import fused, fused_cuda, resolve  # noqa: E402
from hermosis_server.engine import resident as on_device  # noqa: E402
from hermosis_server.engine.arena import TORCH_DTYPES, Arena, address_of, staging_buffer  # noqa: E402
from hermosis_server.engine.device import DeviceSteps, Plan  # noqa: E402
from hermosis_server.engine.entries import Entry, Part, row_table, side_by_side  # noqa: E402
from hermosis_server.engine.resident import Resident  # noqa: E402
from hermosis_server.engine.step import Stepper  # noqa: E402
from hermosis_server.records import Reply, ReplyWish  # noqa: E402

BANDWIDTH_SHARE, LOOP_RATIO = 0.9, 50.0
RECIPES: dict[str, tuple[dict[str, Any], int]] = {  # settings, bytes a parameter
    "sgd": ({"momentum": 0.9, "lr": 1e-4}, 20),
    "adam": ({"lr": 1e-4}, 28),
}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      figure: in `unit`.
      goal:   the least figure that passes; None where it is only told.
      detail: what the figure is made of.
    """

    what: str
    unit: str
    figure: float
    goal: float | None
    detail: str

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.figure >= self.goal else f"missed by {1 - self.figure / self.goal:.0%}"


@dataclass(frozen=True)
class Lab:
    """Where it is measured, and how long."""

    device: torch.device
    repeats: int

    def milliseconds(self, act: Callable[[], object], *, each: int = 1) -> float:
        """Median time of one of `each` acts that are queued at once, after a warm-up."""
        for _ in range(min(3, self.repeats)):
            act()
        times = []
        for _ in range(self.repeats):
            with self._timer() as elapsed:
                for _ in range(each):
                    act()
            times.append(elapsed[0] / each)
        return statistics.median(times)

    @contextmanager
    def _timer(self) -> Iterator[list[float]]:
        elapsed = [0.0]
        if self.device.type != "cuda":
            began = time.perf_counter()
            yield elapsed
            elapsed[0] = (time.perf_counter() - began) * 1e3
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        begin.record()
        yield elapsed
        end.record()
        end.synchronize()
        elapsed[0] = begin.elapsed_time(end)


def copy_bandwidth(lab: Lab, size_bytes: int) -> float:
    """GB/s of a copy within the device, read and write counted."""
    source = torch.empty(size_bytes // 4, device=lab.device).normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / lab.milliseconds(lambda: target.copy_(source), each=5) / 1e6


class Sessions:
    """Sessions of one recipe in an arena, with gradients and replies on the device."""

    def __init__(self, lab: Lab, recipe: str, count: int, size: int, wire: Dtype, *, reply: bool) -> None:
        settings, _ = RECIPES[recipe]
        self.parameters = count * size
        room = count * (size + 4096) * 4 * 4 + (64 << 20)
        self.arena = Arena(lab.device, limit_bytes=room)
        hamiltonian = resolve(recipe, settings)
        members: list[Resident] = [
            on_device.reserve(self.arena, hamiltonian, shapes=[(size,)], holds_parameters=True) for _ in range(count)
        ]
        cohort, slots = members[0].cohort, [member.slot for member in members]
        lines = np.array([member.line for member in members])
        self.plan = Plan(lab.device, cohort, slots, [row_table(slot) for slot in slots])
        begins, end = side_by_side([size * wire.itemsize] * count)
        self.memory = [torch.empty(end, dtype=torch.uint8, device=lab.device) for _ in range(1 + reply)]
        gradients = self.memory[0].view(TORCH_DTYPES[wire])
        for part in torch.split(gradients, 1 << 26):
            part.normal_(std=1e-3)
        words = np.zeros(len(self.plan.words), np.int64)
        self.plan.fill(
            words,
            gradients=[self.memory[0].data_ptr() + begin for begin in begins],
            gradient_dtypes=[wire] * count,
            replies=[self.memory[1].data_ptr() + begin if reply else 0 for begin in begins],
            reply_kinds=[Reply.PARAMETERS] * count,
            reply_dtypes=[wire] * count,
            numbers=np.concatenate(
                [np.tile([1.0, 1.0], (count, 1)), cohort.coefficients[lines], cohort.scalars[lines]], axis=1
            ),
        )
        self.plan.words.copy_(torch.from_numpy(words))
        self.replay = lab.device.type == "cuda"

    def step(self) -> torch.Tensor:
        return self.plan.run(replay=self.replay)


def bandwidth_rows(lab: Lab, copy: float, shapes: list[tuple[int, int]]) -> Iterator[Row]:
    for count, size in shapes:
        for recipe, (_, bytes_each) in RECIPES.items():
            for wire, reply in ((Dtype.FLOAT32, False), (Dtype.BFLOAT16, True)):
                sessions = Sessions(lab, recipe, count, size, wire, reply=reply)
                took = lab.milliseconds(sessions.step)
                speed = sessions.parameters * bytes_each / took / 1e6
                yield Row(
                    f"{recipe}, {count:,} × {size:,}, {wire.name.lower()}{' and reply' if reply else ''}",
                    "of copy",
                    speed / copy,
                    BANDWIDTH_SHARE,
                    f"{took:.3f} ms, {speed:,.0f} GB/s, {sessions.parameters / took / 1e6:,.1f} G parameters/s",
                )
                del sessions
                _give_back(lab)


def loop_rows(lab: Lab, count: int, size: int) -> Iterator[Row]:
    """One launch for all sessions, against torch's fused optimizer of the same rule for one after another."""
    opponents: dict[str, Callable[[torch.Tensor], torch.optim.Optimizer]] = {
        "sgd": lambda w: torch.optim.SGD([w], lr=1e-4, momentum=0.9, fused=True),
        "adam": lambda w: torch.optim.Adam([w], lr=1e-4, fused=True),
    }
    for recipe, build in opponents.items():
        sessions = Sessions(lab, recipe, count, size, Dtype.FLOAT32, reply=False)
        ours = lab.milliseconds(sessions.step)
        del sessions
        _give_back(lab)
        weights = [torch.zeros(size, device=lab.device, requires_grad=True) for _ in range(count)]
        for weight in weights:
            weight.grad = torch.full_like(weight, 1e-3)
        loop = [build(weight) for weight in weights]

        def step_all(loop: list[torch.optim.Optimizer] = loop) -> None:
            for optimizer in loop:
                optimizer.step()

        theirs = Lab(lab.device, min(lab.repeats, 3)).milliseconds(step_all)
        yield Row(
            f"{recipe}, {count:,} × {size:,} against a loop of torch's fused optimizers",
            "×",
            theirs / ours,
            LOOP_RATIO,
            f"{ours:.3f} ms against {theirs:.1f} ms",
        )
        del weights, loop, step_all
        _give_back(lab)


def host_rows(lab: Lab, count: int, size: int) -> Iterator[Row]:
    """Whole launches, gradients from the host and parameters back to it: one after another, and two under way."""
    pinned = lab.device.type == "cuda"
    arena = Arena(lab.device, limit_bytes=count * (size + 4096) * 32 + (64 << 20))
    stepper = Stepper(arena, fused.Pool(1))
    stepper.device = stepper.device or DeviceSteps(arena)
    hamiltonian, wish = resolve("sgd", RECIPES["sgd"][0]), ReplyWish(reply=Reply.PARAMETERS)
    groups = []
    for _ in range(2):
        entries = []
        for _ in range(count):
            memory = staging_buffer(size * 4, pinned=pinned)
            torch.frombuffer(memory, dtype=torch.float32).fill_(1e-3)
            part = Part(memory, address_of(memory), Dtype.FLOAT32, 1e-3)
            resident = on_device.reserve(arena, hamiltonian, shapes=[(size,)], holds_parameters=True)
            entries.append(Entry(resident, (part,), 1.0, 1.0, wish))
        groups.append(entries)

    def one_after_another() -> None:
        for entries in groups:
            stepper.step(entries)

    flying: list[Callable[[], object]] = [stepper.begin(groups[0])]

    def two_under_way() -> None:
        for entries in reversed(groups):
            flying.append(stepper.begin(entries))
            flying.pop(0)()

    by_the_clock = Lab(torch.device("cpu"), lab.repeats)  # a launch has landed when the host has its numbers
    overlapped = by_the_clock.milliseconds(two_under_way) / 2
    flying.pop()()
    serial = by_the_clock.milliseconds(one_after_another) / 2
    moved = 2 * count * size * 4
    yield Row(
        f"sgd, {count:,} × {size:,}, host to host, two launches under way",
        "GB/s",
        moved / overlapped / 1e6,
        None,
        f"{overlapped:.3f} ms a launch, one after another {serial:.3f}",
    )


def small_rows(lab: Lab, shapes: list[tuple[int, int]]) -> Iterator[Row]:
    """What a launch costs that has next to nothing to do."""
    for count, size in shapes:
        sessions = Sessions(lab, "adam", count, size, Dtype.FLOAT32, reply=True)
        took = lab.milliseconds(sessions.step, each=1 if lab.repeats == 1 else 10)
        yield Row(f"adam, {count:,} × {size:,}", "µs a launch", took * 1e3, None, "")


def _give_back(lab: Lab) -> None:
    if lab.device.type == "cuda":
        torch.cuda.empty_cache()


def measured(lab: Lab, *, rehearse: bool) -> Iterator[Row]:
    copy = copy_bandwidth(lab, 1 << 16 if rehearse else 1 << 32)
    yield Row("copy within the device", "GB/s", copy, None, "read and write counted")
    yield from bandwidth_rows(lab, copy, [(1, 600), (2, 100)] if rehearse else [(1, 10**9), (10_000, 100_000)])
    yield from loop_rows(lab, *((2, 100) if rehearse else (10_000, 10_000)))
    yield from small_rows(lab, [(1, 50)] if rehearse else [(1, 256), (1000, 256)])
    yield from host_rows(lab, *((2, 300) if rehearse else (16, 10**6)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu_step.json", help="file of the record")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the processor where there is no device")
    options = parser.parse_args(arguments)
    if not fused_cuda.available():
        print("Triton is not installed here; nothing is measured. torch's CUDA builds bring it along.", file=sys.stderr)
        return 1
    if not torch.cuda.is_available() and not options.rehearse:
        print("There is no CUDA device here; nothing is measured.", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    print(f"{name}, torch {torch.__version__}" + (", a rehearsal: figures mean nothing" if options.rehearse else ""))
    rows = []
    for row in measured(Lab(device, 1 if options.rehearse else 11), rehearse=options.rehearse):
        rows.append(row)
        goal = "" if row.goal is None else f"goal {row.goal:g}"
        print(f"{row.what:68} {row.figure:10.2f} {row.unit:11} {goal:10} {row.verdict:14} {row.detail}", flush=True)
    record = {
        "device": name,
        "torch": torch.__version__,
        "rehearsal": options.rehearse,
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
