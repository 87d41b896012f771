"""The arena: sessions share slabs of rows, and nothing is lost or leaked between them."""

import random

import pytest
import torch

from hermosis.wire import Dtype
from hermosis_server.engine.arena import SLAB_BYTES, Arena, Slot, from_wire, unpadded, wire_bytes
from hermosis_server.errors import InternalError, OutOfDeviceMemory
from hermosis_server.records import StateBuffer

W, X = StateBuffer.PARAMETERS, StateBuffer.MOMENTUM
ROW = 64


def new_arena(device: torch.device, limit_bytes: int = 1 << 26) -> Arena:
    return Arena(device, row_elements=ROW, limit_bytes=limit_bytes)


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
    spans = (70, 1, 64)
    slot = arena.reserve({X: spans})
    values = torch.arange(1.0, 136.0)
    arena.write(slot, X, values)
    rows = slot.view(X)
    assert [float(row[0]) for row in rows] == [1.0, 65.0, 71.0, 72.0]
    assert (slot.elements(X), slot.size_bytes) == (135, 4 * ROW * 4)
    assert torch.equal(slot.read(X).cpu(), values)
    assert torch.equal(unpadded(arena.gather([slot], X), spans).cpu(), values)
    assert int(rows.count_nonzero()) == 135, "the padding stays zero"


def test_gather_and_scatter_are_each_other_s_inverse(device: torch.device) -> None:
    arena = new_arena(device)
    slots = [reserve(arena, size, X) for size in (1, 64, 65, 200)]
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


def test_thousands_of_sessions_come_and_go_and_leave_nothing(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=1 << 30)
    order = random.Random(7)
    held = []
    for _ in range(3000):
        if held and order.random() < 0.5:
            arena.release(held.pop(order.randrange(len(held))))
        else:
            held.append(reserve(arena, order.randrange(1, 5000), W, X))
    assert arena.used_bytes == sum(slot.size_bytes for slot in held)
    for slot in held:
        arena.release(slot)
    assert arena.used_bytes == 0
    assert arena._slabs == []


def test_a_session_that_does_not_fit_takes_nothing_and_says_what_is_free(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=100 * ROW * 4)
    reserve(arena, 60 * ROW, W)
    with pytest.raises(OutOfDeviceMemory, match="10240 of 25600 are free") as caught:
        reserve(arena, 21 * ROW, W, X)
    assert caught.value.metadata["free_bytes"] == "10240"
    reserve(arena, 40 * ROW, W)


def test_a_session_larger_than_a_slab_has_one_of_its_own(device: torch.device) -> None:
    arena = new_arena(device, limit_bytes=1 << 28)
    elements = SLAB_BYTES // 4 + 1
    slot = reserve(arena, elements, W)
    assert slot.view(W).numel() >= elements
    arena.release(slot)
    assert arena._slabs == []


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
