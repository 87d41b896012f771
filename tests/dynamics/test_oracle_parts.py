"""The oracle's parts: profiles, kinetic energies, metrics, norm groups, and how a session begins."""

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
def test_decomposition_is_renewed_every_fourth_step_from_the_present_covariance(metric: Full | Kronecker) -> None:
    rng = np.random.default_rng(7)
    gradients, x = [rng.normal(size=6) for _ in range(8)], rng.normal(size=6)
    found = [taught(metric, [(2, 3)], gradients[: n + 1]).apply(x) for n in range(8)]
    always = [taught(replace(metric, refresh=1), [(2, 3)], gradients[: n + 1]).apply(x) for n in range(8)]
    for n in range(8):
        np.testing.assert_array_equal(found[n], always[n - n % 4])
    assert np.abs(found[3] - always[3]).max() > 1e-3


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


# --- groups of a norm, and partition ---


def ended(settings: Settings, shapes: list[tuple[int, ...]], w: Vector, part: slice = slice(None)) -> Oracle:
    """After 30 steps along gradients that do not depend on w; `part` takes those of some coordinates."""
    oracle = Oracle(settings, shapes, w[part])
    for n in range(30):
        oracle.publish()
        g = np.cos(np.arange(w.size) * 1.7 + n / 3) * (1 + np.arange(w.size))
        oracle.update(g[part], 1.0)
    return oracle


WEIGHTS = np.linspace(-1, 1, 12)
BRAKED = Settings(eta=0.05, force="ema", kinetic=Relativistic(0.5), integrator="leapfrog")


@pytest.mark.parametrize("metric", [None, Diagonal(), Full(eps=1e-3)], ids=["euclid", "diagonal", "full"])
def test_partition_into_tensors_is_invisible_to_a_session_norm(metric: Metric | None) -> None:
    settings = replace(BRAKED, metric=metric)
    one, three = ended(settings, [(12,)], WEIGHTS), ended(settings, [(2, 3), (1,), (5,)], WEIGHTS)
    np.testing.assert_allclose(one.w, three.w, rtol=0, atol=1e-12)
    assert one.u == pytest.approx(three.u, rel=1e-12)


def test_norm_per_tensor_is_one_session_per_tensor() -> None:
    settings = replace(BRAKED, norm_over="tensor", metric=Diagonal())
    both = ended(settings, [(4,), (2, 4)], WEIGHTS)
    parts = [ended(settings, [(size,)], WEIGHTS, part) for size, part in ((4, slice(0, 4)), (8, slice(4, 12)))]
    np.testing.assert_allclose(both.w, np.concatenate([part.w for part in parts]), rtol=0, atol=1e-13)
    # Energies add up, but for the loss, which each of the parts counts once.
    assert both.energies is not None
    kinetic = [part.energies.kinetic for part in parts if part.energies]
    assert both.energies.kinetic == pytest.approx(sum(kinetic))
    assert len(both.energies.braking) == 2


def test_norm_per_coordinate_is_one_session_per_coordinate() -> None:
    settings = replace(BRAKED, norm_over="coordinate")
    whole = ended(settings, [(12,)], WEIGHTS)
    parts = [ended(settings, [(1,)], WEIGHTS, slice(i, i + 1)) for i in range(12)]
    np.testing.assert_allclose(whole.w, np.concatenate([part.w for part in parts]), rtol=0, atol=1e-13)


def test_tiny_speed_limit_per_coordinate_is_sign_descent() -> None:
    settings = replace(BRAKED, integrator="euler", norm_over="coordinate", kinetic=Relativistic(1e-9))
    oracle = Oracle(settings, [(3,)], np.zeros(3))
    oracle.update(np.array([5.0, -0.1, 1e-3]), 1.0)
    np.testing.assert_allclose(oracle.w, -0.05 * 1e-9 * np.array([1.0, -1.0, 1.0]), rtol=1e-6)


# --- how X, A and a session's first step come about ---


@pytest.mark.parametrize("force", ["ema", "unit", "physical"])
@pytest.mark.parametrize("profile", [Exponential(0.8), Linear(1.1), Power(3.0, 0.7), TABLE], ids=str)
@pytest.mark.parametrize("integrator", ["euler", "leapfrog", "conformal"])
def test_unit_momentum_is_the_momentum_of_a_gradient_of_one(profile: Profile, force: str, integrator: str) -> None:
    settings = Settings(
        eta=0.1,
        tau=0.05,
        profile=profile,
        force=force,  # type: ignore[arg-type]
        zeta=0.7,
        integrator=integrator,  # type: ignore[arg-type]
        beta0=BETA0,
    )
    if isinstance(profile, Tabulated):
        settings = replace(settings, profile=Tabulated(((0.0, BETA0), (10.0, 9.0))))
    oracle = Oracle(settings, [(1,)], np.ones(1))
    weights, retentions = [], []
    for _ in range(20):
        oracle.publish()
        ell = oracle.ell
        oracle.update(np.ones(1), 1.0)
        assert oracle.energies is not None
        weights.append(oracle.energies.impulse_gain)
        retentions.append(math.exp(ell))
    assert oracle.x[0] == pytest.approx(oracle.a, rel=1e-13)
    if integrator != "conformal" and force == "physical":
        # c²/h times the mean of β over the past, in units of β now.
        area, _ = quad(lambda t: beta_of(settings.profile, t), 0, oracle.t)
        assert oracle.a == pytest.approx(0.7 / 0.05 * area / math.exp(oracle.ell), rel=1e-10)
    if force == "unit":
        assert weights == [0.7] * 20


def test_ema_and_physical_forces_are_one_under_exponential_cooling() -> None:
    gamma, tau = 0.8, 0.3
    for integrator in ("euler", "leapfrog", "conformal"):
        ema = replace(BRAKED, tau=tau, profile=Exponential(gamma), integrator=integrator, zeta=0.7)
        physical = replace(ema, force="physical", zeta=0.7 * gamma * tau)  # c² = ζhγ, written as ζ'h/τ
        found = [ended(settings, [(12,)], WEIGHTS) for settings in (ema, physical)]
        np.testing.assert_allclose(found[0].w, found[1].w, rtol=1e-12)
        assert found[0].u == pytest.approx(found[1].u, rel=1e-11)


@pytest.mark.parametrize("profile", [Exponential(0.2), Linear(0.5), Exponential(math.inf)], ids=str)
@pytest.mark.parametrize("integrator", ["euler", "leapfrog", "conformal"])
def test_first_kick_leaves_the_weight_that_was_asked_for(integrator: str, profile: Profile) -> None:
    g = np.array([2.0, -1.0])
    settings = Settings(eta=0.1, profile=profile, integrator=integrator, zeta=0.4, x_first=1.0)  # type: ignore[arg-type]
    oracle = Oracle(settings, [(2,)], np.zeros(2))
    kept = 1.0
    for wanted in (1.0, 0.4):
        oracle.publish()
        ell = oracle.ell
        x = oracle.x
        oracle.update(g, 1.0)
        r = math.exp(ell - oracle.ell) if math.isfinite(oracle.ell) else 0.0
        cooled = r if integrator == "conformal" else 1.0  # since the kick
        before = 0.0 if wanted == 1.0 else (1.0 if integrator == "conformal" else r)
        np.testing.assert_allclose(oracle.x, cooled * (before * x + wanted * g), rtol=1e-13)
        assert oracle.a * g[0] == pytest.approx(oracle.x[0])
        kept *= cooled
    assert (kept < 1) == (integrator == "conformal")


@pytest.mark.parametrize("profile", [Exponential(0.8), Linear(1.1), Power(3.0, 0.7)], ids=str)
def test_momentum_over_unit_momentum_is_the_mean_of_gradients_over_the_mass(profile: Profile) -> None:
    settings = Settings(eta=0.1, tau=TAU, beta0=BETA0, profile=profile, force="physical")
    oracle = Oracle(settings, [(2,)], np.ones(2))
    gradients = np.random.default_rng(8).normal(size=(15, 2))
    for g in gradients:
        oracle.update(g, 1.0)
    masses = [quad(lambda t: beta_of(profile, t), n * TAU, (n + 1) * TAU)[0] for n in range(15)]
    np.testing.assert_allclose(oracle.x / oracle.a, np.average(gradients, axis=0, weights=masses), rtol=1e-11)


@pytest.mark.parametrize("integrator", ["euler", "leapfrog", "conformal"])
def test_gauges_are_invisible(integrator: str) -> None:
    base = replace(BRAKED, integrator=integrator, tau=0.5, force="physical", profile=Exponential(0.8))  # type: ignore[arg-type]
    w = ended(base, [(12,)], WEIGHTS).w
    np.testing.assert_allclose(ended(replace(base, k=7.0, beta0=0.2), [(12,)], WEIGHTS).w, w, rtol=1e-12)
    # (c, h) → (ac, ah) with χ → aχ at the same τ: X → aX.
    a = 3.0
    scaled = replace(base, eta=base.eta / a, zeta=base.zeta * a, kinetic=Relativistic(0.5 * a))
    np.testing.assert_allclose(ended(scaled, [(12,)], WEIGHTS).w, w, rtol=1e-12)
    # (τ, h, γ) → (aτ, ah, γ/a): η is the same, and so is z.
    slower = replace(base, tau=base.tau * a, profile=Exponential(0.8 / a))
    np.testing.assert_allclose(ended(slower, [(12,)], WEIGHTS).w, w, rtol=1e-12)
    visible = replace(base, kinetic=Relativistic(0.5, nu=1.0))
    assert np.abs(ended(replace(visible, tau=0.25), [(12,)], WEIGHTS).w - w).max() > 1e-3


def test_missing_loss_moves_the_weights_all_the_same_and_undefines_the_rest() -> None:
    with_loss, without = (Oracle(BRAKED, [(2,)], np.ones(2)) for _ in range(2))
    for n in range(10):
        g = np.array([math.sin(n), 1.0])
        with_loss.update(g, 2.0)
        without.update(g, math.nan if n == 4 else 2.0)
        assert math.isnan(without.u) == (n == 4)
        assert math.isnan(without.s) == (n == 4)
    np.testing.assert_array_equal(with_loss.w, without.w)


def test_publishing_twice_moves_nothing_twice() -> None:
    settings = replace(BRAKED, integrator="conformal")
    once, twice = (ended(settings, [(2,)], np.ones(2)) for _ in range(2))
    np.testing.assert_array_equal(twice.publish(), twice.publish())
    once.update(np.ones(2), 1.0)
    twice.update(np.ones(2), 1.0)
    np.testing.assert_array_equal(once.w, twice.w)
    assert once.u == twice.u


@pytest.mark.parametrize(
    "options",
    [
        {"profile": Polynomial(((1.0, 1, 1),)), "force": "ema"},
        {"profile": Exponential(math.inf), "force": "physical"},
        {"profile": Exponential(math.inf), "force": "ema", "integrator": "conformal"},
        {"lookahead": True, "integrator": "leapfrog"},
        {"metric": Full(), "norm_over": "coordinate"},
        {"metric": Kronecker(), "norm_over": "coordinate"},
        {"metric": Full(), "norm_over": "tensor"},
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs|belongs|undefined"):
        Settings(eta=0.1, **options)  # type: ignore[arg-type]


def test_feedback_without_a_loss_and_ema_without_cooling_are_refused() -> None:
    thermostat = Settings(eta=0.1, profile=Polynomial(((1.0, 1, 1),)), force="physical")
    with pytest.raises(ValueError, match="needs the loss"):
        Oracle(thermostat, [(1,)], np.ones(1)).update(np.ones(1), math.nan)
    constant = Settings(eta=0.1, profile=Constant(), force="ema")
    with pytest.raises(ValueError, match="β that changes"):
        Oracle(constant, [(1,)], np.ones(1)).update(np.ones(1), 1.0)
