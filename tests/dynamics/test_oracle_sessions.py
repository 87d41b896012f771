"""Sessions of the oracle: norm groups, unit momentum, first steps, gauges, and what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad

from .oracle import Oracle, Settings, Vector
from .oracle_kinetics import Relativistic
from .oracle_metrics import Diagonal, Full, Kronecker, Metric
from .oracle_profiles import Constant, Exponential, Linear, Polynomial, Power, Profile, Tabulated
from .test_oracle_parts import BETA0, TABLE, TAU, beta_of

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
