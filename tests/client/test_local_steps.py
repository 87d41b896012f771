"""Workers that take steps by themselves, and a round now and then."""

import threading

import numpy as np
import pytest
import torch

from hermosis_client import Client, Consistency, Recipe, Session
from hermosis_client.torch_local import LocalSteps


def model(seed: int = 1) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(3, 2)


def started(client: Client, net: torch.nn.Linear, recipe: Recipe, workers: int, steps: int = 4) -> Session:
    arrays = {name: tensor.detach().numpy() for name, tensor in net.named_parameters()}
    rule = Consistency(mode="local", workers=workers, local_steps=steps)
    session = client.create_session(arrays, recipe, consistency=rule)
    session.initialise(arrays)
    return session


def descend(net: torch.nn.Linear, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 3, generator=generator)
    loss = (net(inputs) - inputs[:, :2]).square().mean()
    net.zero_grad()
    loss.backward()
    return float(loss.detach())


def flat(net: torch.nn.Linear) -> np.ndarray:
    return torch.cat([tensor.detach().reshape(-1) for tensor in net.parameters()]).numpy()


def test_one_worker_with_a_plain_outer_step_goes_where_the_inner_optimizer_goes(client: Client) -> None:
    """The outer optimizer is SGD with lr 1: begin less (begin less end) is the end."""
    net, twin = model(), model()
    session = started(client, net, Recipe("sgd", lr=1.0), workers=1)
    local = LocalSteps(torch.optim.SGD(net.parameters(), lr=0.1), session)
    inner = torch.optim.SGD(twin.parameters(), lr=0.1)
    for seed in range(8):
        for each, optimizer in ((net, local), (twin, inner)):
            descend(each, seed)
            optimizer.step()
    np.testing.assert_allclose(flat(net), flat(twin), rtol=1e-5, atol=1e-6)
    assert session.info().step == 2, "a round every four steps"
    local.close()


def test_workers_go_on_from_the_mean_of_where_they_came_to(client: Client) -> None:
    nets = [model(), model()]
    session = started(client, nets[0], Recipe("sgd", lr=1.0), workers=2)
    ends: list[np.ndarray] = [np.empty(0)] * 2

    def work(place: int) -> None:
        local = LocalSteps(torch.optim.SGD(nets[place].parameters(), lr=0.1), session, worker_id=f"w{place}")
        inner = local.optimizer
        for seed in range(4):
            descend(nets[place], 10 * place + seed)
            if seed == 3:
                inner.step()
                ends[place] = flat(nets[place])
                local.exchange()
            else:
                local.step()
        local.close()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for net in nets:
        np.testing.assert_allclose(flat(net), np.mean(ends, axis=0), rtol=1e-5, atol=1e-6)


def test_other_parameters_than_the_sessions_are_refused(client: Client) -> None:
    session = started(client, model(), Recipe("sgd", lr=1.0), workers=1)
    other = torch.optim.SGD(torch.nn.Linear(5, 5).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="shapes"):
        LocalSteps(other, session)
