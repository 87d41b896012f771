"""Status: one table from errors to gRPC, and the typed details that go with them."""

import logging
import uuid
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from hermosis.v1 import types_pb2
from hermosis_server import errors
from hermosis_server.errors import HermosisError, InternalError

logger = logging.getLogger(__name__)

DOMAIN = "hermosis"
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[type[HermosisError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidHyperparameter: grpc.StatusCode.INVALID_ARGUMENT,
    errors.LayoutMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CorruptChunk: grpc.StatusCode.INVALID_ARGUMENT,
    errors.PayloadMismatch: grpc.StatusCode.ABORTED,
    errors.SessionNotFound: grpc.StatusCode.NOT_FOUND,
    errors.SessionExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.SessionNotReady: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleGradient: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StaleGeneration: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Stalled: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.OutOfDeviceMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.ServerStopping: grpc.StatusCode.UNAVAILABLE,
    errors.Recovering: grpc.StatusCode.UNAVAILABLE,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.CorruptState: grpc.StatusCode.DATA_LOSS,
    errors.StorageFailed: grpc.StatusCode.DATA_LOSS,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

# gRPC carries these in headers, a message three times and once with three characters a byte. Where all headers together
# exceed 8 KiB, the client may be given an untyped RESOURCE_EXHAUSTED in their place.
MAX_MESSAGE_BYTES = 500
MAX_FIELD_BYTES = 250


def known(error: Exception) -> HermosisError:
    """The error itself if it is one of ours; else a bland one, with the facts in the log under an id."""
    if isinstance(error, InternalError) or not isinstance(error, HermosisError):
        incident = uuid.uuid4().hex[:12]
        logger.error("event=internal_error incident=%s", incident, exc_info=error)
        return InternalError(f"something went wrong in the server; its log has it as incident {incident}")
    return error


def to_refusal(error: Exception) -> types_pb2.Refusal:
    """An error as an answer on a stream that goes on."""
    error = known(error)
    refusal = types_pb2.Refusal(
        reason=type(error).__name__,
        code=CODES[type(error)].value[0],
        message=_cut(str(error), MAX_MESSAGE_BYTES),
        field=_cut(error.field, MAX_FIELD_BYTES),
        metadata=error.metadata,
    )
    if error.retry_after_s is not None:
        refusal.retry_after_s = error.retry_after_s
    return refusal


def to_status(error: HermosisError) -> status_pb2.Status:
    """An error as google.rpc.Status: ErrorInfo always; RetryInfo, BadRequest, QuotaFailure where they say something."""
    message = _cut(str(error), MAX_MESSAGE_BYTES)
    details: list[Any] = [
        error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.field:
        fault = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, MAX_FIELD_BYTES), description=message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[fault]))
    if isinstance(error, errors.QuotaExceeded | errors.OutOfDeviceMemory):
        subject = f"tenant:{error.metadata['tenant']}" if "tenant" in error.metadata else "server"
        violation = error_details_pb2.QuotaFailure.Violation(subject=subject, description=message)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(text: str, most_bytes: int) -> str:
    """The beginning of a text, at most so many bytes of UTF-8."""
    return text.encode(errors="replace")[:most_bytes].decode(errors="ignore")
