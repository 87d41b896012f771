"""Errors, named by meaning. No transport here: rpc/status.py knows gRPC codes.

    HermosisError
    ├── InvalidRequest              the request can never be right as it is
    │   ├── InvalidHyperparameter   … because of one setting of the optimizer
    │   ├── LayoutMismatch          … because it speaks of another parameter layout
    │   └── CorruptChunk            … because its checksum does not match: send it again
    ├── PayloadMismatch             the same sequence or request_id came with other content
    ├── SessionNotFound             no session of that id
    ├── SessionExists               the id is taken
    ├── SessionNotReady             the session does not take this now (creating, paused, closed)
    ├── StaleGradient               computed at parameters that are too old
    ├── StaleGeneration             the caller knows an older incarnation of the session
    ├── Overloaded                  no room for this just now
    │   └── StorageFull             … on disk
    ├── Stalled                     nothing came, or nothing was read, for too long
    ├── QuotaExceeded               a limit on the number of something is reached
    ├── OutOfDeviceMemory           the optimizer state does not fit
    ├── Unauthenticated, PermissionDenied
    ├── ServerStopping, Recovering  try again, here or elsewhere
    ├── Unsupported                 part of the contract that this server does not carry out yet
    ├── CorruptState                stored or uploaded state is damaged
    ├── StorageFailed               the disk refused what must be durable; nothing is acknowledged until a restart
    └── InternalError               a bug in hermosis

A message says what was got, what was wanted and what to do. `metadata` carries facts for programs.
"""

from collections.abc import Mapping


class HermosisError(Exception):
    """Base of every error that a caller may see.

    Attributes:
      field:         path of the offending field, or "".
      retry_after_s: when to try again as it is, or None where that cannot help.
      metadata:      further facts, such as the session's current step.
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
