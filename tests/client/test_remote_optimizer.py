"""RemoteOptimizer against torch.optim and against itself, on a real server."""

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.forking import WarmServer
from torch import nn
from torch.optim import lr_scheduler

from hermosis_client import Client, Outcome, Recipe, SessionStatus, errors
from hermosis_client.torch_optimizer import RemoteOptimizer
from hermosis_server.dynamics import RECIPES, Hermosis

STEPS = 30


def model(seed: int = 0) -> nn.Sequential:
    """A small network with a tensor of each usual kind."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(16, 6, generator=generator)
    return inputs, torch.sin(inputs[:, :3])


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    inputs, targets = data(step)
    return nn.functional.mse_loss(net(inputs), targets)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, first: int = 0, scheduler=None) -> None:
    """The loop that everybody writes."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in net.parameters()])


@pytest.fixture
def remote(server: WarmServer) -> Iterator[Callable[..., RemoteOptimizer]]:
    """Makes RemoteOptimizers on the common server; ends them and closes their sessions."""
    made: list[RemoteOptimizer] = []

    def make(params: Any, **options: Any) -> RemoteOptimizer:
        made.append(RemoteOptimizer(params, **{"address": server.address, "timeout_s": 20.0, **options}))
        return made[-1]

    yield make
    for optimizer in made:
        for session in optimizer.sessions:
            try:
                session.close()
            except (errors.SessionNotFound, RuntimeError):
                continue
    for optimizer in made:
        optimizer.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As on the server: the last bit of a decomposition depends on threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TWINS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}, {}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"optimizer": "sgd"}),
    "adam": (torch.optim.Adam, {"lr": 0.01}, {}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}, {}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.003, "momentum": 0.5, "centered": True}, {}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05, "weight_decay": 1e-3}, {}),
}


@pytest.mark.parametrize("name", TWINS)
def test_one_changed_line_trains_the_same_model(remote, name: str) -> None:
    kind, settings, words = TWINS[name]
    local, distant = model(), model()
    train(local, kind(local.parameters(), **settings))
    train(distant, remote(distant.parameters(), **{"optimizer": name, **settings, **words}))
    assert not torch.allclose(weights(local), weights(model()), atol=1e-2)  # it moved at all
    torch.testing.assert_close(weights(distant), weights(local), rtol=2e-4, atol=2e-5)


VARIANTS: list[dict[str, Any]] = [
    *({"recipe": name} for name in RECIPES),
    {"recipe": "sgd", "momentum": 0.9, "nesterov": True},
    {"recipe": "rmsprop", "momentum": 0.5, "centered": True},
    {"recipe": "rgd", "alpha": 0.0, "delta": 4.0},
    {"recipe": "rgd", "form": "euler"},
    {"recipe": "vradam", "norm": "tensor", "weight_decay": 0.1},
    {"recipe": "cgd", "metric": "full", "lr": 1e-3},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: " ".join(map(str, s.values())))
def test_every_recipe_is_the_local_optimizer(remote, one_thread, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    recipe = settings.pop("recipe")
    local, distant = model(), model()
    ours = remote(distant.parameters(), optimizer=recipe, **settings)
    theirs = Hermosis(local.parameters(), recipe, **settings)
    for net, optimizer in ((local, theirs), (distant, ours)):
        train(net, optimizer, steps=8, scheduler=lr_scheduler.ExponentialLR(optimizer, 0.9))
    assert not torch.equal(weights(distant), weights(model()))
    # To the bit where the server steps through the flows; its fused pass rounds in an order of its own.
    torch.testing.assert_close(weights(distant), weights(local), rtol=1e-4, atol=1e-5)


def test_the_weights_in_the_model_are_the_point_the_next_gradient_belongs_to(remote) -> None:
    """At momentum so small that nothing is left of the first gradient, two half drifts make a whole one."""
    parameter = nn.Parameter(torch.zeros(3))
    settings = {"optimizer": "rgd", "lr": 1.0, "momentum": 1e-3, "delta": 0.0}
    optimizer = remote([parameter], **settings)
    gain = 2.0  # of a gradient in the conformal form
    parameter.grad = torch.ones(3)
    optimizer.step()
    after = parameter.detach().clone()
    # Half a drift to the end of the step, and half of the next with what the bath has left of the momentum.
    torch.testing.assert_close(after, torch.full((3,), -gain * (1 + 1e-3) / 2))
    assert torch.equal(torch.from_numpy(optimizer.sessions[0].pull().flat.copy()), after)


def test_learning_rate_schedules_count_at_every_step(remote) -> None:
    local, distant = model(), model()
    ours = remote(distant.parameters(), optimizer="adam", lr=0.02)
    theirs = torch.optim.Adam(local.parameters(), lr=0.02)
    for net, optimizer in ((local, theirs), (distant, ours)):
        warm_up = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - 5)
        train(net, optimizer, scheduler=lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[5]))
    torch.testing.assert_close(weights(distant), weights(local), rtol=2e-4, atol=2e-5)
    rates = [reading.energies.learning_rate for reading in ours.sessions[0].history()]
    assert rates[0] == pytest.approx(0.002)
    assert max(rates) == pytest.approx(0.02)
    assert rates[-1] < 0.001


def test_a_learning_rate_of_zero_leaves_the_parameters(remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optimizer="sgd", lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.0
    train(net, optimizer, steps=2)
    assert torch.equal(weights(net), weights(model()))
    assert optimizer.last_result.step == 2


def test_param_groups_have_settings_and_learning_rates_of_their_own(remote) -> None:
    def groups(net: nn.Module) -> list[dict[str, Any]]:
        return [
            {"params": net[0].parameters(), "lr": 0.03, "weight_decay": 0.2},
            {"params": [*net[1].parameters(), *net[3].parameters()]},
        ]

    local, distant = model(), model()
    theirs = torch.optim.AdamW(groups(local), lr=0.01, weight_decay=0.0)
    ours = remote(groups(distant), optimizer="adamw", lr=0.01, weight_decay=0.0)
    train(local, theirs)
    train(distant, ours)
    torch.testing.assert_close(weights(distant), weights(local), rtol=2e-4, atol=2e-5)
    assert len(ours.sessions) == len(ours.last_results) == 2
    assert ours.sessions[0].learning_rate() == 0.03


def test_a_group_that_is_added_later_is_trained_from_then_on(remote) -> None:
    local, distant = model(), model()
    theirs = torch.optim.SGD(local[3].parameters(), lr=0.1, momentum=0.9)
    ours = remote(distant[3].parameters(), optimizer="sgd", lr=0.1, momentum=0.9)
    for net, optimizer in ((local, theirs), (distant, ours)):
        train(net, optimizer, steps=5)
        optimizer.add_param_group({"params": net[0].parameters(), "lr": 0.05})
        train(net, optimizer, steps=5, first=5)
    torch.testing.assert_close(weights(distant), weights(local), rtol=2e-4, atol=2e-5)


def test_frozen_parameters_stay_out_of_the_session(remote) -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = remote(net.parameters(), optimizer="adamw", lr=0.01, weight_decay=0.5)
    train(net, optimizer, steps=3)
    assert torch.equal(net[0].weight, model()[0].weight)
    assert not torch.equal(net[3].weight, model()[3].weight)
    net[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match="frozen when the optimizer was made"):
        train(net, optimizer, steps=1)


@pytest.mark.parametrize("recipe", [Recipe("sgd", lr=0.1, momentum=0.9), Recipe("adam", lr=0.01)], ids=lambda r: r.name)
def test_worker_held_parameters_are_the_servers_bit_for_bit(remote, recipe: Recipe) -> None:
    server_held, worker_held = model(), model()
    train(server_held, remote(server_held.parameters(), optimizer=recipe))
    train(worker_held, remote(worker_held.parameters(), optimizer=recipe, parameters_on="worker"))
    assert torch.equal(weights(server_held), weights(worker_held))


@pytest.mark.parametrize("parameters_on", ["server", "worker"])
def test_saved_and_loaded_is_uninterrupted_to_the_bit(remote, parameters_on: str) -> None:
    def make(net: nn.Module) -> tuple[RemoteOptimizer, lr_scheduler.LRScheduler]:
        groups = [{"params": net[0].parameters()}, {"params": net[3].parameters(), "lr": 0.005}]
        optimizer = remote(groups, optimizer="adam", lr=0.01, parameters_on=parameters_on, worker_id="w")
        return optimizer, lr_scheduler.ExponentialLR(optimizer, 0.95)

    uninterrupted = model()
    optimizer, scheduler = make(uninterrupted)
    train(uninterrupted, optimizer, steps=10, scheduler=scheduler)
    file = io.BytesIO()
    saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(saved, file)
    train(uninterrupted, optimizer, steps=10, first=10, scheduler=scheduler)

    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    restored = model(seed=99)
    restored[1].load_state_dict(uninterrupted[1].state_dict())  # which no optimizer trains here
    again, its_scheduler = make(restored)
    again.load_state_dict(loaded["optimizer"])
    its_scheduler.load_state_dict(loaded["scheduler"])
    train(restored, again, steps=10, first=10, scheduler=its_scheduler)
    assert torch.equal(weights(restored), weights(uninterrupted))
    assert [session.digest() for session in again.sessions] == [session.digest() for session in optimizer.sessions]
    cold = model(seed=99)
    its_optimizer, its_scheduler = make(cold)
    train(cold, its_optimizer, steps=10, first=10, scheduler=its_scheduler)
    assert not torch.equal(weights(cold), weights(uninterrupted))


def test_loading_gives_the_tensors_the_saved_parameters(remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optimizer="adam", lr=0.01)
    train(net, optimizer, steps=3)
    saved, then = optimizer.state_dict(), weights(net)
    train(net, optimizer, steps=3)
    optimizer.load_state_dict(saved)
    assert torch.equal(weights(net), then)
    train(net, optimizer, steps=1)  # its own worker followed to the new generation
    assert optimizer.last_result.generation == 2


def test_state_of_another_kind_is_refused(remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optimizer="adam", lr=0.01)
    with pytest.raises(ValueError, match="only a state_dict of a RemoteOptimizer"):
        optimizer.load_state_dict(torch.optim.Adam(net.parameters()).state_dict())
    held = remote(model().parameters(), optimizer="adam", lr=0.01, parameters_on="worker")
    with pytest.raises(ValueError, match="another parameters_on"):
        optimizer.load_state_dict(held.state_dict())
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(optimizer)
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(optimizer)


def test_loss_of_the_closure_reaches_the_telemetry(remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optimizer="sgd", lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    returned = optimizer.step(closure)
    reading = optimizer.sessions[0].telemetry()
    assert reading.energies.loss == returned.item() == loss_of(model(), 0).item()
    optimizer.step(loss=torch.tensor(0.25), sample_count=16)
    assert optimizer.last_result.energies.loss == 0.25
    optimizer.step()
    assert math.isnan(optimizer.last_result.energies.loss)


def test_non_finite_gradient_changes_nothing_and_warns_once(remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optimizer="adam", lr=0.01)
    train(net, optimizer, steps=2)
    before = weights(net)
    net[0].weight.grad[0, 0] = math.nan
    with pytest.warns(RuntimeWarning, match="NON_FINITE_GRADIENT"):
        optimizer.step()
    assert optimizer.last_result.outcome is Outcome.NON_FINITE_GRADIENT
    assert torch.equal(weights(net), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    train(net, optimizer, steps=1)
    assert optimizer.last_result.step == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_model_of_another_dtype_keeps_it_while_the_master_is_float32(remote, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(100, dtype=dtype))
    optimizer = remote([parameter], optimizer="sgd", lr=1e-4)
    for _ in range(10):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    master = torch.from_numpy(optimizer.sessions[0].pull().flat.copy())
    torch.testing.assert_close(master, torch.full((100,), 1 - 1e-3), rtol=1e-6, atol=0)  # nothing was rounded away
    assert parameter.dtype == dtype
    assert torch.equal(parameter.detach(), master.to(dtype))


@pytest.mark.parametrize("parameters_on", ["server", "worker"])
def test_bfloat16_on_the_wire_trains_nearly_alike(remote, parameters_on: str) -> None:
    exact, narrow = model(), model()
    train(exact, remote(exact.parameters(), optimizer="sgd", lr=0.1, momentum=0.9))
    optimizer = remote(
        narrow.parameters(),
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        gradient_dtype="bfloat16",
        reply_dtype="bfloat16",
        parameters_on=parameters_on,
    )
    train(narrow, optimizer)
    assert optimizer.sessions[0].telemetry().received_bytes == 2 * weights(narrow).numel()
    assert not torch.equal(weights(narrow), weights(exact))
    torch.testing.assert_close(weights(narrow), weights(exact), rtol=0.05, atol=0.02)


def test_settings_that_cannot_change_are_guarded(remote) -> None:
    net = model()
    optimizer = remote(net.parameters(), optimizer="sgd", lr=0.1, momentum=0.9)
    lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=10)  # cycles the momentum too, unless told not to
    with pytest.raises(ValueError, match=r"momentum of a param_group was changed from 0\.9"):
        train(net, optimizer, steps=1)


def test_mistakes_are_said_before_anything_starts() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    for options, message in [
        ({}, "name an optimizer"),
        ({"session": "s", "address": "127.0.0.1:1", "lr": 1, "momentum": 0.5}, "leave out"),
        ({"session": "s"}, "the address of its server"),
    ]:
        with pytest.raises(ValueError, match=message):
            RemoteOptimizer(parameters, **options)


def test_refused_settings_and_tensors_are_named(remote) -> None:
    with pytest.raises(errors.InvalidHyperparameter, match="momentun"):
        remote(model().parameters(), optimizer="sgd", momentun=0.9)
    with pytest.raises(TypeError, match="complex64"):
        remote([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], optimizer="sgd")
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        remote([torch.zeros(2)], optimizer="sgd")


def test_names_of_the_parameters_become_those_of_the_session(remote) -> None:
    net = model()
    optimizer = remote(net.named_parameters(), optimizer="sgd", lr=0.1)
    assert [tensor.name for tensor in optimizer.sessions[0].layout.tensors] == [
        name for name, _ in net.named_parameters()
    ]
    train(net, optimizer, steps=1)


def test_joining_takes_the_parameters_and_the_settings_over(remote, server: WarmServer) -> None:
    first = model()
    optimizer = remote(first.parameters(), optimizer="adam", lr=0.01)
    train(first, optimizer, steps=3)
    session_id = optimizer.sessions[0].session_id
    second = model(seed=5)
    joined = remote(second.parameters(), session=session_id)
    assert joined.param_groups[0]["lr"] == 0.01
    assert torch.equal(weights(second), weights(first))
    train(second, joined, steps=1)
    with pytest.raises(errors.StaleGradient):
        train(first, optimizer, steps=1)
    optimizer.pull()
    assert torch.equal(weights(second), weights(first))
    train(first, optimizer, steps=1)
    with pytest.raises(ValueError, match="differ from tensor 0"):
        remote([nn.Parameter(torch.zeros(4))], session=session_id)
    with pytest.raises(ValueError, match="other settings"):
        remote(model().parameters(), session=session_id, optimizer="adam", lr=0.02)
    with (
        Client(server.address) as client,
        RemoteOptimizer(second.parameters(), session=client.session(session_id)) as own,
    ):
        train(second, own, steps=1)


def test_a_private_server_starts_and_ends_with_its_optimizer() -> None:
    net = model()
    optimizer = RemoteOptimizer(net.parameters(), optimizer="sgd", lr=0.1)
    train(net, optimizer, steps=2)
    assert optimizer.last_result.step == 2
    (session,) = optimizer.sessions
    assert session.info().status is SessionStatus.READY
    optimizer.close()
    optimizer.close()
    with pytest.raises(RuntimeError, match="closed"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="closed"):
        session.info()
