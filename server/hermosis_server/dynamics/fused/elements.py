"""Elements: what a sweep does to sixteen elements, each named after the flow, metric or norm that defines it."""

import numpy as np

from hermosis.wire import Dtype
from hermosis_server.dynamics.family import Coefficients
from hermosis_server.dynamics.fused.compiled import inlined
from hermosis_server.dynamics.fused.lanes import (
    LANES,
    Doubles,
    Floats,
    larger,
    load_bfloat16,
    load_doubles,
    load_float16,
    load_float32,
    root,
    root_doubles,
    smaller_doubles,
    splat,
    splat_double,
    store_bfloat16,
    store_doubles,
    store_float16,
    store_float32,
    widen,
)
from hermosis_server.dynamics.fused.plan import Moment
from hermosis_server.dynamics.kinetic import MAX_RAPIDITY
from hermosis_server.dynamics.metric import POWER_UNIT

FLOAT32, FLOAT16, BFLOAT16 = int(Dtype.FLOAT32), int(Dtype.FLOAT16), int(Dtype.BFLOAT16)
HALF_BYTES, FLOAT_BYTES, DOUBLE_BYTES = 2, 4, 8


@inlined
def read_gradient(address: int, dtype: int, index: int, count: int) -> Floats:
    """Sixteen elements of a packed row, widened; zero from `count` on."""
    if dtype == BFLOAT16:
        return load_bfloat16(address + HALF_BYTES * index, count)
    if dtype == FLOAT16:
        return load_float16(address + HALF_BYTES * index, count)
    return load_float32(address + FLOAT_BYTES * index, count)


@inlined
def write_reply(values: Floats, address: int, dtype: int, index: int, count: int) -> None:
    """The first `count` of sixteen elements to a packed row, rounded."""
    if dtype == BFLOAT16:
        store_bfloat16(values, address + HALF_BYTES * index, count)
    elif dtype == FLOAT16:
        store_float16(values, address + HALF_BYTES * index, count)
    else:
        store_float32(values, address + FLOAT_BYTES * index, count)


@inlined
def root_power(base: Floats, power_units: int) -> Floats:
    """`metric.root_power_`."""
    if power_units == POWER_UNIT:
        return base
    half = root(base)
    if power_units == 4:
        return half
    quarter = root(half)
    if power_units == 2:
        return quarter
    if power_units == 6:
        return half * quarter
    eighth = root(quarter)
    if power_units == 1:
        return eighth
    if power_units == 5:
        return half * eighth
    return (half * quarter if power_units == 7 else quarter) * eighth


@inlined
def metric_scale(
    second_moment: Floats,
    first_moment: Floats,
    unit_moment: Floats,
    epsilon: Floats,
    normalise: bool,
    centered: bool,
    epsilon_inside: bool,
    power_units: int,
) -> Floats:
    """`metric.diagonal_metric`."""
    scale = second_moment / unit_moment if normalise else second_moment
    if centered:
        mean = first_moment / unit_moment if normalise else first_moment
        scale = larger(scale - mean * mean, splat(np.float32(0)))
    if epsilon_inside:
        return root_power(scale + epsilon, power_units)
    return root_power(scale, power_units) + epsilon


@inlined
def cooled_kick(momentum: Floats, impulse: Floats, retention: Floats, impulse_gain: Floats) -> Floats:
    """`flows.cooled_kick_`."""
    return momentum * retention + impulse * impulse_gain


@inlined
def add_norms(
    sums: int,
    first: int,
    momentum: Floats,
    raised: Floats,
    factors: Moment,
    c: Coefficients[float],
    euclidean: bool,
) -> Doubles:
    """Adds what sixteen elements contribute at one moment to its four sums, and gives their braking.

    `norms.CoordinateNorms.measure` with `kinetic.relativistic_motion`; rest energy is left out.
    """
    one = splat_double(1.0)
    wide = widen(momentum)
    product = wide * widen(raised)
    square = (wide * wide if euclidean else product) * splat_double(factors.square_factor)
    work = product * splat_double(factors.work_factor)
    rapidity = root_doubles(square) / splat_double(c.speed_limit) * splat_double(factors.heat)
    rapidity = smaller_doubles(rapidity, splat_double(MAX_RAPIDITY))
    gamma = root_doubles(rapidity * rapidity + one)
    kinetic = square / (gamma + one)
    braking = one / gamma
    slope = kinetic * (rapidity / (gamma + one) * rapidity) / gamma * splat_double(-c.rest_cooling)
    add_lanes(sums, first, kinetic)
    add_lanes(sums, first + 1, slope)
    add_lanes(sums, first + 2, braking * work)
    add_lanes(sums, first + 3, work)
    return braking


@inlined
def add_lanes(sums: int, slot: int, values: Doubles) -> None:
    """Adds to a sum that is too seldom asked for to be kept in a register."""
    address = sums + slot * LANES * DOUBLE_BYTES
    store_doubles(load_doubles(address) + values, address)
