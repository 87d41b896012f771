"""The services: management that is safe to repeat, pages, edits, export and import, telemetry, and calls to come."""

import threading
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import field_mask_pb2

from hermosis import wire
from hermosis.v1 import dynamics_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis_server.dynamics import RECIPES

ONES = np.ones(5, np.float32)


def spec(tools: Any, **changed: Any) -> session_pb2.SessionSpec:
    layout = types_pb2.ParameterLayout(tensors=[types_pb2.TensorSpec(name="w", shape=[5])])
    return session_pb2.SessionSpec(**{"layout": layout, "optimizer": tools.recipe_message("sgd")} | changed)


def test_the_same_request_is_one_session_however_often_it_comes(server: Any, tools: Any) -> None:
    request = session_pb2.CreateSessionRequest(request_id="once", spec=spec(tools))
    answers: list[str] = []

    def create() -> None:
        answers.append(server.sessions.CreateSession(request, timeout=10).session.session_id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1


def test_another_request_under_the_same_id_is_refused(server: Any, tools: Any) -> None:
    server.sessions.CreateSession(session_pb2.CreateSessionRequest(request_id="mine", spec=spec(tools)), timeout=10)
    other = session_pb2.CreateSessionRequest(request_id="mine", spec=spec(tools, display_name="other"))
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.CreateSession(other, timeout=10)
    assert tools.reason_of(caught.value) == "PayloadMismatch"


def test_a_failed_request_may_be_tried_again(server: Any, tools: Any) -> None:
    server.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id="busy", spec=spec(tools)), timeout=10)
    request = session_pb2.CreateSessionRequest(request_id="again", session_id="busy", spec=spec(tools))
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.CreateSession(request, timeout=10)
    assert tools.reason_of(caught.value) == "SessionExists"
    server.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id="busy"), timeout=10)
    assert server.sessions.CreateSession(request, timeout=10).session.session_id == "busy"


def test_closing_twice_by_the_same_request_is_answered_twice(server: Any) -> None:
    session = server.create()
    request = session_pb2.CloseSessionRequest(request_id="close-1", session_id=session.session_id)
    for _ in range(2):
        closed = server.sessions.CloseSession(request, timeout=10).session
        assert closed.status == types_pb2.SESSION_STATUS_CLOSED


def test_pages_show_every_session_once_even_when_some_close_in_between(host: Any) -> None:
    server = host().server
    made = [server.create(labels={"kind": "even" if i % 2 == 0 else "odd"}).session_id for i in range(10)]
    seen, token = [], ""
    while True:
        request = session_pb2.ListSessionsRequest(page_size=3, page_token=token)
        page = server.sessions.ListSessions(request, timeout=10)
        seen += [s.session_id for s in page.sessions]
        if len(seen) == 3:
            server.sessions.CloseSession(session_pb2.CloseSessionRequest(session_id=seen[0]), timeout=10)
        token = page.next_page_token
        if not token:
            break
    assert seen == made
    even = server.sessions.ListSessions(session_pb2.ListSessionsRequest(labels={"kind": "even"}), timeout=10)
    assert [s.session_id for s in even.sessions] == made[2::2]


def test_a_page_token_that_nobody_gave_is_refused(server: Any, tools: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.ListSessions(session_pb2.ListSessionsRequest(page_token="x y z"), timeout=10)
    assert tools.reason_of(caught.value) == "InvalidRequest"


def test_only_the_masked_fields_are_edited(server: Any, tools: Any) -> None:
    session = server.create(display_name="before")
    edit = session_pb2.SessionEdit(lr_scale=0.5, display_name="not this")
    request = session_pb2.UpdateSessionRequest(
        session_id=session.session_id,
        edit=edit,
        update_mask=field_mask_pb2.FieldMask(paths=["lr_scale"]),
        etag=session.etag,
    )
    edited = server.sessions.UpdateSession(request, timeout=10).session
    assert (edited.lr_scale, edited.spec.display_name) == (0.5, "before")
    assert edited.etag != session.etag
    for paths, etag, reason in (
        (["status"], "", "InvalidRequest"),
        ([], "", "InvalidRequest"),
        (["lr_scale"], session.etag, "PayloadMismatch"),
    ):
        request.update_mask.paths[:] = paths
        request.etag = etag
        with pytest.raises(grpc.RpcError) as caught:
            server.sessions.UpdateSession(request, timeout=10)
        assert tools.reason_of(caught.value) == reason


def test_pause_and_resume_over_the_wire(server: Any, tools: Any) -> None:
    session = server.create()
    name = session.session_id
    paused = server.sessions.PauseSession(session_pb2.PauseSessionRequest(session_id=name), timeout=10).session
    assert paused.status == types_pb2.SESSION_STATUS_PAUSED
    with pytest.raises(grpc.RpcError) as caught:
        server.push(session, ONES, 1)
    assert tools.reason_of(caught.value) == "SessionNotReady"
    resumed = server.sessions.ResumeSession(session_pb2.ResumeSessionRequest(session_id=name), timeout=10).session
    assert resumed.status == types_pb2.SESSION_STATUS_READY
    assert server.push(session, ONES, 1).step == 1


def test_the_shown_spec_makes_the_same_session_again(server: Any) -> None:
    session = server.create(5, "hermosis", parameters={"lr": 0.02}, labels={"a": "b"}, display_name="twin")
    again = server.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=session.spec), timeout=10).session
    assert again.spec == session.spec
    assert again.layout_digest == session.layout_digest


def test_a_hamiltonian_in_full_is_the_recipe_that_it_spells(server: Any) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    written_out = dynamics_pb2.Hamiltonian(
        learning_rate=0.05,
        thermal_profile=dynamics_pb2.ThermalProfile(
            exponential=dynamics_pb2.ExponentialProfile(momentum_retention=0.9)
        ),
        metric=dynamics_pb2.Metric(kind=dynamics_pb2.METRIC_KIND_DIAGONAL, normalise=True),
        force=dynamics_pb2.Force(mode=dynamics_pb2.FORCE_MODE_EMA),
        normalise=True,
    )
    recipe = server.create(5, "adam", parameters={"lr": 0.05})
    layout = recipe.spec.layout
    request = session_pb2.CreateSessionRequest(
        spec=session_pb2.SessionSpec(layout=layout, optimizer=dynamics_pb2.Optimizer(hamiltonian=written_out))
    )
    spelt = server.sessions.CreateSession(request, timeout=10).session
    zeros = bytes(20)
    upload = session_pb2.InitialiseParametersRequest(
        session_id=spelt.session_id, crc32=wire.checksum(zeros), payload=zeros
    )
    server.sessions.InitialiseParameters(iter([upload]), timeout=10)
    for number, gradient in enumerate(values):
        server.push(recipe, gradient, number + 1)
        server.push(spelt, gradient, number + 1)
    assert server.digest(recipe) == server.digest(spelt)


@pytest.mark.parametrize(
    ("optimizer", "field"),
    [
        (("adamm", {}), "optimizer.recipe.name"),
        (("adam", {"learning": 1.0}), "optimizer.recipe.parameters.learning"),
        (("adam", {"lr": -1.0}), "optimizer.recipe.parameters.lr"),
        (("adam", {"beta1": 1.0}), "optimizer.recipe.parameters.beta1"),
    ],
)
def test_a_bad_recipe_names_its_field(server: Any, tools: Any, optimizer: Any, field: str) -> None:
    name, parameters = optimizer
    request = session_pb2.CreateSessionRequest(spec=spec(tools, optimizer=tools.recipe_message(name, **parameters)))
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.CreateSession(request, timeout=10)
    assert tools.reason_of(caught.value) == "InvalidHyperparameter"
    assert field.rpartition(".")[2] in caught.value.details() or field in str(tools.details_of(caught.value))


@pytest.mark.parametrize("call", ["SnapshotSession", "RestoreSession", "ForkSession"])
def test_calls_to_come_are_unimplemented_with_a_reason(server: Any, tools: Any, call: str) -> None:
    session_id = server.create().session_id
    with pytest.raises(grpc.RpcError) as caught:
        getattr(server.sessions, call)(getattr(session_pb2, f"{call}Request")(session_id=session_id), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert tools.reason_of(caught.value) == "Unsupported"
    assert "Export" in caught.value.details() or "export" in caught.value.details()


def test_an_export_imported_elsewhere_goes_on_bit_for_bit(server: Any, host: Any) -> None:
    session = server.create(5, "adamw", parameters={"lr": 0.1})
    for number in range(1, 4):
        server.push(session, number * ONES, number)
    parts = list(
        server.sessions.ExportSession(session_pb2.ExportSessionRequest(session_id=session.session_id), timeout=10)
    )
    elsewhere = host().server
    heir = elsewhere.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=session.spec), timeout=10).session
    requests = [session_pb2.ImportSessionRequest(session_id=heir.session_id, state=parts[0].state)]
    requests += [session_pb2.ImportSessionRequest(chunk=part.chunk) for part in parts[1:]]
    imported = elsewhere.sessions.ImportSession(iter(requests), timeout=10).session
    assert (imported.step, imported.generation) == (3, 2)
    assert elsewhere.digest(heir) == server.digest(session) == parts[0].state.state_digest
    for service, which in ((server, session), (elsewhere, heir)):
        service.push(which, ONES, 4)
    assert elsewhere.digest(heir) == server.digest(session)


def test_a_damaged_export_is_data_loss_and_changes_nothing(server: Any, tools: Any) -> None:
    session = server.create(5, "adam")
    server.push(session, ONES, 1)
    parts = list(
        server.sessions.ExportSession(session_pb2.ExportSessionRequest(session_id=session.session_id), timeout=10)
    )
    server.push(session, ONES, 2)
    before = server.digest(session)
    parts[0].state.scalars.log_beta += 1.0
    requests = [session_pb2.ImportSessionRequest(session_id=session.session_id, state=parts[0].state)]
    requests += [session_pb2.ImportSessionRequest(chunk=part.chunk) for part in parts[1:]]
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.ImportSession(iter(requests), timeout=10)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert tools.reason_of(caught.value) == "CorruptState"
    assert server.digest(session) == before
    with pytest.raises(grpc.RpcError) as caught:
        server.sessions.ImportSession(iter(requests[:1]), timeout=10)
    assert tools.reason_of(caught.value) == "LayoutMismatch"
    assert server.digest(session) == before


def test_capabilities_and_recipes_tell_what_there_is(server: Any) -> None:
    told = server.sessions.GetCapabilities(session_pb2.GetCapabilitiesRequest(), timeout=10).capabilities
    assert told.limits.chunk_bytes == wire.DEFAULT_CHUNK_BYTES
    assert told.limits.max_chunk_bytes == wire.MAX_CHUNK_BYTES
    assert list(told.recipes) == list(RECIPES)
    assert 0 < told.device_bytes_free <= told.limits.device_bytes
    recipes = server.sessions.GetRecipes(session_pb2.GetRecipesRequest(), timeout=10).recipes
    for recipe in recipes:
        assert recipe.physics
        assert recipe.source
        assert recipe.parameters
        assert all(parameter.description for parameter in recipe.parameters)


def test_every_recipe_runs_with_the_defaults_that_it_tells(server: Any) -> None:
    recipes = server.sessions.GetRecipes(session_pb2.GetRecipesRequest(), timeout=10).recipes
    for recipe in recipes:
        told = server.create(5, recipe.name, parameters={})
        spec = told.spec
        for parameter in recipe.parameters:
            spec.optimizer.recipe.parameters[parameter.name].CopyFrom(parameter.default_value)
        explicit = server.sessions.CreateSession(session_pb2.CreateSessionRequest(spec=spec), timeout=10).session
        assert explicit.spec == spec


def test_telemetry_latest_history_and_watch(server: Any) -> None:
    session = server.create(5, "hermosis", parameters={})
    name = session.session_id
    latest = server.telemetry.GetTelemetry(telemetry_pb2.GetTelemetryRequest(session_id=name), timeout=10)
    assert not latest.HasField("reading")
    watch = server.telemetry.WatchTelemetry(telemetry_pb2.WatchTelemetryRequest(session_ids=[name]), timeout=20)
    watch.initial_metadata()  # the server has begun to watch
    for number in range(1, 6):
        server.push(session, ONES, number)
    watched: list[int] = []
    while len(watched) < 5:
        watched += [reading.step for reading in next(watch).readings]
    watch.cancel()
    assert watched == [1, 2, 3, 4, 5]
    reading = server.telemetry.GetTelemetry(telemetry_pb2.GetTelemetryRequest(session_id=name), timeout=10).reading
    assert (reading.step, reading.contributions, reading.received_bytes) == (5, 1, 20)
    assert not reading.energies.HasField("loss"), "none was sent"
    assert reading.energies.braking <= 1
    history = server.telemetry.ListTelemetry(
        telemetry_pb2.ListTelemetryRequest(session_id=name, after_step=1, max_readings=2), timeout=10
    )
    assert [r.step for r in history.readings] == [3, 5]
    assert history.oldest_step == 1


def test_pull_and_step_refuse_what_does_not_fit_one_message(server: Any, tools: Any) -> None:
    from hermosis.v1 import gradient_pb2

    session = server.create((1 << 20) + 1, "sgd")
    for call in (
        lambda: server.gradients.Pull(gradient_pb2.PullRequest(session_id=session.session_id), timeout=10),
        lambda: server.gradients.Step(
            gradient_pb2.StepRequest(push=tools.push_request(session.session_id, ONES, 1)), timeout=10
        ),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert tools.reason_of(caught.value) == "InvalidRequest"
        assert "Exchange" in caught.value.details()
