"""Vectors in memory: read and written, in part by a mask, and past the caches."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_memory import (
    ELEMENTS,
    SIZES,
    WIDEST,
    from_words,
    intrinsic,
    to_words,
    word,
)
from batchnorm.kernels._numba_vector import First, Vector
from batchnorm.kernels._numba_vector_first import read_first, write_first

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _pointer(builder: Any, address: Any, index: Any, tag: Any, lanes: int) -> Any:
    set.add(builder.function.attributes, WIDEST)  # llvmlite itself takes those alone it knows
    byte = builder.add(address, builder.mul(index, ir.Constant(_I64, SIZES[tag])))
    return builder.inttoptr(byte, ir.VectorType(ELEMENTS[tag][0], lanes).as_pointer())


def _read(builder: Any, arguments: Any, mask: Any, lanes: int, tag: Any) -> Any:
    """So many elements, as float64 if they are and as float32 otherwise."""
    kind = ir.VectorType(ELEMENTS[tag][0], lanes)
    pointer = _pointer(builder, arguments[0], arguments[1], tag, lanes)
    if isinstance(mask, First):
        return to_words(builder, read_first(builder, pointer, kind, arguments[2]), tag)
    return to_words(builder, builder.load(pointer, align=SIZES[tag], typ=kind), tag)


@intrinsic
def read(typing: Any, address: Any, index: Any, mask: Any, tag: Any) -> Any:
    """The elements from `index` on; 0 in lanes that the mask leaves out, which may be None."""
    vector = Vector(word(tag))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _read(builder, arguments, mask, vector.lanes, tag)
        return builder.fpext(value, vector.kind) if tag == types.float32 else value

    return vector(types.intp, types.intp, mask, tag), generate


@intrinsic
def write(typing: Any, address: Any, index: Any, value: Any, mask: Any, tag: Any) -> Any:
    """Round to elements and write them from `index` on, in the lanes of the mask or in all."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0], arguments[1], tag, value.lanes)
        elements = from_words(builder, arguments[2], value.of, tag)
        if isinstance(mask, First):
            write_first(builder, pointer, elements, arguments[3])
        else:
            builder.store(elements, pointer, align=SIZES[tag])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value, mask, tag), generate


@intrinsic
def stream(typing: Any, address: Any, index: Any, value: Any, tag: Any) -> Any:
    """As `write` of all lanes, past the caches, to an address that is a multiple of their size.

    An ordinary store first reads the line that it is about to overwrite: a third of the traffic.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(builder, arguments[0], arguments[1], tag, value.lanes)
        elements = from_words(builder, arguments[2], value.of, tag)
        written = builder.store(elements, pointer, align=SIZES[tag] * value.lanes)
        one = builder.module.add_metadata([ir.Constant(_I32, 1)])
        written.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value, tag), generate


@inline_mapping
def put(address: Any, index: Any, value: Any, mask: Any, streams: Any, tag: Any) -> None:
    """`stream` if it `streams`, for which the mask must be None, or `write`."""
    if streams:
        stream(address, index, value, tag)
    else:
        write(address, index, value, mask, tag)


@intrinsic
def held(typing: Any, address: Any, index: Any, mask: Any, tag: Any) -> Any:
    """As `read`, of numbers of the type in which elements are computed."""
    vector = Vector(word(tag))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, arguments, mask, vector.lanes, vector.of)

    return vector(types.intp, types.intp, mask, tag), generate


@intrinsic
def add_to(typing: Any, s: Any, q: Any, index: Any, first: Any, second: Any) -> Any:
    """Add to the sums at `index` from s and from q, of the type in which elements are computed."""
    size = SIZES[first.of]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index, more = arguments[2], arguments[3:]
        places = [_pointer(builder, a, index, first.of, first.lanes) for a in arguments[:2]]
        sums = [builder.load(place, align=size, typ=first.kind) for place in places]
        for place, before, value in zip(places, sums, more, strict=True):
            builder.store(builder.fadd(before, value), place, align=size)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, first, first), generate
