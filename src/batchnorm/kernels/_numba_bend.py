"""Identity, ReLU and leaky ReLU, in vectors: the activations that cost nothing.

`bent` is what `bends` makes: a zero, the slope below it, and whether that is flat.
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
def bend(z: Any, bent: Any) -> Any:
    """ReLU, or leaky ReLU, which for a slope of 1 is the identity."""
    zero, slope, flat = bent
    if flat:
        return choose(z < zero, zero, z)
    return choose(z > zero, z, slope * z)


@inline_mapping
def bend_back(g: Any, z: Any, bent: Any) -> Any:
    """The gradient of `bend`; where that is flat it is zero, whatever comes in."""
    zero, slope, flat = bent
    if flat:
        return choose(z > zero, g, zero)
    return choose(z > zero, g, slope * g)
