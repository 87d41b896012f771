"""A session's bits never depend on who else is in the batch, on threads, or on who holds the parameters."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hermosis_server.dynamics import MATRIX_BUFFERS, Hamiltonian, RowMap, resolve
from hermosis_server.dynamics import rows as rows_module
from hermosis_server.dynamics.rows import THREADED_ELEMENTS, row_peaks, row_products, row_squares

from .batches import SHAPES, Batch, Shapes, batch_of, draw, matrix_roster, roster

ROSTER = roster()
MATRICES = matrix_roster()
SIZES = (1, 63, 64, 65, 1000, 4097, 2, 129)
STEPS = 4


def run(batch: Batch, gradients: list[list[Tensor]], losses: list[float], scales: list[float]) -> list[list[bytes]]:
    """Per session, the bits after all steps together with the last increment and sample."""
    for vectors in gradients:
        advance = batch.step(batch.rows_of(vectors), losses, scales)
    increments = batch.vectors_of(advance.increment)
    return [
        [
            *(
                (part[session] if kind in MATRIX_BUFFERS else batch.vectors_of(part)[session]).cpu().numpy().tobytes()
                for kind, part in batch.state.buffers().items()
            ),
            increments[session].cpu().numpy().tobytes(),
            batch.state.scalars[session].cpu().numpy().tobytes(),
            advance.sample[session].cpu().numpy().tobytes(),
        ]
        for session in range(len(batch.hamiltonians))
    ]


def compare_alone(
    hamiltonians: list[Hamiltonian],
    sizes: tuple[int, ...],
    row_elements: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    shapes: Shapes | None = None,
    steps: int = STEPS,
) -> None:
    positions = draw(1, *sizes, dtype=dtype, device=device)
    gradients = [draw(10 + step, *sizes, dtype=dtype, device=device) for step in range(steps)]
    losses = [0.3 * session for session in range(len(sizes))]
    scales = [1 + 0.1 * session for session in range(len(sizes))]
    together = run(
        batch_of(hamiltonians, positions, row_elements=row_elements, shapes=shapes), gradients, losses, scales
    )
    for session in range(len(sizes)):
        alone = run(
            batch_of(hamiltonians[session], [positions[session]], row_elements=row_elements, shapes=shapes),
            [[vectors[session]] for vectors in gradients],
            [losses[session]],
            [scales[session]],
        )
        assert together[session] == alone[0], f"session {session} of {sizes[session]} elements"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ROSTER)
def test_batched_step_equals_one_session_at_a_time(name: str, dtype: torch.dtype, device: torch.device) -> None:
    compare_alone([ROSTER[name]] * len(SIZES), SIZES, 64, dtype, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*MATRICES, "vradam tensor", "tabulated by tensor"])
def test_batched_step_of_many_tensors_equals_one_session_at_a_time(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    hamiltonian = (MATRICES | ROSTER)[name]
    size = sum(math.prod(shape) for shape in SHAPES)
    compare_alone([hamiltonian] * 3, (size,) * 3, 8, dtype, device, shapes=SHAPES)


def test_sessions_of_one_family_keep_their_own_settings_in_a_batch(device: torch.device) -> None:
    hamiltonians = [
        resolve(
            "hermosis",
            {
                "lr": 0.01 * (1 + each),
                "momentum": 0.1 * (1 + each),
                "max_step": 0.1 / (1 + each),
                "metric": "euclidean",
            },
        )
        for each in range(len(SIZES))
    ]
    compare_alone(hamiltonians, SIZES, 64, torch.float32, device)


@pytest.fixture
def threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("row_elements", [64, 2048, 40_000])
@pytest.mark.parametrize("name", ["hermosis euclidean", "adamw"])
def test_large_sessions_on_two_threads_keep_their_bits_too(name: str, row_elements: int, device: torch.device) -> None:
    """Sizes past the grain at which torch begins to share one operation, and one row, between threads."""
    compare_alone([ROSTER[name]] * 3, (70_001, 39_000, 33_000), row_elements, torch.float32, device, steps=2)


@pytest.mark.parametrize("name", ROSTER)
def test_tiles_leave_no_trace(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (1000, 5, 300)
    results = []
    for elements in (1, 130, 1 << 20):
        monkeypatch.setattr(rows_module, "TILE_ELEMENTS", elements)
        monkeypatch.setattr(rows_module, "DEVICE_TILE_ELEMENTS", elements)
        positions = draw(1, *sizes, dtype=torch.float32, device=device)
        results.append(run(batch_of(ROSTER[name], positions), [positions, positions], [1.0, 2.0, 3.0], [1.0] * 3))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", ROSTER)
def test_one_thread_and_two_give_the_same_bits(name: str) -> None:
    sizes = (100_003, 7)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        positions = draw(1, *sizes, dtype=torch.float32, device=torch.device("cpu"))
        batch = batch_of(ROSTER[name], positions, row_elements=2048)
        results.append(run(batch, [positions], [1.0, 2.0], [1.0, 1.0]))
    torch.set_num_threads(1)
    assert results[0] == results[1]


@pytest.mark.parametrize("name", [name for name in ROSTER if not ROSTER[name].family(()).needs_parameters])
def test_worker_that_adds_increments_has_the_servers_bits(name: str, device: torch.device) -> None:
    positions = draw(1, *SIZES, dtype=torch.float32, device=device)
    held, remote = batch_of(ROSTER[name], positions), batch_of(ROSTER[name], positions, on_worker=True)
    worker = held.rows_of(positions)
    for step in range(STEPS):
        gradient = held.rows_of(draw(step, *SIZES, dtype=torch.float32, device=device))
        held.step(gradient, [1.0] * len(SIZES))
        worker += remote.step(gradient, [1.0] * len(SIZES)).increment
    assert held.state.position is not None
    assert torch.equal(worker, held.state.position)


@pytest.mark.parametrize("name", ROSTER)
def test_increment_is_what_was_added_and_padding_stays_zero(name: str, device: torch.device) -> None:
    positions = draw(1, *SIZES, dtype=torch.float32, device=device)
    batch = batch_of(ROSTER[name], positions)
    for step in range(STEPS):
        assert batch.state.position is not None
        before = batch.state.position.clone()
        increment = batch.step(
            batch.rows_of(draw(step, *SIZES, dtype=torch.float32, device=device)), [1.0] * len(SIZES)
        ).increment
        assert torch.equal(before + increment, batch.state.position)
    ones = batch.rows_of([torch.ones(size, device=device) for size in SIZES])
    for rows in [*batch.state.buffers().values(), increment]:
        assert torch.equal(rows * ones, rows)


@pytest.mark.parametrize("width", [1, 2, 3, 31, 64, 1000, THREADED_ELEMENTS, THREADED_ELEMENTS + 4097])
def test_row_sums_are_sums_whatever_the_width(width: int, device: torch.device) -> None:
    """Past THREADED_ELEMENTS, and everywhere on a GPU, rows are summed by halving."""
    one, other = (rows.view(3, width) for rows in draw(1, 3 * width, 3 * width, dtype=torch.float32, device=device))
    wanted = (one.double() * other.double()).sum(dim=1)
    torch.testing.assert_close(row_products(one, other), wanted, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(row_squares(one), one.double().square().sum(dim=1), rtol=1e-13, atol=0)
    torch.testing.assert_close(row_peaks(one), one.amax(dim=1).double() + one.amin(dim=1), rtol=0, atol=0)
    for poison in (math.inf, -math.inf, math.nan):
        spoilt = one.clone()
        spoilt[1, -1] = poison
        for measure in (row_squares, row_peaks):
            assert measure(spoilt).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("counts", [[1], [2], [64], [65], [1, 1, 1], [3, 1, 200], [4097, 1, 64]], ids=str)
def test_totals_add_each_sessions_rows_and_nobody_elses(counts: list[int], device: torch.device) -> None:
    rows = RowMap([(count,) for count in counts], 1, device).sessions
    values = torch.randn(sum(counts), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    (total,) = rows.totals(values)
    wanted = torch.stack([piece.sum() for piece in torch.split(values, counts)])
    torch.testing.assert_close(total, wanted, rtol=1e-13, atol=1e-13)
    assert rows.group.tolist() == [session for session, count in enumerate(counts) for _ in range(count)]
