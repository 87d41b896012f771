"""The oracle against the theory: its flow is that of H and the brackets, and what they promise holds at every step."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from .oracle import Oracle, Settings, Vector
from .oracle_kinetics import Classical, Kinetic, Quartic, Relativistic, Truncated, Vr, kinetics
from .oracle_metrics import Diagonal, Full
from .oracle_profiles import Constant, Exponential, Linear, Polynomial, Power, Profile, Tabulated

H, K = 0.8, 1.3  # units in which no factor hides
LIGHT2 = 1.7  # c²
BETA0 = 1.4
D = 2
MIXING = np.array([[1.0, 0.4], [0.4, 0.7]])
BOTH_METRICS = {"euclid": np.eye(D), "diagonal": np.diag([0.6, 1.9]), "full": np.array([[1.2, 0.5], [0.5, 0.9]])}


def loss(w: Vector) -> float:
    return float(w @ MIXING @ w / 2 + np.sum(np.log(np.cosh(2 * w - 0.3))) + 0.05 * np.sum(w**4)) + 0.5


def gradient(w: Vector) -> Vector:
    return MIXING @ w + 2 * np.tanh(2 * w - 0.3) + 0.2 * w**3


@dataclass(frozen=True)
class System:
    """One Hamiltonian, in the units above."""

    profile: Profile
    kinetic: Kinetic = Classical()  # noqa: RUF009, frozen
    metric: str = "euclid"
    lam0: float = 0.0
    lam2: float = 0.0

    def __str__(self) -> str:
        kinds = [type(self.profile).__name__, type(self.kinetic).__name__, self.metric]
        return "-".join(kinds + ["bare"] * (self.lam0 > 0) + ["thermal"] * (self.lam2 > 0)).lower()

    def thermal_energy(self, u: float, beta: float, t: float) -> float:
        """E(U, β); the profiles of docs/theory.md, section 3 by their φ(β)."""
        match self.profile:
            case Constant():
                return 0.0
            case Exponential(gamma):
                return H / K * gamma * beta * u
            case Linear(alpha):
                return H / K * alpha * u
            case Power(p, t0):
                return H / K * p / t0 * BETA0 ** (1 / p) * beta ** (1 - 1 / p) * u
            case Tabulated(knots):
                (t1, b1), (t2, b2) = knots[0], knots[1]
                return H / K * (math.log(b2 / b1) / (t2 - t1) if t1 <= t <= t2 else 0.0) * beta * u
            case Polynomial(terms):
                return sum(c * u**i * beta**j for c, i, j in terms)

    def total_energy(self, z: Vector, t: float = 0.0) -> float:
        """H(U, β, w, X)."""
        u, beta, w, x = float(z[0]), float(z[1]), z[2 : 2 + D], z[2 + D :]
        s = np.array([x @ BOTH_METRICS[self.metric] @ x])
        kappa = float(kinetics(self.kinetic, s, BETA0 / beta).kappa[0])
        potential = beta * LIGHT2 / K * (loss(w) + self.lam2 / 2 * float(w @ w)) + self.lam0 / 2 * float(w @ w)
        return beta / K * kappa + potential + self.thermal_energy(u, beta, t)

    def flow(self, t: float, z: Vector) -> Vector:
        """-h dz/dt = k{z, H} by the brackets of docs/theory.md, section 1, and dS/dt; H differentiated numerically."""
        z = z[:-1]
        slope = np.array(
            [(self.total_energy(z + e, t) - self.total_energy(z - e, t)) / 2e-5 for e in 1e-5 * np.eye(z.size)]
        )
        beta, x = z[1], z[2 + D :]
        by_u, by_beta, by_w, by_x = slope[0], slope[1], slope[2 : 2 + D], slope[2 + D :]
        beta_slope = K / H * by_u
        x_slope = K / (H * beta) * by_w - beta_slope / beta * x
        u_slope = -K / H * (by_beta - x @ by_x / beta)
        return np.array([u_slope, beta_slope, *(-K / (H * beta) * by_x), *x_slope, -K / H * beta * by_beta])

    def settings(self, integrator: str, tau: float) -> Settings:
        return Settings(
            eta=tau / H,
            tau=tau,
            k=K,
            beta0=BETA0,
            profile=self.profile,
            force="physical",
            zeta=LIGHT2 * tau / H,
            kinetic=self.kinetic,
            integrator=integrator,  # type: ignore[arg-type]
            metric=frozen_metric(self.metric),
            lam0=self.lam0,
            lam2=self.lam2,
        )


def frozen_metric(name: str) -> Diagonal | Full | None:
    """One that learns nothing: ρ₂ = 1, q₂ = 0."""
    if name == "euclid":
        return None
    build = Diagonal if name == "diagonal" else Full
    return build(rho2=1.0, q2=0.0, eps=0.0, power=1.0, normalise=False)


def oracle_at(system: System, integrator: str, tau: float, z: Vector) -> Oracle:
    """z = (U, β, w, X)."""
    oracle = Oracle(system.settings(integrator, tau), [(D,)], z[2 : 2 + D])
    oracle.u, oracle.ell, oracle.x = float(z[0]), math.log(z[1]), z[2 + D : 2 + 2 * D].copy()
    if oracle.moments:
        inverse = np.linalg.inv(BOTH_METRICS[system.metric])
        name, value = ("square", np.diag(inverse)) if system.metric == "diagonal" else ("covariance", inverse)
        oracle.moments[0][name][...] = value
        oracle.metric.learn(np.zeros(D), 0)
    return oracle


def seen(oracle: Oracle) -> Vector:
    return np.array([oracle.u, math.exp(oracle.ell), *oracle.w, *oracle.x, oracle.s])


def advance(oracle: Oracle, steps: int) -> Oracle:
    for _ in range(steps):
        q = oracle.publish()
        oracle.update(gradient(q), loss(q))
    return oracle


START = np.array([-0.7, BETA0, 0.8, -0.5, 0.4, 0.9])
FEEDBACK = Polynomial(((H / K * 0.6, 1, 1), (-H / K * 0.2, 2, 0)))
TABLE = Tabulated(((0.0, BETA0), (0.5, 2.2), (2.0, 1.9)))
SYSTEMS = [
    System(Constant()),
    System(Exponential(0.8)),
    System(Exponential(0.8), Relativistic(0.6), "full"),
    System(Exponential(0.8), Relativistic(0.6, nu=1.0, rho=1.0), "diagonal", lam0=0.5),
    System(Exponential(-0.4), Quartic(0.7), lam2=0.3),
    System(Linear(1.1), Relativistic(0.6, nu=0.5), "full", lam0=0.5, lam2=0.3),
    System(Power(3.0, 0.7), Vr(0.5, 100.0), "diagonal"),
    System(Power(-1.0, 3.0), Truncated(4.0)),
    System(Power(0.5, 0.7), Classical(), "full", lam0=0.5),
]
WITH_FEEDBACK = [*SYSTEMS, System(FEEDBACK, Relativistic(0.6, nu=1.0), "full", lam0=0.5)]
INTEGRATORS = ["euler", "leapfrog", "conformal"]
ORDERS = [("euler", 1), ("leapfrog", 2), ("conformal", 2)]


def slopes_of(error: Callable[[int], float], first: int) -> Vector:
    errors = np.array([error(n) for n in (first, 2 * first, 4 * first)])
    found: Vector = np.log2(errors[:-1] / errors[1:])
    return found


def within(slopes: Vector, order: int) -> bool:
    return bool(np.all((order - 0.2 < slopes) & (slopes < order + 0.3)))


@pytest.mark.parametrize("system", WITH_FEEDBACK, ids=str)
def test_every_scheme_converges_at_its_order_to_the_flow_of_the_hamiltonian(system: System) -> None:
    exact = solve_ivp(system.flow, (0.0, 1.0), [*START, 0.0], method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    for integrator, order in ORDERS:

        def error(n: int, integrator: str = integrator) -> float:
            oracle = advance(oracle_at(system, integrator, 1 / n, START), n)
            return float(np.abs(seen(oracle) - exact).max())

        slopes = slopes_of(error, 160 if order == 1 else 40)
        assert within(slopes, order), (integrator, slopes)
        assert error(160) < (0.1 if order == 1 else 1e-3)


@pytest.mark.parametrize(("integrator", "order"), ORDERS)
def test_tabulated_profile_converges_across_a_knot(integrator: str, order: int) -> None:
    system, z = System(TABLE, Relativistic(0.6), "full"), np.array([*START, 0.0])
    for piece in ((0.0, 0.5), (0.5, 1.0)):
        slope = math.log(1.9 / 2.2) / 1.5
        part = system if piece[0] == 0 else System(Exponential(slope), system.kinetic, system.metric)
        z = solve_ivp(part.flow, piece, z, method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]

    def error(n: int) -> float:
        return float(np.abs(seen(advance(oracle_at(system, integrator, 1 / n, START), n)) - z)[:-1].max())

    assert within(slopes_of(error, 40), order)
    assert math.isnan(oracle_at(system, integrator, 0.1, START).s)


def one_step(system: System, integrator: str, z: Vector) -> Vector:
    return seen(advance(oracle_at(system, integrator, 0.3, z), 1))[:-1]


def two_form(z: Vector) -> NDArray[np.float64]:
    """dβ∧(dU + X·dw) + β dX∧dw in the coordinates (U, β, w, X)."""
    form = np.zeros((2 + 2 * D, 2 + 2 * D))
    form[1, 0] = 1.0
    for i in range(D):
        form[1, 2 + i] = z[2 + D + i]
        form[2 + D + i, 2 + i] = z[1]
    antisymmetric: NDArray[np.float64] = form - form.T
    return antisymmetric


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("system", [*SYSTEMS, System(TABLE, Relativistic(0.6), "full")], ids=str)
def test_one_large_step_preserves_the_two_form_and_shrinks_volume_as_beta_grows(
    system: System, integrator: str
) -> None:
    nudges = 1e-5 * np.eye(START.size)
    columns = [one_step(system, integrator, START + e) - one_step(system, integrator, START - e) for e in nudges]
    jacobian = np.array(columns).T / 2e-5
    after = one_step(system, integrator, START)
    np.testing.assert_allclose(jacobian.T @ two_form(after) @ jacobian, two_form(START), atol=2e-8)
    assert np.linalg.det(jacobian) == pytest.approx((START[1] / after[1]) ** D, rel=2e-8)
    assert np.abs(jacobian - np.eye(START.size)).max() > 0.1


@pytest.mark.parametrize("integrator", ["leapfrog", "conformal"])
@pytest.mark.parametrize("system", [*SYSTEMS, System(TABLE, Relativistic(0.6), "full")], ids=str)
def test_symmetric_schemes_run_backwards_to_where_they_began(system: System, integrator: str) -> None:
    there = advance(oracle_at(system, integrator, 0.05, START), 25)
    assert np.abs(seen(there)[:-1] - START).max() > 0.1
    back = oracle_at(system, integrator, -0.05, seen(there)[:-1])
    back.t = there.t
    np.testing.assert_allclose(seen(advance(back, 25))[:-1], START, rtol=0, atol=1e-10)
    if system.lam0 == 0 and isinstance(system.profile, Exponential):
        once = advance(oracle_at(system, "euler", 0.05, START), 25)
        euler = advance(oracle_at(system, "euler", -0.05, seen(once)[:-1]), 25)
        assert np.abs(seen(euler)[:-1] - START).max() > 1e-3


@pytest.mark.parametrize("system", [*SYSTEMS, System(TABLE, Relativistic(0.6), "full")], ids=str)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_kick_conserves_potential_and_thermal_energy_together(system: System, integrator: str) -> None:
    system = replace(system, lam0=0.0)
    oracle = oracle_at(system, integrator, 0.1, START)
    for _ in range(6):  # past the knot, which the fifth step ends on
        energies = advance(oracle, 1).energies
        assert energies is not None
        v_and_e = [energies.before - energies.kinetic_before, energies.potential + energies.thermal]
        if integrator == "conformal":
            # V alone keeps V, and changes E by nothing else than U: E is moved between kicks.
            assert energies.retention == 1.0
            assert energies.after == pytest.approx(energies.kinetic + v_and_e[1])
        else:
            assert energies.retention * v_and_e[0] == pytest.approx(v_and_e[1], rel=1e-12)


def worst_energy(system: System, integrator: str, z: Vector, n: int, name: str) -> float:
    oracle, worst = oracle_at(system, integrator, 1 / n, z), 0.0
    for _ in range(n):
        found = advance(oracle, 1).energies
        assert found is not None
        energy = found.drift if name == "drift" else found.mid - found.reference
        worst = max(worst, abs(energy) * math.exp(oracle.ell))
    return worst


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_energy_around_the_kick_drifts_a_fourth_when_the_step_halves(system: System, integrator: str) -> None:
    assert within(slopes_of(lambda n: worst_energy(system, integrator, START, n, "drift"), 40), 2)


@pytest.mark.parametrize(("integrator", "order"), [("euler", 2), ("leapfrog", 2), ("conformal", 1)])
def test_energy_defect_from_rest_is_second_order_unless_the_kick_splits_from_the_bath(
    integrator: str, order: int
) -> None:
    """Before conformal's kick β has run ahead of U: H there is off by half the work of the loss, once and for all."""
    system = System(Exponential(0.8), Relativistic(0.6), "full")
    rest = np.array([*START[: 2 + D], *np.zeros(D)])
    assert within(slopes_of(lambda n: worst_energy(system, integrator, rest, n, "defect"), 80), order)


@pytest.mark.parametrize(("integrator", "order"), ORDERS)
def test_total_energy_at_the_end_of_steps_drifts_at_the_order_of_the_scheme(integrator: str, order: int) -> None:
    system = System(Exponential(0.8), Relativistic(0.6), "full")

    def error(n: int) -> float:
        end = seen(advance(oracle_at(system, integrator, 1 / n, START), n))[:-1]
        return abs(system.total_energy(end) - system.total_energy(START))

    assert within(slopes_of(error, 80), order)


def test_first_loss_sets_internal_energy_so_that_total_energy_is_zero() -> None:
    for system in SYSTEMS:
        for integrator in INTEGRATORS:
            oracle = oracle_at(system, integrator, 0.1, START)
            oracle.u = math.nan
            q = oracle.publish()
            oracle.update(gradient(q), math.nan)
            assert math.isnan(oracle.u)
            assert math.isnan(oracle.s)
            advance(oracle, 1)
            assert oracle.energies is not None
            if isinstance(system.profile, Constant):
                assert oracle.energies.before > 0.1
                assert oracle.energies.thermal == 0.0
            else:
                assert oracle.energies.before == pytest.approx(0.0, abs=1e-14)
            assert oracle.energies.reference == pytest.approx(
                oracle.energies.before * oracle.energies.retention, abs=1e-14
            )


@pytest.mark.parametrize("integrator", ["leapfrog", "conformal"])
def test_entropy_of_a_homogeneous_system_grows_by_total_energy_and_time(integrator: str) -> None:
    system = System(Exponential(0.8), Relativistic(0.6), "full", lam2=0.3)
    assert system.total_energy(START) > 0.1

    def error(n: int) -> float:
        oracle = advance(oracle_at(system, integrator, 1 / n, START), n)
        return abs(oracle.s + K / H * system.total_energy(START))

    assert within(slopes_of(error, 40), 2)


def test_internal_energy_becomes_a_smoothed_loss() -> None:
    settings = Settings(eta=0.05, force="ema", zeta=0.7)
    oracle = advance(Oracle(settings, [(D,)], START[2 : 2 + D]), 400)
    assert oracle.energies is not None
    assert oracle.energies.smoothed_loss == pytest.approx(-oracle.u / 0.7)
    assert oracle.energies.smoothed_loss == pytest.approx(loss(oracle.w), rel=1e-9)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kinetic", [Classical(), Relativistic(0.5), Vr(0.8, 5.0)], ids=str)
@pytest.mark.parametrize("metric", [None, Diagonal(), Full(eps=1e-3)], ids=["euclid", "diagonal", "full"])
def test_euler_and_leapfrog_publish_the_same_points_from_rest(
    metric: Diagonal | Full | None, kinetic: Kinetic, normalise: bool
) -> None:
    settings = Settings(eta=0.05, force="ema", kinetic=kinetic, metric=metric, normalise=normalise, lam2=0.1, lam_d=0.1)
    oracles = [Oracle(replace(settings, integrator=kind), [(D,)], START[2:4]) for kind in ("euler", "leapfrog")]
    for _ in range(60):
        points = [oracle.publish() for oracle in oracles]
        # Roots of eigenvalues that are zero but for rounding part two equal histories by some 1e-12.
        np.testing.assert_allclose(points[0], points[1], rtol=0, atol=1e-9 if isinstance(metric, Full) else 1e-13)
        for oracle, q in zip(oracles, points, strict=True):
            oracle.update(gradient(q), loss(q))
    assert np.abs(oracles[0].w - oracles[1].w).max() > 1e-9
