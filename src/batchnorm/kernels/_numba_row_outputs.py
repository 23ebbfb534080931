"""Outputs in rows of channels, downwards; names are those of `_numba_row_columns`.

Of four rows all are read before one is written: a load waits for an earlier store whose address
ends in the same twelve bits, as those of rows of 1024 or 512 elements do.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import ROWS
from batchnorm.kernels._numba_bend import bends, flat, unbends
from batchnorm.kernels._numba_line import normal, pulled
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_row_columns import (
    FOUR,
    ONE,
    ask_rows,
    columns,
    pull,
    row,
    start,
    words,
)


@inline_mapping
def _normal(x: Any, r: Any, j: Any, k: Any, line: Any, bent: Any, mask: Any, tag: Any) -> Any:
    """Y in the k-th row."""
    return normal(x[0], j + row(x, k), start(r), j + row(r, k), line, bent, mask, tag)


@inline_mapping
def _put(y: Any, j: Any, k: Any, value: Any, mask: Any, streams: Any, tag: Any) -> None:
    memory.put(y[0], j + row(y, k), value, mask, streams, tag)


@inline_mapping
def _write(
    x: Any, r: Any, y: Any, j: Any, v: Any, f: Any, bent: Any, streams: Any, rows: Any, mask: Any,
    tag: Any,
) -> None:  # fmt: skip
    line = words(v, f, j, mask, tag)
    first = _normal(x, r, j, 0, line, bent, mask, tag)
    if len(rows) == 1:
        _put(y, j, 0, first, mask, streams, tag)
        return
    second = _normal(x, r, j, 1, line, bent, mask, tag)
    third = _normal(x, r, j, 2, line, bent, mask, tag)
    fourth = _normal(x, r, j, 3, line, bent, mask, tag)
    _put(y, j, 0, first, mask, streams, tag)
    _put(y, j, 1, second, mask, streams, tag)
    _put(y, j, 2, third, mask, streams, tag)
    _put(y, j, 3, fourth, mask, streams, tag)


@inline_mapping
def _normalize(
    x: Any, r: Any, y: Any, n: Any, v: Any, f: Any, bent: Any, far: Any, streams: Any, rows: Any,
    tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, tag)
    for j in range(0, whole, width):
        if far and j & width == 0:
            ask_rows(x, j, -ROWS, rows, tag)
            ask_rows(r, j, -ROWS, rows, tag)
        _write(x, r, y, j, v, f, bent, streams, rows, None, tag)
    if whole < n:
        mask = vectors.first(n - whole, tag)
        _write(x, r, y, whole, v, f, bent, False, rows, mask, tag)


@mapping
def normalize(
    p: Any, x: Any, r: Any, y: Any, n: Any, v: Any, f: Any, far: Any, streams: Any, tag: Any
) -> None:
    """``y = f((x - mean) scale + bias + r)`` in four rows."""
    lay_stack()
    if r[0] != 0 and flat(p):
        _normalize(x, r, y, n, v, f, bends(p, True, tag), far, streams, FOUR, tag)
    elif r[0] != 0:
        _normalize(x, r, y, n, v, f, bends(p, False, tag), far, streams, FOUR, tag)
    elif flat(p):
        _normalize(x, None, y, n, v, f, bends(p, True, tag), far, streams, FOUR, tag)
    else:
        _normalize(x, None, y, n, v, f, bends(p, False, tag), far, streams, FOUR, tag)


@mapping
def normalize_one(p: Any, x: Any, r: Any, y: Any, n: Any, v: Any, f: Any, tag: Any) -> None:
    """As `normalize`, in one row."""
    lay_stack()
    bent = bends(p, flat(p), tag)
    if r[0] != 0:
        _normalize(x, r, y, n, v, f, bent, False, False, ONE, tag)
    else:
        _normalize(x, None, y, n, v, f, bent, False, False, ONE, tag)


@inline_mapping
def _pulled(
    x: Any, r: Any, dy: Any, j: Any, k: Any, line: Any, pulls: Any, bent: Any, mask: Any, tag: Any
) -> Any:
    """Dx and g in the k-th row."""
    here, i, there = j + row(x, k), j + row(r, k), j + row(dy, k)
    return pulled(x[0], here, start(r), i, dy[0], there, line, pulls, bent, mask, tag)


@inline_mapping
def _pull(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, j: Any, v: Any, f: Any, bent: Any, streams: Any,
    rows: Any, mask: Any, tag: Any,
) -> None:  # fmt: skip
    line, pulls = words(v, f, j, mask, tag), pull(v, f, j, mask, tag)
    first, g = _pulled(x, r, dy, j, 0, line, pulls, bent, mask, tag)
    if len(rows) == 1:
        _put(dx, j, 0, first, mask, streams, tag)
        if dr is not None and dr[0] != 0:
            _put(dr, j, 0, g, mask, streams, tag)
        return
    second, h = _pulled(x, r, dy, j, 1, line, pulls, bent, mask, tag)
    third, m = _pulled(x, r, dy, j, 2, line, pulls, bent, mask, tag)
    fourth, t = _pulled(x, r, dy, j, 3, line, pulls, bent, mask, tag)
    _put(dx, j, 0, first, mask, streams, tag)
    _put(dx, j, 1, second, mask, streams, tag)
    _put(dx, j, 2, third, mask, streams, tag)
    _put(dx, j, 3, fourth, mask, streams, tag)
    if dr is not None and dr[0] != 0:
        _put(dr, j, 0, g, mask, streams, tag)
        _put(dr, j, 1, h, mask, streams, tag)
        _put(dr, j, 2, m, mask, streams, tag)
        _put(dr, j, 3, t, mask, streams, tag)


@inline_mapping
def _spread(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, bent: Any, far: Any,
    streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, tag)
    for j in range(0, whole, width):
        if far and j & width == 0:
            ask_rows(x, j, -ROWS, rows, tag)
            ask_rows(dy, j, -ROWS, rows, tag)
            ask_rows(r, j, -ROWS, rows, tag)
        _pull(x, r, dy, dx, dr, j, v, f, bent, streams, rows, None, tag)
    if whole < n:
        mask = vectors.first(n - whole, tag)
        _pull(x, r, dy, dx, dr, whole, v, f, bent, False, rows, mask, tag)


@mapping
def spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, far: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)`` in four rows, and ``dr = g`` unless its address is 0."""
    lay_stack()
    if r[0] != 0 and flat(p):
        _spread(x, r, dy, dx, dr, n, v, f, bends(p, True, tag), far, streams, FOUR, tag)
    elif r[0] != 0:
        _spread(x, r, dy, dx, dr, n, v, f, bends(p, False, tag), far, streams, FOUR, tag)
    elif flat(p):
        _spread(x, None, dy, dx, None, n, v, f, bends(p, True, tag), far, streams, FOUR, tag)
    else:
        _spread(x, None, dy, dx, None, n, v, f, bends(p, False, tag), far, streams, FOUR, tag)


@mapping
def spread_one(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, tag: Any
) -> None:
    """As `spread`, in one row."""
    lay_stack()
    bent = bends(p, flat(p), tag)
    if r[0] != 0:
        _spread(x, r, dy, dx, dr, n, v, f, bent, False, False, ONE, tag)
    else:
        _spread(x, None, dy, dx, None, n, v, f, bent, False, False, ONE, tag)


@mapping
def spread_from_output(
    p: Any, y: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, far: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """As `spread`, from the output; no residual."""
    lay_stack()
    _spread(y, None, dy, dx, None, n, v, f, unbends(p, tag), far, streams, FOUR, tag)


@mapping
def spread_one_from_output(
    p: Any, y: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, tag: Any
) -> None:
    """As `spread_from_output`, in one row."""
    lay_stack()
    _spread(y, None, dy, dx, None, n, v, f, unbends(p, tag), False, False, ONE, tag)
