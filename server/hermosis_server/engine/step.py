"""Step: entries of many sessions become one launch, and their results.

Two ways lead through a launch. Where dynamics has a fused pass for the device and the family it works on the arena's
rows themselves: it is proven beforehand that the step stays finite. All else, and the sessions for which that cannot be
proven, go through the plain flows on copies, and only what stayed finite is copied back. Which way a session goes
depends on itself alone.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import MATRIX_BUFFERS, PhaseState, RowMap, Spans, advance_, fused, fused_cuda, pieces
from hermosis_server.engine.arena import Arena, Slot, address_of, from_wire, unpadded, wire_bytes
from hermosis_server.engine.cohort import Cohort
from hermosis_server.engine.device import DeviceSteps, Flight
from hermosis_server.engine.entries import ALIGNMENT, Entry, LaunchTables, Part, mean_of, row_table
from hermosis_server.engine.resident import Resident
from hermosis_server.engine.skipped import Skipped
from hermosis_server.engine.solo import Solo
from hermosis_server.records import Outcome, Reply, StateBuffer


@dataclass(slots=True)
class Stepped:
    """What a launch did to its sessions, in the order of its entries.

    Attributes:
      outcomes: of each.
      before:   (S,) steps of each, before.
      after:    (S,) likewise, after.
      samples:  (S, len(EnergySample._fields)) energies; meaningless where nothing was applied.
      replies:  the bytes that `Entry.wish` asks for; None where nothing was applied, or the rows have them.
    """

    outcomes: list[Outcome]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    samples: NDArray[np.float64]
    replies: list[memoryview | None]


class _Result(NamedTuple):
    outcomes: list[Outcome]
    samples: NDArray[np.float64]
    replies: list[memoryview | None]


class Stepper:
    """Steps sessions in the arena's rows.

    Args:
      arena: where the sessions are.
      pool:  threads of a fused pass on the processor.

    Attributes:
      device: how the fused pass of a CUDA device is launched; None where there is none.
    """

    def __init__(self, arena: Arena, pool: fused.Pool) -> None:
        self._arena = arena
        self._pool = pool
        self._tables = LaunchTables()
        usable = arena.device.type == "cuda" and fused_cuda.available()
        self.device = DeviceSteps(arena) if usable else None

    def step(self, entries: Sequence[Entry]) -> Stepped:
        """Steps sessions of one cohort. One whose step is not finite keeps its state.

        The order of entries does not matter to any of them: each one's rows, norms and numbers are its own.
        """
        return self.begin(entries)()

    def begin(self, entries: Sequence[Entry]) -> Callable[[], Stepped]:
        """Begins what `step` does; calling what it gives waits for the end, and must be done once.

        A device works in between. Other sessions may begin meanwhile; these, their gradients and the tables of cohorts
        must be left alone.
        """
        if not any(entry.skipped for entry in entries):
            return self._begin(entries)
        with contextlib.ExitStack() as aside:
            for entry in entries:
                if entry.skipped:
                    aside.callback(Skipped(entry.resident, entry.skipped).restore)
            finish, restore = self._begin(entries), aside.pop_all()

        def end() -> Stepped:
            with restore:
                return finish()

        return end

    def _begin(self, entries: Sequence[Entry]) -> Callable[[], Stepped]:
        if len(entries) == 1 and self._steps_alone(entries[0].resident):
            stepped = self._alone(entries[0])
            return lambda: stepped
        slots = [entry.resident.slot for entry in entries]
        cohort = entries[0].resident.cohort
        lines = np.array([entry.resident.line for entry in entries])
        before = cohort.scalars[lines, 0].astype(np.int64)
        turns, first = list[Callable[[], _Result]](), 0
        try:
            while first < len(entries):  # more than one turn only where the device cannot hold them all at a time
                count = self._arena.fitting(slots[first:])
                turn = slice(first, first + count)
                self._arena.fetch(slots[turn])
                turns.append(self._launch(cohort, lines[turn], entries[turn]))
                first += count
        except BaseException:
            for under_way in turns:
                under_way()
            raise

        def end() -> Stepped:
            results = [turn() for turn in turns]
            return Stepped(
                outcomes=[outcome for result in results for outcome in result.outcomes],
                before=before,
                after=cohort.scalars[lines, 0].astype(np.int64),
                samples=results[0].samples if len(results) == 1 else np.concatenate([each.samples for each in results]),
                replies=[reply for result in results for reply in result.replies],
            )

        return end

    def takes_microseconds(self, resident: Resident) -> bool:
        """Whether a step of a session by itself is as short as it was the last time; False before the first one."""
        return resident.solo is not None and resident.solo.knows(resident) and resident.solo.proven

    def _steps_alone(self, resident: Resident) -> bool:
        """Whether a session by itself takes the short way of solo.py."""
        if resident.solo is not None and resident.solo.knows(resident):
            return True
        if self._arena.device.type != "cpu" or not fused.covers(resident.family):
            return False
        return 0 < resident.slot.elements(StateBuffer.MOMENTUM) < fused.SHARED_ELEMENTS

    def _alone(self, entry: Entry) -> Stepped:
        resident = entry.resident
        self._arena.fetch((resident.slot,))
        if resident.solo is None or not resident.solo.knows(resident):
            resident.solo = Solo(resident)
        played = resident.solo.step(entry.parts[0] if len(entry.parts) == 1 else mean_of(entry.parts), entry)
        result = _Result([_OUTCOMES[played.fate]], played.samples, [played.reply])
        if played.fate == fused.Fate.UNPROVEN:
            result = self._complete(resident.cohort, np.array([resident.line]), [entry], result, [0])
        return Stepped(result.outcomes, np.array([played.before]), np.array([resident.step]), *result[1:])

    def _launch(self, cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry]) -> Callable[[], _Result]:
        """Launches, and gives how to wait for the result."""
        if self.device is not None and fused_cuda.covers(cohort.family):
            flight = self.device.begin(cohort, lines, entries)
            return lambda: self._complete(cohort, lines, entries, *_landed(flight))
        if self._arena.device.type == "cpu" and fused.covers(cohort.family):
            result = self._complete(cohort, lines, entries, *_fused(cohort, lines, entries, self._tables, self._pool))
        else:
            result = _plain(self._arena, cohort, lines, entries, bounded=False)
        return lambda: result

    def _complete(
        self,
        cohort: Cohort,
        lines: NDArray[np.int64],
        entries: Sequence[Entry],
        result: _Result,
        unproven: Sequence[int],
    ) -> _Result:
        """Sends those through the flows of whom the fused pass could prove nothing."""
        if unproven:
            rest = [entries[index] for index in unproven]
            tried = _plain(self._arena, cohort, lines[unproven], rest, bounded=True)
            result.samples[unproven] = tried.samples
            for index, outcome, reply in zip(unproven, tried.outcomes, tried.replies, strict=True):
                result.outcomes[index], result.replies[index] = outcome, reply
        return result


def _landed(flight: Flight) -> tuple[_Result, list[int]]:
    """As `_fused`."""
    landed = flight.land()
    outcomes = [Outcome.APPLIED if applied else Outcome.NON_FINITE_STATE for applied in flight.proven.tolist()]
    return _Result(outcomes, landed.samples, landed.replies), np.flatnonzero(~flight.proven).tolist()


Whole, Number, Row = fused.Whole, fused.Number, fused.Row


def _fused(
    cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry], tables: LaunchTables, pool: fused.Pool
) -> tuple[_Result, list[int]]:
    """The pass over the rows themselves; also which entries it left untouched because it could prove nothing."""
    gradients = [entry.parts[0] if len(entry.parts) == 1 else mean_of(entry.parts, pool) for entry in entries]
    wishes = [entry.wish for entry in entries]
    rows, sessions, spans, elements = tables.joined(tuple([row_table(entry.resident.slot) for entry in entries]))
    counts, first = sessions[:, Whole.ROWS], wishes[0]
    dtypes = [gradient.dtype for gradient in gradients]
    # As in a fleet, where everybody sends and wants the same, that is said once.
    sessions[:, Whole.GRADIENT_DTYPE] = int(dtypes[0]) if dtypes.count(dtypes[0]) == len(dtypes) else dtypes
    places: dict[int, memoryview] = {}
    if first is not None and first.place is None and wishes.count(first) == len(wishes):
        sessions[:, Whole.REPLY], sessions[:, Whole.REPLY_DTYPE] = int(first.reply), int(first.dtype)
    else:
        sessions[:, Whole.REPLY] = [wish.reply if wish else 0 for wish in wishes]
        sessions[:, Whole.REPLY_DTYPE] = [wish.dtype if wish else 0 for wish in wishes]
        # Increments, which are kept for repeats, never lie in memory that a worker shares.
        for index, wish in enumerate(wishes):
            if wish is not None and wish.place is not None and wish.reply is Reply.PARAMETERS:
                places[index] = wish.place
    replies, addresses = _reply_memory(elements * _ITEM_SIZES[sessions[:, Whole.REPLY_DTYPE]], places)

    # The tables say where in its vector a row begins; here that becomes an address.
    begins = rows[:, Row.GRADIENT].copy()
    for column, bases, dtype in (
        (Row.GRADIENT, np.array([gradient.address for gradient in gradients]), Whole.GRADIENT_DTYPE),
        (Row.REPLY, addresses, Whole.REPLY_DTYPE),
    ):
        sizes = _ITEM_SIZES[sessions[:, dtype]]
        rows[:, column] = np.repeat(bases, counts) + begins * np.repeat(sizes, counts)

    numbers = np.empty((len(entries), len(Number)))
    numbers[:, Number.LOSS] = [entry.loss for entry in entries]
    numbers[:, Number.LR_SCALE] = [entry.lr_scale for entry in entries]
    numbers[:, Number.PEAK] = [gradient.peak for gradient in gradients]
    numbers[:, Number.LARGEST] = cohort.largest[lines]
    scalars = cohort.scalars[lines]
    stepped = fused.step(
        cohort.family,
        rows=rows,
        sessions=sessions,
        spans=spans,
        numbers=numbers,
        coefficients=cohort.coefficients[lines],
        scalars=scalars,
        pool=pool,
    )
    cohort.scalars[lines] = scalars
    cohort.largest[lines] = numbers[:, Number.LARGEST]
    if not stepped.outcome.any():  # the rule: all APPLIED
        return _Result([Outcome.APPLIED] * len(entries), stepped.samples, replies), []
    found = stepped.outcome.tolist()
    made = [reply if each == fused.Fate.APPLIED else None for reply, each in zip(replies, found, strict=True)]
    unproven = [index for index, each in enumerate(found) if each == fused.Fate.UNPROVEN]
    return _Result([_OUTCOMES[each] for each in found], stepped.samples, made), unproven


_OUTCOMES = {
    fused.Fate.APPLIED: Outcome.APPLIED,
    fused.Fate.NON_FINITE_GRADIENT: Outcome.NON_FINITE_GRADIENT,
    fused.Fate.UNPROVEN: Outcome.NON_FINITE_STATE,  # until the flows have said
}
# By the number of the dtype; zero where a row is not asked for.
_ITEM_SIZES = np.array([0, *(dtype.itemsize for dtype in sorted(Dtype))])


def _reply_memory(
    sizes: NDArray[np.int64], places: Mapping[int, memoryview]
) -> tuple[list[memoryview | None], NDArray[np.int64]]:
    """Memory for the replies of a launch, and where each begins; None and zero where none is wanted.

    It is one block, but for those that have a place in memory shared with their worker.
    """
    sizes[list(places)] = 0
    spaced = -(-sizes // ALIGNMENT) * ALIGNMENT
    begins = np.cumsum(spaced) - spaced
    memory = np.empty(int(spaced.sum()), np.uint8).data
    addresses = np.where(sizes > 0, address_of(memory) + begins, 0)
    ends = (begins + sizes).tolist()
    replies = [memory[begin:end] if end > begin else None for begin, end in zip(begins.tolist(), ends, strict=True)]
    for index, place in places.items():
        replies[index], addresses[index] = place, address_of(place)
    return replies, addresses


def _plain(
    arena: Arena, cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry], *, bounded: bool
) -> _Result:
    """The flows themselves, on copies of the rows; `bounded` where a fused pass will ask how large the state is."""
    slots, device = [entry.resident.slot for entry in entries], arena.device
    rows = _row_map(tuple(slot.spans[StateBuffer.MOMENTUM] for slot in slots), cohort.row_elements, device)
    gathered = {buffer: arena.gather(slots, buffer) for buffer in slots[0].spans}
    state = PhaseState.from_buffers(
        {buffer: _by_session(slots, buffer, values) for buffer, values in gathered.items()},
        torch.from_numpy(cohort.scalars[lines]).to(device),
    )
    gradient = torch.zeros_like(state.momentum)
    for slot, entry, place in zip(slots, entries, torch.split(gradient, rows.row_counts), strict=True):
        _reduce(entry.parts, place, slot.spans[StateBuffer.MOMENTUM])
    advance = advance_(
        state,
        gradient,
        _numbers([entry.loss for entry in entries], device),
        family=cohort.family,
        coefficients=torch.from_numpy(cohort.coefficients[lines]).to(device),
        lr_scale=_numbers([entry.lr_scale for entry in entries], device),
        rows=rows,
    )
    finite = torch.stack((advance.gradient_finite, advance.state_finite), dim=1).cpu()
    scalars = state.scalars.cpu().numpy()
    outcomes = [_outcome(*pair) for pair in finite.tolist()]

    kept = [index for index, outcome in enumerate(outcomes) if outcome is Outcome.APPLIED]
    for buffer, values in gathered.items() if kept else ():
        new = torch.split(values, [slot.rows(buffer) for slot in slots])
        arena.scatter([slots[index] for index in kept], buffer, [new[index] for index in kept])
    cohort.scalars[lines[kept]] = scalars[kept]
    increments = torch.split(advance.increment, rows.row_counts)
    replies: list[memoryview | None] = [None] * len(entries)
    for index in kept:
        slot, wish = slots[index], entries[index].wish
        if bounded:
            cohort.largest[lines[index]] = slot.largest()
        if wish is not None and wish.reply is Reply.INCREMENT:
            replies[index] = wire_bytes(unpadded(increments[index], slot.spans[StateBuffer.MOMENTUM]), wish.dtype)
    return _Result(outcomes, advance.sample.cpu().numpy(), replies)


@functools.lru_cache(maxsize=256)
def _row_map(spans: tuple[Spans, ...], row_elements: int, device: torch.device) -> RowMap:
    """The same sessions meet in batch after batch; their map is made once."""
    return RowMap(spans, row_elements, device)


def _by_session(slots: list[Slot], buffer: StateBuffer, rows: Tensor) -> Tensor:
    """Gathered rows as dynamics sees them: the buffers of a matrix metric are a line a session, without padding."""
    if buffer not in MATRIX_BUFFERS:
        return rows
    return rows.view(len(slots), -1)[:, : slots[0].elements(buffer)]


def _numbers(values: Sequence[object], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def _reduce(parts: Sequence[Part], rows: Tensor, spans: Spans) -> None:
    """As `mean_of`, into zeroed rows on the device."""
    places = pieces(rows, spans)
    for part in parts:
        vector = from_wire(part.memory, part.dtype).to(rows.device, rows.dtype, non_blocking=True)
        for place, piece in zip(places, torch.split(vector, list(spans)), strict=True):
            place.add_(piece, alpha=part.weight)


def _outcome(gradient_finite: bool, state_finite: bool) -> Outcome:
    if not gradient_finite:
        return Outcome.NON_FINITE_GRADIENT
    return Outcome.APPLIED if state_finite else Outcome.NON_FINITE_STATE
