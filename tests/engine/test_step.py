"""A batch's launches: whichever way a session takes through its step, nobody else can tell."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hermosis.wire import Dtype, checksum
from hermosis_server.dynamics import fused, resolve
from hermosis_server.engine import resident as on_device
from hermosis_server.engine import step as step_module
from hermosis_server.engine.arena import TORCH_DTYPES, Arena, address_of
from hermosis_server.engine.batch import FleetDone, step_batch
from hermosis_server.engine.entries import Entry, Part
from hermosis_server.engine.resident import Resident
from hermosis_server.engine.scheduler import ReadyFleet
from hermosis_server.engine.step import Stepper
from hermosis_server.records import Outcome, Reply, ReplyWish, StateBuffer

RECIPES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "nesterov": {},
    "adamw": {},
    "rmsprop": {},
    "rgd": {},
    "vradam": {},
    "hermosis": {},
}
SHAPES = [(3, 5), (700,), (2, 1100)]  # 2915 elements: long rows, or short ones where tensors are told apart
PARAMETERS = ReplyWish(reply=Reply.PARAMETERS)
INCREMENT = ReplyWish(reply=Reply.INCREMENT)


class House:
    """An arena with what steps in it."""

    def __init__(self, device: torch.device, limit_bytes: int = 1 << 26, host_limit_bytes: int = 0) -> None:
        self.arena = Arena(device, limit_bytes=limit_bytes, host_limit_bytes=host_limit_bytes)
        self.stepper = Stepper(self.arena, fused.Pool(1))

    def session(
        self, recipe: str, seed: int = 0, *, shapes: Sequence[tuple[int, ...]] = SHAPES, holds_parameters: bool = True
    ) -> Resident:
        hamiltonian = resolve(recipe, RECIPES.get(recipe, {}))
        resident = on_device.reserve(self.arena, hamiltonian, shapes=shapes, holds_parameters=holds_parameters)
        if holds_parameters:
            start = vector(size_of(resident), seed)
            on_device.initialise(self.arena, resident, memoryview(bytearray(start.tobytes())), Dtype.FLOAT32)
        return resident

    def step(self, *entries: Entry) -> list[Outcome]:
        """Entries of one cohort."""
        return self.stepper.step(entries).outcomes

    def digest(self, resident: Resident) -> bytes:
        return on_device.digest(self.arena, resident)


@pytest.fixture
def house(device: torch.device) -> House:
    return House(device)


def size_of(resident: Resident) -> int:
    return resident.slot.elements(StateBuffer.MOMENTUM)


def vector(size: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def part_of(values: np.ndarray[Any, Any], dtype: Dtype = Dtype.FLOAT32, weight: float = 1.0) -> Part:
    wire = torch.from_numpy(np.array(values, np.float32)).to(TORCH_DTYPES[dtype])
    memory = wire.view(torch.uint8).numpy().data
    peak = float(wire.float().abs().max()) if wire.isfinite().all() else float("inf")
    return Part(memory, address_of(memory), dtype, peak, weight)


def entry(resident: Resident, seed: int = 1, *, wish: ReplyWish | None = PARAMETERS, scale: float = 1.0) -> Entry:
    gradient = vector(size_of(resident), seed) * np.float32(scale)
    return Entry(resident, (part_of(gradient),), 2.0, 1.0, wish)


def fleet(residents: Sequence[Resident], wish: ReplyWish, seeds: Sequence[int], sequence: int = 1) -> ReadyFleet:
    parts = [part_of(vector(size_of(one), seed)) for one, seed in zip(residents, seeds, strict=True)]
    count = len(residents)
    return ReadyFleet(
        residents=residents,
        parts=parts,
        losses=[2.0] * count,
        lr_scales=[1.0] * count,
        wish=wish,
        worker_id="worker",
        sequences=[sequence] * count,
        checksums=[checksum(part.memory) for part in parts],
        size_bytes=sum(len(part.memory) for part in parts),
        done=lambda _: None,
    )


def test_the_fused_pass_covers_what_it_should() -> None:
    covered = {name for name in RECIPES if fused.covers(resolve(name, RECIPES[name]).family(SHAPES))}
    assert covered >= {"sgd", "nesterov", "adamw", "rmsprop"}
    assert not covered & {"hermosis", "vradam"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_both_ways_lead_to_the_same_place(recipe: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for plain in (False, True):
        house = House(device)
        resident = house.session(recipe)
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(step_module.fused, "covers", lambda family: False)
            for number in range(5):
                assert house.step(entry(resident, number)) == [Outcome.APPLIED]
        states.append(on_device.copy_out(house.arena, resident))
    one, two = states
    for buffer in one.buffers:
        first, second = (np.frombuffer(state.buffers[buffer], np.float32) for state in states)
        scale = float(np.abs(second).max()) or 1.0
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6 * scale, err_msg=buffer.name)
    assert one.scalars.step == two.scalars.step == 5
    np.testing.assert_allclose(one.scalars.internal_energy, two.scalars.internal_energy, rtol=1e-5)


def test_a_batch_of_all_kinds_equals_each_alone_to_the_bit(device: torch.device) -> None:
    together = House(device)
    members = [together.session(recipe, seed) for seed, recipe in enumerate([*RECIPES, *RECIPES])]
    for number in range(3):
        (done,) = step_batch(
            together.arena, together.stepper, [fleet(members, PARAMETERS, range(len(members)), number + 1)]
        )
        assert isinstance(done, FleetDone)
        assert set(done.outcomes) == {Outcome.APPLIED}
        assert done.after.tolist() == [number + 1] * len(members)
    for seed, (recipe, member) in enumerate(zip([*RECIPES, *RECIPES], members, strict=True)):
        alone = House(device)
        resident = alone.session(recipe, seed)
        for number in range(3):
            (single,) = step_batch(alone.arena, alone.stepper, [fleet([resident], PARAMETERS, [seed], number + 1)])
            assert isinstance(single, FleetDone)
        assert alone.digest(resident) == together.digest(member), recipe
        assert done.replies[seed] == single.replies[0]
        np.testing.assert_array_equal(done.samples[seed], single.samples[0])
        assert member.workers["worker"].sequence == 3


@pytest.mark.parametrize("recipe", ["sgd", "adamw", "hermosis"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_would_not_stay_finite_changes_nothing_and_disturbs_nobody(house: House, recipe: str, bad: float) -> None:
    victim, neighbour = house.session(recipe, 1), house.session(recipe, 2)
    house.step(entry(victim, 5), entry(neighbour, 5))
    before = house.digest(victim)
    gradient = vector(size_of(victim), 3)
    gradient[2000] = bad
    loud = Entry(victim, (part_of(np.where(gradient == gradient, gradient, gradient) * 1.0),), 2.0, 1.0, PARAMETERS)
    outcomes = house.step(loud, entry(neighbour, 6))
    # AdamW's second moment overflows, and so does the sum of squares that everybody's norm is.
    assert outcomes[1] is Outcome.APPLIED
    if not np.isfinite(bad):
        assert outcomes[0] is Outcome.NON_FINITE_GRADIENT
    if outcomes[0] is not Outcome.APPLIED:
        assert house.digest(victim) == before
    else:
        assert recipe == "sgd"
    assert neighbour.step == 2
    assert house.step(entry(victim, 7)) == [Outcome.APPLIED]


def test_a_session_of_huge_numbers_steps_through_the_flows_and_others_beside_it_do_not_see_it(
    device: torch.device,
) -> None:
    """What cannot be proven to stay finite is tried on copies."""
    digests = []
    for together in (True, False):
        house = House(device)
        huge, calm = house.session("sgd", 1), house.session("sgd", 2)
        if together:
            outcomes = house.step(entry(huge, 3, scale=1e30), entry(calm, 4))
        else:
            outcomes = house.step(entry(huge, 3, scale=1e30)) + house.step(entry(calm, 4))
        assert outcomes == [Outcome.APPLIED] * 2
        assert huge.step == 1
        digests.append((house.digest(huge), house.digest(calm)))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("recipe", ["sgd", "adamw", "rgd", "hermosis"])
def test_replies_are_what_was_asked_for(house: House, recipe: str) -> None:
    resident = house.session(recipe)
    before = resident.slot.read(StateBuffer.PARAMETERS).cpu().clone()
    wishes = [ReplyWish(reply=reply, dtype=dtype) for reply in (Reply.PARAMETERS, Reply.INCREMENT) for dtype in Dtype]
    for number, wish in enumerate(wishes):
        (done,) = step_batch(house.arena, house.stepper, [fleet([resident], wish, [number], number + 1)])
        assert isinstance(done, FleetDone)
        after = resident.slot.read(StateBuffer.PARAMETERS).cpu().clone()
        payload = done.replies[0]
        assert payload is not None
        got = torch.frombuffer(payload, dtype=TORCH_DTYPES[wish.dtype])
        if wish.reply is Reply.PARAMETERS:
            assert torch.equal(got, after.to(got.dtype))
        elif wish.dtype is Dtype.FLOAT32:
            assert torch.equal(before + got, after), "position plus increment is the server's own sum"
        else:
            torch.testing.assert_close(got.float(), after - before, rtol=0.01, atol=1e-6)
        before = after


@pytest.mark.parametrize("dtype", list(Dtype))
def test_a_gradient_in_any_dtype_is_the_widened_one(device: torch.device, dtype: Dtype) -> None:
    digests = []
    for wide in (False, True):
        house = House(device)
        resident = house.session("adamw")
        narrow = part_of(vector(size_of(resident), 3), dtype)
        part = part_of(torch.frombuffer(narrow.memory, dtype=TORCH_DTYPES[dtype]).float().numpy()) if wide else narrow
        assert house.step(Entry(resident, (part,), 1.0, 1.0, None)) == [Outcome.APPLIED]
        digests.append(house.digest(resident))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("recipe", ["sgd", "hermosis"])
def test_several_contributions_are_their_weighted_mean(house: House, recipe: str) -> None:
    # Powers of two: whether a product and a sum are rounded once or twice is then the same.
    many, one = house.session(recipe), house.session(recipe)
    gradients = [vector(size_of(many), seed) for seed in (1, 2)]
    mean = torch.zeros(size_of(many))
    for gradient, weight in zip(gradients, (0.25, 0.5), strict=True):
        mean.add_(torch.from_numpy(gradient), alpha=weight)
    parts = (part_of(gradients[0], weight=0.25), part_of(gradients[1], weight=0.5))
    house.step(Entry(many, parts, 1.0, 1.0, None), Entry(one, (part_of(mean.numpy()),), 1.0, 1.0, None))
    assert house.digest(many) == house.digest(one)


@pytest.mark.parametrize("recipe", ["sgd", "adamw", "hermosis"])
def test_restored_steps_like_uninterrupted(house: House, recipe: str) -> None:
    first, second = house.session(recipe, 1), house.session(recipe, 2)
    for number in range(3):
        house.step(entry(first, number))
    on_device.adopt(house.arena, second, on_device.copy_out(house.arena, first))
    assert house.digest(first) == house.digest(second)
    house.step(entry(first, 9), entry(second, 9))
    assert house.digest(first) == house.digest(second)


def test_sessions_that_took_turns_in_device_memory_have_the_bits_of_those_that_never_left(device: torch.device) -> None:
    roomy, tight = House(device), House(device, limit_bytes=120_000, host_limit_bytes=1 << 20)
    pairs = [(roomy.session("adamw", seed), tight.session("adamw", seed)) for seed in range(8)]
    assert tight.arena.paged_bytes
    assert not roomy.arena.paged_bytes
    for number in range(3):
        for column, house in enumerate((roomy, tight)):
            stepped = house.stepper.step([entry(pair[column], number) for pair in pairs])
            assert stepped.outcomes == [Outcome.APPLIED] * len(pairs)
            assert stepped.after.tolist() == [number + 1] * len(pairs)
    assert [roomy.digest(one) for one, _ in pairs] == [tight.digest(other) for _, other in pairs]
    assert tight.arena.used_bytes <= 120_000


def test_workers_that_hold_the_parameters_get_the_increments(house: House) -> None:
    here, there = house.session("sgd", 4), house.session("sgd", holds_parameters=False)
    position = here.slot.read(StateBuffer.PARAMETERS).cpu().clone()
    for number in range(3):
        house.step(entry(here, number))
        (done,) = step_batch(house.arena, house.stepper, [fleet([there], INCREMENT, [number], number + 1)])
        assert isinstance(done, FleetDone)
        payload = done.replies[0]
        assert payload is not None
        position += torch.frombuffer(payload, dtype=torch.float32)
    assert torch.equal(position, here.slot.read(StateBuffer.PARAMETERS).cpu())


def test_tables_grow_and_empty_with_their_sessions(house: House) -> None:
    members = [house.session("sgd", seed, shapes=[(5,)]) for seed in range(20)]
    house.step(*(entry(member, 1) for member in members))
    assert len(house.arena.cohorts) == 1
    for member in members[::2]:
        on_device.release(house.arena, member)
    again = [house.session("sgd", seed, shapes=[(5,)]) for seed in range(20, 30)]
    assert [member.step for member in again] == [0] * 10
    assert [member.step for member in members[1::2]] == [1] * 10
    for member in [*members[1::2], *again]:
        on_device.release(house.arena, member)
    assert len(house.arena.cohorts) == 0
    assert house.arena.used_bytes == 0
