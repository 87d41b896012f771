"""Lanes: sixteen numbers at a time, as values that compiled code calculates with.

A floating-point sum depends on its order. What a compiler makes of a loop differs from processor to processor; what is
written in lanes does not: lane j of a sum has every sixteenth element from the j-th on, and `total` adds the lanes as
one binary tree. A product and a sum are never contracted into one rounding.

`Floats` and `Doubles` are these types to the type checker. They and the functions here exist in compiled code only.
"""

import operator
from collections.abc import Callable
from typing import Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

LANES: Final = 16


class Floats:
    """Sixteen float32."""

    def __add__(self, other: "Floats") -> "Floats":
        raise NotImplementedError

    __sub__ = __mul__ = __truediv__ = __add__


class Doubles:
    """Sixteen float64."""

    def __add__(self, other: "Doubles") -> "Doubles":
        raise NotImplementedError

    __sub__ = __mul__ = __truediv__ = __add__


class _Lanes(types.Type):
    def __init__(self, name: str, element: ir.Type) -> None:
        super().__init__(name=name)
        self.vector = ir.VectorType(element, LANES)


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: object, lanes: _Lanes) -> None:
        super().__init__(manager, lanes, lanes.vector)


_FLOATS, _DOUBLES = _Lanes("Floats", ir.FloatType()), _Lanes("Doubles", ir.DoubleType())
_ADDRESS, _COUNT = types.int64, types.int64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_HALVES, _SHORTS, _WORDS = (ir.VectorType(each, LANES) for each in (ir.HalfType(), ir.IntType(16), _I32))

Written = Callable[..., ir.Value]


def _becomes(function: Callable[..., object], result: types.Type, *arguments: types.Type) -> Callable[[Written], None]:
    """Tells the compiler which instructions a function stands for."""

    def enter(write: Written) -> None:
        infer_global(function)(
            type(f"{function.__name__}_lanes", (ConcreteTemplate,), {"cases": [signature(result, *arguments)]})
        )

        def lower(context: object, builder: ir.IRBuilder, sig: object, values: list[ir.Value]) -> ir.Value:
            return write(builder, *values)

        lower_builtin(function, *arguments)(lower)

    return enter


for _lanes in (_FLOATS, _DOUBLES):
    for _operator, _name in (
        (operator.add, "fadd"),
        (operator.sub, "fsub"),
        (operator.mul, "fmul"),
        (operator.truediv, "fdiv"),
    ):
        _becomes(_operator, _lanes, _lanes, _lanes)(lambda builder, a, b, name=_name: getattr(builder, name)(a, b))


def _same(vector: ir.VectorType, value: object) -> ir.Constant:
    return ir.Constant(vector, [value] * LANES)


def _place(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.inttoptr(address, kind.as_pointer())


def _mask(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """Which lanes are below `count`."""
    counts = _spread(builder, builder.trunc(count, _I32), _WORDS)
    return builder.icmp_signed("<", ir.Constant(_WORDS, list(range(LANES))), counts)


def _spread(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, _same(_WORDS, 0))


def _packed(vector: ir.VectorType) -> tuple[str, int]:
    """LLVM's suffix for masked access, and the bytes of an element, to which alone packed rows are aligned."""
    return ("f32", 4) if vector == _FLOATS.vector else ("i16", 2)


def _read(builder: ir.IRBuilder, address: ir.Value, count: ir.Value, vector: ir.VectorType) -> ir.Value:
    """The first `count` elements at an address, the other lanes zero; nothing beyond is read."""
    name, align = _packed(vector)
    pointer = _place(builder, address, vector)
    with builder.if_else(_all(builder, count)) as (whole, part):
        with whole:
            everything, after_whole = builder.load(pointer, align=align), builder.block
        with part:
            mask = _mask(builder, count)
            shape = ir.FunctionType(vector, [pointer.type, _I32, mask.type, vector])
            read = cgutils.get_or_insert_function(builder.module, shape, f"llvm.masked.load.v{LANES}{name}.p0")
            some = builder.call(read, [pointer, ir.Constant(_I32, align), mask, ir.Constant(vector, None)])
            after_part = builder.block
    values = builder.phi(vector)
    values.add_incoming(everything, after_whole)
    values.add_incoming(some, after_part)
    return values


def _write(builder: ir.IRBuilder, values: ir.Value, address: ir.Value, count: ir.Value) -> ir.Value:
    """Writes the first `count` lanes to an address and nothing beyond."""
    vector = values.type
    name, align = _packed(vector)
    pointer = _place(builder, address, vector)
    with builder.if_else(_all(builder, count)) as (whole, part):
        with whole:
            builder.store(values, pointer, align=align)
        with part:
            mask = _mask(builder, count)
            shape = ir.FunctionType(ir.VoidType(), [vector, pointer.type, _I32, mask.type])
            write = cgutils.get_or_insert_function(builder.module, shape, f"llvm.masked.store.v{LANES}{name}.p0")
            builder.call(write, [values, pointer, ir.Constant(_I32, align), mask])
    return _nothing()


def _all(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """Whether there is an element for each lane; masked access is slow on processors without masks."""
    return builder.icmp_signed(">=", count, ir.Constant(_I64, LANES))


def _nothing() -> ir.Value:
    return ir.Constant(ir.IntType(8).as_pointer(), None)


def load(address: int) -> Floats:
    """Sixteen float32 of a row of state."""
    raise NotImplementedError


def store(values: Floats, address: int) -> None:
    """Writes sixteen float32 to a row of state."""


def load_float32(address: int, count: int) -> Floats:
    """Up to sixteen packed elements, zero beyond `count`; likewise the next two, widened without loss."""
    raise NotImplementedError


def load_float16(address: int, count: int) -> Floats:
    raise NotImplementedError


def load_bfloat16(address: int, count: int) -> Floats:
    raise NotImplementedError


def store_float32(values: Floats, address: int, count: int) -> None:
    """Writes up to sixteen packed elements; likewise the next two, rounded to nearest even. NaN is not expected."""


def store_float16(values: Floats, address: int, count: int) -> None:
    pass


def store_bfloat16(values: Floats, address: int, count: int) -> None:
    pass


def prefetch(address: int) -> None:
    """Asks for a line of memory that will soon be needed; any address will do."""


def splat(value: np.float32) -> Floats:
    """The same number in every lane."""
    raise NotImplementedError


def splat_double(value: float) -> Doubles:
    raise NotImplementedError


def load_doubles(address: int) -> Doubles:
    raise NotImplementedError


def store_doubles(values: Doubles, address: int) -> None:
    pass


def widen(values: Floats) -> Doubles:
    raise NotImplementedError


def narrow(values: Doubles) -> Floats:
    raise NotImplementedError


def root(values: Floats) -> Floats:
    raise NotImplementedError


def root_doubles(values: Doubles) -> Doubles:
    raise NotImplementedError


def larger(left: Floats, right: Floats) -> Floats:
    """The larger of each two; the right one where they do not compare."""
    raise NotImplementedError


def smaller_doubles(left: Doubles, right: Doubles) -> Doubles:
    raise NotImplementedError


def magnitude(values: Floats) -> Floats:
    raise NotImplementedError


def total(values: Doubles) -> float:
    """Sum of the lanes as a binary tree."""
    raise NotImplementedError


def peak(values: Floats) -> float:
    """The largest lane, none of them NaN."""
    raise NotImplementedError


@_becomes(load, _FLOATS, _ADDRESS)
def _(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(_place(builder, address, _FLOATS.vector), align=4)


@_becomes(store, types.void, _FLOATS, _ADDRESS)
def _(builder: ir.IRBuilder, values: ir.Value, address: ir.Value) -> ir.Value:
    builder.store(values, _place(builder, address, values.type), align=4)
    return _nothing()


@_becomes(prefetch, types.void, _ADDRESS)
def _(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    shape = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
    reading, into_second_cache, data = (ir.Constant(_I32, number) for number in (0, 2, 1))
    builder.call(function, [pointer, reading, into_second_cache, data])
    return _nothing()


@_becomes(load_doubles, _DOUBLES, _ADDRESS)
def _(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(_place(builder, address, _DOUBLES.vector), align=8)


@_becomes(store_doubles, types.void, _DOUBLES, _ADDRESS)
def _(builder: ir.IRBuilder, values: ir.Value, address: ir.Value) -> ir.Value:
    builder.store(values, _place(builder, address, values.type), align=8)
    return _nothing()


@_becomes(load_float32, _FLOATS, _ADDRESS, _COUNT)
def _(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    return _read(builder, address, count, _FLOATS.vector)


@_becomes(load_float16, _FLOATS, _ADDRESS, _COUNT)
def _(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    return builder.fpext(builder.bitcast(_read(builder, address, count, _SHORTS), _HALVES), _FLOATS.vector)


@_becomes(load_bfloat16, _FLOATS, _ADDRESS, _COUNT)
def _(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    upper = builder.shl(builder.zext(_read(builder, address, count, _SHORTS), _WORDS), _same(_WORDS, 16))
    return builder.bitcast(upper, _FLOATS.vector)


@_becomes(store_float32, types.void, _FLOATS, _ADDRESS, _COUNT)
def _(builder: ir.IRBuilder, values: ir.Value, address: ir.Value, count: ir.Value) -> ir.Value:
    return _write(builder, values, address, count)


@_becomes(store_float16, types.void, _FLOATS, _ADDRESS, _COUNT)
def _(builder: ir.IRBuilder, values: ir.Value, address: ir.Value, count: ir.Value) -> ir.Value:
    return _write(builder, builder.bitcast(builder.fptrunc(values, _HALVES), _SHORTS), address, count)


@_becomes(store_bfloat16, types.void, _FLOATS, _ADDRESS, _COUNT)
def _(builder: ir.IRBuilder, values: ir.Value, address: ir.Value, count: ir.Value) -> ir.Value:
    bits = builder.bitcast(values, _WORDS)
    odd = builder.and_(builder.lshr(bits, _same(_WORDS, 16)), _same(_WORDS, 1))
    rounded = builder.add(builder.add(bits, _same(_WORDS, 0x7FFF)), odd)
    return _write(builder, builder.trunc(builder.lshr(rounded, _same(_WORDS, 16)), _SHORTS), address, count)


@_becomes(splat, _FLOATS, types.float32)
def _(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return _spread(builder, value, _FLOATS.vector)


@_becomes(splat_double, _DOUBLES, types.float64)
def _(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return _spread(builder, value, _DOUBLES.vector)


@_becomes(widen, _DOUBLES, _FLOATS)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return builder.fpext(values, _DOUBLES.vector)


@_becomes(narrow, _FLOATS, _DOUBLES)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return builder.fptrunc(values, _FLOATS.vector)


def _of_one(builder: ir.IRBuilder, name: str, values: ir.Value) -> ir.Value:
    suffix = "f32" if values.type == _FLOATS.vector else "f64"
    shape = ir.FunctionType(values.type, [values.type])
    return builder.call(
        cgutils.get_or_insert_function(builder.module, shape, f"llvm.{name}.v{LANES}{suffix}"), [values]
    )


@_becomes(root, _FLOATS, _FLOATS)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return _of_one(builder, "sqrt", values)


@_becomes(root_doubles, _DOUBLES, _DOUBLES)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return _of_one(builder, "sqrt", values)


@_becomes(magnitude, _FLOATS, _FLOATS)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return _of_one(builder, "fabs", values)


@_becomes(larger, _FLOATS, _FLOATS, _FLOATS)
def _(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


@_becomes(smaller_doubles, _DOUBLES, _DOUBLES, _DOUBLES)
def _(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered("<", left, right), left, right)


def _tree(builder: ir.IRBuilder, values: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """One value of all lanes: the upper half with the lower, and so on."""
    undefined = ir.Constant(values.type, ir.Undefined)
    width = LANES
    while width > 1:
        width //= 2
        upper = ir.Constant(_WORDS, [(lane + width) % LANES for lane in range(LANES)])
        values = join(values, builder.shuffle_vector(values, undefined, upper))
    return builder.extract_element(values, ir.Constant(_I32, 0))


@_becomes(total, types.float64, _DOUBLES)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return _tree(builder, values, builder.fadd)


@_becomes(peak, types.float32, _FLOATS)
def _(builder: ir.IRBuilder, values: ir.Value) -> ir.Value:
    return _tree(
        builder, values, lambda left, right: builder.select(builder.fcmp_ordered(">", left, right), left, right)
    )
