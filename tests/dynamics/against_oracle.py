"""Steps a session and the oracle side by side and compares all that both know."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hermosis_server.dynamics import (
    Classical,
    Constant,
    Diagonal,
    Exponential,
    Full,
    Hamiltonian,
    KineticEnergy,
    Kronecker,
    Linear,
    Metric,
    MetricPlace,
    NormKind,
    Polynomial,
    Power,
    Quartic,
    Relativistic,
    Scheme,
    Tabulated,
    ThermalProfile,
    Truncated,
    VelocityRegularised,
)
from hermosis_server.records import EnergySample

from . import oracle_kinetics as kinetics
from . import oracle_metrics as metrics
from . import oracle_profiles as profiles
from .batches import SHAPES, batch_of, sample_of
from .oracle import Oracle, Settings, Vector

SCHEMES = {Scheme.SYMPLECTIC_EULER: "euler", Scheme.LEAPFROG: "leapfrog", Scheme.CONFORMAL: "conformal"}


def settings_of(hamiltonian: Hamiltonian) -> Settings:
    """The same dynamics in the oracle's words."""
    decay = hamiltonian.weight_decay
    place = getattr(hamiltonian.metric, "place", MetricPlace.DRIFT)
    return Settings(
        eta=hamiltonian.learning_rate,
        tau=hamiltonian.step_duration,
        k=hamiltonian.information_unit,
        beta0=hamiltonian.initial_beta,
        profile=_profile(hamiltonian.thermal, hamiltonian.step_duration),
        force=hamiltonian.force.mode.value,
        zeta=hamiltonian.force.gradient_gain,
        kinetic=_kinetic(hamiltonian.kinetic, hamiltonian.learning_rate),
        norm_over=hamiltonian.norm_scope.value,
        norm="euclid" if hamiltonian.norm_kind is NormKind.EUCLIDEAN else "metric",
        metric=_metric(hamiltonian.metric),
        metric_on=place.value,
        integrator=SCHEMES[hamiltonian.integrator],  # type: ignore[arg-type]
        alpha=hamiltonian.kept_drift,
        lookahead=hamiltonian.lookahead,
        normalise=hamiltonian.normalise,
        x_first=hamiltonian.first_kick,
        lam0=decay.bare,
        lam2=decay.thermal,
        lam_d=decay.decoupled,
        follows_speed=decay.follows_speed,
    )


def _profile(thermal: ThermalProfile, tau: float) -> profiles.Profile:
    match thermal:
        case Constant():
            return profiles.Constant()
        case Exponential():
            return profiles.Exponential(thermal.rate(tau))
        case Linear():
            return profiles.Linear(thermal.growth)
        case Power():
            return profiles.Power(thermal.exponent, thermal.age)
        case Tabulated():
            return profiles.Tabulated(thermal.knots)
        case Polynomial():
            terms = [(term.coefficient, term.internal_energy_power, term.beta_power) for term in thermal.terms]
            return profiles.Polynomial(tuple(terms))


def _kinetic(kinetic: KineticEnergy, eta: float) -> kinetics.Kinetic:
    match kinetic:
        case Classical():
            return kinetics.Classical()
        case Relativistic():
            return kinetics.Relativistic(kinetic.limit(eta), kinetic.rest_cooling, kinetic.rest_energy)
        case Quartic():
            return kinetics.Quartic(kinetic.stiffness)
        case Truncated():
            return kinetics.Truncated(kinetic.speed_limit)
        case VelocityRegularised():
            return kinetics.Vr(kinetic.stiffness, kinetic.cap)


def _metric(metric: Metric) -> metrics.Metric | None:
    if not isinstance(metric, Diagonal | Full | Kronecker):
        return None
    common = {
        "rho2": metric.second_moment_decay,
        "q2": metric.second_moment_gain,
        "eps": metric.epsilon,
        "power": metric.power,
        "eps_inside": metric.epsilon_inside,
        "normalise": metric.normalise,
    }
    match metric:
        case Diagonal():
            return metrics.Diagonal(**common, centered=metric.centered)  # type: ignore[arg-type]
        case Full():
            scope = "tensor" if metric.by_tensor else "session"
            return metrics.Full(**common, refresh=metric.refresh_steps, scope=scope)  # type: ignore[arg-type]
        case Kronecker():
            kept = {"refresh": metric.refresh_steps, "max_side": metric.max_side}
            return metrics.Kronecker(**common, **kept)  # type: ignore[arg-type]


def field(w: Vector, step: int) -> tuple[float, Vector]:
    """A smooth function with a minimum that wanders, so that nothing comes to rest."""
    stiffness = np.linspace(0.5, 2.0, w.size)
    gap = w - np.sin(np.arange(w.size) + step / 7)
    loss = float(np.sum(stiffness * gap**2 / 2 + gap**4 / 50)) / max(1, w.size) + 1.0
    return loss, (stiffness * gap + gap**3 * 4 / 50) / math.sqrt(max(1, w.size))


def compare(
    hamiltonian: Hamiltonian,
    *,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    steps: int = 8,
    rtol: float = 1e-11,
    seed: int = 5,
    row_elements: int = 8,
    losses: bool = True,
    device: str = "cpu",
) -> EnergySample:
    """After every step: position, momentum, thermal numbers, energies. Gives the last sample.

    A bath that leaves its range stops both: the oracle by an exception, the session by a step that is not finite.
    """
    sizes = [math.prod(shape) for shape in shapes]
    start = np.random.default_rng(seed).normal(size=sum(sizes))
    batch = batch_of(hamiltonian, [torch.from_numpy(start).to(device)], row_elements=row_elements, shapes=shapes)
    oracle = Oracle(settings_of(hamiltonian), list(shapes), start)
    oracle.ell = hamiltonian.initial_log_beta  # a table says how β grows; the oracle takes where it starts from it too
    published = oracle.publish()
    if isinstance(hamiltonian.thermal, Polynomial):
        oracle.s = 0.0  # counts from the first kick
        oracle.u = batch.scalar("internal_energy")  # the first half drift, from rest, is not counted
    sample = EnergySample()
    for step in range(steps):
        w = batch.position().cpu().numpy()
        _close(w, published, rtol, "position")
        loss, gradient = field(published, step)
        known = loss if losses else math.nan
        lr_scale = 1 + 0.5 * math.cos(step)
        rows = batch.rows_of([torch.from_numpy(gradient).to(device)])
        advance = batch.step(rows, [known], [lr_scale])
        left: ValueError | None = None
        try:
            oracle.update(gradient, known, lr_scale)
            at_end = (oracle.u, oracle.ell, oracle.s)
            published = oracle.publish(lr_scale)
        except ValueError as error:
            left = error
        if left is not None:
            assert "bath left" in str(left) or "would reach" in str(left)
            assert not advance.state_finite[0]
            return sample
        assert bool(advance.state_finite[0])
        sample = sample_of(advance)
        _compare_energies(hamiltonian, sample, oracle, at_end, rtol, float(w @ w))
        momentum = batch.vectors_of(batch.state.momentum)[0].cpu().numpy()
        _close(momentum, oracle.x, rtol, "momentum")
        for name, wanted in (
            ("step", oracle.n),
            ("clock", oracle.t),
            ("log_beta", oracle.ell),
            ("unit_momentum", oracle.a),
            ("internal_energy", oracle.u),
            ("entropy", oracle.s),
        ):
            unit = abs(sample.kinetic_energy) + abs(sample.potential_energy) + abs(oracle.u)
            unit = unit * math.exp(min(oracle.ell, 600)) if name == "entropy" else unit if "energy" in name else 1.0
            _number(batch.scalar(name), wanted, rtol, name, unit)
    return sample


def _compare_energies(
    hamiltonian: Hamiltonian,
    sample: EnergySample,
    oracle: Oracle,
    at_end: tuple[float, float, float],
    rtol: float,
    square: float,
) -> None:
    """`square` is |q|², for the bare term at the end of the step."""
    energies = oracle.energies
    assert energies is not None
    u, log_beta, entropy = at_end
    unit = abs(energies.kinetic) + abs(energies.potential) + abs(energies.thermal)
    unit = unit if math.isfinite(unit) else 1.0
    pairs = {
        "internal_energy": (u, abs(u)),
        "log_beta": (log_beta, 1.0),
        "entropy": (entropy, math.exp(min(log_beta, 600)) * (unit + abs(u))),
        "energy_defect": (energies.drift, unit),
    }
    if math.isfinite(energies.c2):
        bare = hamiltonian.weight_decay.bare * square / 2 * math.exp(-log_beta)
        pairs["potential_energy"] = (energies.c2 * energies.loss / hamiltonian.information_unit + bare, unit)
    if isinstance(hamiltonian.thermal, Tabulated):  # the oracle counts across knots
        del pairs["energy_defect"]
    if not hamiltonian.lookahead:  # the oracle tells that of X itself
        pairs["kinetic_energy"] = (energies.kinetic_end, unit)
    else:
        pairs.pop("energy_defect", None)
    if not isinstance(hamiltonian.thermal, Polynomial) and sample.cooling_rate > 0:  # E = φU, and -U a mean
        pairs["smoothed_loss"] = (energies.smoothed_loss, unit)
    if energies.braking.size == 1:
        pairs["braking"] = (float(energies.braking[0]), 1.0)
    for name, (wanted, scale) in pairs.items():
        _number(getattr(sample, name), wanted, rtol, name, scale)


def _number(got: float, wanted: float, rtol: float, name: str, unit: float) -> None:
    unit = unit if math.isfinite(unit) else 1.0
    assert got == pytest.approx(wanted, rel=10 * rtol, abs=100 * rtol * max(unit, 1e-3), nan_ok=True), name


def _close(got: Vector, wanted: Vector, rtol: float, name: str) -> None:
    np.testing.assert_allclose(
        got, wanted, rtol=rtol, atol=rtol * max(1.0, float(np.abs(wanted).max(initial=0))), err_msg=name
    )
