"""Identity, ReLU and leaky ReLU, in vectors: the activations that cost nothing.

`bent` is what `bends` makes: a zero, the slope below it, and whether that is flat; or, where loops
read the output instead of the input, what `unbends` makes: the same, and the slope's inverse.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_vector import choose, filled


@inline_mapping
def flat(p: Any) -> Any:
    """Whether there is no slope below zero."""
    return p.slope == 0.0


@inline_mapping
def bends(p: Any, flat: Any, tag: Any) -> Any:
    """What `bend` takes; `flat` is a constant, so that no loop asks for it."""
    return filled(0.0, tag), filled(p.slope, tag), flat


@inline_mapping
def unbends(p: Any, tag: Any) -> Any:
    """What `unbend` takes; nothing that is flat has an inverse."""
    return filled(0.0, tag), filled(p.slope, tag), False, filled(1 / p.slope, tag)


@inline_mapping
def unbend(y: Any, bent: Any) -> Any:
    """The argument of `bend` from what that gave."""
    zero, _, _, inverse = bent
    return choose(y > zero, y, inverse * y)


@inline_mapping
def bend(z: Any, bent: Any) -> Any:
    """ReLU, or leaky ReLU, which for a slope of 1 is the identity."""
    zero, slope, flat = bent
    if flat:
        return choose(z < zero, zero, z)
    return choose(z > zero, z, slope * z)


@inline_mapping
def bend_back(g: Any, z: Any, bent: Any) -> Any:
    """The gradient of `bend`; where that is flat it is zero, whatever comes in."""
    zero, slope, flat = bent[:3]
    if flat:
        return choose(z > zero, g, zero)
    return choose(z > zero, g, slope * g)
