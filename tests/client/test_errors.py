"""Errors of the server arrive as classes of the client."""

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from hermosis.v1 import types_pb2
from hermosis_client import errors
from hermosis_server import errors as server_errors


def family(module) -> dict[str, str]:
    """Each error class of a module with the name of its base."""
    own = [kind for kind in vars(module).values() if getattr(kind, "__module__", "") == module.__name__]
    kinds = [kind for kind in own if isinstance(kind, type) and issubclass(kind, Exception)]
    return {kind.__name__: kind.__base__.__name__ for kind in kinds}


def test_error_tree_is_the_servers_and_three_of_our_own() -> None:
    own = {"ConnectionFailed": "HermosisError", "TlsFailed": "ConnectionFailed", "UnrecognisedError": "HermosisError"}
    assert family(errors) == family(server_errors) | own


def test_every_reason_has_its_class() -> None:
    assert set(errors.BY_REASON) == set(family(server_errors)) - {"HermosisError"}
    assert all(name == kind.__name__ for name, kind in errors.BY_REASON.items())


class EndedCall(grpc.RpcError):
    """What gRPC raises, with only what is read of it."""

    def __init__(self, code: grpc.StatusCode, text: str = "", *details, message: str = "") -> None:
        self._code, self._text = code, text
        self._metadata: tuple = (("other", "x"),)
        if details:
            packed = []
            for detail in details:
                packed.append(any_pb2.Any())
                packed[-1].Pack(detail)
            status = status_pb2.Status(code=code.value[0], message=message, details=packed)
            self._metadata += (("grpc-status-details-bin", status.SerializeToString()),)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> tuple:
        return self._metadata


def info(reason: str, domain: str = "hermosis", **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


def test_status_details_become_the_typed_error() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="spec.layout", description="…")
    error = errors.error_from_call(
        EndedCall(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "transport text",
            info("Overloaded", step="7"),
            error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000)),
            error_details_pb2.BadRequest(field_violations=[violation]),
            message="no room just now",
        ),
        "host:1",
    )
    assert type(error) is errors.Overloaded
    assert str(error) == "no room just now"
    assert (error.retry_after_s, error.field, error.metadata) == (1.5, "spec.layout", {"step": "7"})


def test_no_retry_info_means_that_trying_again_cannot_help() -> None:
    call = EndedCall(grpc.StatusCode.NOT_FOUND, "", info("SessionNotFound"), message="gone")
    assert errors.error_from_call(call, "host:1").retry_after_s is None


def test_unknown_reason_is_kept_in_words_and_for_programs() -> None:
    call = EndedCall(grpc.StatusCode.INTERNAL, "", info("FluxCapacitorEmpty"), message="no plutonium")
    error = errors.error_from_call(call, "host:1")
    assert type(error) is errors.UnrecognisedError
    assert str(error) == "FluxCapacitorEmpty: no plutonium"
    assert error.metadata["reason"] == "FluxCapacitorEmpty"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.ConnectionFailed),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.ConnectionFailed),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.UnrecognisedError),
    ],
)
def test_a_status_without_our_details_is_read_by_its_code(code: grpc.StatusCode, kind: type[Exception]) -> None:
    plain = errors.error_from_call(EndedCall(code, "somebody's text"), "host:1")
    foreign = errors.error_from_call(EndedCall(code, "somebody's text", info("Overloaded", "example.com")), "host:1")
    assert type(plain) is type(foreign) is kind
    assert "somebody's text" in str(plain)


def test_connection_failed_says_where_and_what_to_do() -> None:
    error = errors.error_from_call(EndedCall(grpc.StatusCode.UNAVAILABLE, "Connection refused"), "host:50051")
    assert "host:50051" in str(error)
    assert "hermosis serve" in str(error)
    assert "Connection refused" in str(error)


def test_damaged_status_details_are_left_aside() -> None:
    call = EndedCall(grpc.StatusCode.INTERNAL, "text")
    call._metadata = (("grpc-status-details-bin", b"\xff\xff\xff"),)
    assert type(errors.error_from_call(call, "host:1")) is errors.UnrecognisedError


def test_refusal_becomes_the_typed_error() -> None:
    refusal = types_pb2.Refusal(
        reason="StaleGradient", message="too old", field="commit.base_step", metadata={"step": "9"}
    )
    error = errors.error_from_refusal(refusal)
    assert type(error) is errors.StaleGradient
    assert (str(error), error.field, error.metadata, error.retry_after_s) == (
        "too old",
        "commit.base_step",
        {"step": "9"},
        None,
    )
    refusal.retry_after_s = 0.0
    assert errors.error_from_refusal(refusal).retry_after_s == 0.0
