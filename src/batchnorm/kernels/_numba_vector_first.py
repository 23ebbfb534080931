"""The first so many elements of a vector in memory, and none after them.

Processors with AVX-512 leave lanes out in one instruction, those with AVX2 lanes of four bytes and
more. Elsewhere LLVM asks for each lane whether to touch it: 31 branches for 16 lanes. But a number
of lanes is one piece for each of its binary digits, in as many branches, which the processor
foresees where segments are equally long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from batchnorm.kernels._numba_vector import bits
from batchnorm.kernels._processor import has

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_NAMES = {"float": "f32", "double": "f64", "half": "f16"}
_SIZES = {"i16": 2, "half": 2, "float": 4, "double": 8}


def read_first(builder: Any, pointer: Any, kind: Any, count: Any) -> Any:
    """The first `count` elements of the vector at a pointer, then zeros."""
    size = _SIZES[str(kind.element)]
    if _masks(size):
        given = ir.Constant(_I32, size), bits(builder, count, kind.count), ir.Constant(kind, None)
        return _masked(builder, "load", kind, [pointer, *given], kind)
    count = _not_negative(builder, count)
    return _either(
        builder,
        _digit(builder, count, kind.count),
        lambda: builder.load(pointer, align=size, typ=kind),
        lambda: _read_pieces(builder, pointer, kind, count),
    )


def write_first(builder: Any, pointer: Any, elements: Any, count: Any) -> None:
    """Write the first `count` elements of a vector to a pointer."""
    kind = elements.type
    size = _SIZES[str(kind.element)]
    if _masks(size):
        given = ir.Constant(_I32, size), bits(builder, count, kind.count)
        _masked(builder, "store", ir.VoidType(), [elements, pointer, *given], kind)
        return
    count = _not_negative(builder, count)
    with builder.if_else(_digit(builder, count, kind.count)) as (whole, less):
        with whole:
            builder.store(elements, pointer, align=size)
        with less:
            _write_pieces(builder, pointer, elements, count)


def _masks(size: int) -> bool:
    """Whether the processor has an instruction for lanes of so many bytes."""
    return has("avx512bw") or (size > 2 and has("avx2"))


def _masked(builder: Any, name: str, result: Any, arguments: Any, kind: Any) -> Any:
    """Call one of LLVM's masked intrinsics on vectors of a type."""
    element = _NAMES.get(str(kind.element), str(kind.element))
    name = f"llvm.masked.{name}.v{kind.count}{element}.p0"
    of = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, of, name)
    return builder.call(function, arguments)


def _not_negative(builder: Any, count: Any) -> Any:
    zero = ir.Constant(_I64, 0)
    return builder.select(builder.icmp_signed("<", count, zero), zero, count)


def _digit(builder: Any, count: Any, value: int) -> Any:
    """Whether the binary digit of a value, a power of two, is 1."""
    digit = builder.and_(count, ir.Constant(_I64, value))
    return builder.icmp_unsigned("!=", digit, ir.Constant(_I64, 0))


def _either(builder: Any, condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """The value of one of two pieces of code."""
    with builder.if_else(condition) as (then, otherwise):
        with then:
            first, after_first = yes(), builder.block
        with otherwise:
            second, after_second = no(), builder.block
    value = builder.phi(first.type)
    value.add_incoming(first, after_first)
    value.add_incoming(second, after_second)
    return value


def _lanes(builder: Any, first: Any, second: Any, which: Iterable[int]) -> Any:
    """Some lanes of two vectors that lie end to end."""
    order = list(which)
    return builder.shuffle_vector(
        first, second, ir.Constant(ir.VectorType(_I32, len(order)), order)
    )


def _piece(builder: Any, pointer: Any, kind: Any, count: Any) -> Any:
    """A pointer to the piece of a type: it lies after all that are longer."""
    before = builder.and_(count, ir.Constant(_I64, -2 * kind.count))
    start = builder.bitcast(pointer, kind.element.as_pointer())
    there = builder.gep(start, [before], source_etype=kind.element)
    return builder.bitcast(there, kind.as_pointer())


def _read_pieces(builder: Any, pointer: Any, kind: Any, count: Any) -> Any:
    """From the last piece on, each put before those after it."""
    value: Any = ir.Constant(ir.VectorType(kind.element, 1), None)
    while value.type.count < kind.count:
        value = _read_piece(builder, pointer, count, value)
    return value


def _read_piece(builder: Any, pointer: Any, count: Any, rest: Any) -> Any:
    """A piece and the `rest` after it, which is as long; or that and zeros, if there is none."""
    kind, size = rest.type, _SIZES[str(rest.type.element)]
    there = _piece(builder, pointer, kind, count)
    both = range(2 * kind.count)
    return _either(
        builder,
        _digit(builder, count, kind.count),
        lambda: _lanes(builder, builder.load(there, align=size, typ=kind), rest, both),
        lambda: _lanes(builder, rest, ir.Constant(kind, None), both),
    )


def _write_pieces(builder: Any, pointer: Any, elements: Any, count: Any) -> None:
    """From the first piece on, each taken from those after it."""
    lanes, size = elements.type.count, _SIZES[str(elements.type.element)]
    while lanes > 1:
        lanes //= 2
        low = _lanes(builder, elements, elements, range(lanes))
        high = _lanes(builder, elements, elements, range(lanes, 2 * lanes))
        due = _digit(builder, count, lanes)
        there = _piece(builder, pointer, low.type, count)
        with builder.if_then(due):
            builder.store(low, there, align=size)
        elements = builder.select(due, high, low)
