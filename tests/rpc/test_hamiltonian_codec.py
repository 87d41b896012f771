"""Any Hamiltonian survives the wire, and each refusal names the field of the message."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hermosis.v1 import dynamics_pb2
from hermosis_server.dynamics import (
    Classical,
    Constant,
    Diagonal,
    Euclidean,
    Exponential,
    Force,
    ForceMode,
    Full,
    Hamiltonian,
    Kronecker,
    Linear,
    MetricPlace,
    NormKind,
    NormScope,
    Polynomial,
    Power,
    Quartic,
    Relativistic,
    Scheme,
    Tabulated,
    Term,
    Truncated,
    VelocityRegularised,
    WeightDecay,
)
from hermosis_server.errors import InvalidHyperparameter, InvalidRequest
from hermosis_server.rpc.codec import hamiltonian as codec

positive = st.floats(1e-3, 1e3)
at_least_zero = st.just(0.0) | positive
share = st.floats(0, 1)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


knots = st.lists(st.tuples(st.floats(-100, 100).map(lambda t: round(t, 2)), positive), min_size=2, max_size=6)
terms = st.lists(
    st.builds(
        Term,
        coefficient=st.floats(-10, 10),
        internal_energy_power=st.integers(0, 16),
        beta_power=st.integers(0, 16),
    ),
    min_size=1,
    max_size=5,
)
profiles = st.one_of(
    st.builds(Constant),
    st.builds(Exponential),
    st.builds(Exponential, momentum_retention=st.floats(0, 0.999)),
    st.builds(Exponential, cooling_rate=positive),
    st.builds(Linear, growth=at_least_zero),
    st.builds(Power, exponent=positive | positive.map(lambda x: -x), age=positive, reference_log_beta=maybe(share)),
    knots.map(lambda pairs: Tabulated(knots=tuple(sorted({**dict(pairs), 200.0: 1.0}.items())))),
    terms.map(lambda each: Polynomial(terms=tuple(each))),
)
kinetics = st.one_of(
    st.builds(Classical),
    st.builds(Relativistic, max_step=positive, rest_cooling=share, rest_energy=at_least_zero),
    st.builds(Relativistic, speed_limit=positive, rest_cooling=share, rest_energy=at_least_zero),
    st.builds(Quartic, stiffness=at_least_zero),
    st.builds(Truncated, speed_limit=positive),
    st.builds(VelocityRegularised, stiffness=at_least_zero, cap=at_least_zero),
)
moments: dict[str, Any] = {
    "second_moment_decay": st.floats(0, 0.9999),
    "second_moment_gain": maybe(positive),
    "epsilon": positive,
    "power": st.integers(1, 8).map(lambda eighths: eighths / 8),
    "epsilon_inside": st.booleans(),
    "normalise": st.booleans(),
    "place": st.sampled_from(MetricPlace),
}
metrics = st.one_of(
    st.builds(Euclidean),
    st.builds(Diagonal, **moments, centered=st.booleans()),
    st.builds(Full, **moments, by_tensor=st.booleans(), refresh_steps=st.integers(1, 100)),
    st.builds(Kronecker, **moments, refresh_steps=st.integers(1, 100), max_side=st.integers(1, 2048)),
)
decays = st.builds(
    WeightDecay, bare=at_least_zero, thermal=at_least_zero, decoupled=st.floats(0, 1e-4), follows_speed=st.booleans()
)


@st.composite
def hamiltonians(draw: st.DrawFn) -> Hamiltonian:
    thermal, scheme = draw(profiles), draw(st.sampled_from(Scheme))
    modes = [ForceMode.PHYSICAL] if isinstance(thermal, Polynomial) else list(ForceMode)
    try:
        return Hamiltonian(
            learning_rate=draw(positive),
            step_duration=draw(positive),
            information_unit=draw(positive),
            initial_beta=draw(positive),
            thermal=thermal,
            kinetic=draw(kinetics),
            norm_scope=draw(st.sampled_from(NormScope)),
            norm_kind=draw(st.sampled_from(NormKind)),
            metric=draw(metrics),
            force=Force(mode=draw(st.sampled_from(modes)), gradient_gain=draw(positive)),
            weight_decay=draw(decays),
            normalise=draw(st.booleans()),
            lookahead=scheme is Scheme.SYMPLECTIC_EULER and draw(st.booleans()),
            first_kick=draw(maybe(positive)),
            integrator=scheme,
            kept_drift=draw(share) if scheme is Scheme.CONFORMAL else 1.0,
        )
    except InvalidHyperparameter:  # parts that are each allowed, but contradict each other
        assume(False)
        raise


@settings(max_examples=150, deadline=None)
@given(hamiltonians())
def test_any_hamiltonian_survives_the_wire(hamiltonian: Hamiltonian) -> None:
    payload = codec.to_message(hamiltonian).SerializeToString()
    assert codec.from_message(dynamics_pb2.Hamiltonian.FromString(payload)) == hamiltonian


def test_what_is_left_out_has_the_defaults_of_the_dynamics() -> None:
    assert codec.from_message(dynamics_pb2.Hamiltonian(learning_rate=0.5)) == Hamiltonian(learning_rate=0.5)
    message = dynamics_pb2.Hamiltonian(learning_rate=0.5)
    for kind, metric in ((2, Diagonal()), (3, Full()), (4, Kronecker())):
        message.metric.kind = dynamics_pb2.MetricKind.ValueType(kind)
        assert codec.from_message(message).metric == metric


ENUMS = {
    "force.mode": dynamics_pb2.ForceMode,
    "metric.kind": dynamics_pb2.MetricKind,
    "metric.place": dynamics_pb2.MetricPlace,
    "metric.scope": dynamics_pb2.NormScope,
    "kinetic_energy.norm_scope": dynamics_pb2.NormScope,
    "kinetic_energy.norm_kind": dynamics_pb2.NormKind,
    "integrator.scheme": dynamics_pb2.IntegrationScheme,
}


@pytest.mark.parametrize("path", ENUMS)
def test_an_unknown_number_is_refused_with_the_names_that_are_known(path: str) -> None:
    message = dynamics_pb2.Hamiltonian(learning_rate=1, metric=dynamics_pb2.Metric(kind=dynamics_pb2.METRIC_KIND_FULL))
    part, _, field = path.partition(".")
    setattr(getattr(message, part), field, 99)
    with pytest.raises(InvalidRequest, match="is 99; this server knows") as refused:
        codec.from_message(message)
    assert refused.value.field == f"optimizer.hamiltonian.{path}"
    for name, number in ENUMS[path].items():
        assert (name in str(refused.value)) == (number > 0)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("learning_rate", {"learning_rate": 0}),
    ("step_duration", {"step_duration": -1}),
    ("information_unit", {"information_unit": 0}),
    ("initial_beta", {"initial_beta": float("nan")}),
    ("first_kick", {"first_kick": 0}),
    ("lookahead", {"lookahead": True, "integrator": {"scheme": 2}}),
    ("thermal_profile.exponential.momentum_retention", {"thermal_profile": {"exponential": {"momentum_retention": 1}}}),
    ("thermal_profile.exponential.cooling_rate", {"thermal_profile": {"exponential": {"cooling_rate": 0}}}),
    ("thermal_profile.linear.rate", {"thermal_profile": {"linear": {"rate": float("inf")}}}),
    ("thermal_profile.power.exponent", {"thermal_profile": {"power": {"age": 1}}}),
    ("thermal_profile.power.age", {"thermal_profile": {"power": {"exponent": 3}}}),
    ("thermal_profile.tabulated.knots", {"thermal_profile": {"tabulated": {"knots": [{"time": 0, "beta": 1}]}}}),
    ("thermal_profile.polynomial.terms", {"thermal_profile": {"polynomial": {}}}),
    ("thermal_profile.polynomial.terms.beta_power",
     {"thermal_profile": {"polynomial": {"terms": [{"coefficient": 1, "beta_power": 17}]}}}),
    ("kinetic_energy.relativistic.limit", {"kinetic_energy": {"relativistic": {}}}),
    ("kinetic_energy.relativistic.max_step", {"kinetic_energy": {"relativistic": {"max_step": 0}}}),
    ("kinetic_energy.relativistic.rest_cooling",
     {"kinetic_energy": {"relativistic": {"speed_limit": 1, "rest_cooling": 2}}}),
    ("kinetic_energy.quartic.stiffness", {"kinetic_energy": {"quartic": {"stiffness": -1}}}),
    ("kinetic_energy.truncated.speed_limit", {"kinetic_energy": {"truncated": {}}}),
    ("kinetic_energy.velocity_regularised.cap", {"kinetic_energy": {"velocity_regularised": {"cap": -1}}}),
    ("kinetic_energy.norm_scope", {"kinetic_energy": {"norm_scope": 3}, "metric": {"kind": 4}}),
    ("kinetic_energy.norm_scope", {"kinetic_energy": {"norm_scope": 2}, "metric": {"kind": 3}}),
    ("metric.second_moment_decay", {"metric": {"kind": 2, "second_moment_decay": 1.5}}),
    ("metric.epsilon", {"metric": {"kind": 2, "epsilon": 0}}),
    ("metric.power", {"metric": {"kind": 2, "power": 0.3}}),
    ("metric.centered", {"metric": {"kind": 3, "centered": True}}),
    ("metric.scope", {"metric": {"kind": 3, "scope": 3}}),
    ("metric.max_side", {"metric": {"kind": 4, "max_side": 9000}}),
    ("metric.refresh_steps", {"metric": {"kind": 4, "refresh_steps": 2**31}}),
    ("force.mode", {"thermal_profile": {"constant": {}}}),
    ("force.gradient_gain", {"force": {"gradient_gain": 0}}),
    ("weight_decay.bare", {"weight_decay": {"bare": -1}}),
    ("weight_decay.decoupled", {"weight_decay": {"decoupled": 1}}),
    ("integrator.alpha", {"integrator": {"scheme": 3, "alpha": 2}}),
    ("integrator.alpha", {"integrator": {"alpha": 0.5}}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "fields"), REFUSED)
def test_a_refusal_names_the_field_of_the_message(field: str, fields: dict[str, Any]) -> None:
    message = dynamics_pb2.Hamiltonian(**{"learning_rate": 1, **fields})
    with pytest.raises(InvalidHyperparameter) as refused:
        codec.from_message(message)
    assert refused.value.field == f"optimizer.hamiltonian.{field}"
    place: Any = dynamics_pb2.Hamiltonian.DESCRIPTOR
    for name in field.removesuffix(".limit").split("."):
        place = place.fields_by_name[name].message_type if name in place.fields_by_name else pytest.fail(name)
