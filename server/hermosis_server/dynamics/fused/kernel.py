"""Kernel: the compiled way through a step, for sessions one after another or for a share of one large session."""

import functools
from collections.abc import Callable
from typing import Final, cast

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from hermosis_server.dynamics.fused.bounds import proven
from hermosis_server.dynamics.fused.compiled import compiled, sources
from hermosis_server.dynamics.fused.energies import brake, draw, finish
from hermosis_server.dynamics.fused.lanes import LANES
from hermosis_server.dynamics.fused.plan import coefficients_of, plan_of, scalars_of
from hermosis_server.dynamics.fused.sweep import NORMS, Pull, Sum, sweep
from hermosis_server.dynamics.fused.tables import Fate, Number, Row, Whole
from hermosis_server.dynamics.fused.traits import Trait

# What is asked of the kernel: whole sessions; or of one session, the beginning, a share of the rows, and the end.
SESSIONS: Final = 0
BEGIN: Final = 1
KICK: Final = 2
BRAKE: Final = 3
DRIFT: Final = 4
FINISH: Final = 5
SUMS, PULLS = int(Sum.COUNT), len(Pull)

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]
Kernel = Callable[
    [int, Integers, int, int, Integers, Integers, Integers, Numbers, Numbers, Numbers, Integers, Numbers, Numbers,
     NDArray[np.int8], Numbers], None,
]  # fmt: skip


@compiled
def two_sweeps(traits: Integers) -> bool:
    """Whether a norm over rows must be known before the drift."""
    return traits[Trait.RELATIVISTIC] != 0 and traits[Trait.BY_COORDINATE] == 0  # type: ignore[no-any-return]


@compiled
def fate_of(session: int, numbers: Numbers, coefficients: Numbers, scalars: Numbers, traits: Integers) -> int:
    """Whether a session's step may be taken here."""
    if not np.isfinite(numbers[session, Number.PEAK]):
        return Fate.NON_FINITE_GRADIENT
    c, old = coefficients_of(coefficients[session]), scalars_of(scalars[session])
    plan = plan_of(traits, c, old, numbers[session, Number.LR_SCALE])
    if not proven(traits, c, plan, numbers[session, Number.LARGEST], numbers[session, Number.PEAK]):
        return Fate.UNPROVEN
    return Fate.APPLIED


@compiled
def of_session(
    act: int,
    session: int,
    first: int,
    last: int,
    rows: Integers,
    sessions: Integers,
    spans: Integers,
    numbers: Numbers,
    coefficients: Numbers,
    scalars: Numbers,
    traits: Integers,
    sums: Numbers,
    pulls: Numbers,
    lanes: Numbers,
    samples: Numbers,
) -> None:
    """One session, or its rows from `first` up to `last`, through one act or all."""
    whole = sessions[session]
    own = rows[whole[Whole.FIRST_ROW] : whole[Whole.FIRST_ROW] + whole[Whole.ROWS]]
    its_spans = spans[whole[Whole.FIRST_SPAN] : whole[Whole.FIRST_SPAN] + whole[Whole.SPANS]]
    c, old = coefficients_of(coefficients[session]), scalars_of(scalars[session])
    plan = plan_of(traits, c, old, numbers[session, Number.LR_SCALE])
    twice = two_sweeps(traits)
    if act == BEGIN or act == SESSIONS:
        draw(pulls, 0, own.shape[0], plan, 1.0, 1.0, False)
    if act == KICK or act == SESSIONS:
        for row in range(first, last):
            sweep(
                rows, whole[Whole.FIRST_ROW] + row, traits, c, plan, pulls[row], True, not twice, whole[Whole.GRADIENT_DTYPE],
                whole[Whole.REPLY], whole[Whole.REPLY_DTYPE], lanes, sums[row],
            )  # fmt: skip
    if twice and (act == BRAKE or act == SESSIONS):
        brake(traits, c, plan, its_spans, sums, pulls)
    if twice and (act == DRIFT or act == SESSIONS):
        for row in range(first, last):
            sweep(
                rows, whole[Whole.FIRST_ROW] + row, traits, c, plan, pulls[row], False, True, whole[Whole.GRADIENT_DTYPE],
                whole[Whole.REPLY], whole[Whole.REPLY_DTYPE], lanes, sums[row],
            )  # fmt: skip
    if act == FINISH or act == SESSIONS:
        parameters = 0
        for row in range(own.shape[0]):
            parameters += own[row, Row.LENGTH]
        numbers[session, Number.LARGEST] = finish(
            traits, c, plan, old, numbers[session, Number.LOSS], parameters, its_spans, sums, scalars[session],
            samples[session],
        )  # fmt: skip


@functools.cache
def kernel() -> Kernel:
    """The kernel; compiled, or read from Numba's cache, by the first call."""
    version = sources()

    def step(
        act: int,
        which: Integers,
        first: int,
        last: int,
        rows: Integers,
        sessions: Integers,
        spans: Integers,
        numbers: Numbers,
        coefficients: Numbers,
        scalars: Numbers,
        traits: Integers,
        sums: Numbers,
        pulls: Numbers,
        outcome: NDArray[np.int8],
        samples: Numbers,
    ) -> None:
        version  # noqa: B018  part of the key of Numba's cache
        lanes = np.empty(NORMS * LANES, np.float64)
        if act != SESSIONS:
            of_session(
                act, which[0], first, last, rows, sessions, spans, numbers, coefficients, scalars, traits, sums, pulls,
                lanes, samples,
            )  # fmt: skip
            return
        most = 1
        for place in range(which.shape[0]):
            most = max(most, sessions[which[place], Whole.ROWS])
        sums, pulls = np.empty((most, SUMS), np.float64), np.empty((most, PULLS), np.float64)
        for place in range(which.shape[0]):
            session = which[place]
            fate = fate_of(session, numbers, coefficients, scalars, traits)
            outcome[session] = fate
            if fate == Fate.APPLIED:
                count = sessions[session, Whole.ROWS]
                of_session(
                    SESSIONS, session, 0, count, rows, sessions, spans, numbers, coefficients, scalars, traits,
                    sums[:count], pulls[:count], lanes, samples,
                )  # fmt: skip

    integers, doubles = types.int64[::1], types.float64[::1]
    tables, numbers = types.int64[:, ::1], types.float64[:, ::1]
    signature = types.void(
        types.int64, integers, types.int64, types.int64, tables, tables, integers, numbers, numbers, numbers, integers,
        numbers, numbers, types.int8[::1], numbers,
    )  # fmt: skip
    del doubles
    # With a signature the kernel is compiled here, and a call that does not fit it is an error, not a new compilation.
    return cast(Kernel, njit(signature, nogil=True, error_model="numpy", cache=True)(step))
