"""Kernel: the compiled way through a step, for sessions one after another or for a share of one large session."""

import enum
import functools
from collections.abc import Callable
from typing import cast

import numpy as np
from numba import types
from numpy.typing import NDArray

from hermosis_server.dynamics.family import Coefficients
from hermosis_server.dynamics.fused.bounds import proven
from hermosis_server.dynamics.fused.compiled import compiled, jit, sources
from hermosis_server.dynamics.fused.energies import brake, draw, finish
from hermosis_server.dynamics.fused.lanes import LANES
from hermosis_server.dynamics.fused.plan import Plan, coefficients_of, plan_of, scalars_of
from hermosis_server.dynamics.fused.sweep import NORMS, Pull, Sum, sweep
from hermosis_server.dynamics.fused.tables import Fate, Integers, Number, Numbers, Row, Whole
from hermosis_server.dynamics.fused.traits import Trait


class Act(enum.IntEnum):
    """What is asked of the kernel: whole sessions, or of one session a part of its step."""

    SESSIONS = 0
    BEGIN = 1  # says whether there is anything to do
    KICK = 2  # some rows, and their drift where no norm has to be known first
    BRAKE = 3  # finds the norms
    DRIFT = 4  # some rows
    FINISH = 5


SUMS, PULLS = int(Sum.COUNT), len(Pull)
SCRATCH = NORMS * LANES

Kernel = Callable[
    [int, Integers, int, int, Integers, Integers, Integers, Numbers, Numbers, Numbers, Integers, Numbers, Numbers,
     Numbers, NDArray[np.int8], Numbers], None,
]  # fmt: skip


@compiled
def two_sweeps(traits: Integers) -> bool:
    """Whether a norm over rows must be known before the drift."""
    return traits[Trait.RELATIVISTIC] != 0 and traits[Trait.BY_COORDINATE] == 0  # type: ignore[no-any-return]


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
    outcome: NDArray[np.int8],
    samples: Numbers,
) -> None:
    """One session through an act or all; `first` to `last` are those of its rows that are swept."""
    whole = sessions[session]
    top, count = whole[Whole.FIRST_ROW], whole[Whole.ROWS]
    its_spans = spans[whole[Whole.FIRST_SPAN] : whole[Whole.FIRST_SPAN] + whole[Whole.SPANS]]
    dtype, reply, reply_dtype = whole[Whole.GRADIENT_DTYPE], whole[Whole.REPLY], whole[Whole.REPLY_DTYPE]
    c, old = coefficients_of(coefficients[session]), scalars_of(scalars[session])
    plan = plan_of(traits, c, old, numbers[session, Number.LR_SCALE])
    twice = two_sweeps(traits)
    if act == Act.SESSIONS or act == Act.BEGIN:
        outcome[session] = fate_of(traits, c, plan, numbers[session, Number.LARGEST], numbers[session, Number.PEAK])
        if outcome[session] != Fate.APPLIED:
            return
        draw(pulls, 0, count, plan, 1.0, 1.0, False)
    for second in range(2):  # one place for the sweep, which is large
        if second:
            if twice and (act == Act.SESSIONS or act == Act.BRAKE):
                brake(traits, c, plan, its_spans, sums, pulls)
            if not (twice and (act == Act.SESSIONS or act == Act.DRIFT)):
                continue
        elif not (act == Act.SESSIONS or act == Act.KICK):
            continue
        for row in range(first, last):
            sweep(
                rows, top + row, traits, c, plan, pulls[row], second == 0, second == 1 or not twice,
                dtype, reply, reply_dtype, lanes, sums[row],
            )  # fmt: skip
    if act == Act.SESSIONS or act == Act.FINISH:
        parameters = 0
        for row in range(top, top + count):
            parameters += rows[row, Row.LENGTH]
        numbers[session, Number.LARGEST] = finish(
            traits, c, plan, old, numbers[session, Number.LOSS], parameters, its_spans, sums, scalars[session],
            samples[session],
        )  # fmt: skip


@compiled
def fate_of(traits: Integers, c: Coefficients[float], plan: Plan, largest: float, peak: float) -> int:
    """Whether a session's step may be taken here."""
    if not np.isfinite(peak):
        return Fate.NON_FINITE_GRADIENT
    return Fate.APPLIED if proven(traits, c, plan, largest, peak) else Fate.UNPROVEN


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
        lanes: Numbers,
        outcome: NDArray[np.int8],
        samples: Numbers,
    ) -> None:
        version  # noqa: B018  part of the key of Numba's cache
        for place in range(which.shape[0]):
            session = which[place]
            count = sessions[session, Whole.ROWS]
            of_session(
                act, session, 0 if act == Act.SESSIONS else first, count if act == Act.SESSIONS else last,
                rows, sessions, spans, numbers, coefficients, scalars, traits, sums[:count], pulls[:count], lanes,
                outcome, samples,
            )  # fmt: skip

    integers = types.int64[::1]
    tables, numbers = types.int64[:, ::1], types.float64[:, ::1]
    signature = types.void(
        types.int64, integers, types.int64, types.int64, tables, tables, integers, numbers, numbers, numbers, integers,
        numbers, numbers, types.float64[::1], types.int8[::1], numbers,
    )  # fmt: skip
    # With a signature the kernel is compiled here, and a call that does not fit it is an error, not a new compilation.
    return cast(Kernel, jit(signature, cache=True)(step))
