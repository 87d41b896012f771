"""Errors as RFC 9457 problem documents: one table from the meaning of an error to its HTTP status."""

import http
import json
import logging
import math
import re
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from hermosis_client import errors

MEDIA_TYPE = "application/problem+json"

# The nearest class in the tree counts, so LayoutMismatch has the status of InvalidRequest.
STATUS: Mapping[type[errors.HermosisError], int] = {
    errors.ConnectionFailed: 503,
    errors.InvalidRequest: 422,
    errors.PayloadMismatch: 409,
    errors.SessionNotFound: 404,
    errors.SessionExists: 409,
    errors.SessionNotReady: 409,
    errors.StaleGradient: 409,
    errors.StaleGeneration: 409,
    errors.Overloaded: 429,
    errors.StorageFull: 507,
    errors.Stalled: 408,
    errors.QuotaExceeded: 429,
    errors.OutOfDeviceMemory: 507,
    errors.Unauthenticated: 401,
    errors.PermissionDenied: 403,
    errors.ServerStopping: 503,
    errors.Recovering: 503,
    errors.Unsupported: 501,
    errors.CorruptState: 500,
    errors.StorageFailed: 500,
    errors.HermosisError: 500,
}

# What any call may meet on its way to the server and back.
_ALWAYS = (400, 401, 403, 413, 422, 429, 500, 503)

_log = logging.getLogger(__name__)


class Fault(BaseModel):
    """One fault of a request."""

    field: str = Field(description="Path of the offending field.")
    message: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """What went wrong, as RFC 9457 says it, with the facts a program needs."""

    title: str = Field(description="The HTTP status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was got, what was wanted and what to do, for people.")
    reason: str = Field(description="Name of the error's class, the same as over gRPC. Compare this, never the text.")
    field: str = Field(default="", description="Path of the offending field; empty when no single field is to blame.")
    retry_after_s: float | None = Field(
        default=None, description="Seconds until trying again can help; null when it cannot."
    )
    metadata: dict[str, str] = Field(
        default={}, description='Further facts, such as the current "step" of the session.'
    )
    faults: list[Fault] = Field(default=[], description="Every fault of a request that does not fit its schema.")


def status_of(error: errors.HermosisError) -> int:
    """HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def response_to(error: errors.HermosisError) -> Response:
    """The answer to a request that met an error."""
    return _answer(
        status_of(error),
        detail=str(error),
        reason=type(error).__name__,
        field=error.field,
        retry_after_s=error.retry_after_s,
        metadata=error.metadata,
    )


def _answer(
    status: int, *, detail: str, reason: str, headers: Mapping[str, str] | None = None, **facts: Any
) -> Response:
    problem = Problem(title=http.HTTPStatus(status).phrase, status=status, detail=detail, reason=reason, **facts)
    headers = dict(headers or {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(problem.retry_after_s))
    if status == http.HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(jsonable_encoder(problem), status, headers, MEDIA_TYPE)


def _of_hermosis(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.HermosisError)
    return response_to(error)


def _of_validation(_: Request, error: Exception) -> Response:
    # The offending input is not given back: it may be large, and JSON cannot say all that Python's parser takes.
    assert isinstance(error, RequestValidationError)
    faults = [Fault(field=_path(fault["loc"]), message=fault["msg"]) for fault in error.errors()]
    first = faults[0]
    return _answer(
        422, detail=f"{first.field}: {first.message}", reason="InvalidRequest", field=first.field, faults=faults
    )


def _path(location: tuple[str | int, ...]) -> str:
    """As the server writes it: ("body", "spec", "layout", 0) is "spec.layout[0]"."""
    path = ""
    for part in location[1:] or location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


def _of_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = "InvalidRequest" if error.status_code < 500 else "InternalError"
    return _answer(error.status_code, detail=str(error.detail), reason=reason, headers=error.headers)


def response_to_unforeseen(error: Exception, method: str, path: str) -> Response:
    """The answer to a request that met a bug: bland to the outside; the log has the whole, found by the number."""
    number = uuid.uuid4().hex[:12]
    _log.error("event=internal_error incident=%s method=%s path=%s", number, method, path, exc_info=error)
    return _answer(500, detail=f"internal error {number}; the sidecar's log knows more", reason="InternalError")


def install(app: FastAPI) -> None:
    """Makes an app answer every error with a problem document, and say so in its OpenAPI."""
    app.add_exception_handler(errors.HermosisError, _of_hermosis)
    app.add_exception_handler(RequestValidationError, _of_validation)
    app.add_exception_handler(HTTPException, _of_http)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_media_type(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                    tags=app.openapi_tags,
                )
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that calls the server: those every call has, and some of its own."""
    return {
        status: {"model": Problem, "description": http.HTTPStatus(status).phrase}
        for status in sorted({*_ALWAYS, *statuses})
    }


def _with_media_type(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI documents every response under the route's own media type; ours of errors is another."""
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return _without_unused(schema)


def _without_unused(schema: dict[str, Any]) -> dict[str, Any]:
    """Leaves out schemas that nothing refers to, such as FastAPI's own of a validation error."""
    schemas = schema["components"]["schemas"]
    while unused := schemas.keys() - re.findall(r"#/components/schemas/(\w+)", json.dumps(schema)):
        for name in unused:
            del schemas[name]
    return schema
