"""Step: entries of many sessions become one launch, and their results.

Two ways lead through a launch. Where dynamics has a fused pass for the family it works on the arena's rows themselves:
it proves beforehand that the step stays finite. All else, and the sessions for which that cannot be proven, go through
the plain flows on copies, and only what stayed finite is copied back. Which way a session goes depends on itself alone.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import MATRIX_BUFFERS, PhaseState, RowMap, Spans, advance_, fused, pieces
from hermosis_server.engine.arena import Arena, Slot, address_of, from_wire, unpadded, wire_bytes
from hermosis_server.engine.cohort import Cohort
from hermosis_server.engine.resident import Resident
from hermosis_server.records import Outcome, Reply, ReplyWish, StateBuffer

# Replies of a launch lie in one block of memory, each from such a boundary on.
ALIGNMENT = 64


class Part(NamedTuple):
    """One worker's whole gradient in host memory, in wire bytes.

    Attributes:
      memory:  the bytes.
      address: of the first.
      peak:    the largest magnitude among the elements; infinite or NaN where one is.
      weight:  in the mean of the round.
    """

    memory: memoryview
    address: int
    dtype: Dtype
    peak: float
    weight: float = 1.0


class Entry(NamedTuple):
    """One session's part in a launch.

    Attributes:
      resident: the session.
      parts:    gradients, in the order of worker ids.
      loss:     at the point that they belong to; NaN where it is not known.
      lr_scale: of this step.
      wish:     the reply that the launch itself makes; None where it makes none.
    """

    resident: Resident
    parts: Sequence[Part]
    loss: float
    lr_scale: float
    wish: ReplyWish | None


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
      pool:  threads of a fused pass.
    """

    def __init__(self, arena: Arena, pool: fused.Pool) -> None:
        self._arena = arena
        self._pool = pool

    def step(self, entries: Sequence[Entry]) -> Stepped:
        """Steps sessions of one cohort. One whose step is not finite keeps its state.

        The order of entries does not matter to any of them: each one's rows, norms and numbers are its own.
        """
        slots = [entry.resident.slot for entry in entries]
        cohort = entries[0].resident.cohort
        lines = np.array([entry.resident.line for entry in entries])
        before = cohort.scalars[lines, 0].astype(np.int64)
        results, first = list[_Result](), 0
        while first < len(entries):  # more than one turn only where the device cannot hold them all at a time
            count = self._arena.fitting(slots[first:])
            turn = slice(first, first + count)
            self._arena.fetch(slots[turn])
            results.append(self._launch(cohort, lines[turn], entries[turn]))
            first += count
        return Stepped(
            outcomes=[outcome for result in results for outcome in result.outcomes],
            before=before,
            after=cohort.scalars[lines, 0].astype(np.int64),
            samples=results[0].samples if len(results) == 1 else np.concatenate([each.samples for each in results]),
            replies=[reply for result in results for reply in result.replies],
        )

    def _launch(self, cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry]) -> _Result:
        if self._arena.device.type != "cpu" or not fused.covers(cohort.family):
            return _plain(self._arena, cohort, lines, entries)
        result, unproven = _fused(cohort, lines, entries, self._pool)
        if unproven:
            rest = _plain(self._arena, cohort, lines[unproven], [entries[index] for index in unproven])
            result.samples[unproven] = rest.samples
            for index, outcome, reply in zip(unproven, rest.outcomes, rest.replies, strict=True):
                result.outcomes[index], result.replies[index] = outcome, reply
        return result


def _fused(
    cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry], pool: fused.Pool
) -> tuple[_Result, list[int]]:
    """The pass over the rows themselves; also which entries it left untouched because it could prove nothing."""
    gradients = [entry.parts[0] if len(entry.parts) == 1 else _mean(entry.parts) for entry in entries]
    replies, addresses = _reply_memory(entries)
    tables = [_table(entry.resident.slot) for entry in entries]
    rows = np.concatenate([table.rows for table in tables])
    spans = [table.spans for table in tables]

    Whole, Number, Row = fused.Whole, fused.Number, fused.Row
    sessions = np.zeros((len(entries), len(Whole)), np.int64)
    sessions[:, Whole.ROWS] = counts = [len(table.rows) for table in tables]
    sessions[:, Whole.SPANS] = [len(each) for each in spans]
    np.cumsum(sessions[:-1, Whole.ROWS], out=sessions[1:, Whole.FIRST_ROW])
    np.cumsum(sessions[:-1, Whole.SPANS], out=sessions[1:, Whole.FIRST_SPAN])
    sessions[:, Whole.ELEMENTS] = [entry.resident.slot.elements(StateBuffer.MOMENTUM) for entry in entries]
    sessions[:, Whole.GRADIENT_DTYPE] = [gradient.dtype for gradient in gradients]
    sessions[:, Whole.REPLY] = [entry.wish.reply if entry.wish else 0 for entry in entries]
    sessions[:, Whole.REPLY_DTYPE] = [entry.wish.dtype if entry.wish else 0 for entry in entries]

    # The tables say where in its vector a row begins; here that becomes an address.
    begins = rows[:, Row.GRADIENT].copy()
    for column, bases, dtypes in (
        (Row.GRADIENT, [gradient.address for gradient in gradients], Whole.GRADIENT_DTYPE),
        (Row.REPLY, addresses, Whole.REPLY_DTYPE),
    ):
        sizes = _ITEM_SIZES[sessions[:, dtypes]]
        rows[:, column] = np.repeat(bases, counts) + begins * np.repeat(sizes, counts)

    numbers = np.empty((len(entries), len(Number)))
    numbers[:, Number.LOSS] = [entry.loss for entry in entries]
    numbers[:, Number.LR_SCALE] = [entry.lr_scale for entry in entries]
    numbers[:, Number.PEAK] = [gradient.peak for gradient in gradients]
    numbers[:, Number.LARGEST] = cohort.largest[lines]
    scalars = cohort.scalars[lines]
    stepped = fused.step(
        cohort.family,
        length=cohort.row_elements,
        rows=rows,
        sessions=sessions,
        spans=spans[0] if len(spans) == 1 else np.concatenate(spans),
        numbers=numbers,
        coefficients=cohort.coefficients[lines],
        scalars=scalars,
        pool=pool,
    )
    cohort.scalars[lines] = scalars
    cohort.largest[lines] = numbers[:, Number.LARGEST]
    found = stepped.outcome.tolist()
    made = [reply if each == fused.APPLIED else None for reply, each in zip(replies, found, strict=True)]
    unproven = [index for index, each in enumerate(found) if each == fused.UNPROVEN]
    return _Result([_OUTCOMES[each] for each in found], stepped.samples, made), unproven


_OUTCOMES = {
    fused.APPLIED: Outcome.APPLIED,
    fused.NON_FINITE_GRADIENT: Outcome.NON_FINITE_GRADIENT,
    fused.UNPROVEN: Outcome.NON_FINITE_STATE,  # until the flows have said
}
# By the number of the dtype; zero where a row is not asked for.
_ITEM_SIZES = np.array([0, *(dtype.itemsize for dtype in sorted(Dtype))])


def _mean(parts: Sequence[Part]) -> Part:
    """The mean of several gradients in float32, in the order of worker ids: the same bits whoever came first."""
    mean = torch.zeros(len(parts[0].memory) // parts[0].dtype.itemsize)
    for part in parts:
        mean.add_(from_wire(part.memory, part.dtype).to(mean.dtype), alpha=part.weight)
    peak = float(mean.abs().amax()) if mean.numel() else 0.0
    return Part(mean.numpy().data.cast("B"), mean.data_ptr(), Dtype.FLOAT32, peak)


def _reply_memory(entries: Sequence[Entry]) -> tuple[list[memoryview | None], list[int]]:
    """Memory for the replies of a launch, and where each begins; None and zero where none is wanted.

    It is one block, but for parameters that have a place in memory shared with their worker. Increments, which are kept
    for repeats, never lie there.
    """
    places = [entry.wish.place if entry.wish and entry.wish.reply is Reply.PARAMETERS else None for entry in entries]
    sizes = [
        entry.resident.slot.elements(StateBuffer.MOMENTUM) * entry.wish.dtype.itemsize
        if entry.wish and place is None
        else 0
        for entry, place in zip(entries, places, strict=True)
    ]
    begins, end = list[int](), 0
    for size in sizes:
        begins.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    memory = np.empty(end, np.uint8).data
    base = address_of(memory) if end else 0
    replies = [memory[begin : begin + size] if size else None for begin, size in zip(begins, sizes, strict=True)]
    addresses = [base + begin if size else 0 for begin, size in zip(begins, sizes, strict=True)]
    for index, place in enumerate(places):
        if place is not None:
            replies[index], addresses[index] = place, address_of(place)
    return replies, addresses


class _Table(NamedTuple):
    """A session's rows as the fused pass takes them.

    Attributes:
      rows:  (R, len(Row)) addresses; in place of the gradient's stands the first element of the row in its vector.
      spans: (G,) rows of each span.
    """

    rows: NDArray[np.int64]
    spans: NDArray[np.int64]


def _table(slot: Slot) -> _Table:
    """Made once, until the rows are moved."""
    if slot.table is None:
        slot.table = _new_table(slot)
    table: _Table = slot.table
    return table


def _new_table(slot: Slot) -> _Table:
    length = slot.row_elements
    elements = np.array(slot.spans[StateBuffer.MOMENTUM], np.int64)
    counts = np.maximum(1, -(-elements // length))
    rows = np.zeros((int(counts.sum()), len(fused.Row)), np.int64)
    for buffer, column in _COLUMNS.items():
        rows[:, column] = slot.addresses(buffer)
    in_span = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows[:, fused.Row.GRADIENT] = np.repeat(np.cumsum(elements) - elements, counts) + in_span * length
    rows[:, fused.Row.LENGTH] = np.minimum(length, np.repeat(elements, counts) - in_span * length)
    return _Table(rows, counts)


_COLUMNS = {
    StateBuffer.PARAMETERS: fused.Row.POSITION,
    StateBuffer.MOMENTUM: fused.Row.MOMENTUM,
    StateBuffer.SECOND_MOMENT: fused.Row.SECOND_MOMENT,
    StateBuffer.FIRST_MOMENT: fused.Row.FIRST_MOMENT,
    StateBuffer.LEAD: fused.Row.LEAD,
}


def _plain(arena: Arena, cohort: Cohort, lines: NDArray[np.int64], entries: Sequence[Entry]) -> _Result:
    """The flows themselves, on copies of the rows."""
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
        if fused.covers(cohort.family):
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
    """As `_mean`, into zeroed rows on the device."""
    places = pieces(rows, spans)
    for part in parts:
        vector = from_wire(part.memory, part.dtype).to(rows.device, rows.dtype, non_blocking=True)
        for place, piece in zip(places, torch.split(vector, list(spans)), strict=True):
            place.add_(piece, alpha=part.weight)


def _outcome(gradient_finite: bool, state_finite: bool) -> Outcome:
    if not gradient_finite:
        return Outcome.NON_FINITE_GRADIENT
    return Outcome.APPLIED if state_finite else Outcome.NON_FINITE_STATE
