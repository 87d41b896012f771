"""Checks: what a session may be, decided before anything is taken."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from hermosis.wire import SESSION_ID, is_plain_name
from hermosis_server.dynamics import Hamiltonian, check_parameters_on_worker, resolve
from hermosis_server.engine.assembler import Assembler
from hermosis_server.engine.session import Session, SessionSpec
from hermosis_server.errors import InvalidHyperparameter, InvalidRequest, LayoutMismatch, QuotaExceeded
from hermosis_server.records import (
    Aggregation,
    AggregationRule,
    Consistency,
    ConsistencyMode,
    LatePolicy,
    Limits,
    ParametersOn,
    RecipeChoice,
)

CONSISTENCY_MODES = tuple(ConsistencyMode)
MAX_LABELS = 64
MAX_NAME_BYTES = 256
MAX_WORKER_ID_BYTES = 128
LEAST_LOSS_SCALE = 2.0**-126


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
    check_holders(spec)
    if spec.layout.parameter_count > limits.max_parameters:
        raise QuotaExceeded(
            f"the layout has {spec.layout.parameter_count} elements, this server takes {limits.max_parameters}",
            field="spec.layout",
        )
    check_consistency(spec.consistency, limits, field="spec.consistency")
    check_aggregation(spec.aggregation, workers=spec.consistency.workers)
    check_labels(spec.display_name, spec.labels)
    return hamiltonian


def check_holders(spec: SessionSpec) -> None:
    """Raises InvalidRequest where a worker that holds the parameters could miss an increment."""
    rounds = spec.consistency.mode in (ConsistencyMode.BARRIER, ConsistencyMode.ASYNC)
    if spec.parameters_on is ParametersOn.WORKER and (spec.consistency.lease_s or not rounds):
        raise InvalidRequest(
            "where workers hold the parameters none may miss an increment; choose BARRIER without a lease, or let the "
            "server hold them",
            field="spec.parameters_on",
        )


def check_consistency(consistency: Consistency, limits: Limits, *, field: str) -> None:
    """Raises InvalidRequest for a rule that no session can follow."""

    def refuse(name: str, problem: str) -> None:
        raise InvalidRequest(f"{name} is {getattr(consistency, name)!r}; {problem}", field=f"{field}.{name}")

    mode, rounds = consistency.mode, consistency.has_rounds
    if not 1 <= consistency.workers <= limits.max_workers:
        refuse("workers", f"wanted 1 to {limits.max_workers}")
    if consistency.quorum > consistency.workers:
        refuse("quorum", f"wanted at most the {consistency.workers} workers")
    for name in ("deadline_s", "lease_s"):
        if not 0 <= getattr(consistency, name) < math.inf:
            refuse(name, "wanted seconds, or 0 for never")
    if (consistency.quorum or consistency.deadline_s) and mode not in (ConsistencyMode.QUORUM, ConsistencyMode.LOCAL):
        refuse("quorum" if consistency.quorum else "deadline_s", "only QUORUM and LOCAL rounds go on without somebody")
    if consistency.local_steps and mode is not ConsistencyMode.LOCAL:
        refuse("local_steps", f"only workers of a LOCAL session take steps by themselves, this one is {mode.name}")
    if consistency.max_staleness and rounds and consistency.late is not LatePolicy.CARRY:
        refuse("max_staleness", f"a {mode.name} session takes gradients of its present step only, unless late is CARRY")
    if consistency.late is LatePolicy.CARRY and not rounds:
        refuse("late", f"a {mode.name} session has no round to carry anything into")


def check_aggregation(aggregation: Aggregation, *, workers: int) -> None:
    """Raises InvalidRequest for a rule without what it needs."""

    def refuse(name: str, problem: str) -> None:
        given = getattr(aggregation, name)
        raise InvalidRequest(f"{name} is {given!r}; {problem}", field=f"spec.aggregation.{name}")

    for name in ("max_norm", "clip_norm"):
        if not 0 <= getattr(aggregation, name) < math.inf:
            refuse(name, "wanted a length, or 0 for none")
    if aggregation.rule is AggregationRule.CLIPPED_MEAN and not aggregation.max_norm:
        refuse("max_norm", "CLIPPED_MEAN shortens contributions to it; give a positive one")
    least = {
        AggregationRule.TRIMMED_MEAN: 2 * aggregation.byzantine + 1,
        AggregationRule.KRUM: aggregation.byzantine + 3,
    }
    least[AggregationRule.MULTI_KRUM] = least[AggregationRule.KRUM]
    if workers < least.get(aggregation.rule, 0):
        refuse(
            "byzantine", f"{aggregation.rule.name} needs {least[aggregation.rule]} workers for it, there are {workers}"
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


def check_compression_error(error: float | None) -> None:
    """A length over a length: what a worker says of it is shown, and has to be a number."""
    if error is not None and not (math.isfinite(error) and error >= 0):
        raise InvalidRequest(
            f"compression_error is {error}; wanted zero or a positive number, or none", field="commit.compression_error"
        )


def check_lr_scale(lr_scale: float | None, *, field: str) -> None:
    """Zero is allowed: a warm-up begins there."""
    if lr_scale is not None and not (math.isfinite(lr_scale) and lr_scale >= 0):
        raise InvalidHyperparameter(f"lr_scale is {lr_scale}; wanted zero or a positive number", field=field)


def check_loss_scale(loss_scale: float | None, *, field: str) -> None:
    """A number by which float32 can be divided, and multiplied by its inverse."""
    if loss_scale is not None and not LEAST_LOSS_SCALE <= loss_scale <= 1 / LEAST_LOSS_SCALE:
        raise InvalidRequest(f"loss_scale is {loss_scale}; wanted a number from 2^-126 to 2^126", field=field)


def check_skipped(session: Session, skipped: Sequence[int], gradient: Assembler) -> None:
    """Tensors that a contribution says to have no gradient are in the layout, have none, and can be left alone."""
    field, family = "commit.skipped", session.on_device.family
    tensors = session.spec.layout.tensors
    if any(one >= other for one, other in itertools.pairwise(skipped)):
        raise InvalidRequest("tensors are skipped out of order or twice; wanted each once, ascending", field=field)
    if skipped[-1] >= len(tensors):
        raise LayoutMismatch(f"tensor {skipped[-1]} is skipped, the session has {len(tensors)}", field=field)
    if family.matrix and not family.by_tensor:
        raise InvalidRequest(
            "no tensor can be skipped where one matrix is the metric of all; send zeros as its gradient", field=field
        )
    if gradient.staging is None:
        return  # a repeat
    ends = list(itertools.accumulate(tensor.elements for tensor in tensors))
    values, itemsize = np.frombuffer(gradient.staging.memory, np.uint8), gradient.dtype.itemsize
    for index in skipped:
        begin = ends[index] - tensors[index].elements
        if values[begin * itemsize : ends[index] * itemsize].any():
            raise InvalidRequest(
                f"tensor {tensors[index].name!r} is skipped and has a gradient; send zeros", field=field
            )
