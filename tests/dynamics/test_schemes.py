"""Schemes as integrators: orders of convergence, the symplectic form, reversibility, energy; publishing apart."""

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hermosis_server.dynamics import (
    COEFFICIENTS,
    SCALARS,
    Classical,
    Constant,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    KineticEnergy,
    Linear,
    NormScope,
    Polynomial,
    Power,
    Quartic,
    Relativistic,
    Scheme,
    Tabulated,
    Term,
    ThermalProfile,
    VelocityRegularised,
    WeightDecay,
    resolve,
    update_,
)

from .batches import SHAPES, Batch, batch_of, draw, matrix_roster, roster, sample_of

CPU = torch.device("cpu")
SIZE = 4
H, C2 = 2.0, 3.0
STIFFNESS = torch.linspace(0.5, 2.0, SIZE, dtype=torch.float64)
START = torch.tensor([0.9, -0.6, 0.4, -1.1], dtype=torch.float64)
PUSH = torch.tensor([0.3, 0.8, -0.5, 0.2], dtype=torch.float64)
ORDER = {Scheme.SYMPLECTIC_EULER: 1, Scheme.LEAPFROG: 2, Scheme.CONFORMAL: 2}


def landscape(w: Tensor) -> tuple[float, Tensor]:
    """Smooth, coupled and not quadratic."""
    loss = (STIFFNESS * w.square() / 2 + w.square().square() / 20).sum() + torch.cos(w).sum() / 2 + w.prod() / 3
    others = torch.stack([w.roll(-i)[1:].prod() for i in range(SIZE)])
    return float(loss), STIFFNESS * w + w**3 / 5 - torch.sin(w) / 2 + others / 3


SYSTEMS: dict[str, tuple[ThermalProfile, KineticEnergy, NormScope]] = {
    "constant classical": (Constant(), Classical(), NormScope.SESSION),
    "exponential classical": (Exponential(cooling_rate=0.7), Classical(), NormScope.SESSION),
    "exponential, cooling limit": (
        Exponential(cooling_rate=0.7),
        Relativistic(speed_limit=2.0, rest_cooling=0.5, rest_energy=1.0),
        NormScope.SESSION,
    ),
    "linear quartic": (Linear(growth=0.5), Quartic(stiffness=0.4), NormScope.SESSION),
    "power relativistic by coordinate": (
        Power(exponent=3.0, age=1.0),
        Relativistic(speed_limit=1.5),
        NormScope.COORDINATE,
    ),
    "table velocity regularised": (
        Tabulated(knots=((0.0, 1.0), (0.5, 1.5), (1.5, 1.5), (2.0, 4.0))),
        VelocityRegularised(stiffness=0.3, cap=50.0),
        NormScope.SESSION,
    ),
    "feedback": (
        Polynomial(
            terms=(
                Term(coefficient=0.8, internal_energy_power=1, beta_power=1),
                Term(coefficient=-0.1, internal_energy_power=2),
            )
        ),
        Classical(),
        NormScope.SESSION,
    ),
}


def at(system: str, scheme: Scheme, tau: float) -> Hamiltonian:
    """h and c² stay as τ shrinks."""
    profile, kinetic, scope = SYSTEMS[system]
    return Hamiltonian(
        learning_rate=tau / H,
        step_duration=tau,
        thermal=profile,
        kinetic=kinetic,
        norm_scope=scope,
        force=Force(mode=ForceMode.PHYSICAL, gradient_gain=C2 * tau / H),
        weight_decay=WeightDecay(bare=0.2, thermal=0.1),
        integrator=scheme,
    )


def committed(hamiltonian: Hamiltonian, w: Tensor, x: Tensor, u: float, log_beta: float, clock: float = 0.0) -> Batch:
    """A session at the end of a step that nobody took."""
    batch = batch_of(hamiltonian, [w], row_elements=w.numel())
    batch.state.momentum[0] = x
    for name, value in {
        "internal_energy": u, "log_beta": log_beta, "clock": clock, "unit_momentum": 0.7, "published_cooling": 0.0,
        "entropy": 0.0,
    }.items():  # fmt: skip
        batch.state.scalars[0, SCALARS.index(name)] = value
    return batch


def whole_step(batch: Batch) -> dict[str, float]:
    """Publishes, asks for the gradient there, updates."""
    batch.publish()
    loss, gradient = landscape(batch.position())
    advance = batch.step(batch.rows_of([gradient]), [loss], act=update_)
    return sample_of(advance)._asdict()


def stand(batch: Batch) -> Tensor:
    """(w, X, ln β, U)."""
    numbers = [batch.scalar("log_beta"), batch.scalar("internal_energy")]
    parts = [batch.position(), batch.vectors_of(batch.state.momentum)[0], torch.tensor(numbers, dtype=torch.float64)]
    return torch.cat(parts)


@functools.cache
def drive(system: str, scheme: Scheme, steps: int, total: float = 2.0) -> tuple[Tensor, list[dict[str, float]]]:
    hamiltonian = at(system, scheme, total / steps)
    batch = committed(hamiltonian, START, PUSH, 0.4, hamiltonian.initial_log_beta)
    samples = [whole_step(batch) for _ in range(steps)]
    return stand(batch), samples


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_scheme_converges_at_its_order(system: str, scheme: Scheme) -> None:
    """Parameters, momentum, ln β and U at a fixed time. With a table the steps meet its knots."""
    truth = (4 * drive(system, Scheme.LEAPFROG, 160)[0] - drive(system, Scheme.LEAPFROG, 80)[0]) / 3
    errors = [float((drive(system, scheme, steps)[0] - truth).abs().max()) for steps in (16, 32, 64)]
    for coarse, fine in itertools.pairwise(errors):
        assert ORDER[scheme] - 0.2 < math.log2(coarse / fine) < ORDER[scheme] + 0.3


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("system", SYSTEMS)
def test_energy_defect_falls_fourfold_when_the_step_halves(system: str, scheme: Scheme) -> None:
    defects = [
        max(abs(sample["energy_defect"]) * math.exp(sample["log_beta"]) for sample in drive(system, scheme, steps)[1])
        for steps in (32, 64, 128)
    ]
    for coarse, fine in itertools.pairwise(defects):
        assert 1.8 < math.log2(coarse / fine) < 2.3


@pytest.mark.parametrize("system", ["exponential classical", "power relativistic by coordinate"])
def test_defect_of_leapfrog_tells_a_step_that_is_too_large(system: str) -> None:
    """The control for the test above: what is small there is large here."""
    small, large = (max(abs(s["energy_defect"]) for s in drive(system, Scheme.LEAPFROG, n)[1]) for n in (80, 4))
    assert large > 30 * small


@pytest.mark.parametrize("scheme", Scheme)
def test_entropy_stays_put_at_zero_total_energy_up_to_the_step(scheme: Scheme) -> None:
    """dS/dt = -(k/h) H for an H that is homogeneous in β, and an undefined U is anchored at H = 0."""
    drifts = []
    for steps in (60, 120, 240):
        hamiltonian = Hamiltonian(
            learning_rate=2.0 / steps / H,
            step_duration=2.0 / steps,
            thermal=Exponential(cooling_rate=0.7),
            kinetic=Relativistic(speed_limit=2.0),
            force=Force(mode=ForceMode.PHYSICAL, gradient_gain=C2 * 2.0 / steps / H),
            integrator=scheme,
        )
        batch = committed(hamiltonian, START, PUSH, math.nan, 0.0)
        drifts.append(abs([whole_step(batch) for _ in range(steps)][-1]["entropy"]))
    for coarse, fine in itertools.pairwise(drifts):
        assert 0.8 < math.log2(coarse / fine) < 2.3


def jacobian(step: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """By central differences of fourth order."""
    shift, columns = 1e-3, []
    for e in torch.eye(z.numel(), dtype=torch.float64):
        near = step(z + shift * e) - step(z - shift * e)
        far = step(z + 2 * shift * e) - step(z - 2 * shift * e)
        columns.append((8 * near - far) / (12 * shift))
    return torch.stack(columns, dim=1)


def form(z: Tensor) -> Tensor:
    """dω = dβ∧(dU + X·dw) + β dX∧dw in the coordinates (w, X, ln β, U), where dβ = β d ln β."""
    beta, x = math.exp(float(z[2 * SIZE])), z[SIZE : 2 * SIZE]
    w, momentum, log_beta, heat = slice(0, SIZE), slice(SIZE, 2 * SIZE), 2 * SIZE, 2 * SIZE + 1
    omega = torch.zeros(z.numel(), z.numel(), dtype=torch.float64)
    omega[log_beta, heat] = beta
    omega[log_beta, w] = beta * x
    omega[momentum, w] = beta * torch.eye(SIZE, dtype=torch.float64)
    return omega - omega.T


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("system", SYSTEMS)
def test_step_is_exactly_symplectic(system: str, scheme: Scheme) -> None:
    """JᵀΩJ = Ω, and det J = (β before / β after)^d."""
    hamiltonian = at(system, scheme, 0.4)

    def step(z: Tensor) -> Tensor:
        batch = committed(hamiltonian, z[:SIZE], z[SIZE : 2 * SIZE], float(z[-1]), float(z[-2]), clock=0.2)
        whole_step(batch)
        return stand(batch)

    z = torch.cat([START, PUSH, torch.tensor([0.3, 0.4], dtype=torch.float64)])
    j, after = jacobian(step, z), step(z)
    torch.testing.assert_close(j.T @ form(after) @ j, form(z), rtol=0, atol=1e-8)
    # In (U, β, …) the volume shrinks by (β before / β after)^d; one more power turns β into ln β.
    wanted = math.exp((SIZE + 1) * (float(z[-2]) - float(after[-2])))
    assert float(torch.linalg.det(j)) == pytest.approx(wanted, rel=1e-8)


def backwards(hamiltonian: Hamiltonian, batch: Batch) -> None:
    """Turns the time of a batch round. No setting can say that; the coefficients can."""
    place = {name: index for index, name in enumerate(COEFFICIENTS)}
    row = batch.coefficients[0]
    for name in ("step_duration", "learning_rate", "cooling_duration", "gradient_gain", "log_beta_gain"):
        row[place[name]] *= -1
    gain = float(row[place["log_beta_gain"]])
    row[place["retention"]] = math.exp(-gain)
    row[place["friction"]] = -math.expm1(-gain)
    rate = float(row[place["cooling_rate"]])
    row[place["kernel"]] = -math.expm1(-gain) / rate if rate else float(row[place["cooling_duration"]])


@pytest.mark.parametrize("scheme", [Scheme.LEAPFROG, Scheme.CONFORMAL])
@pytest.mark.parametrize("system", [system for system in SYSTEMS if not system.startswith("table")])
def test_second_order_schemes_return_when_time_turns_round(system: str, scheme: Scheme) -> None:
    hamiltonian = at(system, scheme, 0.1)
    batch = committed(hamiltonian, START, PUSH, 0.4, hamiltonian.initial_log_beta)
    before = stand(batch)
    for _ in range(20):
        whole_step(batch)
    assert float((stand(batch) - before).abs().max()) > 0.1
    backwards(hamiltonian, batch)
    for _ in range(20):
        whole_step(batch)
    torch.testing.assert_close(stand(batch), before, rtol=0, atol=1e-9 if system == "feedback" else 1e-10)


def test_euler_is_not_reversible() -> None:
    """The control for the test above."""
    hamiltonian = at("exponential classical", Scheme.SYMPLECTIC_EULER, 0.1)
    batch = committed(hamiltonian, START, PUSH, 0.4, 0.0)
    before = stand(batch)
    whole_step(batch)
    backwards(hamiltonian, batch)
    whole_step(batch)
    assert float((stand(batch) - before).abs().max()) > 1e-3


ALL = roster() | matrix_roster()


@pytest.mark.parametrize("name", ALL)
def test_publishing_and_updating_apart_is_a_step(name: str, device: torch.device) -> None:
    """Rounding apart: one pass does both half drifts at once."""
    size = sum(math.prod(shape) for shape in SHAPES)
    start = draw(1, size, dtype=torch.float64, device=device)
    one, two = (batch_of(ALL[name], start, row_elements=16, shapes=SHAPES) for _ in range(2))
    for step in range(5):
        gradient = one.rows_of(draw(10 + step, size, dtype=torch.float64, device=device))
        whole = one.step(gradient, [1.0 + step], [0.9])
        parts = two.step(gradient, [1.0 + step], [0.9], act=update_)
        rest = two.publish(0.9)
        torch.testing.assert_close(parts.increment + rest, whole.increment, rtol=1e-9, atol=1e-12)
        for kind, rows in one.state.buffers().items():
            if kind.name not in ("EIGENVECTORS",):  # their sign is nobody's business
                torch.testing.assert_close(two.state.buffers()[kind], rows, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(two.state.scalars, one.state.scalars, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("profile", [Exponential(), Linear(growth=0.3), Power(exponent=3.0, age=1.0)], ids=str)
def test_euler_and_leapfrog_publish_the_same_points(profile: ThermalProfile) -> None:
    """They are conjugate: leapfrog only tells another point of the same motion."""
    points = []
    for scheme in (Scheme.SYMPLECTIC_EULER, Scheme.LEAPFROG):
        hamiltonian = Hamiltonian(
            learning_rate=0.1, thermal=profile, kinetic=Relativistic(speed_limit=0.8), integrator=scheme
        )
        batch = batch_of(hamiltonian, [START], row_elements=4)
        for _ in range(30):
            loss, gradient = landscape(batch.position())
            batch.step(batch.rows_of([gradient]), [loss])
        points.append(batch.position())
    torch.testing.assert_close(points[0], points[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_heavy_ball_is_stable_up_to_its_limit_and_not_beyond(momentum: float) -> None:
    """ηzλ < 4 for conformal whatever μ; ηz|λ| < 2(1 + μ) for euler."""
    limits = {Scheme.SYMPLECTIC_EULER: 2 * (1 + momentum), Scheme.CONFORMAL: 4.0}
    for scheme, limit in limits.items():
        for factor, grows in ((0.98, False), (1.02, True)):
            hamiltonian = Hamiltonian(
                learning_rate=factor * limit,
                thermal=Exponential(momentum_retention=momentum),
                force=Force(mode=ForceMode.UNIT),
                integrator=scheme,
            )
            batch = batch_of(hamiltonian, [START], row_elements=4)
            for _ in range(300):
                batch.step(batch.rows_of([batch.position()]))
            assert (float(batch.position().abs().max()) > 10) == grows


def test_hermosis_recipe_is_conformal() -> None:
    assert resolve("hermosis", {}).integrator is Scheme.CONFORMAL
