"""Kernels: the flows of a step on the rows of a device, a program a row.

One kernel does it all: KICK goes from the published point to just after the kick and measures what the scalars need,
DRIFT goes on from there. Where a norm must be known in between they are two launches, and the second finds the
direction of the drift once more from what the first has left. The names are those of flows.py, metric.py and norms.py,
which are the definition; there too is what the columns mean.

A row's sums are trees that the compiler fixes once for a family: they know nothing of the other rows. Division and
square roots are rounded as IEEE has it, and nothing is contracted (`enable_fp_fusion`), so that the position is what a
worker gets who adds the increment.
"""

import triton
import triton.language as tl

# Columns of the table of rows, which are those of fused.Row: addresses of the buffers' rows; the first element of the
# row in its session's vector; elements that are not padding.
POSITION = tl.constexpr(0)
MOMENTUM = tl.constexpr(1)
SECOND_MOMENT = tl.constexpr(2)
FIRST_MOMENT = tl.constexpr(3)
LEAD = tl.constexpr(4)
BEGIN = tl.constexpr(5)
LENGTH = tl.constexpr(7)
ROW_COLUMNS = tl.constexpr(8)

# Columns of the table of sessions: what comes and goes over the wire. The numbers are those of Dtype and of Reply.
GRADIENT = tl.constexpr(0)
GRADIENT_DTYPE = tl.constexpr(1)
REPLY = tl.constexpr(2)  # address; 0 where no reply is wanted
REPLY_KIND = tl.constexpr(3)
REPLY_DTYPE = tl.constexpr(4)
WIRE_COLUMNS = tl.constexpr(5)
FLOAT32 = tl.constexpr(1)
FLOAT16 = tl.constexpr(2)
PARAMETERS = tl.constexpr(1)

# What a row leaves behind, float64.
GRADIENT_SQUARE = tl.constexpr(0)
MOMENTUM_SQUARE = tl.constexpr(1)
POSITION_SQUARE = tl.constexpr(2)
BEFORE = tl.constexpr(3)  # up to four each
AFTER = tl.constexpr(7)
STEP_SQUARE = tl.constexpr(11)
PEAK = tl.constexpr(12)  # largest magnitude
FOUND = tl.constexpr(13)

KICK_COLUMNS = tl.constexpr(10)  # of passes.Columns
MOTION_COLUMNS = tl.constexpr(8)  # of CoordinateNorms.columns
MAX_RAPIDITY = tl.constexpr(1e150)  # as in kinetic.py


@triton.jit(do_not_specialize=["count"])  # one binary a family: nobody's sums depend on how many rows there are
def step_rows(
    rows, group, wires, kicks, pulls, cools, before, after, found, count,
    E: tl.constexpr, KICK: tl.constexpr, DRIFT: tl.constexpr,
    HAS_POSITION: tl.constexpr, WEIGH: tl.constexpr, HAS_SECOND: tl.constexpr, HAS_FIRST: tl.constexpr,
    HAS_LEAD: tl.constexpr, ON_KICK: tl.constexpr, NORMALISE: tl.constexpr, POWER_UNITS: tl.constexpr,
    INSIDE: tl.constexpr, START: tl.constexpr, LOOKAHEAD: tl.constexpr, THERMAL: tl.constexpr, BARE: tl.constexpr,
    DECOUPLED: tl.constexpr, FOLLOWS: tl.constexpr, CONFORMAL: tl.constexpr, EUCLIDEAN: tl.constexpr,
    COORDINATE: tl.constexpr, RELATIVISTIC: tl.constexpr, WARM: tl.constexpr,
):  # fmt: skip
    """One row through a step, or through half of it."""
    row = tl.program_id(0)
    places = rows + row * ROW_COLUMNS
    wire = wires + tl.load(group + row) * WIRE_COLUMNS
    begin, length = tl.load(places + BEGIN), tl.load(places + LENGTH)
    kicks += row * KICK_COLUMNS
    offsets = tl.arange(0, E)

    momentum = tl.load(_state(places, MOMENTUM, offsets))
    if HAS_POSITION:
        position = tl.load(_state(places, POSITION, offsets))
    if HAS_SECOND:
        second = tl.load(_state(places, SECOND_MOMENT, offsets))
        first = second
        if HAS_FIRST:
            first = tl.load(_state(places, FIRST_MOMENT, offsets))
    if KICK or LOOKAHEAD:
        gradient = _read(wire, begin, length, offsets, E)
        force = gradient
        if THERMAL and HAS_POSITION:
            force = gradient + position * tl.load(kicks + 5)

    # The metric learns in the kick, then stands still.
    if HAS_SECOND:
        if KICK:
            decay, gain = tl.load(kicks + 6), tl.load(kicks + 7)
            second = second * decay + force * force * gain
            tl.store(_state(places, SECOND_MOMENT, offsets), second)
            if HAS_FIRST:
                first = first * decay + force * gain
                tl.store(_state(places, FIRST_MOMENT, offsets), first)
        epsilon, unit = tl.load(kicks + 8), tl.load(kicks + 9)
        metric = _metric(second, first, unit, epsilon, HAS_FIRST, NORMALISE, POWER_UNITS, INSIDE)
    if KICK or LOOKAHEAD:
        impulse = force
        if HAS_SECOND and ON_KICK:
            impulse = tl.div_rn(force, metric)
        retention, impulse_gain = tl.load(kicks + 0), tl.load(kicks + 1)
    if KICK:
        if START:
            momentum = tl.where(tl.load(kicks + 2) != 0, impulse * tl.load(kicks + 3), momentum)
        raised = momentum
        if HAS_SECOND and not ON_KICK:
            raised = tl.div_rn(momentum, metric)
        columns = before + row * MOTION_COLUMNS
        _measure(found, count, row, BEFORE, momentum, raised, columns, EUCLIDEAN, COORDINATE, RELATIVISTIC, WARM)
        momentum = momentum * retention + impulse * impulse_gain
        if BARE and HAS_POSITION:
            momentum = momentum + position * tl.load(kicks + 4)
        tl.store(_state(places, MOMENTUM, offsets), momentum)
        _keep(found, count, row, GRADIENT_SQUARE, _square(gradient))
        _keep(found, count, row, MOMENTUM_SQUARE, _square(momentum))
        if WEIGH and HAS_POSITION:
            _keep(found, count, row, POSITION_SQUARE, _square(position))

    drifting = momentum
    if LOOKAHEAD:
        drifting = momentum * retention + impulse * impulse_gain
    direction = drifting
    if HAS_SECOND and not ON_KICK:
        direction = tl.div_rn(drifting, metric)
    columns = after + row * MOTION_COLUMNS
    if KICK:
        _measure(found, count, row, AFTER, drifting, direction, columns, EUCLIDEAN, COORDINATE, RELATIVISTIC, WARM)

    if DRIFT:
        pull = pulls + row * 3
        reach, lead, decay = tl.load(pull), tl.load(pull + 1), tl.load(pull + 2)
        if COORDINATE:
            _, _, braking, _ = _motion(drifting, direction, columns, EUCLIDEAN, RELATIVISTIC, WARM)
            lead = lead * braking
            reach = (reach * braking + lead).to(tl.float32)
            if FOLLOWS:
                decay = decay * braking
            decay = decay.to(tl.float32)
        increment = direction * -reach
        if HAS_LEAD:
            old_lead, taken_back = tl.load(_state(places, LEAD, offsets)), tl.load(cools + row * 2 + 1)
        if DECOUPLED and HAS_POSITION:
            base = position
            if HAS_LEAD:
                base = position - taken_back * old_lead
            increment = increment + base * -decay
        if HAS_LEAD:
            increment = increment + old_lead * -taken_back
            old_lead = direction * -lead
            tl.store(_state(places, LEAD, offsets), old_lead)
        if CONFORMAL:
            momentum = momentum * tl.load(cools + row * 2)
            tl.store(_state(places, MOMENTUM, offsets), momentum)
        _keep(found, count, row, STEP_SQUARE, _square(increment))
        peak = tl.abs(momentum)
        if HAS_SECOND:
            peak = tl.maximum(peak, second)
            if HAS_FIRST:
                peak = tl.maximum(peak, tl.abs(first))
        if HAS_LEAD:
            peak = tl.maximum(peak, tl.abs(old_lead))
        reply = increment
        if HAS_POSITION:
            position = position + increment
            tl.store(_state(places, POSITION, offsets), position)
            peak = tl.maximum(peak, tl.abs(position))
            reply = tl.where(tl.load(wire + REPLY_KIND) == PARAMETERS, position, increment)
        _keep(found, count, row, PEAK, tl.max(peak, 0).to(tl.float64))
        _write(wire, begin, length, offsets, reply, E)


@triton.jit(do_not_specialize=["items", "width"])
def sum_items(table, gather, sums, items, width, WIDTH: tl.constexpr):
    """Grouping.totals, one number of one level. However many items there are, the tree is that of WIDTH."""
    group, column = tl.program_id(0), tl.program_id(1)
    columns = tl.num_programs(1)
    places = tl.arange(0, WIDTH)
    item = tl.load(gather + group * width + places, mask=places < width, other=items)
    values = tl.load(table + item * columns + column, mask=item < items, other=0.0)
    tl.store(sums + group * columns + column, tl.sum(values, 0))


@triton.jit
def _state(places, COLUMN: tl.constexpr, offsets):
    """Pointers to a row of a buffer; rows of the arena begin at multiples of their length."""
    return tl.multiple_of(tl.load(places + COLUMN).to(tl.pointer_type(tl.float32)) + offsets, 64)


@triton.jit
def _keep(found, count, row, SLOT: tl.constexpr, value):
    tl.store(found + SLOT * count + row, value)


@triton.jit
def _square(values):
    """rows.row_squares"""
    wide = values.to(tl.float64)
    return tl.sum(wide * wide, 0)


@triton.jit
def _metric(
    second, first, unit, epsilon,
    CENTERED: tl.constexpr, NORMALISE: tl.constexpr, POWER_UNITS: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """metric.diagonal_metric"""
    scale = second
    if NORMALISE:
        scale = tl.div_rn(scale, unit)
    if CENTERED:
        mean = first
        if NORMALISE:
            mean = tl.div_rn(mean, unit)
        scale = tl.maximum(scale - mean * mean, 0.0)
    if INSIDE:
        return _root_power(scale + epsilon, POWER_UNITS)
    return _root_power(scale, POWER_UNITS) + epsilon


@triton.jit
def _root_power(base, POWER_UNITS: tl.constexpr):
    """metric.root_power_"""
    power = base
    if POWER_UNITS < 8:
        half = tl.sqrt_rn(base)
        quarter = tl.sqrt_rn(half)
        power = half
        if not POWER_UNITS & 4:
            power = quarter
        elif POWER_UNITS & 2:
            power = half * quarter
        if POWER_UNITS == 1:
            power = tl.sqrt_rn(quarter)
        elif POWER_UNITS & 1:
            power = power * tl.sqrt_rn(quarter)
    return power


@triton.jit
def _motion(momentum, raised, columns, EUCLIDEAN: tl.constexpr, RELATIVISTIC: tl.constexpr, WARM: tl.constexpr):
    """kinetic.motion of each element, rest energy left out: κ, its slope, f, and the element's work."""
    wide = momentum.to(tl.float64)
    product = wide * raised.to(tl.float64)
    square = product
    if EUCLIDEAN:
        square = wide * wide
    square = square * tl.load(columns)
    kinetic, slope, braking = square / 2, square * 0, square * 0 + 1
    if RELATIVISTIC:
        rapidity = tl.sqrt(square) / tl.load(columns + 3)
        if WARM:
            rapidity = rapidity * tl.load(columns + 2)
        rapidity = tl.minimum(rapidity, MAX_RAPIDITY)
        gamma = tl.sqrt(rapidity * rapidity + 1)
        kinetic = square / (gamma + 1)
        braking = 1 / gamma
        if WARM:
            slope = -tl.load(columns + 4) * (kinetic * (rapidity / (gamma + 1) * rapidity) / gamma)
    return kinetic, slope, braking, product * tl.load(columns + 1)


@triton.jit
def _measure(
    found, count, row, SLOT: tl.constexpr, momentum, raised, columns,
    EUCLIDEAN: tl.constexpr, COORDINATE: tl.constexpr, RELATIVISTIC: tl.constexpr, WARM: tl.constexpr,
):  # fmt: skip
    """norms.measure: s and work of the row, or what the motions of its elements add up to."""
    if COORDINATE:
        kinetic, slope, braking, work = _motion(momentum, raised, columns, EUCLIDEAN, RELATIVISTIC, WARM)
        _keep(found, count, row, SLOT, tl.sum(kinetic, 0))
        _keep(found, count, row, SLOT + 1, tl.sum(slope, 0))
        _keep(found, count, row, SLOT + 2, tl.sum(braking * work, 0))
        _keep(found, count, row, SLOT + 3, tl.sum(work, 0))
    else:
        work = tl.sum(momentum.to(tl.float64) * raised.to(tl.float64), 0)
        square = work
        if EUCLIDEAN:
            square = _square(momentum)
        _keep(found, count, row, SLOT, square)
        _keep(found, count, row, SLOT + 1, work)


@triton.jit
def _read(wire, begin, length, offsets, E: tl.constexpr):
    """The row's gradient, widened."""
    base, dtype = tl.load(wire + GRADIENT), tl.load(wire + GRADIENT_DTYPE)
    if dtype == FLOAT32:
        values = _load(base, begin, length, offsets, E, tl.float32)
    elif dtype == FLOAT16:
        values = _load(base, begin, length, offsets, E, tl.float16)
    else:
        values = _load(base, begin, length, offsets, E, tl.bfloat16)
    return values


@triton.jit
def _load(base, begin, length, offsets, E: tl.constexpr, TYPE: tl.constexpr):
    """Whole rows at good addresses, which are almost all, move in wide words."""
    address = base + begin * (TYPE.primitive_bitwidth // 8)
    pointers = address.to(tl.pointer_type(TYPE)) + offsets
    if (length == E) & (address % 16 == 0):
        values = tl.load(tl.multiple_of(pointers, 16)).to(tl.float32)
    else:
        values = tl.load(pointers, mask=offsets < length, other=0.0).to(tl.float32)
    return values


@triton.jit
def _write(wire, begin, length, offsets, values, E: tl.constexpr):
    """The row's part of the reply, rounded to what the worker wants."""
    base, dtype = tl.load(wire + REPLY), tl.load(wire + REPLY_DTYPE)
    if base != 0:
        if dtype == FLOAT32:
            _store(base, begin, length, offsets, values, E, tl.float32)
        elif dtype == FLOAT16:
            _store(base, begin, length, offsets, values, E, tl.float16)
        else:
            _store(base, begin, length, offsets, _bfloat16_bits(values), E, tl.uint16)


@triton.jit
def _store(base, begin, length, offsets, values, E: tl.constexpr, TYPE: tl.constexpr):
    address = base + begin * (TYPE.primitive_bitwidth // 8)
    pointers = address.to(tl.pointer_type(TYPE)) + offsets
    if (length == E) & (address % 16 == 0):
        tl.store(tl.multiple_of(pointers, 16), values.to(TYPE))
    else:
        tl.store(pointers, values.to(TYPE), mask=offsets < length)


@triton.jit
def _bfloat16_bits(values):
    """The upper half of a finite float32, rounded to nearest, ties to even. By hand: the interpreter only cuts."""
    bits = values.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
