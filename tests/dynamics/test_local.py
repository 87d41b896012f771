"""Hermosis as a torch optimizer: what a training loop expects of one, and what the server would have done."""

import copy
import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hermosis_server.dynamics import RECIPES, Hermosis, resolve
from hermosis_server.errors import CorruptState, InvalidHyperparameter

from .batches import batch_of

DTYPES = [torch.float32, torch.float64]


def model(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3)).to(device, dtype)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    """Full passes over data that depend on the step alone."""
    p = next(network.parameters())
    for step in steps:
        source = torch.Generator().manual_seed(step)
        x = torch.randn(16, 7, generator=source).to(p)
        target = torch.sin(x[:, :3])

        def closure(x: Tensor = x, target: Tensor = target) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (network(x) - target).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss = optimizer.step(closure)  # type: ignore[arg-type]
    assert isinstance(loss, Tensor)
    return float(loss.detach())


def flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_a_network(recipe: str, device: torch.device) -> None:
    network = model(device)
    lr = 0.1 if recipe in ("sgd", "nesterov", "rgd", "hermosis", "hermosis_literal", "adagrad") else 0.01
    optimizer = Hermosis(network.parameters(), recipe, lr=lr)
    first = train(network, optimizer, range(1))
    last = train(network, optimizer, range(1, 150))
    assert last < 0.5 * first
    (sample,) = optimizer.samples
    assert sample.loss == last
    assert sample.learning_rate == pytest.approx(lr)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_saved_state_goes_on_bit_for_bit(recipe: str, dtype: torch.dtype, device: torch.device) -> None:
    network = model(device, dtype)
    optimizer = Hermosis(network.parameters(), recipe)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(network, optimizer, range(5))
    schedule.step()
    saved = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], saved)
    train(network, optimizer, range(5, 10))

    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    restored = model(device, dtype)
    restored.load_state_dict(weights)
    cold = copy.deepcopy(restored)
    again = Hermosis(restored.parameters(), recipe)
    again.load_state_dict(state)
    train(restored, again, range(5, 10))
    assert torch.equal(flat(restored), flat(network))
    assert str(again.samples) == str(optimizer.samples)  # in which NaN equals NaN
    train(cold, Hermosis(cold.parameters(), recipe), range(5, 10))
    if recipe != "sgd":  # plain SGD has nothing to remember but its learning rate
        assert not torch.equal(flat(cold), flat(network))


def test_state_of_another_optimizer_is_refused(device: torch.device) -> None:
    network = model(device)
    optimizer = Hermosis(network.parameters(), "adamw")
    with pytest.raises(CorruptState, match="lacks a phase state"):
        optimizer.load_state_dict(torch.optim.AdamW(network.parameters()).state_dict())
    for other in (Hermosis(network.parameters(), "sgd"), Hermosis(network.parameters(), "adamw", row_elements=64)):
        with pytest.raises(CorruptState, match="use the same recipe and row_elements"):
            optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("recipe", RECIPES)
def test_local_group_moves_as_a_session_of_the_batch(recipe: str, device: torch.device) -> None:
    network = model(device)
    shapes = [tuple(p.shape) for p in network.parameters()]
    batch = batch_of(resolve(recipe, {}), [flat(network)], row_elements=64, shapes=shapes)
    optimizer = Hermosis(network.parameters(), recipe, row_elements=64)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = resolve(recipe, {}).learning_rate * (1 - step / 10)
        train(network, optimizer, range(step, step + 1))
        gradient = torch.cat([p.grad.reshape(-1) for p in network.parameters() if p.grad is not None])
        lr_scale = float(optimizer.param_groups[0]["lr"]) / optimizer.param_groups[0]["reference_lr"]
        batch.step(batch.rows_of([gradient]), [optimizer.samples[0].loss], [lr_scale])
        assert batch.state.position is not None
        assert torch.equal(batch.vectors_of(batch.state.position)[0], flat(network))


def test_cut_into_tensors_is_invisible(device: torch.device) -> None:
    whole = torch.randn(120, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
    parts = [piece.detach().clone().requires_grad_() for piece in torch.split(whole, [7, 0, 113])]
    one = Hermosis([whole], "rgd", delta=1e4)
    many = Hermosis(parts, "rgd", delta=1e4)
    for step in range(5):
        whole.grad = torch.cos(whole.detach() + step)
        for part, gradient in zip(parts, torch.split(whole.grad, [7, 0, 113]), strict=True):
            part.grad = gradient.clone()
        one.step()
        many.step()
    assert torch.equal(torch.cat([part.detach() for part in parts]), whole.detach())


def test_parameter_without_gradient_is_kicked_with_zero(device: torch.device) -> None:
    """Momentum goes on and decay acts; a group that never had a gradient only decays."""
    moving, resting = (torch.ones(3, device=device, requires_grad=True) for _ in range(2))
    optimizer = Hermosis([moving, resting], "sgd", lr=0.1, momentum=0.5, weight_decay=0.1)
    moving.grad = torch.ones(3, device=device)
    optimizer.step()
    place = moving.detach().clone()
    moving.grad = None
    optimizer.step()
    assert (moving < place).all()
    assert (resting < 1).all()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_step_that_meets_nan_changes_nothing_in_its_group(recipe: str, poison: float, device: torch.device) -> None:
    sick, well = (torch.linspace(1, 2, 5, device=device).requires_grad_() for _ in range(2))
    optimizer = Hermosis([{"params": [sick]}, {"params": [well]}], recipe)

    def kick(value: float) -> None:
        sick.grad, well.grad = torch.full_like(sick, value), torch.ones_like(well)
        optimizer.step(loss=1.0)

    kick(1.0)
    before = copy.deepcopy(optimizer.state_dict()["phase_states"])
    place, other = sick.detach().clone(), well.detach().clone()
    kick(poison)
    after = optimizer.state_dict()["phase_states"]
    assert torch.equal(sick, place)
    for name, tensor in before[0].items():
        assert torch.equal(after[0][name].nan_to_num(nan=-7), tensor.nan_to_num(nan=-7))
    assert not torch.equal(well, other)
    kick(1.0)
    assert not torch.equal(sick, place)


def test_groups_have_settings_and_norms_of_their_own(device: torch.device) -> None:
    slow, fast = (torch.ones(4, device=device, requires_grad=True) for _ in range(2))
    optimizer = Hermosis(
        [{"params": [slow], "max_step": 0.01}, {"params": [fast]}], lr=1.0, max_step=0.5, metric="euclidean"
    )
    slow.grad, fast.grad = torch.full_like(slow, 1e6), torch.full_like(fast, 1e6)
    optimizer.step()
    steps = [float((1 - p.detach()).norm()) for p in (slow, fast)]
    # Two half drifts at the limit, in the norm of the normalised momentum: X·X/A, with A cooling in between.
    longer = (1 + 0.9**-0.5) / 2 / math.sqrt(-math.log(0.9))
    assert steps == pytest.approx([0.01 * longer, 0.5 * longer], rel=1e-5)
    assert [sample.step_norm for sample in optimizer.samples] == pytest.approx(steps, rel=1e-5)


def test_setting_changed_in_a_group_takes_effect_and_one_that_needs_other_state_is_refused(
    device: torch.device,
) -> None:
    p = torch.ones(4, device=device, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = Hermosis([p], "rmsprop")
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    assert optimizer.samples[0].retention == 0.5
    optimizer.param_groups[0]["centered"] = True
    with pytest.raises(InvalidHyperparameter, match="make a new optimizer"):
        optimizer.step()


def test_loss_of_every_kind_reaches_the_energies(device: torch.device) -> None:
    p = torch.ones(4, device=device, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = Hermosis([p])
    assert math.isnan(optimizer.samples[0].loss)
    losses: list[float | Tensor] = [2.5, torch.tensor(2.5), torch.tensor([2.5], device=device, dtype=torch.float64)]
    for loss in losses:
        assert optimizer.step(loss=loss) is loss
        assert optimizer.samples[0].loss == 2.5
    optimizer.step()
    assert math.isnan(optimizer.samples[0].loss)
    assert math.isnan(optimizer.samples[0].internal_energy)
    assert math.isfinite(optimizer.samples[0].kinetic_energy)


def test_group_of_no_elements_is_harmless(device: torch.device) -> None:
    optimizer = Hermosis([torch.empty(0, 3, device=device, requires_grad=True)])
    optimizer.step(loss=1.0)
    assert optimizer.samples[0].step_norm == 0


def test_non_contiguous_parameters_are_stepped_in_their_own_order(device: torch.device) -> None:
    p = torch.arange(6.0, device=device).view(2, 3).t().requires_grad_()
    gradient = torch.arange(6.0, device=device).view(3, 2)
    p.grad = gradient.clone()
    before = p.detach().clone()
    Hermosis([p], "sgd", lr=0.5).step()
    torch.testing.assert_close(p.detach(), before - 0.5 * gradient)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hermosis([torch.zeros(2, dtype=torch.float16, requires_grad=True)]), "wanted float32 or float64"),
        (
            lambda: Hermosis(
                [torch.zeros(2, requires_grad=True), torch.zeros(2, dtype=torch.float64, requires_grad=True)]
            ),
            "one dtype and one device a group",
        ),
        (lambda: Hermosis([torch.zeros(2, requires_grad=True)], lr=-1.0), "lr of recipe hermosis is -1.0"),
        (lambda: Hermosis([torch.zeros(2, requires_grad=True)], "newton"), "no recipe 'newton'"),
        (lambda: Hermosis([torch.zeros(2, requires_grad=True)], momentom=0.9), "no parameter 'momentom'"),
    ],
)
def test_parameters_and_settings_that_cannot_be_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidHyperparameter, match=message):
        build()


def test_sparse_gradient_is_refused(device: torch.device) -> None:
    embedding = nn.Embedding(4, 2, sparse=True, device=device)
    embedding(torch.tensor([1], device=device)).sum().backward()
    with pytest.raises(InvalidHyperparameter, match="sparse"):
        Hermosis(embedding.parameters()).step()
