"""Memory asked for before it is read: hardware sees a stream late, and loses it at each page.

Lines are asked for a few at a time, between the loops that read others: many at once fill the
queue of misses, behind which these loops would wait.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from batchnorm.kernels._numba_machine import prefetch, prefetch_line
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import SIZES, at, intrinsic, word
from batchnorm.kernels._numba_vector import Vector

_I64 = ir.IntType(64)

AHEAD = 2048  # elements
ROWS = 8  # rows of channels, of up to `TILE` elements
FAR = 2**20  # bytes of a tensor: what the second caches hold is not worth asking for
FAR_ROWS = 2**22  # rows do it strip by strip, for which constants and sums are read more often


@mapping
def far(p: Any, least: Any, tag: Any) -> Any:
    """Whether a tensor has at least so many bytes; by shape alone, as sums are divided."""
    return at(p.x, p.outer * p.channels * p.inner, tag) - p.x >= least


@mapping
def hop(p: Any, count: Any, n: Any) -> Any:
    """How far it is from one of a part's `count` segments of n to the one to be asked for.

    As channels, segments, those after which the next channel comes, and what lies between them
    where a part is but a piece of a segment, else 0; once for a part, as it takes divisions.
    """
    segments = max(AHEAD // max(n, 1), 1)
    if p.parts > 1:
        return 0, segments, 2**62, n if p.inner > p.span else 0
    return segments // max(count, 1), segments % max(count, 1), count, 0


@mapping
def after(x: Any, step: Any, beyond: Any, k: Any, hop: Any, tag: Any) -> Any:
    """The address of the segment to be asked for at the k-th of segments from x on.

    They are `step` elements apart, and `beyond` from one channel to the next.
    """
    channels, segments, count, apart = hop
    k += segments
    if k >= count:
        k, channels = k - count, channels + 1
    return at(x, channels * beyond + k * (apart if apart else step), tag)


@mapping
def before(x: Any, step: Any, beyond: Any, k: Any, hop: Any, tag: Any) -> Any:
    """As `after`, on the way back."""
    channels, segments, count, apart = hop
    k -= segments
    if k < 0 and count < 2**62:
        k, channels = k + count, channels + 1
    return at(x, k * (apart if apart else step) - channels * beyond, tag)


@intrinsic
def ask(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """Ask for the elements of two vectors, which need not be ours."""
    size = 2 * Vector(word(tag)).lanes * SIZES[tag]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = builder.mul(arguments[1], ir.Constant(_I64, SIZES[tag]))
        start = builder.add(arguments[0], start)
        for byte in range(0, size, 64):
            prefetch_line(builder, builder.add(start, ir.Constant(_I64, byte)))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, tag), generate


@mapping
def fetch(x: Any, n: Any, tag: Any) -> None:
    """Ask for n elements, which need not be ours."""
    for byte in range(x, at(x, n, tag), 64):
        prefetch(byte)
