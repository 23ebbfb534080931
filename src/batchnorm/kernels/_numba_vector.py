"""Vectors of elements in compiled code: some lanes at once, in the type in which they are computed.

LLVM vectorizes plain loops by itself, but none that asks for memory ahead or writes past the
caches; and what is left of a segment after its last whole vector it does element by element,
which for the 49 elements of a 7x7 image costs more than its vectors. Here what is left is one more
vector, of which a mask says which lanes count.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_memory import intrinsic, word

BITS = 512  # of a vector; where the machine's are shorter it takes several

_I1, _I32, _I64 = (ir.IntType(bits) for bits in (1, 32, 64))
_DOUBLE = ir.DoubleType()


class Vector(types.Type):
    """As many numbers of the type `of` as go into `BITS`."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.lanes: int = BITS // of.bitwidth
        self.kind = ir.VectorType(ir.FloatType() if of == types.float32 else _DOUBLE, self.lanes)
        super().__init__(f"vector({of}, {self.lanes})")


class First(types.Type):
    """The first of some lanes, as how many they are; none where that is negative."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.kind = _I64
        super().__init__(f"first({lanes})")


class Mask(types.Type):
    """Which of some lanes a comparison is true of."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.kind = ir.VectorType(_I1, lanes)
        super().__init__(f"mask({lanes})")


@register_model(Vector)
@register_model(First)
@register_model(Mask)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.kind)


_register: Any = infer_global


def _arithmetic(operation: Any, name: str) -> None:
    """Let an operator take two vectors of one type."""

    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            alike = len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]
            return signature(args[0], *args) if alike else None

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, name)(*arguments)

    _register(operation)(Template)
    lower_builtin(operation, Vector, Vector)(lower)


def _comparison(operation: Any, name: str) -> None:
    """Let a comparison of two vectors give a mask."""

    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            alike = len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]
            return signature(Mask(args[0].lanes), *args) if alike else None

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fcmp_ordered(name, *arguments)

    _register(operation)(Template)
    lower_builtin(operation, Vector, Vector)(lower)


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")
_comparison(operator.gt, ">")
_comparison(operator.lt, "<")


@intrinsic
def lanes(typing: Any, tag: Any) -> Any:
    """How many elements go into a vector."""
    count = Vector(word(tag)).lanes

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(_I64, count)

    return types.intp(tag), generate


@intrinsic
def filled(typing: Any, value: Any, tag: Any) -> Any:
    """A vector of one number, given as a float64."""
    vector = Vector(word(tag))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = context.cast(builder, arguments[0], types.float64, vector.of)
        return _splat(builder, one, vector.kind)

    return vector(types.float64, tag), generate


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    start = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    order = ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    return builder.shuffle_vector(start, start, order)


@intrinsic
def first(typing: Any, count: Any, tag: Any) -> Any:
    """The first `count` lanes: none below 1, all where it is more."""
    mask = First(Vector(word(tag)).lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        most = ir.Constant(_I64, mask.lanes)
        return builder.select(builder.icmp_signed(">", arguments[0], most), most, arguments[0])

    return mask(types.intp, tag), generate


def bits(builder: Any, count: Any, lanes: int) -> Any:
    """A bit for each lane: whether it is one of the first `count`."""
    kind = ir.VectorType(_I32, lanes)
    order = ir.Constant(kind, list(range(lanes)))
    return builder.icmp_signed("<", order, _splat(builder, builder.trunc(count, _I32), kind))


@intrinsic
def choose(typing: Any, condition: Any, yes: Any, no: Any) -> Any:
    """``yes if condition else no``, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return yes(condition, yes, yes), generate


@intrinsic
def root(typing: Any, vector: Any) -> Any:
    """The square roots."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of = ir.FunctionType(vector.kind, [vector.kind])
        element = "f32" if vector.of == types.float32 else "f64"
        name = f"llvm.sqrt.v{vector.lanes}{element}"
        return builder.call(cgutils.get_or_insert_function(builder.module, of, name), arguments)

    return vector(vector), generate


@intrinsic
def within(typing: Any, mask: Any, vector: Any) -> Any:
    """The vector, 0 in lanes that the mask leaves out; None leaves none out."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not isinstance(mask, First):
            return arguments[1]
        kept = bits(builder, arguments[0], vector.lanes)
        return builder.select(kept, arguments[1], ir.Constant(vector.kind, None))

    return vector(mask, vector), generate


@intrinsic
def centre(typing: Any, value: Any, mean: Any, low: Any) -> Any:
    """``value - mean`` for a mean of two words where elements are computed in float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high = builder.fsub(arguments[0], arguments[1])
        return builder.fsub(high, arguments[2]) if value.of == types.float32 else high

    return value(value, value, value), generate


@inline_mapping
def pairs(n: Any, tag: Any) -> Any:
    """Of n elements: where the last pair of whole vectors ends, and what comes after it.

    That is the masks of two more vectors, and whether the second of these has any.
    """
    whole = n & -2 * lanes(tag)
    more = n - whole
    return whole, first(more, tag), first(more - lanes(tag), tag), more > lanes(tag)


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum of all lanes, in float64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(_DOUBLE, vector.lanes)
        value = arguments[0] if vector.of == types.float64 else builder.fpext(arguments[0], kind)
        of = ir.FunctionType(_DOUBLE, [_DOUBLE, kind])
        name = f"llvm.vector.reduce.fadd.v{vector.lanes}f64"
        function = cgutils.get_or_insert_function(builder.module, of, name)
        return builder.call(function, [ir.Constant(_DOUBLE, 0.0), value], fastmath=("reassoc",))

    return types.float64(vector), generate
