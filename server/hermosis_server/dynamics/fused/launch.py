"""Launch: a batch goes through the compiled pass, cut among threads where it is large."""

# mypy: disable-error-code="no-untyped-call"

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hermosis_server.dynamics.family import Family, Scheme
from hermosis_server.dynamics.fused import kernel
from hermosis_server.dynamics.fused.session import FORCES
from hermosis_server.dynamics.fused.tables import Flag, Plan, Sum, Whole
from hermosis_server.dynamics.kinetic import KineticKind, NormScope
from hermosis_server.dynamics.thermal import ProfileKind
from hermosis_server.records import EnergySample

# Below, a batch is done before another thread has woken up.
LARGE_ELEMENTS = 1 << 18

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class Stepped(NamedTuple):
    """What a launch did.

    Attributes:
      outcome: (S,) int8 APPLIED, or why a session was left untouched.
      samples: (S, len(EnergySample._fields)); meaningless where nothing was applied.
    """

    outcome: NDArray[np.int8]
    samples: Floats


class Pool:
    """Threads for large batches; the caller's own is one of them.

    Args:
      threads: in all.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others = ThreadPoolExecutor(threads - 1, "hermosis-step") if threads > 1 else None

    def run(self, work: Callable[[int, int], None], edges: Ints) -> None:
        """Runs `work(first, last)` between each two edges, one stretch a thread."""
        stretches = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        others = [self._others.submit(work, *stretch) for stretch in stretches[1:]] if self._others else []
        work(*stretches[0])
        for other in others:
            other.result()


@functools.cache
def covers(family: Family) -> bool:
    """Whether sessions of this family can go through the fused pass."""
    return (
        family.scheme is Scheme.SYMPLECTIC_EULER
        and family.profile is ProfileKind.STEADY
        and family.kinetic in (KineticKind.CLASSICAL, KineticKind.RELATIVISTIC)
        and not family.matrix
    )


@functools.cache
def _flags(family: Family) -> Ints:
    relativistic = family.kinetic is KineticKind.RELATIVISTIC
    flags = {
        "RELATIVISTIC": relativistic,
        "REST_COOLING": relativistic and family.rest_cooling,
        "BY_TENSOR": relativistic and family.norm_scope is NormScope.TENSOR,
        "BY_COORDINATE": relativistic and family.norm_scope is NormScope.COORDINATE,
        "EUCLIDEAN_NORM": family.euclidean_norm,
        "DIAGONAL": family.diagonal,
        "CENTERED": family.centered,
        "POWER_UNITS": family.power_units,
        "EPSILON_INSIDE": family.epsilon_inside,
        "NORMALISE_METRIC": family.normalise_metric,
        "METRIC_ON_KICK": family.diagonal and family.metric_on_kick,
        "NORMALISE": family.normalise,
        "LOOKAHEAD": family.lookahead,
        "FIRST_KICK": family.first_kick,
        "BARE_DECAY": family.bare_decay,
        "THERMAL_DECAY": family.thermal_decay,
        "DECOUPLED_DECAY": family.decoupled_decay,
        "DECAY_FOLLOWS_SPEED": family.decay_follows_speed,
        "FORCE": FORCES[family.force],
        "PARAMETERS": family.needs_parameters,
    }
    return np.array([int(flags[name]) for name in Flag._fields])


def step(
    family: Family,
    *,
    length: int,
    rows: Ints,
    sessions: Ints,
    spans: Ints,
    numbers: Floats,
    coefficients: Floats,
    scalars: Floats,
    pool: Pool,
) -> Stepped:
    """Steps sessions in place, where their rows are.

    A session that is not APPLIED is untouched, to the bit. A session's result depends on nothing but itself.

    Args:
      family:       of every session; one that `covers` tells.
      length:       E, elements of a row.
      rows:         (R, len(Row)) int64 addresses.
      sessions:     (S, len(Whole)) int64.
      spans:        (G,) int64 rows of each span, sessions one after another.
      numbers:      (S, len(Number)); LARGEST is renewed.
      coefficients: (S, n) what `Hamiltonian.numbers` gives.
      scalars:      (S, len(SCALARS)); updated.
      pool:         threads for a large batch.
    """
    count, flags = len(sessions), _flags(family)
    plans, carry = np.empty((count, len(Plan))), np.empty((count, 8))
    samples = np.empty((count, len(EnergySample._fields)))
    outcome = np.empty(count, np.int8)
    sums, pulls = np.empty((len(rows), len(Sum))), np.ones(len(rows))
    # Without a norm over rows to wait for, a row drifts right after its kick.
    at_once = family.kinetic is KineticKind.CLASSICAL or family.norm_scope is NormScope.COORDINATE
    waits = not at_once and (family.lookahead or family.has_metric_on_drift)
    spread = np.empty(len(rows) * length if waits else 0, np.float32)

    def pass_rows(kicks: bool, drifts: bool, first: int, last: int) -> None:
        kernel.pass_rows(
            flags, first, last, kicks, drifts, rows, sessions, coefficients, plans, outcome, pulls, spread, length,
            _scratch(length), sums,
        )  # fmt: skip

    def step_sessions(first: int, last: int) -> None:
        kernel.step_sessions(
            flags, first, last, at_once, rows, sessions, spans, numbers, coefficients, scalars, plans, outcome, pulls,
            spread, length, _scratch(length), sums, carry, samples,
        )  # fmt: skip

    kernel.begin(flags, sessions, numbers, coefficients, scalars, plans, outcome)
    if len(rows) * length < LARGE_ELEMENTS or (pool.threads == 1 and count > 1):
        step_sessions(0, count)
    elif int(sessions[:, Whole.ROWS].max()) * length < LARGE_ELEMENTS:
        ends = sessions[:, Whole.FIRST_ROW] + sessions[:, Whole.ROWS]
        shares = np.arange(1, pool.threads) * len(rows) // pool.threads
        pool.run(step_sessions, np.array([0, *np.searchsorted(ends, shares), count]))
    else:
        edges = np.arange(pool.threads + 1) * len(rows) // pool.threads
        pool.run(functools.partial(pass_rows, True, at_once), edges)
        kernel.settle(flags, 0, count, sessions, spans, coefficients, plans, outcome, sums, pulls, carry)
        if not at_once:
            pool.run(functools.partial(pass_rows, False, True), edges)
        kernel.conclude(flags, 0, count, sessions, numbers, coefficients, scalars, plans, outcome, sums, carry, samples)
    return Stepped(outcome, samples)


def _scratch(length: int) -> NDArray[np.float32]:
    return np.empty(kernel.SCRATCH_ROWS * length, np.float32)


def warm_up() -> None:
    """Compiles the pass, or loads it from the cache of an earlier run, so that nobody's first step waits for it."""
