"""Identity, ReLU and leaky ReLU, in vectors: the activations that cost nothing.

`bent` is what `bends` makes: a zero, the slope below it, that slope's inverse, which of the three
it is, and whether it is to be undone first; the last two are constants of the loop.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_memory import intrinsic
from batchnorm.kernels._numba_variant import FLAT, PLAIN, SLOPED
from batchnorm.kernels._numba_vector import choose, filled

_FLAT, _SLOPED, _PLAIN = range(3)
_BENDS = {FLAT: _FLAT, SLOPED: _SLOPED, PLAIN: _PLAIN}


def _constant(kind: ir.Type, value: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(kind, value)

    return generate


@intrinsic
def _bend(typing: Any, kind: Any) -> Any:
    return types.intp(kind), _constant(ir.IntType(64), _BENDS[kind.variant.bend])


@intrinsic
def _from_output(typing: Any, kind: Any) -> Any:
    return types.boolean(kind), _constant(ir.IntType(1), kind.variant.direction == "recover")


@intrinsic
def if_residual(typing: Any, kind: Any, of_residual: Any) -> Any:
    """What is given in kernels with a residual, None in those without."""
    given = of_residual if kind.variant.residual else types.none

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_dummy_value() if given is types.none else arguments[1]

    return given(kind, of_residual), generate


@inline_mapping
def bends(p: Any, kind: Any, tag: Any) -> Any:
    """What the others take, in a kernel of that kind."""
    slopes = filled(p.slope, tag), filled(1 / p.slope, tag)
    return filled(0.0, tag), slopes[0], slopes[1], _bend(kind), _from_output(kind)


@inline_mapping
def unbend(y: Any, bent: Any) -> Any:
    """The argument of `bend` from what that gave; nothing that is flat has an inverse."""
    zero, _, inverse, which, _ = bent
    if which == _PLAIN:
        return y
    return choose(y > zero, y, inverse * y)


@inline_mapping
def bend(z: Any, bent: Any) -> Any:
    """ReLU, or leaky ReLU."""
    zero, slope, _, which, _ = bent
    if which == _PLAIN:
        return z
    if which == _FLAT:
        return choose(z < zero, zero, z)
    return choose(z > zero, z, slope * z)


@inline_mapping
def bend_back(g: Any, z: Any, bent: Any) -> Any:
    """The gradient of `bend`; where that is flat it is zero, whatever comes in."""
    zero, slope, _, which, _ = bent
    if which == _PLAIN:
        return g
    if which == _FLAT:
        return choose(z > zero, g, zero)
    return choose(z > zero, g, slope * g)
