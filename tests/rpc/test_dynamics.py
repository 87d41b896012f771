"""Every optimizer through a real server: what workers get are the bits of the dynamics alone, come what may."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hermosis.v1 import session_pb2
from hermosis_client import Client, Recipe, errors
from hermosis_client import Session as RemoteSession
from hermosis_server.dynamics import (
    MATRIX_BUFFERS,
    RECIPES,
    SCALARS,
    Constant,
    Exponential,
    Family,
    Force,
    ForceMode,
    Full,
    Hamiltonian,
    Linear,
    Polynomial,
    Power,
    Scheme,
    Tabulated,
    Term,
    ThermalProfile,
    fused,
    resolve,
)
from hermosis_server.records import StateBuffer
from hermosis_server.rpc.codec import hamiltonian as codec

from ..dynamics.batches import SHAPES, Batch, batch_of, matrix_roster, roster

MEMBERS = roster() | matrix_roster() | {"hermosis": resolve("hermosis", {})}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LAYOUT = {f"tensor{index}": shape for index, shape in enumerate(SHAPES)}
SIZE = sum(math.prod(shape) for shape in SHAPES)
ROW_ELEMENTS = 1024  # the server's own
Vector = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[Client]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Client(server.address, timeout_s=20.0) as client:
        yield client
    torch.set_num_threads(threads)


def optimizer_of(name: str) -> Any:
    """As a worker would say it: a recipe by its name, anything else in full."""
    return Recipe(name) if name in RECIPES else codec.to_message(MEMBERS[name])


def start(seed: int = 0) -> Vector:
    return np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32)


def gradient_at(parameters: Vector, step: int) -> Vector:
    """It depends on where the parameters are, so a session that published another point would soon be elsewhere."""
    noise = np.random.default_rng(1000 + step).standard_normal(SIZE).astype(np.float32)
    return np.float32(0.5) * parameters + noise


def loss_at(parameters: Vector) -> float:
    return float(np.square(parameters, dtype=np.float64).sum()) / 4


def same(one: Vector, other: Vector, family: Family) -> bool:
    """To the bit through the plain flows; the fused pass divides and sums in an order of its own.

    What the bits of a session depend on, and on what they do not, is for tests/engine/test_step.py.
    """
    if not fused.covers(family):
        return np.array_equal(one, other)
    return bool(np.allclose(one, other, rtol=1e-5, atol=1e-5 * (float(np.abs(other).max()) or 1.0)))


class Alone:
    """The same session in this process, by the dynamics directly."""

    def __init__(self, hamiltonian: Hamiltonian, parameters: Vector) -> None:
        position = torch.from_numpy(parameters.copy()).to(DEVICE)
        self.batch: Batch = batch_of(hamiltonian, [position], row_elements=ROW_ELEMENTS, shapes=SHAPES)

    def step(self, gradient: Vector, loss: float | None, lr_scale: float = 1.0) -> Vector:
        rows = self.batch.rows_of([torch.from_numpy(gradient).to(DEVICE)])
        advance = self.batch.step(rows, [math.nan if loss is None else loss], [lr_scale])
        assert bool(advance.gradient_finite & advance.state_finite)
        return self.parameters

    def edit(self, thermal: ThermalProfile) -> None:
        """What a live edit means: the same state goes on under another profile."""
        batch = self.batch
        if isinstance(thermal, Power):
            thermal = replace(thermal, reference_log_beta=batch.scalar("log_beta"))
        if isinstance(thermal, Polynomial) and math.isnan(batch.scalar("internal_energy")):
            batch.state.scalars[0, SCALARS.index("internal_energy")] = 0.0
        batch.state.scalars[0, SCALARS.index("reference_energy")] = math.nan
        hamiltonian = replace(batch.hamiltonians[0], thermal=thermal)
        batch.hamiltonians, batch.family = [hamiltonian], hamiltonian.family(SHAPES)
        batch.coefficients = torch.tensor([hamiltonian.numbers()], dtype=torch.float64, device=DEVICE)

    @property
    def parameters(self) -> Vector:
        return self.batch.position().cpu().numpy().copy()

    def buffers(self) -> dict[str, Vector]:
        """The whole state as an export holds it."""
        return {
            kind.name.lower(): (rows[0] if kind in MATRIX_BUFFERS else self.batch.vectors_of(rows)[0]).cpu().numpy()
            for kind, rows in self.batch.state.buffers().items()
        }


def open_session(client: Client, optimizer: Any, parameters: Vector, **options: Any) -> RemoteSession:
    session = client.create_session(LAYOUT, optimizer, **options)
    if options.get("parameters_on") != "worker":
        session.initialise(parameters)
    return session


def test_roster_holds_every_part_that_a_hamiltonian_can_have() -> None:
    parts = [
        {type(each.thermal) for each in MEMBERS.values()},
        {type(each.kinetic) for each in MEMBERS.values()},
        {type(each.metric) for each in MEMBERS.values()},
        {each.norm_scope for each in MEMBERS.values()},
        {each.norm_kind for each in MEMBERS.values()},
        {each.force.mode for each in MEMBERS.values()},
        {each.integrator for each in MEMBERS.values()},
        {each.metric.by_tensor for each in MEMBERS.values() if isinstance(each.metric, Full)},
        {each.kept_drift < 1 for each in MEMBERS.values() if each.integrator is Scheme.CONFORMAL},
    ]
    assert [len(kinds) for kinds in parts] == [6, 5, 4, 3, 2, 3, 3, 2, 2]
    assert set(RECIPES) <= set(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_wire_the_state_and_a_copy_from_an_export_have_the_bits_of_the_dynamics_alone(
    client: Client, name: str
) -> None:
    alone, copy = Alone(MEMBERS[name], start()), None
    with open_session(client, optimizer_of(name), start()) as session, session.worker("w") as worker:
        parameters = start()
        for step in range(6):
            gradient, loss, scale = gradient_at(parameters, step), loss_at(parameters), 1.0 - 0.1 * step
            result, answered = worker.exchange(gradient, loss=loss, lr_scale=scale, want_digest=True)
            assert result.applied
            assert same(answered.flat, alone.step(gradient, loss, scale), alone.batch.family), f"step {step + 1}"
            if copy is not None:
                twin, _ = copy.worker("w").exchange(gradient, loss=loss, lr_scale=scale, want_digest=True)
                assert twin.state_digest == result.state_digest
            parameters = answered.flat.copy()
            if step == 2:
                exported = session.export_state()
                copy = open_session(client, session.info().optimizer, start(seed=9))
                copy.import_state(exported)
                assert copy.digest() == session.digest()
        assert copy is not None
        assert np.array_equal(session.pull().flat, parameters), "a pull gives the published point"
        assert np.array_equal(copy.pull().flat, parameters)
        copy.close()

        exported = session.export_state()
        held = session_pb2.SessionState.FromString(exported.head).scalars
    expected_buffers = alone.buffers()
    assert exported.buffers.keys() == expected_buffers.keys()
    for kind, values in exported.buffers.items():
        assert same(values, expected_buffers[kind], alone.batch.family), kind
    for scalar in SCALARS:
        # The fused pass sums rows in an order of its own.
        expected = pytest.approx(alone.batch.scalar(scalar), rel=1e-5, abs=1e-5, nan_ok=True)
        assert getattr(held, scalar) == expected, scalar


@pytest.mark.parametrize("name", MEMBERS)
def test_a_worker_that_adds_increments_has_the_bits_of_the_server(client: Client, name: str) -> None:
    hamiltonian = MEMBERS[name]
    if hamiltonian.family(SHAPES).needs_parameters:
        with pytest.raises(errors.InvalidHyperparameter, match="parameters_on WORKER") as refused:
            open_session(client, optimizer_of(name), start(), parameters_on="worker")
        assert refused.value.field.startswith("optimizer.hamiltonian.weight_decay.")
        return
    alone, parameters = Alone(hamiltonian, start()), start()
    with open_session(client, optimizer_of(name), start(), parameters_on="worker") as session:
        for step in range(4):
            gradient, loss = gradient_at(parameters, step), loss_at(parameters)
            _, increment = session.exchange(gradient, loss=loss)
            parameters += increment.flat
            assert same(parameters, alone.step(gradient, loss), alone.batch.family), f"step {step + 1}"


def test_sessions_of_one_family_and_of_others_step_at_once_as_each_would_alone(host: Any) -> None:
    def whole_life(client: Client, name: str, seed: int, ready: threading.Barrier) -> int:
        alone, parameters = Alone(MEMBERS[name], start(seed)), start(seed)
        with open_session(client, optimizer_of(name), parameters) as session:
            for step in range(3):
                gradient, loss = gradient_at(parameters, step), loss_at(parameters)
                ready.wait(30)
                session.push(gradient, loss=loss)
                parameters = session.pull().flat.copy()
                assert same(parameters, alone.step(gradient, loss), alone.batch.family), (
                    f"{name} {seed} step {step + 1}"
                )
            return max(reading.batch_sessions for reading in session.history())

    names = ["hermosis", "rgd nesterov", "cgd full", "kronecker", "full by tensor, conformal", "feedback", "vradam"]
    lives = [(name, seed) for name in names for seed in (1, 2, 3)]
    ready = threading.Barrier(len(lives))
    with Client(host(linger_s=0.2).server.address, timeout_s=30.0) as client, ThreadPoolExecutor(len(lives)) as pool:
        most = list(pool.map(lambda life: whole_life(client, *life, ready), lives))
    assert max(most) > 1, "none met another in a batch"


# Live edits


ANY_PROFILE = Hamiltonian(
    learning_rate=0.05, thermal=Exponential(momentum_retention=0.8), force=Force(mode=ForceMode.PHYSICAL)
)
PROFILES: dict[str, ThermalProfile] = {
    "constant": Constant(),
    "exponential": Exponential(cooling_rate=0.5),
    "linear": Linear(growth=0.3),
    "power": Power(exponent=3.0, age=2.0),
    "tabulated": Tabulated(knots=((0.0, 1.0), (3.5, 2.0), (5.0, 2.0), (6.0, 9.0))),
    "polynomial": Polynomial(
        terms=(Term(coefficient=0.2, internal_energy_power=1, beta_power=1), Term(coefficient=-1e-3, beta_power=2))
    ),
}


def profile_message(thermal: ThermalProfile) -> Any:
    anything = Hamiltonian(learning_rate=1.0, force=Force(mode=ForceMode.PHYSICAL), thermal=thermal, step_duration=1e-3)
    return codec.to_message(anything).thermal_profile


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("kind", PROFILES)
def test_a_profile_set_while_a_session_runs_goes_on_from_its_present_state(
    client: Client, kind: str, scheme: Scheme
) -> None:
    hamiltonian = replace(ANY_PROFILE, integrator=scheme)
    alone, parameters = Alone(hamiltonian, start()), start()

    def go_on(*sessions: RemoteSession, first: int, loss: float | None) -> None:
        nonlocal parameters
        for step in range(first, first + 3):
            gradient = gradient_at(parameters, step)
            wanted = alone.step(gradient, loss)
            for session in sessions:
                parameters = session.worker("w").exchange(gradient, loss=loss)[1].flat.copy()
                assert same(parameters, wanted, hamiltonian.family(SHAPES)), f"step {step + 1}"

    with open_session(client, codec.to_message(hamiltonian), start()) as session:
        go_on(session, first=0, loss=None)
        before, log_beta = session.digest(), alone.batch.scalar("log_beta")
        info = session.update(thermal_profile=profile_message(PROFILES[kind]))
        alone.edit(PROFILES[kind])
        assert info.optimizer == codec.to_message(alone.batch.hamiltonians[0])
        assert (session.digest() == before) == (kind != "polynomial"), "only an undefined U becomes zero"
        go_on(session, first=3, loss=1.5)
        if kind == "power" and scheme is Scheme.SYMPLECTIC_EULER:
            grown = alone.batch.scalar("log_beta") - log_beta
            assert grown == pytest.approx(3.0 * math.log1p(3.0 / 2.0)), "its age begins at the edit"
        with open_session(client, session.info().optimizer, start(seed=9)) as copy:
            copy.import_state(session.export_state())
            go_on(session, copy, first=6, loss=1.0)
            assert copy.digest() == session.digest()


@pytest.mark.parametrize(
    ("thermal", "mode", "field"),
    [
        (Constant(), ForceMode.EMA, "force.mode"),
        (PROFILES["polynomial"], ForceMode.EMA, "force.mode"),
        (Linear(growth=-3.0), ForceMode.UNIT, "thermal_profile.linear.rate"),
    ],
)
def test_a_refused_edit_changes_nothing(client: Client, thermal: ThermalProfile, mode: ForceMode, field: str) -> None:
    alone = Alone(replace(ANY_PROFILE, force=Force(mode=mode)), start())
    with open_session(client, codec.to_message(alone.batch.hamiltonians[0]), start()) as session:
        gradient = gradient_at(start(), 0)
        session.exchange(gradient)
        alone.step(gradient, None)
        before, digest = session.info(), session.digest()
        with pytest.raises(errors.InvalidHyperparameter) as refused:
            session.update(thermal_profile=profile_message(thermal), lr_scale=0.5, display_name="other")
        assert refused.value.field == f"optimizer.hamiltonian.{field}"
        assert (session.info(), session.digest()) == (before, digest)
        _, parameters = session.exchange(gradient)
        assert same(parameters.flat, alone.step(gradient, None), alone.batch.family)


# Refusals


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_profile_that_feeds_the_loss_back_counts_no_gradient_without_one(
    server: Any, client: Client, loss: float | None
) -> None:
    with open_session(client, codec.to_message(MEMBERS["feedback"]), start()) as session:
        before, gradient = session.digest(), gradient_at(start(), 0)
        worker = session.worker("w")
        with pytest.raises(errors.InvalidRequest, match="answers to it") as refused:
            worker.exchange(gradient, loss=loss)
        assert refused.value.field == "commit.loss"
        assert session.digest() == before
        assert session.workers()[0].next_sequence == 1
        assert server.inside(lambda engine: engine.budget.used_bytes) == 0
        assert worker.push(gradient, loss=1.0).step == 1


@pytest.mark.parametrize("optimizer", [Recipe("cgd", metric="full"), codec.to_message(MEMBERS["cgd full"])])
def test_a_full_metric_that_nobody_could_decompose_is_refused_before_memory_is_taken(
    server: Any, client: Client, optimizer: Any
) -> None:
    free = client.capabilities().device_bytes_free
    with pytest.raises(errors.InvalidHyperparameter, match="9000 parameters at once, wanted at most") as refused:
        client.create_session({"w": (9000,)}, optimizer, session_id="too-large")
    assert refused.value.field == "optimizer.hamiltonian.metric.kind"
    assert client.capabilities().device_bytes_free == free
    with pytest.raises(errors.SessionNotFound):
        client.session("too-large")


def test_a_session_whose_matrices_do_not_fit_leaves_nothing_behind(host: Any) -> None:
    with Client(host(device_memory_bytes=4 << 20).server.address, timeout_s=20.0) as client:
        free = client.capabilities().device_bytes_free
        client.create_session({"w": (1000,)}, "cgd", session_id="vectors").close()
        for kind in ("cgd full", "kronecker"):
            with pytest.raises(errors.OutOfDeviceMemory, match=f"of {4 << 20} are free") as refused:
                client.create_session({"w": (1000, 1)}, codec.to_message(MEMBERS[kind]), session_id="matrices")
            assert int(refused.value.metadata["wanted_bytes"]) > 2 * 4 * 1000**2
        assert list(client.sessions()) == []
        assert client.capabilities().device_bytes_free == free


def test_what_is_allowed_but_hardly_meant_is_logged_with_the_session(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    heating = replace(ANY_PROFILE, thermal=Power(exponent=-2.0, age=50.0))
    with open_session(client, codec.to_message(heating), start(), session_id="hot") as session:
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert record.getMessage().startswith("event=caution session=hot caution='the thermal profile heats")
        session.update(thermal_profile=profile_message(Constant()))
        session.update(lr_scale=0.5)
        session.update(thermal_profile=profile_message(Linear(growth=-0.01)))
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warnings == [warnings[0]] * 2


def test_recipes_are_told_exactly_as_they_are_declared(client: Client) -> None:
    described = client.recipes()
    assert [recipe.name for recipe in described] == list(RECIPES)
    assert client.capabilities().recipes == tuple(RECIPES)
    for recipe, spec in zip(described, RECIPES.values(), strict=True):
        assert (recipe.physics, recipe.source) == (spec.physics, spec.source)
        for told, declared in zip(recipe.parameters, spec.parameters, strict=True):
            for field in ("name", "default", "description", "choices", "minimum_excluded", "maximum_excluded"):
                assert getattr(told, field) == getattr(declared, field), (spec.name, declared.name, field)
            assert told.minimum == (-math.inf if declared.minimum is None else declared.minimum)
            assert told.maximum == (math.inf if declared.maximum is None else declared.maximum)
            assert isinstance(told.default, bool) == isinstance(declared.default, bool)
            assert told.kind.name.lower() == declared.kind


def test_buffers_of_the_contract_are_those_that_sessions_keep(client: Client) -> None:
    kept = {
        buffer for each in MEMBERS.values() for buffer in each.family(SHAPES).buffers((SIZE,), holds_parameters=True)
    }
    assert kept == set(StateBuffer)
