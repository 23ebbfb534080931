"""Sums over segments, of one channel after the other.

Tensors are given as ``(address, step, beyond)``: of the first channel's first segment in a part,
and how many elements later its next one begins, and the next channel's; a residual that there is
not as None. w is the address of the channels' constants, to which the sums are added.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import after, ask, hop
from batchnorm.kernels._numba_bend import bends, if_residual
from batchnorm.kernels._numba_constants import add_to, line_of, shift_of
from batchnorm.kernels._numba_line import gradient, in_words
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import at
from batchnorm.kernels._numba_scalar import narrow
from batchnorm.kernels._numba_segments import place

MOST = 32  # numbers that a lane of float32 may hold the sum of, before it is added in float64


@inline_mapping
def _total(lanes: Any) -> Any:
    """What the lanes of two vectors for each of two sums hold."""
    s, q, t, u = lanes
    return vectors.total(s) + vectors.total(t), vectors.total(q) + vectors.total(u)


@inline_mapping
def _settle(sums: Any, lanes: Any, held: Any, tag: Any) -> Any:
    """Add to the sums what lanes hold, once they hold so much that they would lose digits."""
    if narrow(tag) and held >= MOST:
        s, q = _total(lanes)
        zero = vectors.filled(0.0, tag)
        return (sums[0] + s, sums[1] + q), (zero, zero, zero, zero), 0
    return sums, lanes, held


@inline_mapping
def _ahead(of: Any, k: Any, c: Any, ahead: Any, far: Any, tag: Any) -> Any:
    """Where the segment lies that is to be asked for at the k-th of channel c."""
    if of is None:
        return None
    return after(at(of[0], c * of[2], tag), of[1], of[2], k, ahead, tag) if far else 0


@inline_mapping
def _deviate(
    x: Any, j: Any, near: Any, lanes: Any, mask: Any, rest: Any, both: Any, tag: Any
) -> Any:
    """Add ``x - shift`` and its square for one vector, or both."""
    s, q, t, u = lanes
    d = vectors.within(mask, memory.read(x, j, mask, tag) - near)
    s, q = s + d, q + d * d
    if both:
        e = memory.read(x, j + vectors.lanes(tag), rest, tag) - near
        e = vectors.within(rest, e)
        t, u = t + e, u + e * e
    return s, q, t, u


@inline_mapping
def _measured(
    x: Any, c: Any, count: Any, n: Any, shift: Any, ahead: Any, far: Any, tag: Any
) -> Any:
    zero, near = vectors.filled(0.0, tag), vectors.filled(shift, tag)
    sums, lanes, held = (0.0, 0.0), (zero, zero, zero, zero), 0
    whole, mask, rest, both = vectors.pairs(n, tag)
    for k in range(count):
        here, later = place(x, k, c, tag), _ahead(x, k, c, ahead, far, tag)
        for j in range(0, whole, 2 * vectors.lanes(tag)):
            if far:
                ask(later, j, tag)
            lanes = _deviate(here, j, near, lanes, None, None, True, tag)
            sums, lanes, held = _settle(sums, lanes, held + 1, tag)
        if whole < n:
            if far:
                ask(later, whole, tag)
            lanes = _deviate(here, whole, near, lanes, mask, rest, both, tag)
            sums, lanes, held = _settle(sums, lanes, held + 1, tag)
    s, q = _total(lanes)
    return sums[0] + s, sums[1] + q


@mapping
def measure(p: Any, x: Any, channels: Any, count: Any, n: Any, w: Any, far: Any, tag: Any) -> None:
    """Add sums of ``x - shift`` and of its square over `count` segments of n."""
    lay_stack()
    ahead = hop(p, count, n) if far else (0, 0, 0, 0)
    for c in range(channels):
        s, q = _measured(x, c, count, n, shift_of(w, c), ahead, far, tag)
        add_to(w, c, float(count * n), s, q)


@inline_mapping
def _collect(
    x: Any, r: Any, dy: Any, j: Any, words: Any, bent: Any, lanes: Any, mask: Any, rest: Any,
    both: Any, tag: Any,
) -> Any:  # fmt: skip
    """Add g and ``g (x - mean)`` for one vector, or both."""
    s, q, t, u = lanes
    g, d = gradient(x, j, r, j, dy, j, words, bent, mask, tag)
    g = vectors.within(mask, g)
    s, q = s + g, q + g * vectors.within(mask, d)
    if both:
        i = j + vectors.lanes(tag)
        g, d = gradient(x, i, r, i, dy, i, words, bent, rest, tag)
        g = vectors.within(rest, g)
        t, u = t + g, u + g * vectors.within(rest, d)
    return s, q, t, u


@inline_mapping
def _ask(x: Any, r: Any, dy: Any, j: Any, tag: Any) -> None:
    ask(x, j, tag)
    ask(dy, j, tag)
    if r is not None:
        ask(r, j, tag)


@inline_mapping
def _reduced(
    x: Any, r: Any, dy: Any, c: Any, count: Any, n: Any, line: Any, bent: Any, ahead: Any,
    far: Any, tag: Any,
) -> Any:  # fmt: skip
    zero, words = vectors.filled(0.0, tag), in_words(line, tag)
    sums, lanes, held = (0.0, 0.0), (zero, zero, zero, zero), 0
    whole, mask, rest, both = vectors.pairs(n, tag)
    for k in range(count):
        a, b, d = place(x, k, c, tag), place(r, k, c, tag), place(dy, k, c, tag)
        of_x, of_r = _ahead(x, k, c, ahead, far, tag), _ahead(r, k, c, ahead, far, tag)
        of_dy = _ahead(dy, k, c, ahead, far, tag)
        for j in range(0, whole, 2 * vectors.lanes(tag)):
            if far:
                _ask(of_x, of_r, of_dy, j, tag)
            lanes = _collect(a, b, d, j, words, bent, lanes, None, None, True, tag)
            sums, lanes, held = _settle(sums, lanes, held + 1, tag)
        if whole < n:
            if far:
                _ask(of_x, of_r, of_dy, whole, tag)
            lanes = _collect(a, b, d, whole, words, bent, lanes, mask, rest, both, tag)
            sums, lanes, held = _settle(sums, lanes, held + 1, tag)
    s, q = _total(lanes)
    return sums[0] + s, sums[1] + q


@inline_mapping
def _reduce(
    p: Any, x: Any, r: Any, dy: Any, channels: Any, count: Any, n: Any, w: Any, bent: Any,
    far: Any, tag: Any,
) -> None:  # fmt: skip
    ahead = hop(p, count, n) if far else (0, 0, 0, 0)
    for c in range(channels):
        s, q = _reduced(x, r, dy, c, count, n, line_of(w, c), bent, ahead, far, tag)
        add_to(w, c, 0.0, s, q)


@mapping
def reduce(
    p: Any,
    x: Any,
    r: Any,
    dy: Any,
    channels: Any,
    count: Any,
    n: Any,
    w: Any,
    far: Any,
    kind: Any,
    tag: Any,
) -> None:
    """Add sums of g and of ``g (x - mean)`` over `count` segments of n."""
    lay_stack()
    _reduce(p, x, if_residual(kind, r), dy, channels, count, n, w, bends(p, kind, tag), far, tag)
