"""Memory asked for before it is used: hardware sees a stream late, and loses it at each page.

Lines are asked for a few at a time, between the loops that read others: many at once fill the
queue of misses, behind which these loops would wait.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from batchnorm.kernels._numba_machine import READ, WRITE, prefetch, prefetch_line, prefetch_own
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import SIZES, at, intrinsic, word
from batchnorm.kernels._numba_vector import Vector

_I64 = ir.IntType(64)

AHEAD = 2048  # elements
TOGETHER = 256  # elements of several short segments, asked for at once
SHORT = 256  # elements of a segment that is asked for at once, at most
FAR = 2**19  # bytes of a tensor of channels in segments; in a network, caches hold little of less
FAR_ROWS = 2**18  # of rows, of which four go together: hardware loses such streams
FAR_AGAIN = 2**22  # of rows that were read before for their sums


@mapping
def far(p: Any, least: Any, tag: Any) -> Any:
    """Whether a tensor has at least so many bytes; by shape alone, as sums are divided."""
    return at(p.x, p.outer * p.channels * p.inner, tag) - p.x >= least


@mapping
def asks(p: Any, n: Any, streams: Any, tag: Any) -> Any:
    """Whether writing asks for its inputs, its outputs, and for some segments of n at once.

    For inputs where this launch takes no sums of them, which would have read them; for outputs
    where they are written through the caches: a line is read before it is written.
    """
    large = far(p, FAR, tag)
    return large and p.measure == 0, large and not streams, n <= SHORT


@mapping
def together(n: Any) -> Any:
    """How many segments of n are asked for at once, if they are short."""
    return max(TOGETHER // max(n, 1), 1)


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
def hop_on(p: Any, channels: Any, count: Any, n: Any) -> Any:
    """As `hop`, where channels are written: segments back, channels on, and how many there are."""
    pairs = max(AHEAD // max(n, 1), 1)
    whole, apart = count if p.parts == 1 else 0, n if p.parts > 1 and p.inner > p.span else 0
    return pairs // channels, pairs % channels, whole, channels, apart


@mapping
def next_written(of: Any, k: Any, c: Any, hop: Any, tag: Any) -> Any:
    """As `after`, of channel c of a tensor ``(address, step, beyond)`` on the way back."""
    segments, more, count, channels, apart = hop
    k, c = k - segments, c + more
    if c >= channels:
        k, c = k - 1, c - channels
    if k < 0 and count > 0:  # the next channels' last
        k, c = k + count, c + channels
    return at(of[0], c * of[2] + k * (apart if apart else of[1]), tag)


def _ask(builder: Any, arguments: Any, tag: Any, hints: list[Any]) -> None:
    start = builder.mul(arguments[1], ir.Constant(_I64, SIZES[tag]))
    start = builder.add(arguments[0], start)
    for byte in range(0, 2 * Vector(word(tag)).lanes * SIZES[tag], 64):
        prefetch_line(builder, builder.add(start, ir.Constant(_I64, byte)), hints)


@intrinsic
def ask(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """Ask for the elements of two vectors, which need not be ours."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _ask(builder, arguments, tag, READ)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, tag), generate


@intrinsic
def ask_own(typing: Any, address: Any, index: Any, tag: Any) -> Any:
    """As `ask`, of elements that will be written."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _ask(builder, arguments, tag, WRITE)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, tag), generate


@mapping
def fetch(x: Any, n: Any, tag: Any) -> None:
    """Ask for n elements, which need not be ours."""
    for byte in range(x, at(x, n, tag), 64):
        prefetch(byte)


@mapping
def own(y: Any, n: Any, tag: Any) -> None:
    """As `fetch`, of elements that will be written."""
    for byte in range(y, at(y, n, tag), 64):
        prefetch_own(byte)
