"""Checks: what a session may be, decided before anything is taken."""

import math
from collections.abc import Mapping

from hermosis.wire import SESSION_ID, is_plain_name
from hermosis_server.dynamics import Hamiltonian, check_parameters_on_worker, resolve
from hermosis_server.engine.session import SessionSpec
from hermosis_server.errors import InvalidHyperparameter, InvalidRequest, QuotaExceeded, Unsupported
from hermosis_server.records import ConsistencyMode, Limits, ParametersOn, RecipeChoice

CONSISTENCY_MODES = (ConsistencyMode.BARRIER, ConsistencyMode.ASYNC)
MAX_LABELS = 64
MAX_NAME_BYTES = 256
MAX_WORKER_ID_BYTES = 128


def checked_hamiltonian(spec: SessionSpec, limits: Limits) -> Hamiltonian:
    """The dynamics that a spec asks for.

    Raises:
      InvalidHyperparameter, InvalidRequest, QuotaExceeded: naming the field.
      Unsupported: part of the contract that this server does not run yet.
    """
    optimizer = spec.optimizer
    hamiltonian = resolve(optimizer.name, optimizer.parameters) if isinstance(optimizer, RecipeChoice) else optimizer
    if spec.parameters_on is ParametersOn.WORKER:
        check_parameters_on_worker(hamiltonian)
    if spec.layout.parameter_count > limits.max_parameters:
        raise QuotaExceeded(
            f"the layout has {spec.layout.parameter_count} elements, this server takes {limits.max_parameters}",
            field="spec.layout",
        )
    _check_consistency(spec, limits)
    check_labels(spec.display_name, spec.labels)
    return hamiltonian


def _check_consistency(spec: SessionSpec, limits: Limits) -> None:
    consistency = spec.consistency
    if consistency.mode not in CONSISTENCY_MODES:
        names = ", ".join(mode.name for mode in CONSISTENCY_MODES)
        raise Unsupported(
            f"consistency {consistency.mode.name} is part of the contract, but this server runs {names} so far",
            field="spec.consistency.mode",
        )
    if not 1 <= consistency.workers <= limits.max_workers:
        raise InvalidRequest(
            f"consistency asks for {consistency.workers} workers; wanted 1 to {limits.max_workers}",
            field="spec.consistency.workers",
        )
    if consistency.mode is ConsistencyMode.BARRIER and consistency.max_staleness:
        raise InvalidRequest(
            "a BARRIER session takes gradients of its present step only; leave max_staleness at zero or choose ASYNC",
            field="spec.consistency.max_staleness",
        )


def check_interval(seconds: float, *, field: str) -> None:
    """Raises InvalidRequest for what is no time to wait."""
    if not seconds >= 0:
        raise InvalidRequest(f"{field} is {seconds}; wanted zero or more seconds", field=field)


def checked_session_id(session_id: str) -> str:
    """A session id that may be a file name and a label too."""
    if not SESSION_ID.match(session_id):
        raise InvalidRequest(
            f"session_id {session_id[:80]!r} is not 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit",
            field="session_id",
        )
    return session_id


def check_labels(display_name: str, labels: Mapping[str, str]) -> None:
    """Raises InvalidRequest for names that people could not read."""
    if display_name and not is_plain_name(display_name, MAX_NAME_BYTES):
        raise InvalidRequest(
            f"display_name has control characters or more than {MAX_NAME_BYTES} bytes", field="display_name"
        )
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(f"{len(labels)} labels were given; at most {MAX_LABELS} are kept", field="labels")
    for key, value in labels.items():
        if not is_plain_name(key, MAX_NAME_BYTES) or (value and not is_plain_name(value, MAX_NAME_BYTES)):
            raise InvalidRequest(
                f"label {key[:80]!r} is empty, has control characters or more than {MAX_NAME_BYTES} bytes",
                field="labels",
            )


def check_lr_scale(lr_scale: float | None, *, field: str) -> None:
    """Zero is allowed: a warm-up begins there."""
    if lr_scale is not None and not (math.isfinite(lr_scale) and lr_scale >= 0):
        raise InvalidHyperparameter(f"lr_scale is {lr_scale}; wanted zero or a positive number", field=field)
