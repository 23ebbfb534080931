"""Normalization in rows of channels, downwards; names are those of `_numba_row_columns`.

Of four rows all are read before one is written: a load waits for an earlier store whose address
ends in the same twelve bits, as those of rows of 1024 or 512 elements do.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels._numba_bend import bends, if_residual
from batchnorm.kernels._numba_line import normal
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_row_ahead import FURTHER, NEAR, ask_rows, later, own_rows
from batchnorm.kernels._numba_row_columns import FOUR, ONE, columns, group, put, row, start, words


@inline_mapping
def _normal(x: Any, r: Any, j: Any, k: Any, line: Any, bent: Any, mask: Any, tag: Any) -> Any:
    """Y in the k-th row."""
    return normal(x[0], j + row(x, k), start(r), j + row(r, k), line, bent, mask, tag)


@inline_mapping
def _write(
    x: Any, r: Any, y: Any, j: Any, v: Any, bent: Any, streams: Any, rows: Any, mask: Any,
    tag: Any,
) -> None:  # fmt: skip
    line = words(v, j, mask, tag)
    first = _normal(x, r, j, 0, line, bent, mask, tag)
    if len(rows) == 1:
        put(y, j, 0, first, mask, streams, tag)
        return
    second = _normal(x, r, j, 1, line, bent, mask, tag)
    third = _normal(x, r, j, 2, line, bent, mask, tag)
    fourth = _normal(x, r, j, 3, line, bent, mask, tag)
    put(y, j, 0, first, mask, streams, tag)
    put(y, j, 1, second, mask, streams, tag)
    put(y, j, 2, third, mask, streams, tag)
    put(y, j, 3, fourth, mask, streams, tag)


@inline_mapping
def _normalize(
    x: Any, r: Any, y: Any, n: Any, groups: Any, v: Any, bent: Any, far: Any, owns: Any,
    streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width, whole = columns(n, rows, tag)
    of_x = later(x, n, FURTHER if r is None else NEAR, -4, tag)
    of_r, of_y = later(r, n, NEAR, -4, tag), later(y, n, NEAR, -4, tag)
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
    streams: Any, kind: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)`` in groups of four rows."""
    lay_stack()
    added = if_residual(kind, r)
    _normalize(x, added, y, n, groups, v, bends(p, kind, tag), far, owns, streams, FOUR, tag)


@mapping
def normalize_one(p: Any, x: Any, r: Any, y: Any, n: Any, v: Any, kind: Any, tag: Any) -> None:
    """As `normalize`, in one row."""
    lay_stack()
    added = if_residual(kind, r)
    _normalize(x, added, y, n, 1, v, bends(p, kind, tag), False, False, False, ONE, tag)
