"""Numbers in compiled code: in the type that elements are computed in, or in that of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types

from batchnorm.kernels._numba_memory import intrinsic, word

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_I32, _I64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def fit(typing: Any, value: Any, tag: Any) -> Any:
    """A float64 in the type in which elements are computed."""
    kind = word(tag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], types.float64, kind)

    return kind(types.float64, tag), generate


@intrinsic
def centre(typing: Any, value: Any, mean: Any, low: Any, tag: Any) -> Any:
    """``value - mean`` for a mean of two words where elements are computed in float32."""
    kind = word(tag)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high = builder.fsub(arguments[0], arguments[1])
        return builder.fsub(high, arguments[2]) if kind == types.float32 else high

    return kind(kind, kind, kind, tag), generate


@intrinsic
def roomy(typing: Any, tag: Any) -> Any:
    """Whether elements are computed in a type so wide that products of constants stay in it."""
    single = tag == types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), single)

    return types.boolean(tag), generate


@intrinsic
def narrow(typing: Any, tag: Any) -> Any:
    """Whether elements are computed in float32."""
    single = word(tag) == types.float32

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), single)

    return types.boolean(tag), generate


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """``2^exponent`` for the exponent of a normal number, itself in floating point."""
    bits, digits, bias = (_I32, 23, 127) if exponent == types.float32 else (_I64, 52, 1023)
    real = _FLOAT if exponent == types.float32 else _DOUBLE

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], _I32)
        whole = whole if bits is _I32 else builder.sext(whole, bits)
        biased = builder.add(whole, ir.Constant(bits, bias))
        return builder.bitcast(builder.shl(biased, ir.Constant(bits, digits)), real)

    return exponent(exponent), generate


@intrinsic
def exponent_of(typing: Any, x: Any) -> Any:
    """The k, itself in floating point, for which ``x / 2^k`` is nearest to 1; x is normal."""
    bits, digits = (_I32, 23) if x == types.float32 else (_I64, 52)
    root = 0x3F3504F3 if x == types.float32 else 0x3FE6A09E667F3BCD  # bits of sqrt(1 / 2)
    real = _FLOAT if x == types.float32 else _DOUBLE

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        above = builder.sub(builder.bitcast(arguments[0], bits), ir.Constant(bits, root))
        k = builder.ashr(above, ir.Constant(bits, digits))
        return builder.sitofp(k if bits is _I32 else builder.trunc(k, _I32), real)

    return x(x), generate


@intrinsic
def either(typing: Any, single: Any, double: Any, x: Any) -> Any:
    """`single` if x is a float32, `double` if it is a float64; in the type of x."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen = arguments[0] if x == types.float32 else arguments[1]
        return context.cast(builder, chosen, types.float64, x)

    return x(types.float64, types.float64, x), generate


@intrinsic
def like(typing: Any, value: Any, x: Any) -> Any:
    """A float64 in the type of x."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.cast(builder, arguments[0], types.float64, x)

    return x(types.float64, x), generate


def polynomial(single: Sequence[float], double: Sequence[float]) -> Any:
    """Horner's rule for coefficients from the constant one up, some for each type of argument."""

    def evaluate(typing: Any, x: Any) -> Any:
        coefficients = single if x == types.float32 else double

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            real = arguments[0].type
            value = ir.Constant(real, coefficients[-1])
            for coefficient in reversed(coefficients[:-1]):
                product = builder.fmul(value, arguments[0], flags=("contract",))
                value = builder.fadd(product, ir.Constant(real, coefficient), flags=("contract",))
            return value

        return x(x), generate

    return intrinsic(evaluate)
