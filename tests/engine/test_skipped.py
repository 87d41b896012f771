"""Tensors that sit a step out: nothing of theirs moves, and the others step as if they were alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.engine.test_step import SHAPES, House, part_of, vector

from hermosis_server.dynamics import RECIPES, resolve
from hermosis_server.engine import resident as on_device
from hermosis_server.engine import step as step_module
from hermosis_server.engine.entries import Entry
from hermosis_server.engine.resident import Resident
from hermosis_server.records import Outcome, Reply, ReplyWish, StateBuffer

INCREMENT = ReplyWish(reply=Reply.INCREMENT)
SKIPPED = 1
# Elements of each tensor in the flat vector.
PLACES = [slice(0, 15), slice(15, 715), slice(715, 2915)]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"lr": 0.01}) for name in RECIPES),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
    ("adamw", {"weight_decay": 0.5}),
    ("rmsprop", {"momentum": 0.5, "centered": True}),
    ("rgd", {"alpha": 0.5, "delta": 4.0}),
    ("vradam", {"norm": "tensor", "weight_decay": 0.1}),
]


def session(house: House, variant: tuple[str, dict[str, Any]], shapes: Sequence[tuple[int, ...]] = SHAPES) -> Resident:
    resident = on_device.reserve(house.arena, resolve(*variant), shapes=shapes, holds_parameters=True)
    start = np.concatenate([values(shapes, index, 99) for index in range(len(shapes))])
    on_device.initialise(house.arena, resident, memoryview(bytearray(start.tobytes())), step_module.Dtype.FLOAT32)
    return resident


def values(shapes: Sequence[tuple[int, ...]], index: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of one tensor; the same for a tensor of this shape in any layout."""
    size = int(np.prod(shapes[index]))
    return vector(size, seed * 1000 + size)


def gradient(shapes: Sequence[tuple[int, ...]], seed: int, skipped: Sequence[int] = ()) -> Any:
    return np.concatenate([values(shapes, index, seed) * (index not in skipped) for index in range(len(shapes))])


def entry(resident: Resident, seed: int, skipped: tuple[int, ...] = (), wish: ReplyWish | None = INCREMENT) -> Entry:
    part = part_of(gradient(resident.shapes, seed, skipped))
    return Entry(resident, (part,), 2.0 - 0.1 * seed, 1.0, wish, skipped)


def read(resident: Resident, buffer: StateBuffer) -> torch.Tensor:
    return resident.slot.read(buffer).cpu().clone()


def whole(resident: Resident) -> dict[StateBuffer, torch.Tensor]:
    return {buffer: read(resident, buffer) for buffer in resident.slot.spans}


def named(variant: tuple[str, dict[str, Any]]) -> str:
    return " ".join(map(str, (variant[0], *variant[1].values())))


@pytest.mark.parametrize("way", ["as it goes", "plain"])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_nothing_of_a_skipped_tensor_moves_and_the_others_step_as_if_alone(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, variant: tuple[str, dict[str, Any]], way: str
) -> None:
    if way == "plain":
        monkeypatch.setattr(step_module.fused, "covers", lambda family: False)
    house = House(device)
    all_three, rest = session(house, variant), session(house, variant, [SHAPES[0], SHAPES[2]])
    place, first = PLACES[SKIPPED], whole(all_three)
    for seed in range(4):
        stepped = house.stepper.step([entry(all_three, seed, (SKIPPED,))])
        assert stepped.outcomes == [Outcome.APPLIED]
        assert house.step(entry(rest, seed)) == [Outcome.APPLIED]
        reply = stepped.replies[0]
        assert reply is not None
        increment = torch.frombuffer(reply, dtype=torch.float32)
        assert not increment[place].any()
        assert increment[PLACES[0]].any()
        assert increment[PLACES[2]].any()
    for buffer, before in first.items():
        after = read(all_three, buffer)
        if len(after) == 2915:
            assert torch.equal(after[place], before[place]), buffer.name
            others = torch.cat([after[PLACES[0]], after[PLACES[2]]])
        else:
            others = after  # matrices; the skipped tensor is a vector and has none
        theirs = read(rest, buffer)
        scale = float(theirs.abs().max()) or 1.0
        torch.testing.assert_close(others, theirs, rtol=2e-5, atol=2e-6 * scale, msg=buffer.name)
    ours, theirs_scalars = np.array(all_three.scalars), np.array(rest.scalars)
    np.testing.assert_allclose(ours, theirs_scalars, rtol=1e-5)


def test_what_was_learned_of_a_tensor_before_waits_for_it_to_the_bit(device: torch.device) -> None:
    for variant in VARIANTS:
        house = House(device)
        resident = session(house, variant)
        house.step(entry(resident, 1))
        before = whole(resident)
        skipped = (0, 1)
        for seed in (2, 3):
            assert house.step(entry(resident, seed, skipped)) == [Outcome.APPLIED]
        after = whole(resident)
        matrices = resident.family.matrices([0, 1]) if resident.family.matrix else {}
        for buffer, kept in before.items():
            for place in matrices[buffer] if buffer in matrices else PLACES[:2]:
                assert torch.equal(after[buffer][place], kept[place]), (variant, buffer.name)
            if buffer not in matrices:  # of which only the first tensor has any
                assert not torch.equal(after[buffer], kept), (variant, buffer.name)
        if step_module.fused.covers(resident.family):  # the others are not asked for it
            assert resident.cohort.largest[resident.line] == resident.slot.largest()
        assert house.step(entry(resident, 4)) == [Outcome.APPLIED]
        assert not torch.equal(read(resident, StateBuffer.MOMENTUM)[:15], before[StateBuffer.MOMENTUM][:15])


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_a_batch_with_a_session_that_skips_equals_each_alone_to_the_bit(
    device: torch.device, variant: tuple[str, dict[str, Any]]
) -> None:
    skips = [(), (SKIPPED,), (0, 2), (0, 1, 2), ()]
    together = House(device)
    members = [session(together, variant) for _ in skips]
    for seed in range(3):
        entries = [entry(member, seed + place, skips[place]) for place, member in enumerate(members)]
        assert together.step(*entries) == [Outcome.APPLIED] * len(skips)
    for place, member in enumerate(members):
        alone = House(device)
        resident = session(alone, variant)
        for seed in range(3):
            alone.step(entry(resident, seed + place, skips[place]))
        assert alone.digest(resident) == together.digest(member), place
        assert resident.step == 3


@pytest.mark.parametrize("recipe", ["sgd", "hermosis"])
def test_a_step_that_is_refused_or_fails_puts_everything_back(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    house = House(device)
    resident = session(house, (recipe, {}))
    house.step(entry(resident, 1))
    before = house.digest(resident)
    bad = gradient(SHAPES, 2, (SKIPPED,))
    bad[0] = np.nan
    loud = Entry(resident, (part_of(bad),), 2.0, 1.0, None, (SKIPPED,))
    assert house.step(loud) == [Outcome.NON_FINITE_GRADIENT]
    assert house.digest(resident) == before

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(step_module.Stepper, "_begin", fails)
    with pytest.raises(RuntimeError, match="planted"):
        house.step(entry(resident, 3, (SKIPPED,)))
    assert house.digest(resident) == before


def test_rows_in_pieces_are_put_back_where_they_were(device: torch.device) -> None:
    """Sessions that close leave gaps, and a large one is laid into them."""
    house = House(device)
    count = 16
    small = [session(house, ("adamw", {}), [(2048,)]) for _ in range(count)]
    filler = on_device.reserve(
        house.arena, resolve("sgd", {}), shapes=[(2048 * (1024 - 3 * count),)], holds_parameters=True
    )
    assert filler.slot.rows(StateBuffer.MOMENTUM)
    for one in small[::2]:
        on_device.release(house.arena, one)
    shapes = [(2048,), (5000,), (3000,), (2048 * 2,)]
    resident = session(house, ("sgd", {"momentum": 0.9}), shapes)
    house.step(entry(resident, 1))
    before = whole(resident)
    house.step(entry(resident, 2, (1, 3)))
    after = whole(resident)
    for buffer, kept in before.items():
        for place in (slice(2048, 7048), slice(10048, None)):
            assert torch.equal(after[buffer][place], kept[place])
        for place in (slice(0, 2048), slice(7048, 10048)):
            assert not torch.equal(after[buffer][place], kept[place])
    alone = House(device)
    twin = session(alone, ("sgd", {"momentum": 0.9}), shapes)
    alone.step(entry(twin, 1))
    alone.step(entry(twin, 2, (1, 3)))
    assert alone.digest(twin) == house.digest(resident)
