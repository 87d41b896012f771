"""The OpenAPI document says what the routes do, in the words of the contract."""

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel
from tests.sidecar.conftest import Sidecar

from hermosis.v1 import access_pb2, dynamics_pb2, session_pb2, telemetry_pb2, types_pb2
from hermosis_client import records
from hermosis_sidecar import schemas
from hermosis_sidecar.app import create_app
from hermosis_sidecar.settings import Settings


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings())


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_document_is_served(sidecar: Sidecar, document: dict[str, Any]) -> None:
    assert sidecar.http.get("/openapi.json").json() == document


def test_every_route_is_documented_and_says_what_it_does(app: FastAPI, document: dict[str, Any]) -> None:
    routes = {
        (method, context.path)
        for context in iter_route_contexts(app.routes)
        if isinstance(context.original_route, APIRoute) and context.path != "/"
        for method in context.methods or ()
    }
    documented = operations(document)
    assert routes == set(documented)
    assert len(routes) >= 24
    for operation in documented.values():
        assert operation["description"]
        assert operation["tags"]


def test_every_error_is_documented_as_a_problem(document: dict[str, Any]) -> None:
    for (_, path), operation in operations(document).items():
        if path in ("/healthz/live", "/metrics"):
            continue  # They take nothing, and answer whatever the server does.
        failures = {status: answer for status, answer in operation["responses"].items() if int(status) >= 400}
        assert {"422", "500", "503"} <= set(failures)
        if "{session_id}" in path:
            assert "404" in failures
        for answer in failures.values():
            assert set(answer["content"]) == {"application/problem+json"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    known = set(document["components"]["schemas"])
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used <= known
    assert used == known, "a schema that nothing uses"


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (schemas.EnergySample, types_pb2.EnergySample.DESCRIPTOR),
        (schemas.TelemetryReading, telemetry_pb2.TelemetryReading.DESCRIPTOR),
        (schemas.Telemetry, telemetry_pb2.GetTelemetryResponse.DESCRIPTOR),
        (schemas.TensorSpec, types_pb2.TensorSpec.DESCRIPTOR),
        (schemas.ParameterLayout, types_pb2.ParameterLayout.DESCRIPTOR),
        (schemas.Session, session_pb2.Session.DESCRIPTOR),
        (schemas.Limits, session_pb2.Limits.DESCRIPTOR),
        (schemas.Capabilities, session_pb2.Capabilities.DESCRIPTOR),
        (schemas.SessionSpec, session_pb2.SessionSpec.DESCRIPTOR),
        (schemas.RecipeParameter, dynamics_pb2.RecipeParameter.DESCRIPTOR),
        (schemas.RecipeDescription, dynamics_pb2.RecipeDescription.DESCRIPTOR),
        (schemas.RecipeList, session_pb2.GetRecipesResponse.DESCRIPTOR),
        (schemas.Optimizer, dynamics_pb2.Optimizer.DESCRIPTOR),
        (schemas.Recipe, dynamics_pb2.Recipe.DESCRIPTOR),
        (schemas.SessionList, session_pb2.ListSessionsResponse.DESCRIPTOR),
        (schemas.SessionEdit, session_pb2.SessionEdit.DESCRIPTOR),
        (schemas.Durability, types_pb2.Durability.DESCRIPTOR),
        (schemas.NewDurability, types_pb2.Durability.DESCRIPTOR),
        (schemas.NewSessionSpec, session_pb2.SessionSpec.DESCRIPTOR),
        (schemas.Snapshot, session_pb2.SnapshotSessionResponse.DESCRIPTOR),
        (schemas.SnapshotInfo, session_pb2.Snapshot.DESCRIPTOR),
        (schemas.SnapshotList, session_pb2.ListSnapshotsResponse.DESCRIPTOR),
        (schemas.Worker, session_pb2.Worker.DESCRIPTOR),
        (schemas.WorkerList, session_pb2.ListWorkersResponse.DESCRIPTOR),
        (schemas.Token, access_pb2.Token.DESCRIPTOR),
        (schemas.TokenList, access_pb2.ListTokensResponse.DESCRIPTOR),
        (schemas.AuditEntry, access_pb2.AuditEntry.DESCRIPTOR),
        (schemas.AuditList, access_pb2.ListAuditResponse.DESCRIPTOR),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_fields_are_those_of_the_contract(schema: type[BaseModel], message: Descriptor) -> None:
    assert set(schema.model_fields) == {field.name for field in message.fields}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (schemas.NewSession, session_pb2.CreateSessionRequest.DESCRIPTOR),
        (schemas.Restoring, session_pb2.RestoreSessionRequest.DESCRIPTOR),
        (schemas.Forking, session_pb2.ForkSessionRequest.DESCRIPTOR),
        (schemas.NewToken, access_pb2.CreateTokenRequest.DESCRIPTOR),
        (schemas.Consistency, types_pb2.Consistency.DESCRIPTOR),
        (schemas.Durability, types_pb2.Durability.DESCRIPTOR),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_fields_that_are_there_have_the_names_of_the_contract(schema: type[BaseModel], message: Descriptor) -> None:
    assert set(schema.model_fields) <= {field.name for field in message.fields}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("status", records.SessionStatus),
        ("parameters_on", records.ParametersOn),
        ("mode", records.ConsistencyMode),
        ("kind", records.ParameterKind),
        ("role", records.Role),
    ],
)
def test_enumerations_are_documented_by_their_words(document: dict[str, Any], name: str, words: Any) -> None:
    known = [word.name for word in words]
    fields = [
        schema["properties"][name].get("enum")
        for schema in document["components"]["schemas"].values()
        if name in schema.get("properties", {})
    ]
    assert known in fields


def test_settings_are_said_in_the_environment_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERMOSIS_SIDECAR_SERVER", "far.example:1")
    monkeypatch.setenv("HERMOSIS_SIDECAR_ALLOWED_HOSTS", "hall.example, Sidecar")
    settings = Settings()
    assert settings.server == "far.example:1"
    assert settings.answers_to() == {"hall.example", "sidecar", "127.0.0.1", "localhost", "[::1]"}
    assert all(field.description for field in Settings.model_fields.values())
