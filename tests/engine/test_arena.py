"""The arena: sessions share slabs of rows, and nothing is lost or leaked between them."""

import random

import pytest
import torch

from hermosis.wire import Dtype
from hermosis_server.engine.arena import (
    ROW_LENGTHS,
    SLAB_BYTES,
    Arena,
    Slot,
    from_wire,
    row_length,
    unpadded,
    wire_bytes,
)
from hermosis_server.errors import InternalError, OutOfDeviceMemory
from hermosis_server.records import StateBuffer

W, X = StateBuffer.PARAMETERS, StateBuffer.MOMENTUM
LONG, ROW = ROW_LENGTHS  # what most of these sessions are laid into is the short one


def new_arena(device: torch.device, limit_bytes: int = 1 << 26, host_limit_bytes: int = 0) -> Arena:
    return Arena(device, limit_bytes=limit_bytes, host_limit_bytes=host_limit_bytes)


def reserve(arena: Arena, elements: int, *buffers: StateBuffer) -> Slot:
    return arena.reserve(dict.fromkeys(buffers, (elements,)))


def test_what_is_written_is_read_back_and_neighbours_are_untouched(device: torch.device) -> None:
    arena = new_arena(device)
    first, second = reserve(arena, 100, W, X), reserve(arena, 3, W, X)
    arena.write(first, W, torch.arange(100.0))
    arena.write(second, W, torch.tensor([7.0, 8.0, 9.0]))
    assert first.read(W).tolist() == list(range(100))
    assert second.read(W).tolist() == [7.0, 8.0, 9.0]
    assert not first.view(X).any()
    assert not first.view(W).reshape(-1)[100:].any(), "the padding stays zero"


def test_each_span_begins_on_a_row_and_reads_back_in_one_piece(device: torch.device) -> None:
    arena = new_arena(device)
    spans = (ROW + 6, 1, ROW)
    slot = arena.reserve({X: spans})
    values = torch.arange(1.0, 2 * ROW + 8)
    arena.write(slot, X, values)
    rows = slot.view(X)
    assert [float(row[0]) for row in rows] == [1.0, ROW + 1.0, ROW + 7.0, ROW + 8.0]
    assert (slot.elements(X), slot.size_bytes) == (2 * ROW + 7, 4 * ROW * 4)
    assert torch.equal(slot.read(X).cpu(), values)
    assert torch.equal(unpadded(arena.gather([slot], X), spans).cpu(), values)
    assert int(rows.count_nonzero()) == 2 * ROW + 7, "the padding stays zero"


def test_gather_and_scatter_are_each_other_s_inverse(device: torch.device) -> None:
    arena = new_arena(device)
    slots = [reserve(arena, size, X) for size in (1, ROW, ROW + 1, 3 * ROW)]
    for number, slot in enumerate(slots):
        slot.view(X).fill_(number + 1)
    rows = arena.gather(slots, X)
    assert rows.shape == (sum(len(slot.view(X)) for slot in slots), ROW)
    doubled = (rows * 2).split([len(slot.view(X)) for slot in slots])
    arena.scatter(slots, X, doubled)
    assert [float(slot.view(X)[0, 0]) for slot in slots] == [2.0, 4.0, 6.0, 8.0]


def test_rows_given_back_come_zeroed_to_the_next_session(device: torch.device) -> None:
    arena = new_arena(device)
    keeper = reserve(arena, 10, X)
    slot = reserve(arena, 100, X)
    slot.view(X).fill_(5.0)
    address = slot.view(X).data_ptr()
    arena.release(slot)
    again = reserve(arena, 100, X)
    assert again.view(X).data_ptr() == address
    assert not again.view(X).any()
    arena.release(keeper)


def test_rows_are_long_where_they_waste_little_and_short_elsewhere() -> None:
    assert [row_length((size,)) for size in (0, 1, ROW, 1821, LONG, 10_000, 25_000_000)] == [ROW] * 3 + [LONG] * 4
    assert row_length((1820,)) == ROW, "a long row would be padded by more than an eighth"
    assert row_length((LONG, 1)) == ROW
    assert row_length((LONG * 30, 10)) == LONG


def checked(arena: Arena, held: dict[Slot, float]) -> None:
    """Everybody's values are still there, wherever they were moved, and nobody has another's rows."""
    assert arena.used_bytes + arena.paged_bytes == sum(slot.size_bytes for slot in held)
    for slot, value in held.items():
        for buffer in (W, X):
            vector = slot.read(buffer)
            assert bool((vector == value).all())
            assert int(slot.view(buffer).count_nonzero()) == vector.numel(), "the padding stays zero"
            starts = [extent.view.data_ptr() for extent in slot.extents[buffer]]
            assert slot.addresses(buffer)[0] == starts[0]
            assert len(slot.addresses(buffer)) == slot.rows(buffer) == len(slot.view(buffer))


def test_thousands_of_sessions_come_and_go_and_gaps_are_reclaimed(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=1 << 30)
    order = random.Random(7)
    held: dict[Slot, float] = {}
    sizes = [1, 100, 3000, 40_000, 900_000]
    for number in range(3000):
        if held and order.random() < (0.35 if number < 1500 else 0.65):
            gone = order.choice(list(held))
            arena.release(gone)
            del held[gone]
        else:
            slot = reserve(arena, order.randint(1, order.choice(sizes)), W, X)
            held[slot] = number + 1.0
            for buffer in (W, X):
                arena.write(slot, buffer, torch.full((slot.elements(buffer),), number + 1.0))
        # Of each row length: at most two slabs are kept whatever is in them, and then one slab of gaps.
        assert arena.held_bytes <= arena.used_bytes + 3 * SLAB_BYTES * len(ROW_LENGTHS)
    checked(arena, held)
    for slot in held:
        arena.release(slot)
    assert (arena.used_bytes, arena.held_bytes) == (0, 0)


def test_a_session_can_live_in_gaps(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=SLAB_BYTES)
    rows = SLAB_BYTES // (4 * ROW)
    slots = [reserve(arena, ROW, X) for _ in range(rows)]
    for slot in slots[::2]:
        arena.release(slot)
    scattered = arena.reserve({X: (7,) * (rows // 2)})
    assert len(scattered.extents[X]) == rows // 2
    values = torch.arange(1.0, scattered.elements(X) + 1)
    arena.write(scattered, X, values)
    assert torch.equal(scattered.read(X).cpu(), values)
    assert arena.held_bytes == SLAB_BYTES
    assert scattered.largest() == values[-1]
    assert not any(bool(slot.view(X).any()) for slot in slots[1::2])


def test_who_idles_longest_makes_room_and_comes_back_unchanged(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=32 * LONG * 4, host_limit_bytes=32 * LONG * 4)
    held: dict[Slot, float] = {}
    for number in range(4):
        slot = reserve(arena, 4 * LONG, W, X)
        held[slot] = number + 1.0
        for buffer in (W, X):
            arena.write(slot, buffer, torch.full((4 * LONG,), number + 1.0))
    first, second, third, fourth = held
    arena.fetch([first])
    fifth = reserve(arena, 4 * LONG, W, X)
    assert [slot.resident for slot in (first, second, third, fourth, fifth)] == [True, False, True, True, True]
    for buffer in (W, X):
        arena.write(fifth, buffer, torch.full((4 * LONG,), 5.0))
    held[fifth] = 5.0
    checked(arena, held)
    arena.fetch([second, first])
    assert [slot.resident for slot in (first, second, third)] == [True, True, False]
    checked(arena, held)
    arena.release(third)
    del held[third]
    checked(arena, held)


def test_both_memories_full_leave_room_for_everybody_to_be_fetched(device: torch.device) -> None:
    unit = 10 * ROW * 4
    arena = new_arena(device, limit_bytes=40 * unit, host_limit_bytes=40 * unit)
    order = random.Random(3)
    held: dict[Slot, float] = {}

    def fill() -> None:
        while True:
            size = order.choice([1, 2, 3, 5, 9]) * 5 * ROW
            slot = reserve(arena, size, W, X)
            held[slot] = len(held) + 1.0
            for buffer in (W, X):
                arena.write(slot, buffer, torch.full((size,), held[slot]))

    with pytest.raises(OutOfDeviceMemory, match="in host memory"):
        fill()
    assert arena.paged_bytes, "more sessions than the device holds"
    checked(arena, held)
    for _ in range(300):
        wanted = order.sample(list(held), order.randrange(1, 4))
        wanted = wanted[: arena.fitting(wanted)]
        arena.fetch(wanted)
        assert all(slot.resident for slot in wanted)
        assert arena.used_bytes <= arena.limit_bytes
    checked(arena, held)


def test_what_can_never_be_together_on_the_device_is_refused_and_everybody_keeps_their_place(
    device: torch.device,
) -> None:
    unit = 10 * ROW * 4
    arena = new_arena(device, limit_bytes=10 * unit, host_limit_bytes=40 * unit)
    slots = [arena.reserve(dict.fromkeys((W, X), (ROW,) * 40)) for _ in range(3)]
    held = {slot: number + 1.0 for number, slot in enumerate(slots)}
    for slot, value in held.items():
        for buffer in (W, X):
            arena.write(slot, buffer, torch.full((40 * ROW,), value))
    assert arena.fitting(slots) == 1
    with pytest.raises(OutOfDeviceMemory, match="is the server's limit"):
        arena.fetch(slots)
    checked(arena, held)


def test_a_session_that_does_not_fit_takes_nothing_and_says_what_is_free(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=100 * ROW * 4)
    arena.reserve({X: (ROW,) * 60})
    with pytest.raises(OutOfDeviceMemory, match="40960 of 102400 are free") as caught:
        arena.reserve(dict.fromkeys((W, X), (ROW,) * 21))
    assert caught.value.metadata["free_bytes"] == "40960"
    assert arena.used_bytes == 60 * ROW * 4
    arena.reserve({X: (ROW,) * 40})


def test_a_session_larger_than_a_slab_has_one_of_its_own(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=1 << 28)
    elements = SLAB_BYTES // 4 + 1
    slot = reserve(arena, elements, X)
    assert slot.view(X).numel() >= elements
    arena.release(slot)
    assert arena.held_bytes == 0


def test_freeing_twice_is_noticed(device: torch.device) -> None:
    arena = new_arena(device)
    reserve(arena, 10, X)
    slot = reserve(arena, 10, X)
    arena.release(slot)
    with pytest.raises(InternalError, match="freed twice"):
        arena.release(slot)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_wire_bytes_go_there_and_back(dtype: Dtype, device: torch.device) -> None:
    values = torch.tensor([0.0, 1.0, -2.5, 1024.0, 0.15625], device=device)
    payload = wire_bytes(values, dtype)
    assert len(payload) == 5 * dtype.itemsize
    assert torch.equal(from_wire(payload, dtype).float(), values.cpu())


def test_wire_bytes_are_a_copy_of_their_own() -> None:
    values = torch.tensor([1.0, 2.0])
    payload = wire_bytes(values, Dtype.FLOAT32)
    values.zero_()
    assert from_wire(payload, Dtype.FLOAT32).tolist() == [1.0, 2.0]
