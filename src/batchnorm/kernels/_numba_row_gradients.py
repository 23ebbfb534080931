"""Gradients in rows of channels, downwards; four rows at once as in `_numba_row_normal`."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels._numba_bend import bends, if_residual
from batchnorm.kernels._numba_line import pulled
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_row_ahead import NEAR, ask_rows, later
from batchnorm.kernels._numba_row_columns import (
    FOUR,
    ONE,
    columns,
    group,
    pull,
    put,
    row,
    start,
    words,
)


@inline_mapping
def _pulled(
    x: Any, r: Any, dy: Any, j: Any, k: Any, line: Any, pulls: Any, bent: Any, mask: Any, tag: Any
) -> Any:
    """Dx and g in the k-th row."""
    here, i, there = j + row(x, k), j + row(r, k), j + row(dy, k)
    return pulled(x[0], here, start(r), i, dy[0], there, line, pulls, bent, mask, tag)


@inline_mapping
def _pull(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, j: Any, v: Any, bent: Any, both: Any,
    streams: Any, rows: Any, mask: Any, tag: Any,
) -> None:  # fmt: skip
    line, pulls = words(v, j, mask, tag), pull(v, j, mask, tag)
    first, g = _pulled(x, r, dy, j, 0, line, pulls, bent, mask, tag)
    if len(rows) == 1:
        put(dx, j, 0, first, mask, streams, tag)
        if dr is not None and both:
            put(dr, j, 0, g, mask, streams, tag)
        return
    second, h = _pulled(x, r, dy, j, 1, line, pulls, bent, mask, tag)
    third, m = _pulled(x, r, dy, j, 2, line, pulls, bent, mask, tag)
    fourth, t = _pulled(x, r, dy, j, 3, line, pulls, bent, mask, tag)
    put(dx, j, 0, first, mask, streams, tag)
    put(dx, j, 1, second, mask, streams, tag)
    put(dx, j, 2, third, mask, streams, tag)
    put(dx, j, 3, fourth, mask, streams, tag)
    if dr is not None and both:
        put(dr, j, 0, g, mask, streams, tag)
        put(dr, j, 1, h, mask, streams, tag)
        put(dr, j, 2, m, mask, streams, tag)
        put(dr, j, 3, t, mask, streams, tag)


@inline_mapping
def _spread(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, groups: Any, v: Any, bent: Any,
    far: Any, streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, rows, tag)
    of_x, of_dy = later(x, n, NEAR, -4, tag), later(dy, n, NEAR, -4, tag)
    of_r = later(r, n, NEAR, -4, tag)
    both = dr is not None and dr[0] != 0
    for k in range(groups - 1, -1, -1):
        a, b, c = group(x, k, rows, tag), group(r, k, rows, tag), group(dy, k, rows, tag)
        out, of_b = group(dx, k, rows, tag), group(dr, k, rows, tag)
        for j in range(0, whole, 2 * width):
            if far:  # not for outputs: beside two inputs that gained nothing
                ask_rows(a, j, of_x, rows, tag)
                ask_rows(c, j, of_dy, rows, tag)
                ask_rows(b, j, of_r, rows, tag)
            _pull(a, b, c, out, of_b, j, v, bent, both, streams, rows, None, tag)
            _pull(a, b, c, out, of_b, j + width, v, bent, both, streams, rows, None, tag)
        for j in range(whole, n, width):
            mask = vectors.first(n - j, tag)
            _pull(a, b, c, out, of_b, j, v, bent, both, False, rows, mask, tag)


@mapping
def spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, groups: Any, v: Any, far: Any,
    streams: Any, kind: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)`` in groups of four rows.

    The gradient of a residual is g, written unless its address is 0.
    """
    lay_stack()
    added, of_added = if_residual(kind, r), if_residual(kind, dr)
    _spread(x, added, dy, dx, of_added, n, groups, v, bends(p, kind, tag), far, streams, FOUR, tag)


@mapping
def spread_one(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, kind: Any, tag: Any
) -> None:
    """As `spread`, in one row."""
    lay_stack()
    added, of_added = if_residual(kind, r), if_residual(kind, dr)
    _spread(x, added, dy, dx, of_added, n, 1, v, bends(p, kind, tag), False, False, ONE, tag)
