"""What a commit says of its gradient: which tensors have none, by what to divide. What is wrong changes nothing."""

import math
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.rpc.conftest import push_request, recipe_message
from tests.rpc.test_consistency import Pusher, mixing, rule
from tests.rpc.test_durability import DURABLE, Folders, kept

from hermosis import wire
from hermosis.v1 import dynamics_pb2, gradient_pb2, session_pb2, types_pb2

SHAPES = {"a": [3], "b": [2, 2], "empty": [0], "c": [5]}
PLACES = {"a": slice(0, 3), "b": slice(3, 7), "c": slice(7, 12)}
GRADIENTS = np.random.default_rng(8).standard_normal((8, 12)).astype(np.float32)


def create(server: Any, optimizer: Any, **spec: Any) -> session_pb2.Session:
    layout = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name=n, shape=s) for n, s in SHAPES.items()])
    message = session_pb2.SessionSpec(layout=layout, optimizer=optimizer, **spec)
    session = server.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=message), timeout=10).session
    chunk = np.ones(12, np.float32).tobytes()
    upload = session_pb2.InitialiseParametersRequest(
        session_id=session.session_id, payload=chunk, crc32=wire.checksum(chunk)
    )
    return server.sessions.InitialiseParameters(iter([upload]), timeout=10).session


def request(
    session: Any, number: int, skipped: Any = (), loss_scale: float | None = None, values: Any = None, **changed: Any
) -> Any:
    values = GRADIENTS[number] * np.float32(loss_scale or 1) if values is None else values.copy()
    for index in skipped:
        name = list(SHAPES)[index] if index < len(SHAPES) else "empty"
        values[PLACES.get(name, slice(0, 0))] = 0
    made = push_request(session.session_id, values, number + 1, **changed)
    made.gradient.commit.skipped.extend(skipped)
    if loss_scale is not None:
        made.gradient.commit.loss_scale = loss_scale
    return made


def push(server: Any, *args: Any, **changed: Any) -> Any:
    return server.gradients.Push(request(*args, **changed), timeout=10).result


def parameters(server: Any, session: Any) -> np.ndarray:
    pull = gradient_pb2.PullRequest(session_id=session.session_id, worker_id="worker")
    return np.frombuffer(server.gradients.Pull(pull, timeout=10).payload, np.float32)


def test_a_skipped_tensor_stays_and_the_others_step(server: Any) -> None:
    session = create(server, recipe_message("sgd", lr=0.1, momentum=0.9))
    push(server, session, 0)
    before = parameters(server, session)
    step = server.gradients.Step(gradient_pb2.StepRequest(push=request(session, 1, [1, 2])), timeout=10)
    assert step.result.outcome == types_pb2.OUTCOME_APPLIED
    after = parameters(server, session)
    assert step.payload == after.tobytes()
    assert np.array_equal(before[PLACES["b"]], after[PLACES["b"]])
    assert not np.any(before[PLACES["a"]] == after[PLACES["a"]])
    assert not np.any(before[PLACES["c"]] == after[PLACES["c"]])
    # What the momentum of the skipped tensor was is what it goes on from.
    push(server, session, 2)
    expected = 1 - 0.1 * GRADIENTS[0] - 0.1 * (GRADIENTS[2] + 0.9 * GRADIENTS[0])
    np.testing.assert_allclose(parameters(server, session)[PLACES["b"]], expected[PLACES["b"]], rtol=1e-5)
    assert push(server, session, 3, [0, 1, 2, 3]).step == 4, "a step of nobody is one all the same"


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [([4], "LayoutMismatch"), ([2**32 - 1], "LayoutMismatch"), ([1, 0], "InvalidRequest"), ([1, 1], "InvalidRequest")],
)
def test_tensors_that_are_not_there_are_refused(server: Any, tools: Any, skipped: list[int], reason: str) -> None:
    session = create(server, recipe_message("sgd", lr=0.1, momentum=0.9))
    before = server.digest(session)
    refused(server, tools, session, reason, "commit.skipped", skipped=skipped)
    assert server.digest(session) == before
    assert push(server, session, 0).step == 1, "its number was not used up"


def refused(server: Any, tools: Any, session: Any, reason: str, field: str, **changed: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        push(server, session, 0, **changed)
    assert tools.reason_of(caught.value) == reason
    assert field in str(tools.details_of(caught.value))


def test_a_gradient_where_there_is_none_is_refused(server: Any, tools: Any) -> None:
    session = create(server, recipe_message("sgd", lr=0.1))
    made = request(session, 0)
    made.gradient.commit.skipped.append(1)
    with pytest.raises(grpc.RpcError) as caught:
        server.gradients.Push(made, timeout=10)
    assert tools.reason_of(caught.value) == "InvalidRequest"
    assert "'b' is skipped" in caught.value.details()
    assert push(server, session, 0, [1]).step == 1


def test_no_tensor_can_be_skipped_under_one_matrix_of_all(server: Any, tools: Any) -> None:
    values = {"metric": dynamics_pb2.ParameterValue(choice="full"), "lr": dynamics_pb2.ParameterValue(number=1e-3)}
    optimizer = dynamics_pb2.Optimizer(recipe=dynamics_pb2.Recipe(name="cgd", parameters=values))
    session = create(server, optimizer)
    refused(server, tools, session, "InvalidRequest", "commit.skipped", skipped=[1])
    assert push(server, session, 0).step == 1


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e-300, 1e300])
def test_a_scale_that_nothing_can_be_divided_by_is_refused(server: Any, tools: Any, scale: float) -> None:
    session = create(server, recipe_message("sgd", lr=0.1))
    refused(server, tools, session, "InvalidRequest", "commit.loss_scale", loss_scale=scale, values=GRADIENTS[0])
    assert push(server, session, 0).step == 1


def test_a_scale_is_divided_out_before_norms_rules_and_clipping(server: Any) -> None:
    plain, scaled = (create(server, recipe_message("sgd", lr=0.1, momentum=0.9)) for _ in range(2))
    for number in range(3):
        one = push(server, plain, number)
        other = push(server, scaled, number, loss_scale=2.0 ** (10 * number - 10))
        assert one.energies.gradient_norm == other.energies.gradient_norm
    assert np.array_equal(parameters(server, plain), parameters(server, scaled))
    overflows = push(server, scaled, 3, loss_scale=2.0**-10, values=np.full(12, 3e38, np.float32))
    assert overflows.outcome == types_pb2.OUTCOME_NON_FINITE_GRADIENT
    assert np.array_equal(parameters(server, plain), parameters(server, scaled))


@pytest.mark.parametrize(
    "aggregation",
    [mixing("MEAN"), mixing("MEAN", clip_norm=0.5), mixing("MEDIAN"), mixing("MEAN", quarantine=True)],
    ids=["mean", "clipped", "median", "quarantine"],
)
def test_workers_may_scale_differently(server: Any, aggregation: types_pb2.Aggregation) -> None:
    found = []
    for scales in ((None, None, None), (8.0, None, 0.5)):
        session = create(server, recipe_message("adamw"), consistency=rule("BARRIER", 3), aggregation=aggregation)
        pusher = Pusher(server, session)
        futures = []
        for place, scale in enumerate(scales):
            made = request(session, 0, [1], scale, GRADIENTS[place] * np.float32(scale or 1))
            futures.append(pusher.send(f"w{place}", GRADIENTS[place], gradient=made.gradient))
        assert [future.result().result.outcome for future in futures] == [types_pb2.OUTCOME_APPLIED] * 3
        found.append(parameters(server, session))
    assert np.array_equal(*found)
    assert (found[0][PLACES["b"]] == 1).all()


@pytest.fixture
def folders(host: Any, tmp_path: Path) -> Folders:
    return Folders(host, tmp_path)


@pytest.mark.parametrize("recipe", ["adamw", "hermosis"])
def test_a_replay_skips_and_divides_as_the_first_time(folders: Folders, recipe: str) -> None:
    server = folders.start()
    session = create(server, recipe_message(recipe), durability=kept("JOURNAL"))
    plan: list[tuple[list[int], float | None]] = [([], None), ([1], None), ([0, 3], 3.0), ([], 1024.0), ([1], 0.7)]
    for number, (skipped, scale) in enumerate(plan):
        push(server, session, number, skipped, scale, ack_level=DURABLE)
    twin = create(server, recipe_message(recipe), durability=kept("JOURNAL"))
    for number in range(len(plan)):
        push(server, twin, number, ack_level=DURABLE)
    before = server.digest(session)
    assert not np.array_equal(parameters(server, session), parameters(server, twin))
    again = folders.crashed(server)
    info = again.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session.session_id), timeout=10).session
    assert (info.step, info.status) == (len(plan), types_pb2.SESSION_STATUS_READY)
    assert again.digest(session) == before
    for one in (server, again):
        push(one, session, len(plan), [1], 2.0, ack_level=DURABLE)
    assert server.digest(session) == again.digest(session)
