"""Identity, ReLU and leaky ReLU, in vectors: the activations that cost nothing.

`bent` is what `bends` makes: a zero, the slope below it, and which of the three it is; or, where
loops read the output instead of the input, what `unbends` makes: the same, and the slope's inverse.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_vector import choose, filled

FLAT, SLOPED, PLAIN = range(3)  # below zero: nothing; a slope, which may be 1; the same as above


@inline_mapping
def flat(p: Any) -> Any:
    """Whether there is no slope below zero."""
    return p.slope == 0.0


@inline_mapping
def plain(p: Any) -> Any:
    """Whether there is no bend."""
    return p.slope == 1.0


@inline_mapping
def bends(p: Any, kind: Any, tag: Any) -> Any:
    """What `bend` takes; `kind` is a constant, so that no loop asks for it."""
    return filled(0.0, tag), filled(p.slope, tag), kind


@inline_mapping
def any_bend(p: Any, tag: Any) -> Any:
    """As `bends`, flat or sloped, the identity as a slope of 1."""
    return bends(p, FLAT if flat(p) else SLOPED, tag)


@inline_mapping
def unbends(p: Any, kind: Any, tag: Any) -> Any:
    """What `unbend` takes; nothing that is flat has an inverse."""
    return filled(0.0, tag), filled(p.slope, tag), kind, filled(1 / p.slope, tag)


@inline_mapping
def unbend(y: Any, bent: Any) -> Any:
    """The argument of `bend` from what that gave."""
    zero, _, kind, inverse = bent
    if kind == PLAIN:
        return y
    return choose(y > zero, y, inverse * y)


@inline_mapping
def bend(z: Any, bent: Any) -> Any:
    """ReLU, or leaky ReLU, which for a slope of 1 is the identity."""
    zero, slope, kind = bent
    if kind == PLAIN:
        return z
    if kind == FLAT:
        return choose(z < zero, zero, z)
    return choose(z > zero, z, slope * z)


@inline_mapping
def bend_back(g: Any, z: Any, bent: Any) -> Any:
    """The gradient of `bend`; where that is flat it is zero, whatever comes in."""
    zero, slope, kind = bent[:3]
    if kind == PLAIN:
        return g
    if kind == FLAT:
        return choose(z > zero, g, zero)
    return choose(z > zero, g, slope * g)
