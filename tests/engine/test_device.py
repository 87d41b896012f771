"""Launches on a device: nobody waits for them, and nobody can tell. Without CUDA Triton interprets the kernels."""

import os
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.engine.test_step import INCREMENT, PARAMETERS, House, entry, part_of, size_of, vector

from hermosis.wire import Dtype
from hermosis_server.dynamics import Constant, fused_cuda
from hermosis_server.engine import device as device_module
from hermosis_server.engine import resident as on_device
from hermosis_server.engine import step as step_module
from hermosis_server.engine.arena import TORCH_DTYPES
from hermosis_server.engine.device import DeviceSteps, Plan
from hermosis_server.engine.entries import Entry, row_table
from hermosis_server.engine.resident import Resident
from hermosis_server.records import EnergySample, Outcome, Reply, ReplyWish, StateBuffer

pytest.importorskip("triton", reason="Triton is not installed")
SMALL = [(7,), (300,)]


@pytest.fixture(autouse=True)
def kernels_run_there(device: torch.device) -> None:
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles in this process, and compiles for CUDA only")


def house_on(device: torch.device, *, fused: bool = True, limit_bytes: int = 1 << 26, host_bytes: int = 0) -> House:
    house = House(device, limit_bytes, host_bytes)
    house.stepper.device = DeviceSteps(house.arena) if fused else None
    return house


@pytest.fixture
def house(device: torch.device) -> House:
    return house_on(device)


def floats(state: on_device.ExportedState, buffer: StateBuffer) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(state.buffers[buffer], np.float32)


@pytest.mark.parametrize("recipe", ["sgd", "adamw", "rgd", "vradam"])
def test_both_ways_lead_to_the_same_place(recipe: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for fused in (True, False):
        house = house_on(device, fused=fused)
        resident = house.session(recipe)
        with monkeypatch.context() as patch:
            if fused:  # nothing may go the other way
                patch.setattr(step_module, "_plain", None)
            else:
                patch.setattr(step_module.fused, "covers", lambda family: False)
            for number in range(3):
                assert house.step(entry(resident, number)) == [Outcome.APPLIED]
        states.append(on_device.copy_out(house.arena, resident))
    one, two = states
    for buffer in one.buffers:
        scale = float(np.abs(floats(two, buffer)).max())
        np.testing.assert_allclose(floats(one, buffer), floats(two, buffer), rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(one.scalars.internal_energy, two.scalars.internal_energy, rtol=1e-5)
    assert one.scalars.step == two.scalars.step == 3


def test_launches_in_flight_together_equal_each_alone_to_the_bit(device: torch.device) -> None:
    together = house_on(device)
    groups = [[together.session("adamw", seed + j, shapes=SMALL) for j in (0, 10)] for seed in range(3)]
    alone = [house_on(device) for _ in range(6)]
    twins = [alone[2 * i + j].session("adamw", 10 * j + i, shapes=SMALL) for i in range(3) for j in range(2)]
    for number in range(3):
        flights = [
            together.stepper.begin([entry(one, 7 * number + i), entry(other, 9 * number + i)])
            for i, (one, other) in enumerate(groups)
        ]
        for i in (2, 0, 1):
            done = flights[i]()
            assert done.outcomes == [Outcome.APPLIED] * 2
            assert done.after.tolist() == [number + 1] * 2
            for j, seed in enumerate((7 * number + i, 9 * number + i)):
                single = alone[2 * i + j].stepper.step([entry(twins[2 * i + j], seed)])
                assert single.replies[0] == done.replies[j]
                np.testing.assert_array_equal(single.samples[0], done.samples[j])
    for house, twin, member in zip(alone, twins, (one for group in groups for one in group), strict=True):
        assert house.digest(twin) == together.digest(member)


@pytest.mark.parametrize("recipe", ["sgd", "adamw", "rgd"])
def test_a_tensor_that_sits_a_step_out_is_put_back_while_others_fly(house: House, recipe: str) -> None:
    sleeper, neighbour = house.session(recipe, 1, shapes=SMALL), house.session(recipe, 2, shapes=SMALL)
    house.step(entry(sleeper, 1), entry(neighbour, 2))
    before = {buffer: sleeper.slot.read(buffer).cpu().clone() for buffer in sleeper.slot.spans}
    gradient = vector(size_of(sleeper), 3)
    gradient[:7] = 0
    asleep = house.stepper.begin([Entry(sleeper, (part_of(gradient),), 2.0, 1.0, INCREMENT, (0,))])
    other = house.stepper.begin([entry(neighbour, 4)])
    assert other().outcomes == [Outcome.APPLIED]
    done = asleep()
    assert done.outcomes == [Outcome.APPLIED]
    assert done.replies[0] is not None
    increment = np.frombuffer(done.replies[0], np.float32)
    assert not increment[:7].any()
    assert increment[7:].any()
    for buffer, kept in before.items():
        assert torch.equal(sleeper.slot.read(buffer)[:7].cpu(), kept[:7]), buffer.name
        assert not torch.equal(sleeper.slot.read(buffer)[7:].cpu(), kept[7:]), buffer.name


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_proven_goes_through_the_flows(house: House, device: torch.device, bad: float) -> None:
    victim, neighbour = house.session("adamw", 1, shapes=SMALL), house.session("adamw", 2, shapes=SMALL)
    house.step(entry(victim, 5), entry(neighbour, 5))
    before = house.digest(victim)
    gradient = vector(size_of(victim), 3)
    gradient[5] = bad
    outcomes = house.step(Entry(victim, (part_of(gradient),), 2.0, 1.0, PARAMETERS), entry(neighbour, 6))
    wanted = Outcome.NON_FINITE_STATE if np.isfinite(bad) else Outcome.NON_FINITE_GRADIENT
    assert outcomes == [wanted, Outcome.APPLIED]
    assert house.digest(victim) == before
    assert neighbour.step == 2
    quiet = house_on(device)
    twin = quiet.session("adamw", 2, shapes=SMALL)
    quiet.step(entry(twin, 5))
    quiet.step(entry(twin, 6))
    assert quiet.digest(twin) == house.digest(neighbour)
    assert house.step(entry(victim, 7)) == [Outcome.APPLIED]


def test_a_session_of_huge_numbers_comes_back_when_they_are_smaller(house: House) -> None:
    resident = house.session("sgd", shapes=SMALL)
    assert house.step(entry(resident, 1, scale=1e33)) == [Outcome.APPLIED]
    assert house.step(entry(resident, 2, scale=1e36)) == [Outcome.APPLIED]
    held = resident.slot.read(StateBuffer.MOMENTUM).abs().max()
    assert resident.cohort.largest[resident.line] == resident.slot.largest() >= float(held) > 1e35


@pytest.mark.parametrize(
    "wish", [PARAMETERS, INCREMENT, ReplyWish(reply=Reply.INCREMENT, dtype=Dtype.BFLOAT16)], ids=str
)
def test_replies_are_what_was_asked_for(house: House, wish: ReplyWish) -> None:
    resident, silent = house.session("adamw", 1), house.session("adamw", 2)
    before = resident.slot.read(StateBuffer.PARAMETERS).cpu().clone()
    done = house.stepper.step([entry(silent, 1, wish=None), entry(resident, 1, wish=wish)])
    after = resident.slot.read(StateBuffer.PARAMETERS).cpu().clone()
    assert done.replies[0] is None
    payload = done.replies[1]
    assert payload is not None
    kept = bytes(payload)
    house.step(entry(resident, 2, wish=wish))
    assert bytes(payload) == kept, "a reply is its receiver's own"
    got = torch.frombuffer(payload, dtype=TORCH_DTYPES[wish.dtype])
    if wish.reply is Reply.PARAMETERS:
        assert torch.equal(got, after)
    elif wish.dtype is Dtype.FLOAT32:
        assert torch.equal(before + got, after)
    else:
        torch.testing.assert_close(got.float(), after - before, rtol=0.01, atol=1e-6)


def test_gradients_reach_the_device_by_every_way_alike(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gathered with others or copied by itself, in one part or as the mean of several."""
    digests = []
    for direct_bytes in (1 << 30, 4000, 0):
        monkeypatch.setattr(device_module, "DIRECT_BYTES", direct_bytes)
        house = house_on(device)
        members = [house.session("sgd", 1, shapes=[(size,)]) for size in (300, 1500, 5, 700)]
        entries = [entry(member, seed) for seed, member in enumerate(members)]
        halves = tuple(part_of(vector(300, seed), weight=weight) for seed, weight in ((8, 0.25), (9, 0.75)))
        several = house.session("sgd", 1, shapes=[(300,)])
        entries.insert(2, Entry(several, halves, 2.0, 1.0, None))
        assert house.step(*entries) == [Outcome.APPLIED] * 5
        digests.append([house.digest(one) for one in (*members, several)])
    assert digests[0] == digests[1] == digests[2]
    mean = torch.zeros(300)
    for seed, weight in ((8, 0.25), (9, 0.75)):
        mean.add_(torch.from_numpy(vector(300, seed)), alpha=weight)
    one = house.session("sgd", 1, shapes=[(300,)])
    house.step(Entry(one, (part_of(mean.numpy()),), 2.0, 1.0, None))
    np.testing.assert_allclose(
        one.slot.read(StateBuffer.PARAMETERS).cpu(), several.slot.read(StateBuffer.PARAMETERS).cpu(), rtol=1e-6
    )


def test_rows_that_were_moved_are_found(device: torch.device) -> None:
    roomy = house_on(device)
    tight = house_on(device, limit_bytes=20_000, host_bytes=1 << 20)
    pairs = [tuple(house.session("adamw", seed, shapes=SMALL) for house in (roomy, tight)) for seed in range(6)]
    for number in range(2):
        for column, house in enumerate((roomy, tight)):
            done = house.stepper.step([entry(pair[column], number) for pair in pairs])
            assert done.outcomes == [Outcome.APPLIED] * 6
    assert tight.arena.paged_bytes
    assert [roomy.digest(one) for one, _ in pairs] == [tight.digest(other) for _, other in pairs]


def test_a_session_takes_its_rows_along_into_another_cohort(device: torch.device) -> None:
    """The same rows under other dynamics are another plan."""
    digests = []
    for before in (0, 2):
        house = house_on(device)
        resident = house.session("sgd", shapes=SMALL)
        start = on_device.copy_out(house.arena, resident)
        for number in range(before):
            house.step(entry(resident, number))
        on_device.adopt(house.arena, resident, start)
        on_device.change_profile(house.arena, resident, Constant())
        house.step(entry(resident, 5))
        digests.append(house.digest(resident))
    assert digests[0] == digests[1]


def test_plans_are_forgotten_in_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "PLANS", 2)
    members: Sequence[Resident] = [house.session("sgd", seed, shapes=SMALL) for seed in range(4)]
    for member in members:
        house.step(entry(member))
    assert house.stepper.device is not None
    assert len(house.stepper.device._plans) == 2


def test_a_launch_that_fails_before_it_is_queued_changes_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = house.session("sgd", shapes=SMALL)
    before = house.digest(resident)

    def broken(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(device_module.Copies, "gradients", broken)
        with pytest.raises(torch.OutOfMemoryError):
            house.step(entry(resident))
    assert house.digest(resident) == before
    assert house.step(entry(resident)) == [Outcome.APPLIED]


def test_the_way_is_chosen_by_the_device_alone(device: torch.device) -> None:
    house = House(device)
    assert (house.stepper.device is not None) == (device.type == "cuda" and fused_cuda.available())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device that is here can")
def test_a_step_that_cannot_be_captured_is_launched_as_before(
    house: House, device: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    resident, twin = house.session("sgd", shapes=SMALL), house.session("sgd", shapes=SMALL)
    cohort, lines = resident.cohort, [resident.line]
    plan = Plan(device, cohort, [resident.slot], [row_table(resident.slot)])
    gradient = torch.from_numpy(vector(size_of(resident), 1)).to(device)
    words = np.zeros(len(plan.words), np.int64)
    plan.fill(
        words,
        gradients=[gradient.data_ptr()],
        gradient_dtypes=[Dtype.FLOAT32],
        replies=[0],
        reply_kinds=[Reply.NONE],
        reply_dtypes=[0],
        numbers=np.concatenate([[[2.0, 1.0]], cohort.coefficients[lines], cohort.scalars[lines]], axis=1),
    )
    plan.words.copy_(torch.from_numpy(words))
    for number in range(3):
        assert plan.run(replay=True)[0, len(EnergySample._fields)] == number + 1
        house.step(entry(twin, 1, wish=None))
    assert caplog.text.count("step_not_captured") == 1
    for buffer in (StateBuffer.PARAMETERS, StateBuffer.MOMENTUM):
        assert torch.equal(resident.slot.read(buffer), twin.slot.read(buffer))
