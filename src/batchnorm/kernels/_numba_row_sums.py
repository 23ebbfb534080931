"""Sums over rows of channels, upwards; names are those of `_numba_row_columns`."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_bend import bends, if_residual
from batchnorm.kernels._numba_line import gradient
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_row_ahead import FURTHER, NEAR, ask_rows, later
from batchnorm.kernels._numba_row_columns import (
    FOUR,
    ONE,
    columns,
    group,
    row,
    start,
    words,
)


@inline_mapping
def _deviate(x: Any, j: Any, v: Any, s: Any, q: Any, rows: Any, mask: Any, tag: Any) -> None:
    shift = memory.held(v, j, mask, tag)
    a = b = vectors.filled(0.0, tag)
    for k in range(len(rows)):
        d = memory.read(x[0], j + k * x[1], mask, tag) - shift
        a, b = a + d, b + d * d
    memory.add_to(s, q, j, a, b)


@inline_mapping
def _measure(
    x: Any, n: Any, groups: Any, v: Any, s: Any, q: Any, far: Any, rows: Any, tag: Any
) -> None:
    width, whole = columns(n, rows, tag)
    of_x = later(x, n, FURTHER, 4, tag)
    for k in range(groups):
        here = group(x, k, rows, tag)
        for j in range(0, whole, 2 * width):
            if far:
                ask_rows(here, j, of_x, rows, tag)
            _deviate(here, j, v, s, q, rows, None, tag)
            _deviate(here, j + width, v, s, q, rows, None, tag)
        for j in range(whole, n, width):
            _deviate(here, j, v, s, q, rows, vectors.first(n - j, tag), tag)


@mapping
def measure(
    p: Any, x: Any, r: Any, dy: Any, n: Any, groups: Any, v: Any, s: Any, q: Any, far: Any,
    kind: Any, tag: Any,
) -> None:  # fmt: skip
    """Add ``x - shift`` and its square, of groups of four rows; the shift stands for the mean."""
    lay_stack()
    _measure(x, n, groups, v, s, q, far, FOUR, tag)


@mapping
def measure_one(
    p: Any, x: Any, r: Any, dy: Any, n: Any, v: Any, s: Any, q: Any, kind: Any, tag: Any
) -> None:
    """As `measure`, of one row."""
    lay_stack()
    _measure(x, n, 1, v, s, q, False, ONE, tag)


@inline_mapping
def _collect(
    x: Any, r: Any, dy: Any, j: Any, v: Any, bent: Any, s: Any, q: Any, rows: Any,
    mask: Any, tag: Any,
) -> None:  # fmt: skip
    line = words(v, j, mask, tag)
    a = b = vectors.filled(0.0, tag)
    for k in range(len(rows)):
        here, there, i = j + row(x, k), j + row(dy, k), j + row(r, k)
        g, d = gradient(x[0], here, start(r), i, dy[0], there, line, bent, mask, tag)
        g = vectors.within(mask, g)  # a slope may be infinite, and so may its inverse
        a, b = a + g, b + g * vectors.within(mask, d)
    memory.add_to(s, q, j, a, b)


@inline_mapping
def _reduce(
    x: Any, r: Any, dy: Any, n: Any, groups: Any, v: Any, bent: Any, s: Any, q: Any,
    far: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, rows, tag)
    of_x, of_dy = later(x, n, NEAR, 4, tag), later(dy, n, NEAR, 4, tag)
    of_r = later(r, n, NEAR, 4, tag)
    for k in range(groups):
        a, b, c = group(x, k, rows, tag), group(r, k, rows, tag), group(dy, k, rows, tag)
        for j in range(0, whole, 2 * width):
            if far:
                ask_rows(a, j, of_x, rows, tag)
                ask_rows(c, j, of_dy, rows, tag)
                ask_rows(b, j, of_r, rows, tag)
            _collect(a, b, c, j, v, bent, s, q, rows, None, tag)
            _collect(a, b, c, j + width, v, bent, s, q, rows, None, tag)
        for j in range(whole, n, width):
            _collect(a, b, c, j, v, bent, s, q, rows, vectors.first(n - j, tag), tag)


@mapping
def reduce(
    p: Any, x: Any, r: Any, dy: Any, n: Any, groups: Any, v: Any, s: Any, q: Any, far: Any,
    kind: Any, tag: Any,
) -> None:  # fmt: skip
    """Add g and ``g (x - mean)`` of groups of four rows."""
    lay_stack()
    _reduce(x, if_residual(kind, r), dy, n, groups, v, bends(p, kind, tag), s, q, far, FOUR, tag)


@mapping
def reduce_one(
    p: Any, x: Any, r: Any, dy: Any, n: Any, v: Any, s: Any, q: Any, kind: Any, tag: Any
) -> None:
    """As `reduce`, of one row."""
    lay_stack()
    _reduce(x, if_residual(kind, r), dy, n, 1, v, bends(p, kind, tag), s, q, False, ONE, tag)
