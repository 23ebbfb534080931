"""Rows of channels: how they are divided into blocks, and their columns' constants and sums."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels._layout import GROUP
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import (
    TILE,
    WIDE,
    at,
    constant,
    load,
    put,
    put_constant,
)
from batchnorm.kernels._numba_scalar import narrow

FEW = 32  # rows summed in the type in which elements are computed


@mapping
def tasks(p: Any, phase: Any) -> Any:
    """How many tasks a phase has."""
    if phase == 0 or phase == 2:
        return (p.channels + GROUP - 1) // GROUP
    return p.parts


@mapping
def some(p: Any, task: Any) -> Any:
    """The first channel of a task of phases 0 and 2, and the one after its last."""
    return task * GROUP, min((task + 1) * GROUP, p.channels)


@mapping
def partial(p: Any, part: Any, kind: Any, c: Any) -> Any:
    """Where in the scratch memory a block's sum for a channel lies."""
    first = (p.columns + TILE - 1) // TILE * rows.VECTORS * rows.STRIDE
    return first + (3 * part + kind) * p.channels + c


@mapping
def repeat(p: Any, first: Any, stop: Any, vector: Any, end: Any, tag: Any) -> None:
    """Copy vectors up to `end`, at channels up to `stop`, to all positions of a row."""
    width, v = p.channels * p.inner, p.scratch
    start, n = first * p.inner, (stop - first) * p.inner
    for here in range(vector * rows.STRIDE + start, end * rows.STRIDE + start, rows.STRIDE):
        for there in range(here + width, here + p.columns - start, width):
            for j in range(n):
                put_constant(v, there + j, float(constant(v, here + j, tag)), tag)


@mapping
def addresses(p: Any, row: Any, start: Any, tag: Any) -> Any:
    """Addresses of x, residual, dy, out and the residual's gradient at a column of a row."""
    o = row * p.joined
    written = o * p.channels * p.inner + start
    return (
        at(p.x, o * p.x_outer + start, tag),
        at(p.residual, o * p.residual_outer + start, tag),
        at(p.dy, o * p.dy_outer + start, tag),
        at(p.out, written, tag),
        at(p.out_residual, written, tag),
    )


@mapping
def inputs(p: Any, row: Any, start: Any, tag: Any) -> Any:
    """x, residual and dy at a column of a row, each with its step to the next row."""
    x, r, dy, _, _ = addresses(p, row, start, tag)
    return (
        (x, p.joined * p.x_outer),
        (r, p.joined * p.residual_outer),
        (dy, p.joined * p.dy_outer),
    )


@mapping
def outputs(p: Any, row: Any, start: Any, tag: Any) -> Any:
    """The output and the residual's gradient at a column of a row."""
    _, _, _, out, of_r = addresses(p, row, start, tag)
    return (out, p.columns), (of_r, p.columns)


@mapping
def length(p: Any, row: Any, start: Any) -> Any:
    """How many elements a row has from column `start` on, a tile at most; the last has fewer."""
    left = p.outer * p.channels * p.inner - row * p.columns
    return max(min(TILE, min(p.columns, left) - start), 0)


@mapping
def block(p: Any, part: Any) -> Any:
    """The first row of a part, and the one after its last."""
    count = (p.outer * p.channels * p.inner + p.columns - 1) // p.columns
    return part * p.span, min((part + 1) * p.span, count)


@mapping
def weights(p: Any, row: Any, start: Any, n: Any, w: Any) -> None:
    """Spread the positions' weights over n columns."""
    width = p.channels * p.inner
    for j in range(n):
        o = row * p.joined + (start + j) // width
        w[j] = load(p.weights, o * p.inner + (start + j) % p.inner, WIDE)


@mapping
def add_up(p: Any, part: Any, kind: Any, start: Any, sums: Any) -> None:
    """Add columns' sums, a buffer, to the block's sums for their channels."""
    n = min(TILE, p.columns - start)
    width = p.channels * p.inner
    for first in range(width, n, width):  # several positions in a row, which is one tile then
        for j in range(min(width, n - first)):
            sums[j] += sums[first + j]
    n = min(n, width)
    if p.inner == 1:  # one column is one channel, and none has been here before
        there = p.scratch + 8 * partial(p, part, kind, start)
        for j in range(n):
            put(there, j, sums[j], WIDE)
        return
    c, i = start // p.inner % p.channels, start % p.inner
    for j in range(n):
        k = partial(p, part, kind, c)
        put(p.scratch, k, load(p.scratch, k, WIDE) + sums[j], WIDE)
        i += 1
        if i == p.inner:
            c, i = c + 1, 0
        if c == p.channels:
            c = 0


@mapping
def clear(p: Any, part: Any) -> None:
    """Begin a block's sums."""
    if p.inner == 1:
        return
    for k in range(partial(p, part, 0, 0), partial(p, part + 1, 0, 0)):
        put(p.scratch, k, 0.0, WIDE)


@mapping
def begin(p: Any, part: Any, work: Any) -> None:
    """Begin a block's sums, and those of loops."""
    clear(p, part)
    work[1][1:3] = 0.0
    work[1][4:6] = 0.0


@mapping
def _straight(p: Any, tag: Any) -> Any:
    """Whether loops may add to the block's sums themselves, which they do in whole vectors.

    Columns are channels then, and sums are in float64; what lies beside them is another block's.
    """
    whole = p.columns % vectors.lanes(WIDE) == 0
    return whole and p.columns == p.channels and not narrow(tag)


@mapping
def sums(p: Any, part: Any, start: Any, work: Any, tag: Any) -> Any:
    """The addresses of two sums for each column of a tile, cleared."""
    if not _straight(p, tag):
        return work[1][4].ctypes.data, work[1][5].ctypes.data
    s, q = p.scratch + 8 * partial(p, part, 1, start), p.scratch + 8 * partial(p, part, 2, start)
    for j in range(min(TILE, p.columns - start)):
        put(s, j, 0.0, WIDE)
        put(q, j, 0.0, WIDE)
    return s, q


@mapping
def flush(p: Any, start: Any, work: Any, tag: Any) -> None:
    """Take over what loops summed."""
    n = min(TILE, p.columns - start)
    rows.flush(work[1][4].ctypes.data, n, work[1][1], tag)
    rows.flush(work[1][5].ctypes.data, n, work[1][2], tag)


@mapping
def finish(p: Any, part: Any, start: Any, work: Any, tag: Any) -> None:
    """Add a tile's sums to the block's."""
    if _straight(p, tag):
        return
    flush(p, start, work, tag)
    add_up(p, part, 1, start, work[1][1])
    add_up(p, part, 2, start, work[1][2])
    work[1][1:3] = 0.0


@mapping
def fours(p: Any, first: Any, stop: Any, start: Any) -> Any:
    """How many groups of four rows there are, from `first` on, that are equally long."""
    if stop > first and length(p, first, start) != length(p, stop - 1, start):
        stop -= 1
    return max(stop - first, 0) // 4


@mapping
def unsettled(groups: Any, tag: Any) -> Any:
    """How many groups of four rows may be summed before `flush`."""
    return FEW // 4 if narrow(tag) else max(groups, 1)
