"""Errors of the client. Class names are those the server gives as reason; compare classes, never texts.

HermosisError
├── ConnectionFailed            no answer from the server in time; nothing is known of what was under way
│   └── TlsFailed               … because the two ends do not agree about TLS: trying again cannot help
├── InvalidRequest              the request can never be right as it is
│   ├── InvalidHyperparameter   … because of one setting of the optimizer
│   ├── LayoutMismatch          … because it speaks of another parameter layout
│   └── CorruptChunk            … because its checksum does not match: sent again by the client
├── PayloadMismatch             the same sequence or request_id came with other content
├── SessionNotFound             no session of that id
├── SessionExists               the id is taken by a session made from another spec
├── SessionNotReady             the session does not take this now (creating, paused, closed)
├── StaleGradient               computed at parameters that are too old: pull, then go on
├── StaleGeneration             the session was restored or recovered meanwhile: pull, then go on
├── Overloaded                  no room for this just now; the client has waited already
│   └── StorageFull             … on the server's disk
├── Stalled                     nothing was sent, or nothing read, for too long: tried again by the client
├── QuotaExceeded               a limit on the number of something is reached
├── OutOfDeviceMemory           the optimizer state does not fit
├── Unauthenticated, PermissionDenied
├── ServerStopping, Recovering  try again, here or elsewhere; the client has waited already
├── Unsupported                 part of the contract that this server does not carry out yet
├── CorruptState                stored or uploaded state is damaged
├── StorageFailed               the server's disk failed: nothing new is durable until somebody looks at it
├── InternalError               a bug in hermosis
└── UnrecognisedError           a reason that this version of the client has no class for
"""

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from hermosis.v1 import types_pb2

_Metadata = Iterable[tuple[str, str | bytes]]

_DOMAIN = "hermosis"
_DETAILS_KEY = "grpc-status-details-bin"


class HermosisError(Exception):
    """Base of every error that a server or the way to it can cause.

    Attributes:
      field:         path of the offending field, or "".
      retry_after_s: when to try again as it is, or None where that cannot help.
      metadata:      further facts, such as the session's current "step".
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})

    @property
    def worth_another_attempt(self) -> bool:
        """Whether the same may succeed later: who refused it said when, it did not arrive, or it came damaged."""
        return self.retry_after_s is not None or isinstance(self, ConnectionFailed | CorruptChunk)


class ConnectionFailed(HermosisError): ...


class TlsFailed(ConnectionFailed):
    @property
    def worth_another_attempt(self) -> bool:
        return False


class InvalidRequest(HermosisError): ...


class InvalidHyperparameter(InvalidRequest): ...


class LayoutMismatch(InvalidRequest): ...


class CorruptChunk(InvalidRequest): ...


class PayloadMismatch(HermosisError): ...


class SessionNotFound(HermosisError): ...


class SessionExists(HermosisError): ...


class SessionNotReady(HermosisError): ...


class StaleGradient(HermosisError): ...


class StaleGeneration(HermosisError): ...


class Overloaded(HermosisError): ...


class StorageFull(Overloaded): ...


class Stalled(HermosisError): ...


class QuotaExceeded(HermosisError): ...


class OutOfDeviceMemory(HermosisError): ...


class Unauthenticated(HermosisError): ...


class PermissionDenied(HermosisError): ...


class ServerStopping(HermosisError): ...


class Recovering(HermosisError): ...


class Unsupported(HermosisError): ...


class CorruptState(HermosisError): ...


class StorageFailed(HermosisError): ...


class InternalError(HermosisError): ...


class UnrecognisedError(HermosisError): ...


BY_REASON: dict[str, type[HermosisError]] = {
    error.__name__: error
    for error in (
        InvalidRequest,
        InvalidHyperparameter,
        LayoutMismatch,
        CorruptChunk,
        PayloadMismatch,
        SessionNotFound,
        SessionExists,
        SessionNotReady,
        StaleGradient,
        StaleGeneration,
        Overloaded,
        StorageFull,
        Stalled,
        QuotaExceeded,
        OutOfDeviceMemory,
        Unauthenticated,
        PermissionDenied,
        ServerStopping,
        Recovering,
        Unsupported,
        CorruptState,
        StorageFailed,
        InternalError,
    )
}

# What a status without details means: it comes from gRPC itself or from something between us and the server.
_BY_CODE: dict[grpc.StatusCode, type[HermosisError]] = {
    grpc.StatusCode.UNAVAILABLE: ConnectionFailed,
    grpc.StatusCode.DEADLINE_EXCEEDED: ConnectionFailed,
    grpc.StatusCode.CANCELLED: ConnectionFailed,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}


def error_from_call(call: grpc.Call, address: str) -> HermosisError:
    """The typed error of a call that ended with a status other than OK.

    Args:
      call:    the grpc.RpcError; it is the ended call itself.
      address: of the server, for the message where it could not be reached.
    """
    typed = _error_from_details(call.trailing_metadata() or ())
    if typed is not None:
        return typed
    code = call.code()
    text = (call.details() or "").strip()
    kind = _BY_CODE.get(code, UnrecognisedError)
    if kind is ConnectionFailed:
        return connection_failed(address, f"{code.name.lower()}: {text}")
    return kind(f"{code.name}: {text}", metadata={"code": code.name})


def connection_failed(address: str, what: str) -> ConnectionFailed:
    """The error for a server that gives no answer; says where it was looked for and what to check."""
    return ConnectionFailed(
        f"no answer from the server at {address} ({what}); check that it runs ('hermosis serve') and that this "
        f"address and port can be reached from here",
        metadata={"address": address},
    )


def error_from_refusal(refusal: types_pb2.Refusal) -> HermosisError:
    """The typed error of one refused piece of work on a stream that goes on."""
    return _typed(
        refusal.reason,
        refusal.message,
        field=refusal.field,
        retry_after_s=refusal.retry_after_s if refusal.HasField("retry_after_s") else None,
        metadata=refusal.metadata,
    )


def _error_from_details(metadata: _Metadata) -> HermosisError | None:
    packed = _binary_details(metadata)
    if packed is None:
        return None
    try:
        status = status_pb2.Status.FromString(packed)
    except DecodeError:
        return None
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad = error_details_pb2.BadRequest()
    retry_after_s: float | None = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            detail.Unpack(bad)
    if info.domain != _DOMAIN:
        return None
    field = bad.field_violations[0].field if bad.field_violations else ""
    return _typed(info.reason, status.message, field=field, retry_after_s=retry_after_s, metadata=info.metadata)


def _binary_details(metadata: _Metadata) -> bytes | None:
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return value
    return None


def _typed(
    reason: str, message: str, *, field: str, retry_after_s: float | None, metadata: Mapping[str, str]
) -> HermosisError:
    facts = dict(metadata)
    kind = BY_REASON.get(reason)
    if kind is None:
        kind, message = UnrecognisedError, f"{reason}: {message}"
        facts["reason"] = reason
    return kind(message, field=field, retry_after_s=retry_after_s, metadata=facts)
