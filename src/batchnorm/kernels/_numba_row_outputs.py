"""Outputs in rows of channels, downwards; names are those of `_numba_row_columns`.

Of four rows all are read before one is written: a load waits for an earlier store whose address
ends in the same twelve bits, as those of rows of 1024 or 512 elements do.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_bend import (
    FLAT,
    PLAIN,
    SLOPED,
    any_bend,
    bends,
    flat,
    plain,
    unbends,
)
from batchnorm.kernels._numba_line import normal, pulled
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_row_ahead import AHEAD, FURTHER, ask_rows, later, own_rows
from batchnorm.kernels._numba_row_columns import (
    FOUR,
    ONE,
    columns,
    group,
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
    x: Any, r: Any, y: Any, j: Any, v: Any, bent: Any, streams: Any, rows: Any, mask: Any,
    tag: Any,
) -> None:  # fmt: skip
    line = words(v, j, mask, tag)
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
    x: Any, r: Any, y: Any, n: Any, groups: Any, v: Any, bent: Any, far: Any, owns: Any,
    streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, rows, tag)
    of_x = later(x, n, FURTHER if r is None else AHEAD, -4, tag)
    of_r, of_y = later(r, n, AHEAD, -4, tag), later(y, n, AHEAD, -4, tag)
    for k in range(groups - 1, -1, -1):
        a, b, out = group(x, k, rows, tag), group(r, k, rows, tag), group(y, k, rows, tag)
        for j in range(0, whole, 2 * width):
            if far:
                ask_rows(a, j, of_x, rows, tag)
                ask_rows(b, j, of_r, rows, tag)
            if owns:
                own_rows(out, j, of_y, rows, tag)
            _write(a, b, out, j, v, bent, streams, rows, None, tag)
            _write(a, b, out, j + width, v, bent, streams, rows, None, tag)
        for j in range(whole, n, width):
            mask = vectors.first(n - j, tag)
            _write(a, b, out, j, v, bent, False, rows, mask, tag)


@mapping
def normalize(
    p: Any, x: Any, r: Any, y: Any, n: Any, groups: Any, v: Any, far: Any, owns: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias)`` in groups of four rows; no residual."""
    lay_stack()
    m = groups
    if flat(p):
        _normalize(x, None, y, n, m, v, bends(p, FLAT, tag), far, owns, streams, FOUR, tag)
    elif plain(p):
        _normalize(x, None, y, n, m, v, bends(p, PLAIN, tag), far, owns, streams, FOUR, tag)
    else:
        _normalize(x, None, y, n, m, v, bends(p, SLOPED, tag), far, owns, streams, FOUR, tag)


@mapping
def normalize_one(p: Any, x: Any, r: Any, y: Any, n: Any, v: Any, tag: Any) -> None:
    """As `normalize`, in one row."""
    lay_stack()
    _normalize(x, None, y, n, 1, v, any_bend(p, tag), False, False, False, ONE, tag)


@mapping
def normalize_residual(
    p: Any, x: Any, r: Any, y: Any, n: Any, groups: Any, v: Any, far: Any, owns: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)`` in groups of four rows."""
    lay_stack()
    m = groups
    if flat(p):
        _normalize(x, r, y, n, m, v, bends(p, FLAT, tag), far, owns, streams, FOUR, tag)
    else:
        _normalize(x, r, y, n, m, v, bends(p, SLOPED, tag), far, owns, streams, FOUR, tag)


@mapping
def normalize_one_residual(p: Any, x: Any, r: Any, y: Any, n: Any, v: Any, tag: Any) -> None:
    """As `normalize_residual`, in one row."""
    lay_stack()
    _normalize(x, r, y, n, 1, v, any_bend(p, tag), False, False, False, ONE, tag)


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
        _put(dx, j, 0, first, mask, streams, tag)
        if dr is not None and both:
            _put(dr, j, 0, g, mask, streams, tag)
        return
    second, h = _pulled(x, r, dy, j, 1, line, pulls, bent, mask, tag)
    third, m = _pulled(x, r, dy, j, 2, line, pulls, bent, mask, tag)
    fourth, t = _pulled(x, r, dy, j, 3, line, pulls, bent, mask, tag)
    _put(dx, j, 0, first, mask, streams, tag)
    _put(dx, j, 1, second, mask, streams, tag)
    _put(dx, j, 2, third, mask, streams, tag)
    _put(dx, j, 3, fourth, mask, streams, tag)
    if dr is not None and both:
        _put(dr, j, 0, g, mask, streams, tag)
        _put(dr, j, 1, h, mask, streams, tag)
        _put(dr, j, 2, m, mask, streams, tag)
        _put(dr, j, 3, t, mask, streams, tag)


@inline_mapping
def _spread(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, groups: Any, v: Any, bent: Any,
    far: Any, streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, rows, tag)
    of_x, of_dy = later(x, n, AHEAD, -4, tag), later(dy, n, AHEAD, -4, tag)
    of_r = later(r, n, AHEAD, -4, tag)
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
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)`` in groups of four rows; no residual."""
    lay_stack()
    m = groups
    if flat(p):
        _spread(x, None, dy, dx, None, n, m, v, bends(p, FLAT, tag), far, streams, FOUR, tag)
    elif plain(p):
        _spread(x, None, dy, dx, None, n, m, v, bends(p, PLAIN, tag), far, streams, FOUR, tag)
    else:
        _spread(x, None, dy, dx, None, n, m, v, bends(p, SLOPED, tag), far, streams, FOUR, tag)


@mapping
def spread_one(p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, tag: Any) -> None:
    """As `spread`, in one row."""
    lay_stack()
    _spread(x, None, dy, dx, None, n, 1, v, any_bend(p, tag), False, False, ONE, tag)


@mapping
def spread_residual(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, groups: Any, v: Any, far: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """As `spread`, with a residual, of which the gradient is g: written unless its address is 0."""
    lay_stack()
    m = groups
    if flat(p):
        _spread(x, r, dy, dx, dr, n, m, v, bends(p, FLAT, tag), far, streams, FOUR, tag)
    else:
        _spread(x, r, dy, dx, dr, n, m, v, bends(p, SLOPED, tag), far, streams, FOUR, tag)


@mapping
def spread_one_residual(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, tag: Any
) -> None:
    """As `spread_residual`, in one row."""
    lay_stack()
    _spread(x, r, dy, dx, dr, n, 1, v, any_bend(p, tag), False, False, ONE, tag)


@mapping
def spread_from_output(
    p: Any, y: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, groups: Any, v: Any,
    far: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """As `spread`, from the output; no residual."""
    lay_stack()
    m = groups
    if plain(p):
        _spread(y, None, dy, dx, None, n, m, v, unbends(p, PLAIN, tag), far, streams, FOUR, tag)
    else:
        _spread(y, None, dy, dx, None, n, m, v, unbends(p, SLOPED, tag), far, streams, FOUR, tag)


@mapping
def spread_one_from_output(
    p: Any, y: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, tag: Any
) -> None:
    """As `spread_from_output`, in one row."""
    lay_stack()
    _spread(y, None, dy, dx, None, n, 1, v, unbends(p, SLOPED, tag), False, False, ONE, tag)
