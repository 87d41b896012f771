"""Trouble stays with the session that has it, and is told apart: bad gradients, overflow, missing losses, great age."""

import math

import pytest
import torch

from hermosis_server.dynamics import SCALARS, Hamiltonian, PhaseState, Relativistic, advance_
from hermosis_server.errors import InternalError
from hermosis_server.records import StateBuffer

from .batches import Batch, batch_of, draw, roster, sample_of

ROSTER = roster()
SIZES = (5, 200, 64)
VICTIM = 1


def fresh(name: str, device: torch.device) -> Batch:
    return batch_of(ROSTER[name], draw(1, *SIZES, dtype=torch.float32, device=device))


def bits(batch: Batch, session: int) -> list[bytes]:
    parts = [batch.vectors_of(rows)[session].cpu().numpy().tobytes() for rows in batch.state.buffers().values()]
    return [*parts, batch.state.scalars[session].cpu().numpy().tobytes()]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ROSTER)
def test_bad_gradient_is_flagged_for_its_session_and_unfelt_by_others(
    name: str, poison: float, device: torch.device
) -> None:
    sick, well = fresh(name, device), fresh(name, device)
    gradients = draw(2, *SIZES, dtype=torch.float32, device=device)
    well.step(well.rows_of(gradients), [1.0, 2.0, 3.0])
    gradients[VICTIM][-1] = poison
    advance = sick.step(sick.rows_of(gradients), [1.0, 2.0, 3.0])
    assert advance.gradient_finite.tolist() == [True, False, True]
    assert advance.state_finite.tolist() == [True, False, True]
    for session in (0, 2):
        assert bits(sick, session) == bits(well, session)


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "rmsprop centered", "adagrad", "nesterov"])
def test_finite_gradient_that_overflows_the_state_is_flagged_as_such(name: str, device: torch.device) -> None:
    batch = fresh(name, device)
    gradients = draw(2, *SIZES, dtype=torch.float32, device=device)
    for step in range(3):
        gradients[VICTIM][3] = 3e38
        batch.coefficients[VICTIM, 1] = 1e6  # learning_rate, so that plain momentum overflows too
        advance = batch.step(batch.rows_of(gradients))
        assert advance.gradient_finite.tolist() == [True, True, True], step
        assert advance.state_finite.tolist() == [True, False, True], step


def test_increment_that_overflows_is_flagged_where_the_worker_holds_the_parameters(device: torch.device) -> None:
    batch = batch_of(ROSTER["sgd"], draw(1, *SIZES, dtype=torch.float32, device=device), on_worker=True)
    gradients = draw(2, *SIZES, dtype=torch.float32, device=device)
    gradients[VICTIM][3] = 3e38
    batch.coefficients[VICTIM, 1] = 1e6
    assert batch.step(batch.rows_of(gradients)).state_finite.tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["hermosis euclidean", "rgd", "cooling limit"])
def test_huge_finite_gradient_is_an_ordinary_gradient_under_a_speed_limit(name: str, device: torch.device) -> None:
    batch = fresh(name, device)
    gradients = [vector * 1e36 for vector in draw(2, *SIZES, dtype=torch.float32, device=device)]
    advance = batch.step(batch.rows_of(gradients))
    assert advance.state_finite.all()
    assert sample_of(advance).gradient_norm > 1e36
    if name == "rgd":  # decoupled decay is no part of the limit, and a normalised momentum is measured by its own norm
        kinetic = ROSTER[name].kinetic
        assert isinstance(kinetic, Relativistic)
        assert sample_of(advance).step_norm == pytest.approx(kinetic.max_step, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in ROSTER if not name.startswith("feedback")])
def test_parameters_never_depend_on_the_loss(name: str, device: torch.device) -> None:
    told, untold, odd = fresh(name, device), fresh(name, device), fresh(name, device)
    for step in range(4):
        gradients = draw(step, *SIZES, dtype=torch.float32, device=device)
        told.step(told.rows_of(gradients), [1.0, 2.0, 3.0])
        untold.step(untold.rows_of(gradients))
        odd.step(odd.rows_of(gradients), [math.inf, -1e300, 0.0])
    for kind, rows in told.state.buffers().items():
        assert torch.equal(rows, untold.state.buffers()[kind])
        assert torch.equal(rows, odd.state.buffers()[kind])


ENERGIES_OF_A_LOSS = ("smoothed_loss", "potential_energy", "thermal_energy", "total_energy", "energy_defect")


def test_missing_loss_leaves_its_energies_undefined_and_the_next_anchors_them_again(device: torch.device) -> None:
    hamiltonian = Hamiltonian(learning_rate=0.01, kinetic=Relativistic(max_step=0.1))
    batch = batch_of(hamiltonian, draw(1, *SIZES, dtype=torch.float32, device=device))

    def step(loss: float) -> dict[str, float]:
        gradient = batch.rows_of(draw(3, *SIZES, dtype=torch.float32, device=device))
        return sample_of(batch.step(gradient, [1.0, loss, 1.0]), VICTIM)._asdict()

    first = step(2.0)
    assert all(math.isfinite(value) for value in first.values())
    for missing in (math.nan, math.inf):
        without = step(missing)
        undefined = {name for name, value in without.items() if math.isnan(value)}
        assert undefined - {"loss"} == {*ENERGIES_OF_A_LOSS, "internal_energy", "entropy"}
    again = step(2.0)
    assert all(math.isfinite(value) for value in again.values())
    assert again["thermal_energy"] < 0
    assert again["smoothed_loss"] == pytest.approx(2.0, rel=0.3)


SEES_BETA = {
    "cooling limit", "hermosis_literal", "lookahead by coordinate", "nesterov_ode", "power by coordinate",
    "linear leapfrog",
}  # fmt: skip


@pytest.mark.parametrize("log_beta", [650.0, 699.95, 1e4])
@pytest.mark.parametrize("name", [name for name in ROSTER if not name.startswith(("constant", "feedback"))])
def test_old_cold_sessions_go_on_without_overflow(name: str, log_beta: float, device: torch.device) -> None:
    batch, young = fresh(name, device), fresh(name, device)
    batch.state.scalars[:, SCALARS.index("log_beta")] = log_beta
    for step in range(5):
        gradient = batch.rows_of(draw(step, *SIZES, dtype=torch.float32, device=device))
        advance = batch.step(gradient, [1.0, 2.0, 3.0])
        young.step(gradient, [1.0, 2.0, 3.0])
        assert advance.state_finite.all()
        sample = sample_of(advance)
        gone = sample.log_beta >= 700 or math.isinf(sample.log_beta) or name.startswith("tabulated")
        assert math.isnan(sample.entropy) == gone
        assert math.isfinite(sample.internal_energy)
        assert math.isfinite(sample.kinetic_energy)
    if name not in SEES_BETA:
        for kind, rows in batch.state.buffers().items():
            assert torch.equal(rows, young.state.buffers()[kind])


def test_fully_cooled_limit_stops_the_session_and_nothing_else(device: torch.device) -> None:
    """The published rest energy falls with the bath: at great age the model stands still. It must not fail."""
    hamiltonian = Hamiltonian(learning_rate=0.1, kinetic=Relativistic(max_step=0.1, rest_cooling=1.0, rest_energy=1.0))
    batch = batch_of(hamiltonian, draw(1, *SIZES, dtype=torch.float32, device=device))
    batch.state.scalars[:, SCALARS.index("log_beta")] = 1e4
    gradients = [vector * 1e30 for vector in draw(2, *SIZES, dtype=torch.float32, device=device)]
    advance = batch.step(batch.rows_of(gradients), [1.0, 1.0, 1.0])
    sample = sample_of(advance)
    assert advance.state_finite.all()
    assert sample.braking < 1e-140
    assert sample.step_norm == 0
    assert math.isfinite(sample.total_energy)


def test_thousands_of_steps_stay_finite_while_beta_leaves_float64(device: torch.device) -> None:
    batch = batch_of(ROSTER["hermosis euclidean"], draw(1, 3, dtype=torch.float32, device=device), row_elements=4)
    batch.state.scalars[:, SCALARS.index("log_beta")] = 600.0
    for _ in range(1100):
        assert batch.state.position is not None
        gradient = batch.state.position.clone()
        loss = float(gradient.square().sum()) / 2
        advance = batch.step(gradient, [loss])
    sample = sample_of(advance)
    assert sample.log_beta > 709
    assert sample.smoothed_loss < 1e-4
    assert advance.state_finite.all()


def test_zero_learning_rate_scale_stands_still_and_learns_momentum(device: torch.device) -> None:
    batch = fresh("adam", device)
    assert batch.state.position is not None
    before = batch.state.position.clone()
    advance = batch.step(batch.rows_of(draw(2, *SIZES, dtype=torch.float32, device=device)), lr_scale=[0.0] * 3)
    assert torch.equal(batch.state.position, before)
    assert sample_of(advance).momentum_norm > 0
    assert sample_of(advance).learning_rate == 0


def test_weight_decay_without_parameters_is_a_bug_that_says_so(device: torch.device) -> None:
    batch = batch_of(ROSTER["adamw"], draw(1, *SIZES, dtype=torch.float32, device=device), on_worker=True)
    with pytest.raises(InternalError, match="weight decay without parameters"):
        batch.step(batch.rows_of(draw(2, *SIZES, dtype=torch.float32, device=device)))


def test_state_without_momentum_is_a_bug_that_says_so() -> None:
    with pytest.raises(InternalError, match="without momentum"):
        PhaseState.from_buffers({StateBuffer.PARAMETERS: torch.zeros(1, 4)}, torch.zeros(1, len(SCALARS)))


def test_step_never_waits_for_the_device(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a device that runs by itself")
    batch = fresh("cooling limit", device)
    gradient = batch.rows_of(draw(2, *SIZES, dtype=torch.float32, device=device))
    numbers = torch.ones(len(SIZES), dtype=torch.float64, device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        advance_(
            batch.state,
            gradient,
            numbers,
            family=batch.family,
            coefficients=batch.coefficients,
            lr_scale=numbers,
            rows=batch.rows,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
