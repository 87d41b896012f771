"""Several RemoteOptimizers train one model."""

import json
import subprocess
import sys
import threading

import pytest
import torch
from tests.forking import WarmServer
from torch import nn

from hermosis_client import Client
from hermosis_client.torch_optimizer import RemoteOptimizer

# The same program in every worker; only its number differs.
WORKER = """
import json, sys
import torch
from torch import nn
from hermosis_client.torch_optimizer import RemoteOptimizer

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def minibatch(step):
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return inputs, torch.sin(inputs[:, :3])

def train(net, optimizer, rows, steps=20):
    for step in range(steps):
        inputs, targets = minibatch(step)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(inputs[rows]), targets[rows])
        loss.backward()
        if isinstance(optimizer, RemoteOptimizer):
            optimizer.step(loss=loss)
        else:
            optimizer.step()

def weights(net):
    return torch.cat([tensor.detach().reshape(-1) for tensor in net.parameters()])
"""
RUN = """
address, number = sys.argv[1], int(sys.argv[2])
net = network(seed=number)  # the weights of whoever comes first are taken
rows = slice(0, 12) if number == 0 else slice(12, 16)
with RemoteOptimizer(
    net.parameters(), session="two-processes", optimizer="sgd", lr=0.1, momentum=0.9,
    address=address, worker_id=f"worker-{number}", workers=2, sample_count=rows.stop - rows.start,
) as optimizer:
    train(net, optimizer, rows)
    print(json.dumps({"step": optimizer.last_result.step, "contributions": optimizer.last_result.contributions,
                      "weights": weights(net).tolist()}))
"""


def test_two_processes_train_as_one_on_the_whole_minibatch(server: WarmServer, client: Client) -> None:
    names: dict = {}
    exec(WORKER, names)
    torch.manual_seed(0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER + RUN, server.address, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in (0, 1)
    ]
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    with client.session("two-processes") as session:
        history = session.history()
        session.close()
    assert [output["step"] for output in outputs] == [20, 20]
    assert [output["contributions"] for output in outputs] == [2, 2]
    assert outputs[0]["weights"] == outputs[1]["weights"]
    # Which of the two came first decides the initial weights; the loss of the first step tells.
    candidates = []
    for seed in (0, 1):
        net = names["network"](seed)
        names["train"](net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), slice(0, 16))
        candidates.append(names["weights"](net))
    found = torch.tensor(outputs[0]["weights"])
    assert any(torch.allclose(found, candidate, rtol=1e-4, atol=1e-5) for candidate in candidates)
    assert history[-1].energies.loss < history[0].energies.loss


def test_asynchronous_workers_learn_from_one_another(server: WarmServer) -> None:
    target = torch.linspace(-1, 1, 200)
    optimizers: list[RemoteOptimizer] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            parameter = nn.Parameter(torch.zeros(200))
            optimizer = RemoteOptimizer(
                [parameter],
                session="asynchronous",
                optimizer="sgd",
                lr=0.05,
                address=server.address,
                worker_id=f"w{number}",
                workers=3,
                consistency="async",
            )
            optimizers.append(optimizer)
            for _ in range(40):
                optimizer.zero_grad()
                loss = 0.5 * (parameter - target).square().sum()
                loss.backward()
                optimizer.step(loss=loss)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert failures == []
    (session,) = optimizers[0].sessions
    assert session.info().step == 120
    assert {worker.next_sequence for worker in session.workers()} == {41}
    torch.testing.assert_close(torch.from_numpy(session.pull().flat), target, rtol=0, atol=0.02)
    session.close()
    for optimizer in optimizers:
        optimizer.close()


def test_worker_with_other_settings_is_refused(server: WarmServer) -> None:
    def make(workers: int) -> RemoteOptimizer:
        return RemoteOptimizer(
            [nn.Parameter(torch.zeros(3))],
            session="agreed",
            optimizer="sgd",
            lr=0.1,
            address=server.address,
            workers=workers,
        )

    with make(2) as first:
        with pytest.raises(ValueError, match="exists with other settings"):
            make(3)
        first.sessions[0].close()
