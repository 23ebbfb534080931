"""The constants of rows of channels: what `_numba_constants` makes, from and for all columns."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_constants as constants
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels._numba_constants import COUNT, STEP
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, load, put, put_constant
from batchnorm.kernels._numba_scalar import fit, narrow
from batchnorm.kernels._numba_wide_sums import take_anew


@mapping
def _totals(p: Any, kind: Any, first: Any, n: Any, w: Any) -> None:
    """A sum over all blocks."""
    for k in range(n):
        put(w, k, 0.0, WIDE)
    for part in range(p.parts):
        there = p.scratch + 8 * blocks.partial(p, part, kind, first)
        for k in range(n):
            put(w, k, load(w, k, WIDE) + load(there, k, WIDE), WIDE)


@mapping
def moments(p: Any, first: Any, n: Any, w: Any, tag: Any) -> None:
    """The moments from the blocks' sums, where `shifts` has been."""
    _totals(p, 1, first, n, w + 8 * STEP * rows.A)
    _totals(p, 2, first, n, w + 8 * STEP * rows.B)
    if p.weights:
        _totals(p, 0, first, n, w + 8 * STEP * COUNT)
    take_anew(p, first, n, w, tag)
    constants.moments(p, first, n, w)


@mapping
def sums(p: Any, first: Any, n: Any, w: Any) -> None:
    """The channels' sums from the blocks', where `line` has been."""
    _totals(p, 1, first, n, w + 8 * STEP * rows.A)
    _totals(p, 2, first, n, w + 8 * STEP * rows.B)
    constants.sums(p, first, n, w)


@mapping
def lay_out(p: Any, first: Any, n: Any, vector: Any, end: Any, w: Any, tag: Any) -> None:
    """Write vectors up to `end` for all positions of a row."""
    if vector == rows.MEAN and narrow(tag):
        for k in range(n):
            mean = load(w, k + STEP * rows.MEAN, WIDE)
            put(w, k + STEP * rows.LOW, mean - float(fit(mean, tag)), WIDE)
    for row in range(vector, end):
        _copy(w + 8 * STEP * row, p.scratch, row * rows.STRIDE, first, n, p.inner, tag)
    blocks.repeat(p, first, first + n, vector, end, tag)


@mapping
def _copy(w: Any, v: Any, vector: Any, first: Any, n: Any, inner: Any, tag: Any) -> None:
    if inner == 1:
        start = vector + rows.place(first)  # a tile is some groups
        for k in range(n):
            put_constant(v, start + k, load(w, k, WIDE), tag)
    else:
        for k in range(n):
            for j in range((first + k) * inner, (first + k + 1) * inner):
                put_constant(v, vector + rows.place(j), load(w, k, WIDE), tag)
