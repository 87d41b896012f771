"""Overlap changes when bytes travel and who waits, and nothing else. Order is shown by order, never by time."""

import asyncio
import copy
import gc
import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.faults.proxy import Proxy
from tests.forking import WarmServer
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.hooks import RemovableHandle

from hermosis_client import Client, Outcome, errors
from hermosis_client.torch_optimizer import RemoteOptimizer
from hermosis_client.torch_pending import PendingParameter

WIDE = 700  # a layer of it has half a million elements, which is two chunks
SHARED_MEMORY = "HERMOSIS_SHARED_MEMORY"


class Network(nn.Module):
    """Layers larger than a chunk, tied weights, a frozen tensor, and weights that are read past their module."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(8, WIDE)
        self.frozen = nn.Linear(WIDE, WIDE).requires_grad_(False)
        self.middle = nn.Linear(WIDE, WIDE)
        self.norm = nn.LayerNorm(WIDE)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)  # never calls its out_proj
        self.head = nn.Linear(WIDE, 8)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.embed(inputs))
        hidden = self.norm(hidden + 0.1 * self.middle(hidden) + 0.1 * self.frozen(hidden))
        outputs = self.head(hidden) + hidden @ self.embed.weight / WIDE  # tied
        attended, _ = self.attention(outputs[None], outputs[None], outputs[None])
        return self.scale * (outputs + attended[0])


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0, scheduler: Any = None) -> None:
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def loss_of(net: nn.Module, step: int, rows: slice = slice(None)) -> torch.Tensor:
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return nn.functional.mse_loss(net(inputs[rows]), torch.sin(3 * inputs[rows]))


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in net.parameters()])


def before_backward_of(layer: nn.Module, function: Callable[..., None]) -> RemovableHandle:
    return layer.register_forward_hook(lambda _, __, outputs: outputs.register_hook(function) and None)


def pending(net: nn.Module) -> list[str]:
    return [name for name, tensor in net.named_parameters() if isinstance(tensor, PendingParameter)]


@pytest.fixture
def remote(server: WarmServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RemoteOptimizer]]:
    """Makes RemoteOptimizers, over the wire unless said otherwise, and closes their sessions."""
    made: list[RemoteOptimizer] = []

    def make(params: Any, *, shared_memory: bool = False, **options: Any) -> RemoteOptimizer:
        monkeypatch.setenv(SHARED_MEMORY, str(int(shared_memory)))
        made.append(RemoteOptimizer(params, **{"address": server.address, "timeout_s": 20.0, **options}))
        return made[-1]

    yield make
    with Client(server.address) as client:
        for optimizer in made:
            for session in optimizer.sessions:
                try:
                    client.session(session.session_id).close()
                except errors.SessionNotFound:
                    continue
    for optimizer in made:
        try:
            optimizer.close()
        except errors.HermosisError:
            continue


@pytest.mark.parametrize("shared_memory", [False, True], ids=["wire", "segment"])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9},
        {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        {"optimizer": "hermosis", "lr": 0.01},
        {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "parameters_on": "worker"},
        {"optimizer": "adam", "lr": 1e-3, "gradient_dtype": "bfloat16", "reply_dtype": "bfloat16"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_overlap_changes_no_number(remote, settings: dict[str, Any], shared_memory: bool) -> None:
    nets = Network(), Network()
    for net, overlap in zip(nets, (False, True), strict=True):
        head = {id(tensor) for tensor in net.head.parameters()}
        groups = [
            {"params": [tensor for tensor in net.parameters() if id(tensor) not in head]},
            {"params": net.head.parameters(), "lr": settings["lr"] / 2},
        ]
        optimizer = remote(groups, overlap=overlap, shared_memory=shared_memory, worker_id="w", **settings)
        train(net, optimizer, 6, scheduler=lr_scheduler.ExponentialLR(optimizer, 0.9))
        assert [result.step for result in optimizer.last_results] == [6, 6]
    assert not torch.equal(weights(nets[0]), weights(Network()))
    assert torch.equal(weights(nets[0]), weights(nets[1]))


def test_two_workers_train_the_same_model_with_overlap_as_without(remote, server: WarmServer) -> None:
    def run(name: str, overlap: bool) -> torch.Tensor:
        nets = [Network(), Network()]

        def work(number: int) -> None:
            rows = slice(0, 10) if number == 0 else slice(10, 16)
            for step in range(5):
                optimizers[number].zero_grad()
                loss_of(nets[number], step, rows).backward()
                optimizers[number].step(sample_count=rows.stop - rows.start)

        options = {"session": name, "optimizer": "adam", "lr": 1e-3, "workers": 2, "overlap": overlap}
        optimizers = [remote(net.parameters(), worker_id=f"w{number}", **options) for number, net in enumerate(nets)]
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(weights(nets[0]), weights(nets[1]))
        assert optimizers[0].last_result.step == 5
        return weights(nets[0])

    assert torch.equal(run("overlap-off", False), run("overlap-on", True))


class Gate(Proxy):
    """A proxy that also holds back, or cuts off, what the server answers after so many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._left: int | None = None
        self._cuts = False
        self._opened = asyncio.Event()

    def hold_back_after(self, count: int) -> None:
        self._call(lambda: self._limit(count, cuts=False))

    def cut_back_after(self, count: int) -> None:
        self._call(lambda: self._limit(count, cuts=True))

    def let_go(self) -> None:
        self._call(self._opened.set)

    def _limit(self, count: int, *, cuts: bool) -> None:
        self._opened.clear()
        self._left, self._cuts = count, cuts

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 14):
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    self._left = None
                    if self._cuts:
                        break
                    await self._opened.wait()
            await self._write(writer, piece)
        raise ConnectionResetError


@pytest.fixture
def gate(server: WarmServer) -> Iterator[Gate]:
    made = Gate()
    made.open(server.address)
    yield made
    made.close()


def test_gradients_leave_while_backward_goes_on(remote, client: Client) -> None:
    """Backward of the first layer does not go on before the server has a chunk of what comes after it."""
    net = Network()
    optimizer = remote(net.parameters(), optimizer="sgd", lr=1e-3, overlap=True)
    train(net, optimizer, 1)  # the first contribution of a stream leaves in order
    optimizer.wait()
    before = client.overview().received_bytes
    came = []

    def wait_for_a_chunk(*_: Any) -> None:
        deadline = time.monotonic() + 20
        while client.overview().received_bytes < before + 900_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        came.append(client.overview().received_bytes - before)

    before_backward_of(net.embed, wait_for_a_chunk)
    train(net, optimizer, 1, first=1)
    assert came[0] >= 900_000
    assert optimizer.last_result.step == 2


def test_forward_goes_on_while_the_last_layers_are_on_their_way(remote, gate: Gate) -> None:
    """The gate lets one chunk through, of two, until forward has used what is in it."""
    net, twin = Network(), Network()
    optimizer = remote(net.parameters(), address=gate.address, optimizer="sgd", lr=1e-3, overlap=True)
    local = remote(twin.parameters(), optimizer="sgd", lr=1e-3)
    train(net, optimizer, 1)
    optimizer.wait()
    optimizer.zero_grad()
    loss_of(net, 1).backward()
    gate.hold_back_after(1_200_000)
    optimizer.step()
    missing = []

    def used(*_: Any) -> None:
        missing.append(pending(net))
        gate.let_go()

    handle = net.embed.register_forward_hook(used)
    train(net, optimizer, 1, first=2)
    handle.remove()
    train(twin, local, 3)
    assert set(missing[0]) >= {"middle.weight", "head.weight", "attention.out_proj.weight"}
    assert not {"embed.weight", "embed.bias"} & set(missing[0])
    assert torch.equal(weights(net), weights(twin))


@pytest.mark.parametrize("where", ["gradient", "answer"])
def test_a_cut_on_the_way_changes_no_number(remote, gate: Gate, where: str) -> None:
    net, twin = Network(), Network()
    optimizer = remote(net.parameters(), address=gate.address, optimizer="adam", lr=1e-3, overlap=True)
    train(net, optimizer, 2)
    optimizer.wait()
    connections = gate.connections
    if where == "gradient":
        cut = gate.cut_after(500_000)
        handle = before_backward_of(net.embed, lambda *_: cut.wait(20) and None)
        train(net, optimizer, 1, first=2)
        handle.remove()
    else:
        gate.cut_back_after(1_200_000)
        train(net, optimizer, 1, first=2)
    train(net, optimizer, 2, first=3)
    assert gate.connections > connections
    assert optimizer.last_result.step == 5
    train(twin, remote(twin.parameters(), optimizer="adam", lr=1e-3), 5)
    assert torch.equal(weights(net), weights(twin))


def test_gradients_that_add_up_are_sent_once(remote) -> None:
    nets = Network(), Network()
    optimizers = [remote(net.parameters(), optimizer="sgd", lr=1e-3, overlap=net is nets[1]) for net in nets]
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            with optimizer.no_sync():
                loss_of(net, 2 * step).backward()
            loss_of(net, 2 * step + 1).backward()
            optimizer.step()
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    optimizers[1].zero_grad()
    loss_of(nets[1], 6).backward()
    with pytest.raises(RuntimeError, match=r"came to parameter .* a second time.*no_sync"):
        loss_of(nets[1], 7).backward()


def clip(net: nn.Module) -> None:
    nn.utils.clip_grad_norm_(net.parameters(), 1e-2)


def unscale(net: nn.Module) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(torch.optim.SGD(net.parameters()))


def lose(net: nn.Module) -> None:
    net.zero_grad()


@pytest.mark.parametrize("change", [clip, unscale, lose])
def test_a_gradient_that_is_changed_after_it_was_sent_is_told(remote, change: Callable[[nn.Module], None]) -> None:
    nets = Network(), Network()
    plain = remote(nets[0].parameters(), optimizer="sgd", lr=1e-3)
    optimizer = remote(nets[1].parameters(), optimizer="sgd", lr=1e-3, overlap=True)
    for step in range(2):
        for net, each in zip(nets, (plain, optimizer), strict=True):
            each.zero_grad()
            with each.no_sync():
                loss_of(net, step).backward()
            change(net)
            each.step()
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    optimizer.zero_grad()
    loss_of(nets[1], 2).backward()
    change(nets[1])
    with pytest.raises(RuntimeError, match="was changed after backward"):
        optimizer.step()
    optimizer.step()  # what was sent is forgotten: now they go as they are
    plain.zero_grad()
    loss_of(nets[0], 2).backward()
    change(nets[0])
    plain.step()
    assert torch.equal(weights(nets[0]), weights(nets[1]))


def test_tensors_without_a_gradient_and_loss_scales_are_as_ever(remote) -> None:
    nets = Network(), Network()
    for net in nets:
        options = {"optimizer": "adam", "lr": 1e-3, "overlap": net is nets[1], "loss_scale": "dynamic"}
        optimizer = remote(net.parameters(), **options)
        for step in range(4):
            optimizer.zero_grad()
            loss = net.embed.weight.square().sum() if step % 2 else loss_of(net, step)
            (loss * optimizer.loss_scale).backward()
            optimizer.step()
        assert optimizer.last_result.step == 4
        optimizer.zero_grad()
        optimizer.step()  # of nothing
        assert optimizer.last_result is None
    assert torch.equal(weights(nets[0]), weights(nets[1]))


def test_a_backward_without_a_step_is_taken_back(remote) -> None:
    nets = Network(), Network()
    for net, overlap in zip(nets, (False, True), strict=True):
        optimizer = remote(net.parameters(), optimizer="adam", lr=1e-3, overlap=overlap)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            if step % 2:
                optimizer.step()
        optimizer.zero_grad()
        loss_of(net, 9).backward()
        optimizer.pull()
        assert optimizer.last_result.step == 2
    assert torch.equal(weights(nets[0]), weights(nets[1]))


def average(net: nn.Module) -> torch.Tensor:
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    return weights(averaged.module)


def pickled(net: nn.Module) -> torch.Tensor:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return weights(torch.load(file, weights_only=False))


READERS: dict[str, Callable[[nn.Module], torch.Tensor]] = {
    "detach": weights,
    "data": lambda net: torch.cat([tensor.data.reshape(-1) for tensor in net.parameters()]),
    "state_dict": lambda net: torch.cat([tensor.reshape(-1) for tensor in net.state_dict().values()]),
    "numpy": lambda net: torch.cat([torch.from_numpy(t.detach().numpy()).reshape(-1) for t in net.parameters()]),
    "deepcopy": lambda net: weights(copy.deepcopy(net)),
    "pickle": pickled,
    "vector": lambda net: nn.utils.parameters_to_vector(net.parameters()).detach(),
    "foreach": lambda net: torch.cat([t.reshape(-1) for t in torch._foreach_mul(list(net.parameters()), 1.0)]).detach(),
    "average": average,
    "to": lambda net: weights(copy.copy(net).to(torch.float32)),
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_a_parameter_gets_what_the_step_made_of_it(remote, reader: str) -> None:
    nets = Network(), Network()
    for net, overlap in zip(nets, (False, True), strict=True):
        optimizer = remote(net.parameters(), optimizer="sgd", lr=1e-3, overlap=overlap)
        train(net, optimizer, 2)
        optimizer.zero_grad()
    assert len(pending(nets[1])) == len(list(nets[1].parameters())) - 2
    read = READERS[reader](nets[1])
    assert torch.equal(read, READERS[reader](nets[0]))
    assert pending(nets[1]) == []
    assert {type(tensor) for tensor in nets[1].parameters()} == {nn.Parameter}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_after_a_step_uses_its_parameters(remote, mode: Callable[[], Any]) -> None:
    outputs = []
    for overlap in (False, True):
        net = Network()
        optimizer = remote(net.parameters(), optimizer="sgd", lr=1e-3, overlap=overlap)
        train(net, optimizer, 2)
        with mode():
            outputs.append(net(torch.ones(2, 8)).clone())
        train(net, optimizer, 1)
        assert optimizer.last_result.step == 3
    assert torch.equal(*outputs)


def test_what_a_loop_asks_between_two_steps_waits_for_nothing(remote) -> None:
    net = Network()
    optimizer = remote(net.parameters(), optimizer="sgd", lr=1e-3, overlap=True)
    train(net, optimizer, 1)
    expected = pending(net)
    optimizer.zero_grad()
    shapes = [(tensor.shape, tensor.dtype, tensor.device, tensor.numel()) for tensor in net.parameters()]
    assert shapes == [(tensor.shape, tensor.dtype, tensor.device, tensor.numel()) for tensor in Network().parameters()]
    assert pending(net) == expected


def test_trouble_of_a_step_is_raised_once_by_whoever_waits_next(remote, server: WarmServer, client: Client) -> None:
    net, other = Network(), Network()
    optimizer = remote(net.parameters(), optimizer="sgd", lr=1e-3, overlap=True, worker_id="a")
    train(net, optimizer, 1)
    optimizer.wait()
    rival = remote(other.parameters(), session=optimizer.sessions[0].session_id, overlap=True, worker_id="b")
    train(other, rival, 1)
    rival.wait()
    before = weights(net)
    optimizer.zero_grad()
    loss_of(net, 1).backward()
    optimizer.step()
    with pytest.raises(errors.StaleGradient):
        net.embed.weight.sum()
    assert torch.equal(weights(net), before)
    assert pending(net) == []
    optimizer.pull()
    assert torch.equal(weights(net), weights(other))
    train(net, optimizer, 1)
    assert optimizer.last_result.step == 3


def test_a_gradient_with_nan_changes_nothing_and_is_told(remote) -> None:
    net = Network()
    optimizer = remote(net.parameters(), optimizer="adam", lr=1e-3, overlap=True)
    train(net, optimizer, 1)
    before = weights(net)
    optimizer.zero_grad()
    (loss_of(net, 1) * math.nan).backward()
    optimizer.step()
    with pytest.warns(RuntimeWarning, match="NON_FINITE_GRADIENT"):
        assert optimizer.last_result.outcome is Outcome.NON_FINITE_GRADIENT
    assert torch.equal(weights(net), before)


@pytest.mark.parametrize("parameters_on", ["server", "worker"])
def test_saved_and_loaded_goes_on_to_the_bit(remote, parameters_on: str) -> None:
    options = {"optimizer": "adam", "lr": 1e-3, "overlap": True, "parameters_on": parameters_on, "worker_id": "w"}
    net, restored = Network(), Network(seed=9)
    restored.frozen.load_state_dict(net.frozen.state_dict())
    optimizer, again = remote(net.parameters(), **options), remote(restored.parameters(), **options)
    train(net, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, 2, first=2)
    train(restored, again, 1)
    loss_of(restored, 5).backward()  # which is forgotten
    again.load_state_dict(saved)
    train(restored, again, 2, first=2)
    assert torch.equal(weights(net), weights(restored))


def test_the_model_keeps_the_last_step_of_an_optimizer_that_is_forgotten(
    gate: Gate, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its parameters are held back until nobody knows the optimizer any more."""
    monkeypatch.setenv(SHARED_MEMORY, "0")

    def trained(overlap: bool) -> nn.Module:
        net, name = Network(), f"forgotten-{int(overlap)}"
        options = {"session": name, "optimizer": "sgd", "lr": 1e-3, "address": gate.address, "overlap": overlap}
        optimizer = RemoteOptimizer(net.parameters(), **options)
        train(net, optimizer, 1)
        optimizer.wait()
        if overlap:
            gate.hold_back_after(1_200_000)
            threading.Timer(0.5, gate.let_go).start()
        train(net, optimizer, 1, first=1)
        del optimizer
        gc.collect()
        return net

    ours = trained(True)
    assert torch.equal(weights(ours), weights(trained(False)))
    loss_of(ours, 0).backward()  # nothing is sent any more
    for number in range(2):
        client.session(f"forgotten-{number}").close()


def test_an_error_in_the_middle_waits_for_nobody(server: WarmServer, client: Client) -> None:
    net = Network()
    options = {"session": "left-alone", "optimizer": "sgd", "lr": 1e-3, "address": server.address, "workers": 2}

    def interrupted() -> None:
        with RemoteOptimizer(net.parameters(), overlap=True, **options) as optimizer:
            train(net, optimizer, 1)
            raise KeyboardInterrupt  # the other worker never came

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(weights(net), weights(Network()))
    client.session("left-alone").close()


def test_tensors_of_other_kinds_are_waited_for_by_the_step(remote) -> None:
    plain = torch.zeros(5, requires_grad=True)
    optimizer = remote([plain, nn.Parameter(torch.zeros(2))], optimizer="sgd", lr=1.0, overlap=True)
    (plain.sum() + optimizer.param_groups[0]["params"][1].sum()).backward()
    optimizer.step()
    assert type(plain) is torch.Tensor
    assert torch.equal(plain.detach(), -torch.ones(5))
