"""Sums over long segments of one channel, from memory that no second cache holds.

Four rows of columns are summed at once, or a run of as many elements where a residual was added,
while those that come later are asked for.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_loops as loops
from batchnorm.kernels._numba_ahead import fetch, segment
from batchnorm.kernels._numba_loops import in_words
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import STRIP, at
from batchnorm.kernels._numba_scalar import fit
from batchnorm.kernels._numba_segments import FOUR, add, add_gradient, total, zeros

BLOCK = 4 * STRIP
FEW = 64  # blocks summed in the type in which elements are computed


@mapping
def measure(
    p: Any, x: Any, step: Any, beyond: Any, count: Any, n: Any, shift: Any, work: Any, tag: Any
) -> Any:
    """Sums of ``x - shift`` and of its square over `count` segments."""
    s, q = zeros(work, STRIP)
    near, blocks = fit(shift, tag), 0
    first = second = 0.0
    for k in range(count):
        here, later = at(x, k * step, tag), segment(p, x, step, beyond, k, count, n, tag)
        whole = n // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            fetch(at(later, start, tag), BLOCK, tag)
            add(at(here, start, tag), STRIP, STRIP, near, s, q, FOUR, tag)
            blocks += 1
            if blocks % FEW == 0:
                first += total(s, STRIP, tag)
                second += total(q, STRIP, tag)
        fetch(at(later, whole, tag), n - whole, tag)
        ds, dq = loops.measure(at(here, whole, tag), n - whole, shift, tag)
        first, second = first + ds, second + dq
    return first + total(s, STRIP, tag), second + total(q, STRIP, tag)


@mapping
def reduce(
    p: Any, x: Any, xs: Any, xb: Any, dy: Any, dys: Any, dyb: Any, count: Any, n: Any, line: Any,
    bent: Any, work: Any, tag: Any,
) -> Any:  # fmt: skip
    """Sums of g and of ``g (x - mean)`` over `count` segments."""
    s, q = zeros(work, STRIP)
    words, blocks = in_words(line, tag), 0
    first = second = 0.0
    for k in range(count):
        here, x_later = at(x, k * xs, tag), segment(p, x, xs, xb, k, count, n, tag)
        there, dy_later = at(dy, k * dys, tag), segment(p, dy, dys, dyb, k, count, n, tag)
        whole = n // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            fetch(at(x_later, start, tag), BLOCK, tag)
            fetch(at(dy_later, start, tag), BLOCK, tag)
            a, b = at(here, start, tag), at(there, start, tag)
            add_gradient(a, STRIP, b, STRIP, STRIP, words, bent, s, q, FOUR, tag)
            blocks += 1
            if blocks % FEW == 0:
                first += total(s, STRIP, tag)
                second += total(q, STRIP, tag)
        fetch(at(x_later, whole, tag), n - whole, tag)
        fetch(at(dy_later, whole, tag), n - whole, tag)
        a, b = at(here, whole, tag), at(there, whole, tag)
        ds, dq = loops.reduce(a, 0, b, n - whole, line, bent, tag)
        first, second = first + ds, second + dq
    return first + total(s, STRIP, tag), second + total(q, STRIP, tag)


@mapping
def reduce_add(
    p: Any, x: Any, xs: Any, xb: Any, r: Any, rs: Any, rb: Any, dy: Any, dys: Any, dyb: Any,
    count: Any, n: Any, line: Any, bent: Any, tag: Any,
) -> Any:  # fmt: skip
    """As `reduce`, where a residual was added before the activation; segments may be short."""
    s = q = 0.0
    for k in range(count):
        here, there, added = at(x, k * xs, tag), at(dy, k * dys, tag), at(r, k * rs, tag)
        x_later = segment(p, x, xs, xb, k, count, n, tag)
        r_later = segment(p, r, rs, rb, k, count, n, tag)
        dy_later = segment(p, dy, dys, dyb, k, count, n, tag)
        for start in range(0, n, BLOCK):
            m = min(BLOCK, n - start)
            fetch(at(x_later, start, tag), m, tag)
            fetch(at(r_later, start, tag), m, tag)
            fetch(at(dy_later, start, tag), m, tag)
            a, b = at(here, start, tag), at(there, start, tag)
            ds, dq = loops.reduce(a, at(added, start, tag), b, m, line, bent, tag)
            s, q = s + ds, q + dq
    return s, q
