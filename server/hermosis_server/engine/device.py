"""Device: launches of the fused step on a CUDA device, which nobody waits for until their results are wanted.

Gradients come in on one stream, rows step on the device's own, replies and numbers go out on a third. So the gradients
of a launch travel while the one before it steps, and its replies while the next one does. The host waits in one place:
for the numbers of a finished launch, which the next proof needs.

A launch is queued as some two hundred little kernels around one or two large ones. The same sessions meet again and
again; from their second meeting on, all that is replayed as one graph.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import SCALARS, Family, RowMap, fused_cuda
from hermosis_server.engine.arena import ELEMENT_BYTES, Arena, Slot, from_wire
from hermosis_server.engine.cohort import Cohort
from hermosis_server.engine.entries import Entry, Part, RowTable, peak_of, row_table, side_by_side
from hermosis_server.records import EnergySample, Reply, StateBuffer

logger = logging.getLogger(__name__)

# A gradient below this is copied with its neighbours: a copy of its own would take longer to ask for than to make.
DIRECT_BYTES = 256 << 10
# Meetings of sessions that are remembered.
PLANS = 32
SAMPLES = len(EnergySample._fields)
WIRES = 5  # columns of fused_cuda.step's `wires`


class Landed(NamedTuple):
    """What a launch gives for the sessions that were in it, in the order of its entries.

    Attributes:
      samples: (S, len(EnergySample._fields)) energies; NaN for the others.
      replies: what was asked for; None for the others.
    """

    samples: NDArray[np.float64]
    replies: list[memoryview | None]


class Flight(NamedTuple):
    """A launch on its way. No session of it may be touched by the host before it has landed.

    Attributes:
      proven: (S,) bool; the others stay on the ground as they are.
      land:   waits for the launch and tells what became of it; to be called once.
    """

    proven: NDArray[np.bool_]
    land: Callable[[], Landed]


class DeviceSteps:
    """Steps the sessions of an arena where they are.

    Args:
      arena: on a CUDA device; any other does as well where Triton interprets its kernels.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._copies = Copies(arena.device)
        self._plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._compiled: set[tuple[Family, int, bool]] = set()

    def begin(self, cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry]) -> Flight:
        """Queues a launch of the sessions that surely stay finite.

        Args:
          cohort:  of all sessions; fused_cuda.covers its family.
          lines:   of each session in the cohort.
          entries: whose sessions are in device memory.
        """
        numbers = torch.from_numpy(np.array([(entry.loss, entry.lr_scale) for entry in entries], np.float64))
        coefficients, scalars = cohort.coefficients[lines], cohort.scalars[lines]
        proven = fused_cuda.stays_finite(
            cohort.family,
            coefficients=torch.from_numpy(coefficients),
            scalars=torch.from_numpy(scalars),
            lr_scale=numbers[:, 1],
            peak=torch.tensor([peak_of(entry.parts) for entry in entries], dtype=torch.float64),
            largest=torch.from_numpy(cohort.largest[lines]),
        ).numpy()
        going = np.flatnonzero(proven).tolist()
        samples, replies = np.full((len(entries), SAMPLES), np.nan), list[memoryview | None]([None] * len(entries))
        if not going:
            return Flight(proven, lambda: Landed(samples, replies))
        with self._copies.here():
            land = self._launch(
                cohort, lines[going], [entries[index] for index in going],
                np.concatenate([numbers.numpy(), coefficients, scalars], axis=1)[going],
            )  # fmt: skip

        def landed() -> Landed:
            samples[going], made = land()
            for index, reply in zip(going, made, strict=True):
                replies[index] = reply
            return Landed(samples, replies)

        return Flight(proven, landed)

    def _launch(
        self, cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry], numbers: NDArray[np.float64]
    ) -> Callable[[], tuple[NDArray[np.float64], list[memoryview | None]]]:
        copies, count = self._copies, len(entries)
        binary = (cohort.family, cohort.row_elements, cohort.holds_parameters)
        if binary not in self._compiled:
            logger.info("event=first_launch row_elements=%d note=may_compile_for_seconds", cohort.row_elements)
            self._compiled.add(binary)
        plan = self._plan(cohort, [entry.resident.slot for entry in entries])
        # All memory is taken before anything is queued.
        sizes = [entry.reply_bytes for entry in entries]
        begins, end = side_by_side(sizes)
        answers = torch.empty(end, dtype=torch.uint8, device=self._arena.device)
        answers_host = copies.host(end)
        words_host = copies.host(plan.words.nbytes).view(torch.int64)
        found_host = copies.host(count * (SAMPLES + len(SCALARS) + 1) * 8).view(torch.float64).view(count, -1)
        with copies.inward():
            gradients = copies.gradients(entries)
            wishes = [entry.wish for entry in entries]
            base = answers.data_ptr()
            plan.fill(
                words_host.numpy(),
                gradients=gradients.addresses,
                gradient_dtypes=gradients.dtypes,
                replies=[base + begin if wish else 0 for begin, wish in zip(begins, wishes, strict=True)],
                reply_kinds=[wish.reply if wish else Reply.NONE for wish in wishes],
                reply_dtypes=[wish.dtype if wish else 0 for wish in wishes],
                numbers=numbers,
            )
            plan.words.copy_(words_host, non_blocking=True)
        found = plan.run(replay=copies.on_cuda)
        with copies.outward() as wait:
            found_host.copy_(found, non_blocking=True)
            answers_host.copy_(answers, non_blocking=True)
        kept = [plan, gradients, answers, found, words_host]  # until the device has done with them

        def land() -> tuple[NDArray[np.float64], list[memoryview | None]]:
            wait()
            kept.clear()
            table, memory = found_host.numpy(), answers_host.numpy().data
            cohort.scalars[lines] = table[:, SAMPLES:-1]
            cohort.largest[lines] = table[:, -1]
            replies = [memory[at : at + size] if size else None for at, size in zip(begins, sizes, strict=True)]
            return table[:, :SAMPLES], replies

        return land

    def _plan(self, cohort: Cohort, slots: Sequence[Slot]) -> "Plan":
        """The plan of sessions that have met before, as long as their rows are where they were."""
        tables = [row_table(slot) for slot in slots]
        key = (id(cohort), *map(id, tables))  # the plan keeps all these, so nothing else can come to have their names
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = Plan(self._arena.device, cohort, slots, tables)
        self._plans[key] = plan
        if len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        return plan


class Plan:
    """Sessions that step together: what of a launch stays the same from one time to the next.

    Attributes:
      cohort: of the sessions.
      tables: their addresses; a session that was moved has another.
      words:  on the device: (S, 5) int64 `wires`, then (S, n) float64 loss, lr_scale, coefficients and scalars.
    """

    def __init__(self, device: torch.device, cohort: Cohort, slots: Sequence[Slot], tables: Sequence[RowTable]) -> None:
        self.cohort, self.tables = cohort, tables
        spans = [slot.spans[StateBuffer.MOMENTUM] for slot in slots]
        addresses = torch.from_numpy(np.concatenate([table.rows for table in tables])).to(device)
        rows = RowMap(spans, cohort.row_elements, device, fused_cuda.Groups)
        self._rows = fused_cuda.Rows(rows, cohort.row_elements, addresses)
        self._count, self._numbers = len(slots), cohort.coefficients.shape[1]
        columns = WIRES + 2 + self._numbers + len(SCALARS)
        self.words = torch.zeros(self._count * columns, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found = torch.empty(0)
        self._runs = 0

    def fill(
        self,
        words: NDArray[np.int64],
        *,
        gradients: Sequence[int],
        gradient_dtypes: Sequence[int],
        replies: Sequence[int],
        reply_kinds: Sequence[int],
        reply_dtypes: Sequence[int],
        numbers: NDArray[np.float64],
    ) -> None:
        """Writes what a launch is told into host memory, for `words`: columns of `wires`, and (S, n) numbers."""
        wires = words[: self._count * WIRES].reshape(self._count, WIRES)
        for column, values in enumerate((gradients, gradient_dtypes, replies, reply_kinds, reply_dtypes)):
            wires[:, column] = values
        words[self._count * WIRES :].view(np.float64)[:] = numbers.reshape(-1)

    def run(self, *, replay: bool) -> Tensor:
        """Queues a step with the words as they are; gives what it finds, (S, n) samples, scalars and largest magnitude.

        Args:
          replay: from the second time on as one graph, whose findings the next time overwrites.
        """
        self._runs += 1
        if self._runs == 2 and replay:  # the first time also compiles what a graph can only hold
            self._capture()
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._found

    def _capture(self) -> None:
        """Makes the graph of a step, without taking it. A device that cannot goes on launch by launch."""
        try:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # Threads of other devices, and those that take pinned memory, go on meanwhile.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._found = self._step()
                finally:
                    graph.capture_end()
        except RuntimeError:
            logger.warning("event=step_not_captured sessions=%d", self._count, exc_info=True)
        else:
            self._graph = graph

    def _step(self) -> Tensor:
        wires = self.words[: self._count * WIRES].view(self._count, WIRES)
        numbers = self.words[self._count * WIRES :].view(torch.float64).view(self._count, -1)
        scalars = numbers[:, 2 + self._numbers :]
        stepped = fused_cuda.step(
            self.cohort.family,
            rows=self._rows,
            holds_parameters=self.cohort.holds_parameters,
            wires=wires,
            loss=numbers[:, 0],
            lr_scale=numbers[:, 1],
            coefficients=numbers[:, 2 : 2 + self._numbers],
            scalars=scalars,
        )
        return torch.cat([stepped.sample, scalars, stepped.largest[:, None]], dim=1)


class Copies:
    """The ways to the device and back, beside the stream that steps. Without CUDA everything happens in order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.on_cuda = device.type == "cuda"
        if self.on_cuda:
            self._inward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._outward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def here(self) -> contextlib.AbstractContextManager[object]:
        """Makes the device the current one of this thread."""
        return torch.cuda.device(self._device) if self.on_cuda else contextlib.nullcontext()

    def host(self, size_bytes: int) -> Tensor:
        """Host memory that the device copies by itself, as bytes; it is kept by whoever has it, copies included."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self.on_cuda)

    @contextlib.contextmanager
    def inward(self) -> Iterator[None]:
        """Copies to the device; what is queued afterwards waits for them, what was queued before does not matter."""
        if not self.on_cuda:
            yield
            return
        with torch.cuda.stream(self._inward):
            yield
        torch.cuda.current_stream().wait_stream(self._inward)

    @contextlib.contextmanager
    def outward(self) -> Iterator[Callable[[], None]]:
        """Copies from the device, once all that is queued is done; gives how to wait for them."""
        if not self.on_cuda:
            yield lambda: None
            return
        # The wire needs the core more than a spinning thread does.
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._outward.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._outward):
            yield arrived.synchronize
            arrived.record()

    def gradients(self, entries: Sequence[Entry]) -> "Gradients":
        """Queues the copies of all gradients into one block; several of a session become their mean there."""
        parts = [entry.parts for entry in entries]
        sizes = [len(each[0].memory) if len(each) == 1 else _elements(each[0]) * ELEMENT_BYTES for each in parts]
        small = [len(each) == 1 and size < DIRECT_BYTES for each, size in zip(parts, sizes, strict=True)]
        order = sorted(range(len(entries)), key=lambda index: not small[index])
        places, end = side_by_side([sizes[index] for index in order])
        begins = dict(zip(order, places, strict=True))
        edge = next((begins[index] for index in order if not small[index]), end)
        block, gathered = torch.empty(end, dtype=torch.uint8, device=self._device), self.host(edge)
        memory = gathered.numpy().data
        for index in order:
            begin, size, each = begins[index], sizes[index], parts[index]
            if small[index]:
                memory[begin : begin + size] = each[0].memory
                continue
            place = block[begin : begin + size]
            if len(each) == 1:
                place.copy_(torch.frombuffer(each[0].memory, dtype=torch.uint8), non_blocking=True)
            else:
                mean = place.view(torch.float32).zero_()
                for part in each:
                    vector = from_wire(part.memory, part.dtype).to(self._device, non_blocking=True)
                    mean.add_(vector, alpha=part.weight)
        block[:edge].copy_(gathered, non_blocking=True)
        dtypes = [each[0].dtype if len(each) == 1 else Dtype.FLOAT32 for each in parts]
        addresses = [block.data_ptr() + begins[index] for index in range(len(entries))]
        return Gradients(block, addresses, dtypes, gathered)


class Gradients(NamedTuple):
    """Gradients on the device.

    Attributes:
      block:     the memory they are in.
      addresses: of each.
      dtypes:    of each.
      gathered:  host memory that some may still be copied from.
    """

    block: Tensor
    addresses: list[int]
    dtypes: list[Dtype]
    gathered: Tensor


def _elements(part: Part) -> int:
    return len(part.memory) // part.dtype.itemsize
