"""What compiled code needs below Numba's own level: tensors by address, and shared counters.

An element type is passed as a tag, a NumPy scalar of a type that Numba knows: uint16 stands for
bfloat16 and int16 for float16, of which Numba has none on the CPU. Arithmetic on float32 is in
float64, for its digits and its range; it costs nothing where memory bounds, and where caches hold
rows of channels up to a quarter of the time. The halves are computed in float32, with the mean in
two words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic

TAGS = {
    torch.float32: np.float32(0),
    torch.float64: np.float64(0),
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
}
WIDE = np.float64(0)
TILE = 512  # elements worked on at once where there is more than one pass: 4 KB, in the first cache
TILES = 7
WIDEST = '"prefer-vector-width"="512"'  # LLVM keeps to 256 bits on CPUs that have 512

_FLOAT, _DOUBLE, _HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
ELEMENTS: dict[Any, tuple[ir.Type, int]] = {
    types.float32: (_FLOAT, 4),
    types.float64: (_DOUBLE, 8),
    types.uint16: (_I16, 2),
    types.int16: (_HALF, 2),
}
SIZES = {tag: size for tag, (_, size) in ELEMENTS.items()}


def _pointer(builder: Any, address: Any, index: Any, tag: Any) -> tuple[Any, int]:
    element, size = ELEMENTS[tag]
    base = builder.inttoptr(address, element.as_pointer())
    set.add(builder.function.attributes, WIDEST)  # llvmlite itself takes those alone it knows
    return builder.gep(base, [index], source_etype=element), size


def _apart(builder: Any, instruction: Any, kind: str) -> None:
    """Tell LLVM that no iteration writes here what another one reads, so that it need not check.

    Inputs ("alias.scope") and outputs ("noalias") are different tensors, or the same one, element
    for element. The promise holds for the whole kernel, not for one loop.
    """
    module = builder.module
    inputs = module.add_metadata(["inputs", module.add_metadata(["batchnorm"])])
    instruction.set_metadata(kind, module.add_metadata([inputs]))


def intrinsic(function: Callable[..., Any]) -> Any:
    """Numba's decorator, of which it does not say that the first parameter disappears."""
    return _intrinsic(function)


def word(tag: Any) -> Any:
    """The type in which elements are computed."""
    return types.float32 if tag in (types.uint16, types.int16) else types.float64


def _wide(kind: ir.Type, value: Any) -> Any:
    """The type `kind`, or a vector of it where the value is a vector."""
    return ir.VectorType(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind


def same(kind: Any, value: Any) -> Any:
    """A constant, or a vector of it."""
    vector = isinstance(kind, ir.VectorType)
    return ir.Constant(kind, [value] * kind.count if vector else value)


def to_words(builder: Any, value: Any, tag: Any) -> Any:
    """Elements as float64 if they are, and as float32 otherwise; one or a vector of them."""
    if tag == types.uint16:  # a bfloat16 is the upper half of a float32
        bits = builder.zext(value, _wide(_I32, value))
        return builder.bitcast(builder.shl(bits, same(bits.type, 16)), _wide(_FLOAT, value))
    return builder.fpext(value, _wide(_FLOAT, value)) if tag == types.int16 else value


def _read(builder: Any, arguments: Any, tag: Any) -> Any:
    """The element, as a float64 if it is one and as a float32 otherwise."""
    pointer, size = _pointer(builder, arguments[0], arguments[1], tag)
    value = builder.load(pointer, align=size, typ=ELEMENTS[tag][0])
    _apart(builder, value, "alias.scope")
    return to_words(builder, value, tag)


@intrinsic
def load(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """The element at `index` from `address`, as a float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _read(builder, arguments, tag)
        return value if tag == types.float64 else builder.fpext(value, _DOUBLE)

    return types.float64(types.intp, types.intp, tag), generate


@intrinsic
def read(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """The element at `index` from `address`, in the type in which elements are computed."""
    widen = tag == types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _read(builder, arguments, tag)
        return builder.fpext(value, _DOUBLE) if widen else value

    return word(tag)(types.intp, types.intp, tag), generate


@intrinsic
def constant(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """A value that `put_constant` wrote."""
    kind = word(tag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _read(builder, arguments, kind)

    return kind(types.intp, types.intp, tag), generate


@intrinsic
def put_constant(typing: Any, address: Any, index: Any, value: Any, tag: Any) -> Any:
    """Write a float64 in the type in which elements are computed."""
    kind = word(tag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write(builder, arguments, types.float64, kind)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float64, tag), generate


@intrinsic
def constant_size(typing: Any, tag: Any) -> Any:
    """The bytes of a value that `put_constant` writes."""
    size = ELEMENTS[word(tag)][1]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_I64, size)

    return types.intp(tag), generate


def _to_bfloat16(builder: Any, value: Any) -> Any:
    """Round float32 to nearest, ties to even; NaN stays NaN."""
    bits = builder.bitcast(value, _wide(_I32, value))
    kind = bits.type
    upper = builder.lshr(bits, same(kind, 16))
    odd = builder.and_(upper, same(kind, 1))
    rounded = builder.add(bits, builder.add(odd, same(kind, 0x7FFF)))
    rounded = builder.lshr(rounded, same(kind, 16))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, same(kind, 0x7FC0), rounded), _wide(_I16, value))


def from_words(builder: Any, value: Any, given: Any, tag: Any) -> Any:
    """Numbers of the type `given`, one or a vector of them, rounded to elements."""
    if given == types.float64 and tag != types.float64:
        value = builder.fptrunc(value, _wide(_FLOAT, value))
    if tag == types.uint16:
        return _to_bfloat16(builder, value)
    return builder.fptrunc(value, _wide(_HALF, value)) if tag == types.int16 else value


def _write(builder: Any, arguments: Any, given: Any, tag: Any) -> Any:
    pointer, size = _pointer(builder, arguments[0], arguments[1], tag)
    return builder.store(from_words(builder, arguments[2], given, tag), pointer, align=size)


@intrinsic
def store(typing: Any, address: Any, index: Any, value: Any, tag: Any) -> Any:
    """Round `value` to the element type and write it at `index` from `address`.

    For outputs only: what this writes, nothing may read in the same kernel.
    """
    given = types.float32 if value == types.float32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _apart(builder, _write(builder, arguments, given, tag), "noalias")
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, given, tag), generate


@intrinsic
def take_back(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """The sum at `index` from `address`, of the type in which elements are computed; then 0."""
    kind = word(tag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, size = _pointer(builder, arguments[0], arguments[1], kind)
        held = builder.load(pointer, align=size, typ=ELEMENTS[kind][0])
        builder.store(ir.Constant(held.type, 0.0), pointer, align=size)
        return held if kind == types.float64 else builder.fpext(held, _DOUBLE)

    return types.float64(types.intp, types.intp, tag), generate


@intrinsic
def put(typing: Any, address: Any, index: Any, value: Any, tag: Any) -> Any:
    """As `store`, for what the same kernel reads again."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _write(builder, arguments, types.float64, tag)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float64, tag), generate


@intrinsic
def at(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """The address of an element; 0, which stands for None, stays 0."""
    size = ir.Constant(_I64, ELEMENTS[tag][1])

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        there = builder.add(arguments[0], builder.mul(arguments[1], size))
        nowhere = builder.icmp_signed("==", arguments[0], ir.Constant(_I64, 0))
        return builder.select(nowhere, arguments[0], there)

    return types.intp(types.intp, types.intp, tag), generate
