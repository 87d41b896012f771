"""Flows on one row, compiled. A row of E elements stays in the processor's cache, so flow may follow flow.

Each function names the flow that it is; dynamics/flows.py and metric.py are the definitions. Sums are float64 in an
order that depends on the row's length alone.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,attr-defined,untyped-decorator"

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

# Floats may not be reordered but in sums, where the order is then the compiler's: a function of the length.
summed: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "nsz"})
exact: Any = njit(nogil=True, cache=True, error_model="numpy")


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def pointer(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_float32 = _pointer_to(types.float32)
_uint32 = _pointer_to(types.uint32)
_uint16 = _pointer_to(types.uint16)


@njit(inline="always")
def floats(address, count):
    """(count,) float32 at an address."""
    return carray(_float32(address), (count,))


@njit(inline="always")
def bits32(address, count):
    """(count,) the same as uint32."""
    return carray(_uint32(address), (count,))


@njit(inline="always")
def bits16(address, count):
    """(count,) uint16 at an address."""
    return carray(_uint16(address), (count,))


@exact
def widen_bfloat16(source, target):
    """float32 of bfloat16; `target` is its bits."""
    for i in range(len(source)):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@exact
def widen_float16(source, bits, target):
    """float32 of finite float16: exponent and fraction into place, then the difference of the biases as a factor."""
    for i in range(len(source)):
        bits[i] = np.uint32(source[i] & np.uint16(0x7FFF)) << np.uint32(13)
    bias = np.float32(2.0**112)
    for i in range(len(source)):
        target[i] *= bias
    for i in range(len(source)):
        bits[i] |= np.uint32(source[i] & np.uint16(0x8000)) << np.uint32(16)


@exact
def narrow_bfloat16(source, target):
    """bfloat16 of finite float32, to nearest, ties to even; `source` is its bits."""
    for i in range(len(target)):
        word = source[i]
        word += np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))
        target[i] = np.uint16(word >> np.uint32(16))


@exact
def narrow_float16(source, bits, scratch, scratch_bits, target):
    """float16 of finite float32, to nearest, ties to even, infinite beyond its range.

    Below the smallest normal the addition of one half rounds in the right place; above, the carry of the rounding does.
    """
    half = np.float32(0.5)
    for i in range(len(target)):
        scratch[i] = abs(source[i]) + half
    for i in range(len(target)):
        word = bits[i] & np.uint32(0x7FFFFFFF)
        small = scratch_bits[i] - np.uint32(0x3F000000)
        odd = (word >> np.uint32(13)) & np.uint32(1)
        normal = (word - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
        found = small if word < np.uint32(0x38800000) else normal
        found = np.uint32(0x7C00) if word >= np.uint32(0x47800000) else found
        target[i] = np.uint16(found | ((bits[i] >> np.uint32(16)) & np.uint32(0x8000)))


@exact
def largest_bits(words):
    """The largest magnitude among float32, as its bits: without the sign they are ordered as the magnitudes are."""
    most = np.uint32(0)
    for i in range(len(words)):
        word = words[i] & np.uint32(0x7FFFFFFF)
        most = max(most, word)
    return most


@summed
def square(values):
    """Sum of squares."""
    total = 0.0
    for i in range(len(values)):
        value = np.float64(values[i])
        total += value * value
    return total


@summed
def product(left, right):
    """Scalar product."""
    total = 0.0
    for i in range(len(left)):
        total += np.float64(left[i]) * np.float64(right[i])
    return total


@exact
def add_scaled(force, gradient, position, rate):
    """The pull of thermal weight decay: y = g + λ w."""
    for i in range(len(force)):
        force[i] = gradient[i] + position[i] * rate


@exact
def update_moment(moment, gradient, decay, gain):
    """metric.update_moments_: M ← ρ M + q g²."""
    for i in range(len(gradient)):
        moment[i] = moment[i] * decay + gradient[i] * gradient[i] * gain


@exact
def update_mean(moment, gradient, decay, gain):
    """metric.update_moments_: m ← ρ m + q g."""
    for i in range(len(gradient)):
        moment[i] = moment[i] * decay + gradient[i] * gain


@exact
def metric_base(scale, second, unit, normalise):
    """metric.diagonal_metric up to its root: M, or M/D."""
    if normalise:
        for i in range(len(scale)):
            scale[i] = second[i] / unit
    else:
        for i in range(len(scale)):
            scale[i] = second[i]


@exact
def centre(scale, first, unit, normalise):
    """metric.diagonal_metric: M - m², not below zero."""
    one = np.float32(1.0)
    by = unit if normalise else one
    for i in range(len(scale)):
        mean = first[i] / by
        rest = scale[i] - mean * mean
        scale[i] = rest if rest > np.float32(0.0) else np.float32(0.0)


@exact
def add_number(scale, number):
    for i in range(len(scale)):
        scale[i] += number


@exact
def root_power(scale, product_, units):
    """metric.root_power_: scale ** (units / 8) by repeated square roots."""
    weight, begun = 4, False
    while True:
        for i in range(len(scale)):
            scale[i] = np.sqrt(scale[i])
        if units & weight:
            if not units & (weight - 1):
                if begun:
                    for i in range(len(scale)):
                        scale[i] *= product_[i]
                return
            if begun:
                for i in range(len(scale)):
                    product_[i] *= scale[i]
            else:
                for i in range(len(scale)):
                    product_[i] = scale[i]
            begun = True
        weight //= 2


@exact
def divide(target, source, scale):
    """G of a diagonal metric."""
    for i in range(len(target)):
        target[i] = source[i] / scale[i]


@exact
def start(momentum, impulse, unit):
    """flows.start_: X ← A₀ y."""
    for i in range(len(impulse)):
        momentum[i] = impulse[i] * unit


@summed
def kick(momentum, impulse, retention, gain):
    """flows.cooled_kick_: X ← r X + z y; gives |X|² before and after."""
    before, after = 0.0, 0.0
    for i in range(len(impulse)):
        old = momentum[i]
        new = old * retention + impulse[i] * gain
        momentum[i] = new
        before += np.float64(old) * np.float64(old)
        after += np.float64(new) * np.float64(new)
    return before, after


@exact
def lookahead(target, momentum, impulse, retention, gain):
    """flows.cooled_kick_ once more, on a copy."""
    for i in range(len(impulse)):
        target[i] = momentum[i] * retention + impulse[i] * gain


@exact
def harmonic_kick(momentum, position, stiffness):
    """flows.harmonic_kick_: X ← X + s w."""
    for i in range(len(position)):
        momentum[i] += position[i] * stiffness


@summed
def drift(increment, direction, position, reach):
    """flows.drift_: Δw = -d v, and w ← w + Δw; gives |Δw|²."""
    total = 0.0
    for i in range(len(position)):
        step = direction[i] * -reach
        increment[i] = step
        position[i] += step
        total += np.float64(step) * np.float64(step)
    return total


@exact
def drift_decayed(increment, direction, position, reach, rate):
    """flows.drift_ and flows.decay_: Δw = -d v - λ w, and w ← w + Δw."""
    for i in range(len(position)):
        step = direction[i] * -reach + position[i] * -rate
        increment[i] = step
        position[i] += step


@summed
def drift_away(increment, direction, reach):
    """flows.drift_ where the workers hold the parameters; gives |Δw|²."""
    total = 0.0
    for i in range(len(direction)):
        step = direction[i] * -reach
        increment[i] = step
        total += np.float64(step) * np.float64(step)
    return total
