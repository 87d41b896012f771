"""The oracle's parts: profiles, kinetic energies and metrics."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from .oracle import Oracle, Settings, Vector
from .oracle_kinetics import Classical, Kinetic, Quartic, Relativistic, Truncated, Vr, kinetics
from .oracle_metrics import Diagonal, Full, Kronecker, Metric, MetricMemory
from .oracle_profiles import (
    Bath,
    Constant,
    Exponential,
    Linear,
    Polynomial,
    Power,
    Profile,
    Tabulated,
    feedback,
    span,
    span_entropy,
)

H, K, BETA0, TAU = 0.8, 1.3, 1.4, 0.3
TABLE = Tabulated(((0.1, BETA0), (0.25, 2.2), (0.4, 1.9)))
PROFILES: list[Profile] = [
    Constant(),
    Exponential(0.8),
    Exponential(-0.5),
    Linear(1.1),
    Linear(-0.9),
    Power(3.0, 0.7),
    Power(0.5, 0.7),
    Power(-1.0, 3.0),
    Power(-2.5, 3.0),
    TABLE,
]


def bath(profile: Profile) -> Bath:
    return Bath(profile=profile, h=H, k=K, beta_ref=BETA0)


def beta_of(profile: Profile, t: float) -> float:
    match profile:
        case Constant():
            return BETA0
        case Exponential(gamma):
            return BETA0 * math.exp(gamma * t)
        case Linear(alpha):
            return BETA0 + alpha * t
        case Power(p, t0):
            return BETA0 * (1 + t / t0) ** p
        case Tabulated(knots):
            return math.exp(np.interp(t, [knot[0] for knot in knots], [math.log(knot[1]) for knot in knots]))
        case Polynomial():
            raise TypeError(profile)


# --- profiles ---


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_thermal_step_is_the_closed_form_of_beta_and_its_integral(profile: Profile) -> None:
    ell, t = math.log(beta_of(profile, 0)), 0.0
    for _ in range(3):
        step, after = span(bath(profile), ell, t, TAU), beta_of(profile, t + TAU)
        area, _ = quad(lambda time: beta_of(profile, time), t, t + TAU, points=[0.1, 0.25, 0.4], epsabs=1e-13)
        assert step.log_beta == pytest.approx(math.log(after), abs=1e-13)
        assert step.r == pytest.approx(beta_of(profile, t) / after, rel=1e-13)
        assert step.kern == pytest.approx(area / after, rel=1e-12)
        ell, t = step.log_beta, t + TAU


@pytest.mark.parametrize("profile", PROFILES, ids=str)
def test_two_half_steps_are_one(profile: Profile) -> None:
    ell, t = math.log(beta_of(profile, 0)), 0.07
    ell = math.log(beta_of(profile, t))
    whole = span(bath(profile), ell, t, TAU)
    one = span(bath(profile), ell, t, TAU / 2)
    two = span(bath(profile), one.log_beta, t + TAU / 2, TAU / 2)
    assert whole.r == pytest.approx(one.r * two.r, rel=1e-13)
    assert whole.kern == pytest.approx(two.r * one.kern + two.kern, rel=1e-13)
    assert whole.a == pytest.approx(one.a * two.a, rel=1e-13)
    drained = two.a * one.share * one.kern + two.share * two.kern
    assert whole.share * whole.kern == pytest.approx(drained, rel=1e-13)


AS_FEEDBACK: list[tuple[Profile, tuple[float, int, int]]] = [
    (Exponential(0.8), (H / K * 0.8, 1, 1)),
    (Linear(1.1), (H / K * 1.1, 1, 0)),
    (Power(-1.0, 3.0), (-H / K / 3.0 / BETA0, 1, 2)),
    (Power(0.5, 0.7), (H / K * 0.5 / 0.7 * BETA0**2, 1, -1)),
]


@pytest.mark.parametrize(("profile", "term"), AS_FEEDBACK, ids=str)
def test_feedback_without_feedback_is_the_profile_it_spells(profile: Profile, term: tuple[float, int, int]) -> None:
    ell, u, push = math.log(BETA0), -0.7, 0.9
    step = span(bath(profile), ell, 0.0, 0.1)
    spelt = feedback(bath(Polynomial((term,))), ell, u, 0.1, push)
    u_after = step.a * u - step.share * step.kern * push
    entropy = span_entropy(bath(profile), step, log_beta=ell, t=0.0, u=u, u_after=u_after, push=push, duration=0.1)
    found = [spelt.log_beta, spelt.r, spelt.kern, spelt.u, spelt.entropy]
    assert found == pytest.approx([step.log_beta, step.r, step.kern, u_after, entropy], rel=1e-8)


def test_entropy_of_an_exponential_kick_is_the_identity_of_the_theory() -> None:
    gamma, ell, u, push = 0.8, 0.4, -0.7, 0.9
    step = span(bath(Exponential(gamma)), ell, 0.0, TAU)
    u_after = step.a * u - step.kern * push
    entropy = span_entropy(
        bath(Exponential(gamma)), step, log_beta=ell, t=0.0, u=u, u_after=u_after, push=push, duration=TAU
    )
    assert entropy == pytest.approx(-TAU * math.exp(ell) * (gamma * u + push), rel=1e-13)


def test_bath_that_would_lose_its_mass_is_refused() -> None:
    with pytest.raises(ValueError, match="beta would reach"):
        span(bath(Linear(-5.0)), math.log(BETA0), 0.0, TAU)
    with pytest.raises(ValueError, match="age would reach"):
        span(bath(Power(3.0, 0.1)), math.log(BETA0), 0.0, -TAU)
    with pytest.raises(ValueError, match="left its range"):
        feedback(bath(Polynomial(((-50.0, 1, 0),))), math.log(BETA0), 0.0, TAU, push=0.0)


def test_exponential_bath_outlives_float64() -> None:
    oracle = Oracle(Settings(eta=0.1, profile=Exponential(30.0), force="ema"), [(1,)], np.ones(1))
    for _ in range(50):
        oracle.update(oracle.publish(), 0.5 * float(oracle.w @ oracle.w))
    assert oracle.ell == pytest.approx(1500.0)
    assert math.isfinite(oracle.u)
    assert math.isnan(oracle.s)


# --- kinetic energies ---

KINETICS: list[Kinetic] = [
    Classical(),
    Relativistic(0.6),
    Relativistic(0.6, nu=0.5, rho=0.7),
    Relativistic(0.6, nu=1.0, rho=1.0),
    Quartic(0.7),
    Quartic(0.0),
    Truncated(0.6),
    Vr(0.8),
    Vr(0.8, 0.5),
    Vr(0.0, 1.0),
]


@pytest.mark.parametrize("kinetic", KINETICS, ids=str)
def test_braking_and_slope_are_derivatives_of_kappa(kinetic: Kinetic) -> None:
    # Both sides of the corners: s* = 0.24 of the truncated, 0.625 of the capped.
    s, ell, nudge = np.array([0.01, 0.2, 0.3, 0.6, 0.7, 3.0, 50.0]), 0.4, 1e-6
    found = kinetics(kinetic, s, math.exp(-ell))

    def kappa(scale: float, shift: float) -> Vector:
        return kinetics(kinetic, s * scale, math.exp(-ell - shift)).kappa

    by_s = (kappa(1 + nudge, 0) - kappa(1 - nudge, 0)) / (2 * nudge * s)
    np.testing.assert_allclose(found.braking, 2 * by_s, rtol=1e-7)
    by_ell = (kappa(1, nudge) - kappa(1, -nudge)) / (2 * nudge)
    np.testing.assert_allclose(found.slope, by_ell, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kinetic", KINETICS, ids=str)
def test_particle_at_rest_is_newtonian(kinetic: Kinetic) -> None:
    found = kinetics(kinetic, np.zeros(1), 1.0)
    rest = kinetic.rho * kinetic.chi0**2 if isinstance(kinetic, Relativistic) else 0.0
    assert found.braking[0] == 1.0
    assert found.kappa[0] == pytest.approx(rest)


def test_text_kinetic_energy_is_the_root_of_momentum_and_rest_energy() -> None:
    beta, x2, chi0 = 3.7, 1.9, K / BETA0
    found = kinetics(Relativistic(chi0, nu=1.0, rho=1.0), np.array([x2]), BETA0 / beta)
    root = math.sqrt(x2 + (K / beta) ** 2)
    # K = (k/β)√(…) as errata 11 says, and (β/k)κ = K; U' = (k/hβ)K: X·v - κ - ∂κ/∂lnβ = (k/β)K = (k/β)²√(1 + β²x²/k²).
    assert beta / K * found.kappa[0] == pytest.approx(root)
    fed = found.braking[0] * x2 - found.kappa[0] - found.slope[0]
    assert fed == pytest.approx(K / beta * root)


def test_kinetic_energies_agree_to_the_square_of_s() -> None:
    chi = 0.9
    b = 1 / (2 * chi**2)
    for s in (1e-3, 5e-4):
        kappas = [
            float(kinetics(kind, np.array([s]), 1.0).kappa[0])
            for kind in (Relativistic(chi), Quartic(b), Truncated(chi), Vr(b))
        ]
        assert max(kappas) - min(kappas) < s**3
        assert s / 2 - max(kappas) > s**2 / (9 * chi**2)


def test_quartic_is_the_legendre_transform_of_its_lagrangian() -> None:
    b, speeds = 0.7, np.linspace(0, 4, 400_001)
    for p in (0.1, 1.0, 30.0):
        found = kinetics(Quartic(b), np.array([p * p]), 1.0)
        assert found.kappa[0] == pytest.approx(np.max(p * speeds - speeds**2 / 2 - b * speeds**4 / 4), rel=1e-8)


# --- metrics ---


def taught(metric: Metric, shapes: list[tuple[int, ...]], gradients: list[Vector]) -> MetricMemory:
    memory = MetricMemory(metric, shapes)
    for n, g in enumerate(gradients):
        memory.learn(g, n)
    return memory


def test_kronecker_equals_full_when_the_covariance_is_separable() -> None:
    rng = np.random.default_rng(3)
    rows, columns = rng.normal(size=(3, 3)), rng.normal(size=(4, 4))
    a, b = rows @ rows.T, columns @ columns.T
    x = rng.normal(size=12)
    for power, eps_inside in ((0.5, False), (0.5, True), (0.25, False)):
        shared = {"rho2": 1.0, "q2": 0.0, "normalise": False, "eps": 1e-3, "power": power, "eps_inside": eps_inside}
        full = MetricMemory(Full(**shared), [(3, 4)])  # type: ignore[arg-type]
        full.blocks[0].moments["covariance"] = np.kron(a, b)
        split = MetricMemory(Kronecker(**shared), [(3, 4)])  # type: ignore[arg-type]
        split.blocks[0].moments |= {"left": a * np.trace(b), "right": b * np.trace(a)}
        for memory in (full, split):
            memory.learn(np.zeros(12), 0)
        np.testing.assert_allclose(split.apply(x), full.apply(x), rtol=1e-10)
        assert np.abs(full.apply(x) - x).max() > 0.01


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (5, 1, 1)])
def test_kronecker_of_one_row_or_column_equals_full(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    gradients, x = [rng.normal(size=5) for _ in range(30)], rng.normal(size=5)
    full, split = (taught(kind(eps=1e-3), [shape], gradients) for kind in (Full, Kronecker))
    np.testing.assert_allclose(split.apply(x), full.apply(x), rtol=1e-10)


def test_kronecker_sees_a_tensor_as_rows_by_the_rest_and_leaves_long_sides_to_the_diagonal() -> None:
    rng = np.random.default_rng(5)
    gradients, x = [rng.normal(size=24) for _ in range(30)], rng.normal(size=24)
    cube = taught(Kronecker(), [(2, 3, 4)], gradients).apply(x)
    np.testing.assert_array_equal(cube, taught(Kronecker(), [(2, 12)], gradients).apply(x))
    diagonal = taught(Diagonal(), [(2, 3, 4)], gradients).apply(x)
    np.testing.assert_array_equal(taught(Kronecker(max_side=11), [(2, 3, 4)], gradients).apply(x), diagonal)
    np.testing.assert_array_equal(taught(Kronecker(), [(24,)], gradients).apply(x), diagonal)
    assert np.abs(cube / diagonal - 1).max() > 0.01


def test_per_tensor_full_is_one_session_per_tensor() -> None:
    rng = np.random.default_rng(6)
    gradients, x = [rng.normal(size=7) for _ in range(20)], rng.normal(size=7)
    both = taught(Full(scope="tensor"), [(3,), (4,)], gradients).apply(x)
    parts = [
        taught(Full(), [(end - at,)], [g[at:end] for g in gradients]).apply(x[at:end]) for at, end in ((0, 3), (3, 7))
    ]
    np.testing.assert_allclose(both, np.concatenate(parts), rtol=1e-13)
    assert np.abs(both - taught(Full(), [(3,), (4,)], gradients).apply(x)).max() > 1e-3


@pytest.mark.parametrize("metric", [Full(refresh=4), Kronecker(refresh=4)], ids=str)
def test_decomposition_is_renewed_at_first_and_then_every_fourth_step_from_the_present_covariance(
    metric: Full | Kronecker,
) -> None:
    rng = np.random.default_rng(7)
    gradients, x = [rng.normal(size=6) for _ in range(8)], rng.normal(size=6)
    found = [taught(metric, [(2, 3)], gradients[: n + 1]).apply(x) for n in range(8)]
    always = [taught(replace(metric, refresh=1), [(2, 3)], gradients[: n + 1]).apply(x) for n in range(8)]
    for n in range(8):
        np.testing.assert_array_equal(found[n], always[n if n < 4 else n - n % 4])
    assert np.abs(found[7] - always[7]).max() > 1e-3


@pytest.mark.parametrize("eps_inside", [False, True])
def test_directions_without_gradient_are_not_thrown_to_infinity(eps_inside: bool) -> None:
    g = np.array([3.0, 4.0])
    memory = taught(Full(eps=1e-30, eps_inside=eps_inside), [(2,)], [g])
    across = np.array([-4.0, 3.0]) / 5  # no gradient ever: λ = 0; along g, λ = 25
    guard = 1 / math.sqrt(1e-12 * 25) if eps_inside else 1 / (1e-6 * 5)
    np.testing.assert_allclose(memory.apply(across), across * guard, rtol=1e-6 if not eps_inside else 1e-2)


def test_full_metric_rotates_with_the_problem_and_the_diagonal_does_not() -> None:
    angle = 0.6
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    stiffness = np.array([1.0, 30.0])

    def end(metric: Metric, rotation: Vector) -> Vector:
        settings = Settings(eta=0.02, force="ema", metric=metric, normalise=True, kinetic=Relativistic(0.5))
        oracle = Oracle(settings, [(2,)], rotation @ np.array([1.0, -0.7]))
        for n in range(40):
            inside = rotation.T @ oracle.publish()
            g = stiffness * inside + 0.3 * np.sin(inside + n)
            oracle.update(rotation @ g, float(g @ g))
        return rotation.T @ oracle.w

    eps = 1e-3
    np.testing.assert_allclose(end(Full(eps=eps), turn), end(Full(eps=eps), np.eye(2)), atol=1e-9)
    assert np.abs(end(Diagonal(eps=eps), turn) - end(Diagonal(eps=eps), np.eye(2))).max() > 1e-3
