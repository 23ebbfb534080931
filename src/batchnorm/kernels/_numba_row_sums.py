"""Sums over rows of channels, upwards; names are those of `_numba_row_columns`."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import ROWS
from batchnorm.kernels._numba_bend import bends, flat, unbends
from batchnorm.kernels._numba_line import gradient
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_row_columns import FOUR, ONE, ask_rows, columns, row, start, words


@inline_mapping
def _deviate(x: Any, j: Any, v: Any, s: Any, q: Any, rows: Any, mask: Any, tag: Any) -> None:
    shift = memory.held(v, j, mask, tag)
    a = b = vectors.filled(0.0, tag)
    for k in range(len(rows)):
        d = memory.read(x[0], j + k * x[1], mask, tag) - shift
        a, b = a + d, b + d * d
    memory.add_to(s, q, j, a, b)


@mapping
def measure(x: Any, n: Any, v: Any, s: Any, q: Any, far: Any, rows: Any, tag: Any) -> None:
    """Add ``x - shift`` and its square; the shift stands where the mean does."""
    lay_stack()
    width, whole = columns(n, tag)
    for j in range(0, whole, width):
        if far and j & width == 0:
            ask_rows(x, j, ROWS, rows, tag)
        _deviate(x, j, v, s, q, rows, None, tag)
    if whole < n:
        _deviate(x, whole, v, s, q, rows, vectors.first(n - whole, tag), tag)


@inline_mapping
def _collect(
    x: Any, r: Any, dy: Any, j: Any, v: Any, f: Any, bent: Any, s: Any, q: Any, rows: Any,
    mask: Any, tag: Any,
) -> None:  # fmt: skip
    line = words(v, f, j, mask, tag)
    a = b = vectors.filled(0.0, tag)
    for k in range(len(rows)):
        here, there, i = j + row(x, k), j + row(dy, k), j + row(r, k)
        g, d = gradient(x[0], here, start(r), i, dy[0], there, line, bent, mask, tag)
        g = vectors.within(mask, g)  # a slope may be infinite, and so may its inverse
        a, b = a + g, b + g * vectors.within(mask, d)
    memory.add_to(s, q, j, a, b)


@inline_mapping
def _reduce(
    x: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, bent: Any, s: Any, q: Any, far: Any,
    rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, tag)
    for j in range(0, whole, width):
        if far and j & width == 0:
            ask_rows(x, j, ROWS, rows, tag)
            ask_rows(dy, j, ROWS, rows, tag)
            ask_rows(r, j, ROWS, rows, tag)
        _collect(x, r, dy, j, v, f, bent, s, q, rows, None, tag)
    if whole < n:
        _collect(x, r, dy, whole, v, f, bent, s, q, rows, vectors.first(n - whole, tag), tag)


@mapping
def reduce(
    p: Any, x: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, s: Any, q: Any, far: Any, tag: Any
) -> None:
    """Add g and ``g (x - mean)`` of four rows."""
    lay_stack()
    if r[0] != 0 and flat(p):
        _reduce(x, r, dy, n, v, f, bends(p, True, tag), s, q, far, FOUR, tag)
    elif r[0] != 0:
        _reduce(x, r, dy, n, v, f, bends(p, False, tag), s, q, far, FOUR, tag)
    elif flat(p):
        _reduce(x, None, dy, n, v, f, bends(p, True, tag), s, q, far, FOUR, tag)
    else:
        _reduce(x, None, dy, n, v, f, bends(p, False, tag), s, q, far, FOUR, tag)


@mapping
def reduce_one(
    p: Any, x: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, s: Any, q: Any, tag: Any
) -> None:
    """As `reduce`, of one row."""
    lay_stack()
    bent = bends(p, flat(p), tag)
    if r[0] != 0:
        _reduce(x, r, dy, n, v, f, bent, s, q, False, ONE, tag)
    else:
        _reduce(x, None, dy, n, v, f, bent, s, q, False, ONE, tag)


@mapping
def reduce_from_output(
    p: Any, y: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, s: Any, q: Any, far: Any, tag: Any
) -> None:
    """Add g and ``g (z - bias)`` of four rows, from the output; no residual."""
    lay_stack()
    _reduce(y, None, dy, n, v, f, unbends(p, tag), s, q, far, FOUR, tag)


@mapping
def reduce_one_from_output(
    p: Any, y: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, s: Any, q: Any, tag: Any
) -> None:
    """As `reduce_from_output`, of one row."""
    lay_stack()
    _reduce(y, None, dy, n, v, f, unbends(p, tag), s, q, False, ONE, tag)
