"""Whatever is asked for is refused by name or moves as the oracle says; what holds of every member of the roster."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hermosis_server.dynamics import (
    SCALARS,
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
    PhaseState,
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
    initial_scalars,
    resolve,
)
from hermosis_server.errors import InvalidHyperparameter

from .against_oracle import compare
from .batches import SHAPES, Batch, batch_of, draw, matrix_roster, roster, sample_of

ALL = roster() | matrix_roster()


def between(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def either(*values: float) -> st.SearchStrategy[float]:
    """Now and then a number that must be refused."""
    return st.sampled_from(values)


PROFILES = st.one_of(
    st.builds(Constant),
    st.builds(Exponential, momentum_retention=st.one_of(between(0.05, 0.99), either(0.0))),
    st.builds(Exponential, cooling_rate=between(1e-3, 2.0)),
    st.builds(Linear, growth=st.one_of(between(-1.5, -0.01), st.just(0.0), between(0.01, 3.0))),
    st.builds(Power, exponent=st.one_of(between(-2.0, -0.2), between(0.2, 4.0)), age=between(0.5, 5.0)),
    st.lists(st.tuples(between(0.1, 1.0), between(0.5, 3.0)), min_size=2, max_size=5).map(
        lambda gaps: Tabulated(
            knots=tuple((sum(gap for gap, _ in gaps[: i + 1]) - 0.3, beta) for i, (_, beta) in enumerate(gaps))
        )
    ),
    st.builds(
        lambda a, b, c: Polynomial(
            terms=(
                Term(coefficient=a, internal_energy_power=1, beta_power=1),
                Term(coefficient=b, internal_energy_power=2),
                Term(coefficient=c, beta_power=2),
            )
        ),
        between(0.0, 4.0),
        between(-0.2, 0.2),
        between(-0.2, 0.2),
    ),
)
KINETICS = st.one_of(
    st.builds(Classical),
    st.builds(
        Relativistic,
        speed_limit=between(0.05, 5.0),
        rest_cooling=st.one_of(st.just(0.0), between(0.0, 1.0)),
        rest_energy=between(0.0, 2.0),
    ),
    st.builds(Quartic, stiffness=st.one_of(st.just(0.0), between(1e-3, 10.0))),
    st.builds(Truncated, speed_limit=between(0.05, 5.0)),
    st.builds(VelocityRegularised, stiffness=between(0.0, 10.0), cap=between(0.0, 5.0)),
)
MOMENTS = {
    "second_moment_decay": between(0.0, 0.999),
    "second_moment_gain": st.one_of(st.none(), between(0.1, 1.0)),
    "epsilon": between(0.1, 1.0),
    "power": st.sampled_from([0.5, 0.625, 0.75, 1.0]),
    "epsilon_inside": st.booleans(),
    "normalise": st.booleans(),
    "place": st.sampled_from(MetricPlace),
}
METRICS = st.one_of(
    st.builds(Euclidean),
    st.builds(Diagonal, **MOMENTS, centered=st.booleans()),
    st.builds(Full, **MOMENTS, by_tensor=st.booleans(), refresh_steps=st.integers(1, 3)),
    st.builds(Kronecker, **MOMENTS, refresh_steps=st.integers(1, 3), max_side=st.integers(2, 20)),
)


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that may or may not go together."""
    values = {
        "learning_rate": draw(st.one_of(between(1e-3, 0.3), either(0.0, math.nan))) if draw(st.integers(0, 20)) == 7
        else draw(between(1e-3, 0.3)),
        "step_duration": draw(between(0.2, 2.0)),
        "information_unit": draw(between(0.5, 3.0)),
        "initial_beta": draw(between(0.5, 3.0)),
        "thermal": draw(PROFILES),
        "kinetic": draw(KINETICS),
        "norm_scope": draw(st.sampled_from(NormScope)),
        "norm_kind": draw(st.sampled_from(NormKind)),
        "metric": draw(METRICS),
        "force": Force(mode=draw(st.sampled_from(ForceMode)), gradient_gain=draw(between(0.05, 1.0))),
        "weight_decay": WeightDecay(
            bare=draw(st.one_of(st.just(0.0), between(0.0, 0.5))),
            thermal=draw(st.one_of(st.just(0.0), between(0.0, 0.5))),
            decoupled=draw(st.one_of(st.just(0.0), between(0.0, 4.0))),
            follows_speed=draw(st.booleans()),
        ),
        "normalise": draw(st.booleans()),
        "lookahead": draw(st.integers(0, 3)) == 0,
        "first_kick": draw(st.one_of(st.none(), between(0.2, 1.5))),
        "integrator": draw(st.sampled_from(Scheme)),
    }  # fmt: skip
    if values["integrator"] is Scheme.CONFORMAL or draw(st.integers(0, 9)) == 0:
        values["kept_drift"] = draw(between(0.0, 1.0))
    return values


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(asked(), st.sampled_from([((3, 4), (5,)), ((2, 2, 3), (), (0, 2)), ((7,),)]), st.booleans())
def test_what_is_asked_for_is_refused_by_name_or_follows_the_oracle(
    values: dict[str, Any], shapes: tuple[tuple[int, ...], ...], losses: bool
) -> None:
    hamiltonian: Hamiltonian | None = None
    refusal: InvalidHyperparameter | None = None
    try:
        hamiltonian = Hamiltonian(**values)
        initial_scalars(hamiltonian)
    except InvalidHyperparameter as error:
        refusal = error
    if refusal is not None or hamiltonian is None:
        assert refusal is not None
        assert refusal.field.startswith("optimizer.hamiltonian.")
        assert refusal.field.split(".")[-1] in str(refusal)
        return
    family = hamiltonian.family(shapes)
    exact = not (family.matrix or family.centered)  # others divide by the root of a difference of near equals
    compare(
        hamiltonian,
        shapes=shapes,
        steps=4,
        rtol=1e-9 if exact else 1e-6,
        losses=losses or family.needs_loss,
    )


SIZE = sum(math.prod(shape) for shape in SHAPES)


def steps(batch: Batch, numbers: range, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    """Steps of gradients that depend on number and position; gives the published position."""
    for number in numbers:
        (noise,) = draw(50 + number, SIZE, dtype=dtype, device=device)
        batch.step(batch.rows_of([scale * (batch.position() / 2 + noise)]), [1.0 + number % 3], [1 - number / 100])
    return batch.position()


def fresh(name: str, dtype: torch.dtype, device: torch.device) -> Batch:
    return batch_of(ALL[name], draw(1, SIZE, dtype=dtype, device=device), row_elements=16, shapes=SHAPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_state_saved_after_any_step_goes_on_bit_for_bit(name: str, dtype: torch.dtype, device: torch.device) -> None:
    whole, saved = fresh(name, dtype, device), []
    for number in range(7):
        saved.append(whole.state.clone())
        steps(whole, range(number, number + 1), dtype, device)
    for number, state in enumerate(saved):
        restored = fresh(name, dtype, device)
        restored.state = PhaseState.from_buffers(
            {kind: rows.clone() for kind, rows in state.buffers().items()}, state.scalars.clone()
        )
        steps(restored, range(number, 7), dtype, device)
        for kind, rows in whole.state.buffers().items():
            assert torch.equal(restored.state.buffers()[kind], rows), f"{kind.name} from step {number}"
        assert torch.equal(restored.state.scalars.nan_to_num(-7), whole.state.scalars.nan_to_num(-7))


@pytest.mark.parametrize("name", [name for name in ALL if name != "relativistic adam"])
def test_float32_follows_float64(name: str, device: torch.device) -> None:
    """The one left out takes the root of a variance that float32 does not know at all."""
    narrow = steps(fresh(name, torch.float32, device), range(10), torch.float32, device)
    wide = steps(fresh(name, torch.float64, device), range(10), torch.float64, device)
    rough = name in matrix_roster() or name == "rmsprop centered"  # divided by roots of what float32 barely knows
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-3, atol=2e-3 if rough else 2e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ALL)
def test_gpu_agrees_with_cpu(name: str) -> None:
    places = [torch.device("cpu"), torch.device("cuda")]
    one, other = (steps(fresh(name, torch.float64, place), range(10), torch.float64, place).cpu() for place in places)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["adam", "cgd", "cgd full", "kronecker", "full by tensor, conformal"])
def test_scale_of_the_loss_is_invisible_to_an_adaptive_metric(name: str, device: torch.device) -> None:
    """With classical kinetic energy and ε → 0; matrices keep theirs in proportion to the largest eigenvalue."""
    metric = dataclasses.replace(ALL[name].metric, epsilon=1e-30, power=0.5)  # type: ignore[type-var]
    hamiltonian = dataclasses.replace(ALL[name], metric=metric, kinetic=Classical(), norm_scope=NormScope.SESSION)
    one, other = (batch_of(hamiltonian, draw(1, SIZE, dtype=torch.float64, device=device), shapes=SHAPES) for _ in "ab")
    near = steps(one, range(8), torch.float64, device)
    far = steps(other, range(8), torch.float64, device, scale=2.0**20)
    torch.testing.assert_close(far, near, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in roster() if ALL[name].norm_scope is not NormScope.TENSOR])
def test_partition_into_tensors_is_invisible_to_session_norms(name: str, device: torch.device) -> None:
    start = draw(1, SIZE, dtype=torch.float64, device=device)
    one = batch_of(ALL[name], start, row_elements=16, shapes=SHAPES)
    other = batch_of(ALL[name], start, row_elements=16, shapes=((SIZE,),))
    torch.testing.assert_close(
        steps(one, range(6), torch.float64, device),
        steps(other, range(6), torch.float64, device),
        rtol=1e-12,
        atol=1e-12,
    )


def test_partition_shows_where_it_should(device: torch.device) -> None:
    """The control for the test above."""
    hamiltonian = dataclasses.replace(ALL["hermosis_literal"], norm_scope=NormScope.TENSOR)
    start = draw(1, SIZE, dtype=torch.float64, device=device)
    one, other = (batch_of(hamiltonian, start, shapes=shapes) for shapes in (SHAPES, ((SIZE,),)))
    assert not torch.allclose(
        steps(one, range(3), torch.float64, device), steps(other, range(3), torch.float64, device)
    )


AGE = 2_000_000


@pytest.mark.parametrize(
    "profile",
    [
        Exponential(),
        Linear(growth=1.0),
        Power(exponent=3.0, age=1.0),
        Tabulated(knots=((0.0, 1.0), (1e6, 1e200), (3e6, 1e-200))),
    ],
    ids=["exponential", "linear", "power", "tabulated"],
)
@pytest.mark.parametrize("scheme", Scheme)
def test_two_million_steps_leave_float32_weights_finite(
    profile: Exponential | Linear | Power | Tabulated, scheme: Scheme, device: torch.device
) -> None:
    """The age is set, not waited for; β is far outside float32, under the exponential profile outside float64 too."""
    hamiltonian = Hamiltonian(
        learning_rate=0.05,
        thermal=profile,
        force=Force(mode=ForceMode.PHYSICAL),
        kinetic=Relativistic(max_step=0.1),
        metric=Diagonal(normalise=True),
        normalise=True,
        integrator=scheme,
    )
    batch = batch_of(hamiltonian, draw(1, 33, dtype=torch.float32, device=device), row_elements=8)
    log_beta = {
        Exponential: AGE * -math.log(0.9),
        Linear: math.log(AGE),
        Power: 3 * math.log(AGE),
        Tabulated: 200 * math.log(10) * 0.0,
    }[type(profile)]
    for name, value in (("clock", AGE), ("log_beta", log_beta), ("step", AGE), ("unit_momentum", 1.0)):
        batch.state.scalars[0, SCALARS.index(name)] = value
    batch.state.scalars[0, SCALARS.index("unit_second_moment")] = 1.0
    for _ in range(20):
        advance = batch.step(batch.rows_of([batch.position()]), [float(batch.position().square().sum()) / 2])
        assert bool(advance.state_finite[0])
    sample = sample_of(advance)
    assert 0 < sample.step_norm <= 0.1 * 1.001 / min(1.0, sample.braking + 1)
    assert math.isfinite(sample.kinetic_energy)
    assert math.isfinite(sample.internal_energy)
    assert batch.scalar("step") == AGE + 20


def test_recipes_of_the_roster_are_there() -> None:
    assert resolve("cgd", {"metric": "full"}) == ALL["cgd full"]
