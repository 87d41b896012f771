"""What people do every day with torch.optim, on a server: side by side with torch itself."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.forking import WarmServer
from torch import nn
from torch.optim import lr_scheduler

from hermosis_client import LossScale, Outcome, Recipe, errors
from hermosis_client.torch_optimizer import RemoteOptimizer

STEPS = 12


class Forked(nn.Module):
    """A trunk with two heads, of which a step may use one only."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def loss(self, step: int, *, heads: str, rows: slice = slice(None)) -> torch.Tensor:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))[rows]
        hidden = torch.tanh(self.trunk(inputs))
        parts = [getattr(self, head)(hidden) for head in ("left", "right") if head in heads.split()]
        return sum(((part - torch.sin(inputs[:, :3])) ** 2).mean() for part in parts)  # type: ignore[return-value]

    def heads(self, step: int) -> str:
        """The right one has a rest of two steps after each step of its own."""
        return "left" if step % 3 else "left right"


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in net.parameters()])


def close(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=2e-4, atol=2e-5)


@pytest.fixture
def remote(server: WarmServer) -> Iterator[Callable[..., RemoteOptimizer]]:
    made: list[RemoteOptimizer] = []

    def make(params: Any, **options: Any) -> RemoteOptimizer:
        made.append(RemoteOptimizer(params, **{"address": server.address, "timeout_s": 20.0, **options}))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


# Parameters without a gradient


def test_a_branch_that_a_step_does_not_use_is_skipped_as_torch_skips_it(remote) -> None:
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    local, distant = Forked(), Forked()
    theirs = torch.optim.SGD(local.parameters(), **settings)
    ours = remote(distant.parameters(), optimizer="sgd", **settings)
    for step in range(STEPS):
        resting = distant.right.weight.detach().clone()
        for net, optimizer in ((local, theirs), (distant, ours)):
            optimizer.zero_grad()
            net.loss(step, heads=net.heads(step)).backward()
            optimizer.step()
        assert torch.equal(resting, distant.right.weight) == bool(step % 3)
        close(distant, local)
    assert ours.last_result.step == STEPS


@pytest.mark.parametrize("parameters_on", ["server", "worker"])
def test_a_skipped_tensor_keeps_its_place_where_the_worker_holds_the_parameters(remote, parameters_on: str) -> None:
    net = Forked()
    optimizer = remote(net.parameters(), optimizer="adam", lr=0.01, parameters_on=parameters_on)
    for step in range(6):
        resting = net.right.weight.detach().clone()
        optimizer.zero_grad()
        net.loss(step, heads=net.heads(step)).backward()
        optimizer.step()
        assert torch.equal(resting, net.right.weight) == bool(step % 3)


def test_adamw_skips_too_and_counts_the_steps_of_the_session(remote) -> None:
    """torch counts the steps of each tensor; where its count is set to the session's, nothing else differs."""
    settings = {"lr": 0.01, "weight_decay": 0.3}
    local, distant = Forked(), Forked()
    theirs = torch.optim.AdamW(local.parameters(), **settings)
    ours = remote(distant.parameters(), optimizer="adamw", **settings)
    for step in range(STEPS):
        for net, optimizer in ((local, theirs), (distant, ours)):
            optimizer.zero_grad()
            net.loss(step, heads=net.heads(step)).backward()
            optimizer.step()
        for tensor in local.parameters():
            theirs.state[tensor]["step"].fill_(step + 1)
        close(distant, local)


def test_without_any_gradient_nothing_is_sent(remote) -> None:
    net = Forked()
    optimizer = remote(
        [{"params": net.trunk.parameters()}, {"params": net.right.parameters()}], optimizer="adamw", lr=0.1
    )
    net.loss(0, heads="left").backward()
    before = net.right.weight.detach().clone()
    optimizer.step()
    first, second = optimizer.last_results
    assert first is not None
    assert first.step == 1
    assert second is None
    assert optimizer.sessions[1].info().step == 0
    assert torch.equal(net.right.weight, before)


def in_threads(*work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []


def test_in_a_round_a_tensor_rests_only_where_every_worker_skips_it(remote) -> None:
    """As under DistributedDataParallel: who has no gradient counts as zero beside one who has."""
    local, nets = Forked(), [Forked(), Forked()]
    theirs = torch.optim.SGD(local.parameters(), lr=0.1, momentum=0.9)
    options = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "session": "a-round-that-skips", "workers": 2}
    ours = [remote(net.parameters(), worker_id=f"w{place}", **options) for place, net in enumerate(nets)]
    # Both; one only; neither; one has no gradient at all, and still takes part.
    both, one = "left right", "left"
    plan = [(both, both), (both, one), (one, one), ("", both), (one, one)]
    for step, heads in enumerate(plan):
        resting = nets[0].right.weight.detach().clone()

        def work(place: int, step: int = step, heads: tuple[str, str] = heads) -> None:
            ours[place].zero_grad()
            if heads[place]:
                nets[place].loss(step, heads=heads[place], rows=slice(8 * place, 8 * place + 8)).backward()
            ours[place].step()

        in_threads(lambda: work(0), lambda: work(1))
        theirs.zero_grad()
        for place in (0, 1):
            if heads[place]:
                (local.loss(step, heads=heads[place], rows=slice(8 * place, 8 * place + 8)) / 2).backward()
        theirs.step()
        assert torch.equal(resting, nets[0].right.weight) == ("right" not in " ".join(heads))
        assert torch.equal(weights(nets[0]), weights(nets[1]))
        close(nets[0], local)
        assert ours[0].last_result.contributions == 2


@pytest.mark.parametrize("size", [50, 200_000], ids=["on the stream", "in shared memory"])
def test_arrays_that_are_skipped_are_left_out_by_name(client, size: int) -> None:
    start = {"a": np.ones(size, np.float32), "b": np.ones((2, size), np.float32), "c": np.ones(3, np.float32)}
    session = client.create_session(start, Recipe("sgd", lr=0.5, momentum=0.9))
    session.initialise(start)
    with session.worker() as worker:
        _, first = worker.exchange({name: np.ones_like(values) for name, values in start.items()})
        assert (first["b"] == 0.5).all()
        _, second = worker.exchange({"a": start["a"]}, skipped=["c", "b"])
        assert worker.path == ("segment" if size > 1000 else "stream")
        assert (second["b"] == 0.5).all()
        assert (second["c"] == 0.5).all()
        assert (second["a"] < 0).all()
        for arguments, message in [
            ({"gradients": {"a": start["a"]}, "skipped": ["b"]}, "missing"),
            ({"gradients": start, "skipped": ["b"]}, "skipped, but"),
            ({"gradients": start, "skipped": ["d"]}, "not in the session's layout"),
        ]:
            with pytest.raises(ValueError, match=message):
                worker.exchange(**arguments)
        with pytest.raises(errors.InvalidRequest, match="'a' is skipped and has a gradient"):
            worker.exchange(np.ones(3 * size + 3, np.float32), skipped=["a"])
        assert worker.push({"a": start["a"]}, skipped=["b", "c"], loss_scale=4.0).step == 3
    session.close()


# Groups, schedules, thawing


def test_groups_schedules_and_thawing_follow_torch(remote) -> None:
    def groups(net: Forked) -> list[dict[str, Any]]:
        return [
            {"params": net.left.parameters(), "lr": 0.05, "weight_decay": 0.2},
            {"params": net.right.parameters(), "weight_decay": 0.0},
        ]

    local, distant = Forked(), Forked()
    theirs = torch.optim.AdamW(groups(local), lr=0.01)
    ours = remote(groups(distant), optimizer="adamw", lr=0.01)
    for net, optimizer in ((local, theirs), (distant, ours)):
        net.trunk.requires_grad_(False)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        for step in range(16):
            if step == 8:
                assert torch.equal(net.trunk.weight, Forked().trunk.weight)
                net.trunk.requires_grad_(True)
                optimizer.add_param_group({"params": net.trunk.parameters(), "lr": 0.002, "weight_decay": 0.1})
            optimizer.zero_grad()
            net.loss(step, heads="left right").backward()
            optimizer.step()
            if step < 8:  # a scheduler knows the groups that it began with
                scheduler.step()
    assert not torch.equal(distant.trunk.weight, Forked().trunk.weight)
    close(distant, local)


# Accumulation and clipping


def test_gradients_add_up_over_several_backward_passes(remote) -> None:
    local, distant = Forked(), Forked()
    theirs = torch.optim.AdamW(local.parameters(), lr=0.01)
    ours = remote(distant.parameters(), optimizer="adamw", lr=0.01, weight_decay=0.01)
    for step in range(STEPS):
        theirs.zero_grad()
        local.loss(step, heads="left right").backward()
        theirs.step()
        ours.zero_grad()
        for part in range(4):
            (distant.loss(step, heads="left right", rows=slice(4 * part, 4 * part + 4)) / 4).backward()
        ours.step(sample_count=16)
    assert ours.last_result.step == STEPS
    close(distant, local)


def test_clipping_by_the_norm_of_all_groups_is_torchs_own(remote) -> None:
    local, distant = Forked(), Forked()

    def groups(net: Forked) -> list[dict[str, Any]]:
        return [{"params": net.trunk.parameters()}, {"params": [*net.left.parameters(), *net.right.parameters()]}]

    theirs = torch.optim.SGD(groups(local), lr=0.5)
    ours = remote(groups(distant), optimizer="sgd", lr=0.5)
    for step in range(STEPS):
        for net, optimizer in ((local, theirs), (distant, ours)):
            optimizer.zero_grad()
            net.loss(step, heads="left right").backward()
            assert nn.utils.clip_grad_norm_(net.parameters(), 0.1) > 0.1
            optimizer.step()
    close(distant, local)


@pytest.mark.parametrize("loss_scale", [None, 1024.0])
def test_the_server_clips_the_gradient_of_a_session_before_the_kick(remote, loss_scale: float | None) -> None:
    local, distant = Forked(), Forked()
    theirs = torch.optim.SGD(local.parameters(), lr=0.5, momentum=0.9)
    ours = remote(distant.parameters(), optimizer="sgd", lr=0.5, momentum=0.9, clip_norm=0.1, loss_scale=loss_scale)
    for step in range(STEPS):
        theirs.zero_grad()
        local.loss(step, heads="left right").backward()
        assert nn.utils.clip_grad_norm_(local.parameters(), 0.1) > 0.1
        theirs.step()
        ours.zero_grad()
        (distant.loss(step, heads="left right") * ours.loss_scale).backward()
        ours.step()
        assert ours.last_result.energies.gradient_norm == pytest.approx(0.1, rel=1e-5)
    close(distant, local)


def test_a_session_that_is_joined_or_shared_has_one_clip_norm(remote) -> None:
    with pytest.raises(ValueError, match="leave out clip_norm"):
        remote(Forked().parameters(), session="anything", clip_norm=1.0)
    options = {"optimizer": "sgd", "lr": 0.1, "session": "one-clip-norm"}
    remote(Forked().parameters(), clip_norm=1.0, **options)
    with pytest.raises(ValueError, match="clip_norm"):
        remote(Forked().parameters(), clip_norm=2.0, **options)


# Loss scales


def test_torchs_own_scaler_works_around_it(remote) -> None:
    """It begins so high that the first steps overflow; those reach nobody."""
    local, distant = Forked(), Forked()
    theirs = torch.optim.SGD(local.parameters(), lr=0.002, momentum=0.9)
    ours = remote(distant.parameters(), optimizer="sgd", lr=0.002, momentum=0.9)
    scales = []
    for net, optimizer in ((local, theirs), (distant, ours)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(64 * net.loss(step, heads="left right")).backward()
            if step % 2:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1]
    assert 0 < ours.sessions[0].info().step < STEPS
    close(distant, local)


def train_scaled(net: Forked, optimizer: RemoteOptimizer, steps: int, size: float = 1.0) -> list[Outcome]:
    outcomes = []
    for step in range(steps):
        optimizer.zero_grad()
        (size * net.loss(step, heads="left right") * optimizer.loss_scale).backward()
        optimizer.step()
        outcomes.append(optimizer.last_result.outcome)
    return outcomes


def test_a_narrow_wire_keeps_small_gradients_by_a_loss_scale(remote) -> None:
    """Gradients of 1e-8 are zero in float16; the server gets them back from what is sent."""
    size, lr = 1e-8, 1e7
    exact, scaled, lost = Forked(), Forked(), Forked()
    narrow = {"optimizer": "sgd", "lr": lr, "momentum": 0.9, "gradient_dtype": "float16"}
    train_scaled(exact, remote(exact.parameters(), optimizer="sgd", lr=lr, momentum=0.9), STEPS, size)
    optimizer = remote(scaled.parameters(), **narrow, loss_scale=2.0**20)
    train_scaled(scaled, optimizer, STEPS, size)
    train_scaled(lost, remote(lost.parameters(), **narrow), STEPS, size)
    torch.testing.assert_close(weights(scaled), weights(exact), rtol=0.02, atol=2e-3)
    assert (weights(lost) - weights(exact)).abs().max() > 0.05
    assert 0 < optimizer.last_result.energies.gradient_norm < 1e-6, "that of the gradient as it is"


def test_powers_of_two_leave_no_trace(remote) -> None:
    plain, scaled = Forked(), Forked()
    first = remote(plain.parameters(), optimizer="adamw", lr=0.01)
    second = remote(scaled.parameters(), optimizer="adamw", lr=0.01)
    for step in range(STEPS):
        for net, optimizer, scale in ((plain, first, None), (scaled, second, 2.0 ** (step - 4))):
            optimizer.zero_grad()
            ((scale or 1.0) * net.loss(step, heads="left right")).backward()
            optimizer.step(loss_scale=scale)
    assert torch.equal(weights(plain), weights(scaled))


def test_a_dynamic_scale_halves_where_a_step_is_not_finite_and_grows_again(remote) -> None:
    net = Forked()
    scale = LossScale(value=2.0**20, growth_steps=4)
    optimizer = remote(net.parameters(), optimizer="sgd", lr=0.01, gradient_dtype="float16", loss_scale=scale)
    before = weights(net)
    optimizer.zero_grad()
    (net.loss(0, heads="left right") * optimizer.loss_scale).backward()
    optimizer.step()
    assert optimizer.last_result.outcome is Outcome.NON_FINITE_GRADIENT
    assert torch.equal(weights(net), before)
    assert optimizer.loss_scale == 2.0**19
    outcomes = train_scaled(net, optimizer, 20)
    assert outcomes[-1] is Outcome.APPLIED or outcomes[-2] is Outcome.APPLIED
    assert outcomes.count(Outcome.APPLIED) == optimizer.sessions[0].info().step > 8
    assert not torch.equal(weights(net), before)
    saved = optimizer.state_dict()
    again = remote(Forked().parameters(), optimizer="sgd", lr=0.01, gradient_dtype="float16", loss_scale="dynamic")
    assert again.loss_scale == 65536.0 != optimizer.loss_scale
    again.load_state_dict(saved)
    assert again.loss_scale == optimizer.loss_scale


def test_a_loss_scale_has_its_bounds() -> None:
    scale = LossScale(value=2.0**24, growth_steps=1)
    scale.note(finite=True)
    assert scale.value == 2.0**24
    scale.note(finite=False)
    assert scale.value == 2.0**23
    scale.note(finite=True)
    assert scale.value == 2.0**24
    with pytest.raises(ValueError, match="loss scale"):
        LossScale(value=0.0)
