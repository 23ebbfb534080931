"""Channels that change from element to element (NC, channels_last): rows at a time.

A row is one or more outer positions with all channels, p.columns elements; every column has its
own constants and accumulators, so that short channels and few channels vectorize as well as long
ones. Phase 0 lays out the columns' constants, 1 sums blocks of rows, 2 adds the blocks up, 3
writes, backwards to begin with what was read last. Phases 0 and 2 divide by channels.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_ahead as ahead
from batchnorm.kernels import _numba_constants as constants
from batchnorm.kernels import _numba_general as general
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels import _numba_row_constants as columns
from batchnorm.kernels import _numba_row_general as row_general
from batchnorm.kernels import _numba_row_gradients as gradients
from batchnorm.kernels import _numba_row_normal as normal
from batchnorm.kernels import _numba_row_sums as sums
from batchnorm.kernels._numba_machine import fence
from batchnorm.kernels._numba_math import mapping, steering
from batchnorm.kernels._numba_memory import TILE, at
from batchnorm.kernels._numba_scalar import narrow


@steering
def _sum(p: Any, part: Any, work: Any, kind: Any, tag: Any, four: Any, one: Any) -> None:
    """A block's two sums, by the functions given for four rows and one."""
    first, stop = blocks.block(p, part)
    blocks.begin(p, part, work)
    far = ahead.far(p, ahead.FAR_ROWS, tag)
    for start in range(0, p.columns, TILE):
        v = rows.tile(p, start, tag)
        s, q = blocks.sums(p, part, start, work, tag)
        fours = blocks.fours(p, first, stop, start)
        few = blocks.unsettled(fours, tag)
        for k in range(0, fours, few):
            row = first + 4 * k
            x, r, dy = blocks.inputs(p, row, start, tag)
            n = blocks.length(p, row, start)
            four(p, x, r, dy, n, min(few, fours - k), v, s, q, far, kind, tag)
            if narrow(tag):
                blocks.flush(p, start, work, tag)
        for row in range(first + 4 * fours, stop):
            x, r, dy = blocks.inputs(p, row, start, tag)
            n = blocks.length(p, row, start)
            one(p, x, r, dy, n, v, s, q, kind, tag)
        blocks.finish(p, part, start, work, tag)


@mapping
def measure(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's sums of ``x - shift`` and of its square."""
    _sum(p, part, work, None, tag, sums.measure, sums.measure_one)


@mapping
def measure_weighted(p: Any, part: Any, work: Any, tag: Any) -> None:
    """As `measure`, under a mask if there is one."""
    if p.weights == 0:
        measure(p, part, work, tag)
        return
    first, stop = blocks.block(p, part)
    t, s, q, w = work[1][0], work[1][1], work[1][2], work[1][3]
    blocks.clear(p, part)
    for start in range(0, p.columns, TILE):
        work[1][:3] = 0.0
        for row in range(first, stop):
            n = blocks.length(p, row, start)
            blocks.weights(p, row, start, n, w)
            x = blocks.addresses(p, row, start, tag)[0]
            v = rows.tile(p, start, tag)
            row_general.measure_weighted(x, w, n, v, t, s, q, tag)
        for kind in range(3):
            blocks.add_up(p, part, kind, start, work[1][kind])


@mapping
def _streams(p: Any, tag: Any) -> Any:
    """Whether outputs go past the caches: only in whole lines."""
    return p.streams != 0 and (p.out | p.out_residual | (at(64, p.columns, tag) - 64)) % 64 == 0


@steering
def write(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """Normalize a block, with an activation that is a bend."""
    first, stop = blocks.block(p, part)
    unread = p.measure == 0 or p.residual != 0  # which no sums need
    far = ahead.far(p, ahead.FAR_ROWS if unread else ahead.FAR_AGAIN, tag)
    streams = _streams(p, tag)
    owns = not streams and ahead.far(p, ahead.FAR_ROWS, tag)
    for start in range(0, p.columns, TILE):
        v = rows.tile(p, start, tag)
        fours = blocks.fours(p, first, stop, start)
        for row in range(stop - 1, first + 4 * fours - 1, -1):
            x, r, _ = blocks.inputs(p, row, start, tag)
            y, _ = blocks.outputs(p, row, start, tag)
            normal.normalize_one(p, x, r, y, blocks.length(p, row, start), v, kind, tag)
        x, r, _ = blocks.inputs(p, first, start, tag)
        y, _ = blocks.outputs(p, first, start, tag)
        n = blocks.length(p, first, start)
        normal.normalize(p, x, r, y, n, fours, v, far, owns, streams, kind, tag)
    if streams:
        fence()


@mapping
def write_general(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """Normalize a block, with any activation and mask."""
    first, stop = blocks.block(p, part)
    z, weights = work[0], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    for start in range(0, p.columns, TILE):
        for row in range(stop - 1, first - 1, -1):
            x, r, _, y, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if p.weights:
                blocks.weights(p, row, start, n, weights)
            row_general.line_up(x, n, rows.tile(p, start, tag), z, tag)
            general.complete(z, n, r, w, y, p.activation, p.slope, tag)


@steering
def forward(
    p: Any, phase: Any, task: Any, work: Any, kind: Any, tag: Any, measure: Any, write: Any
) -> None:
    """One task of statistics and normalization, by the functions given for a block."""
    if phase == 1 and p.measure:
        measure(p, task, work, tag)
    elif phase == 3 and p.out:
        write(p, task, work, kind, tag)
    elif phase == 0 or (phase == 2 and p.measure):
        first, stop = blocks.some(p, task)
        n, w = stop - first, work[1].ctypes.data
        end = rows.A
        if p.measure:
            constants.shifts(p, first, n, w, tag)
        if phase == 0 and p.measure:
            end = rows.LOW
        else:
            if p.measure:
                columns.moments(p, first, n, w, tag)
            constants.line(p, first, n, w)
        columns.lay_out(p, first, n, rows.MEAN, end, w, tag)


@steering
def reduce(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """A block's sums of g and ``g (x - mean)``, with an activation that is a bend."""
    _sum(p, part, work, kind, tag, sums.reduce, sums.reduce_one)


@mapping
def reduce_general(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """As `reduce`, with any activation and mask."""
    first, stop = blocks.block(p, part)
    z, s, q, weights = work[0], work[1][1], work[1][2], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    blocks.clear(p, part)
    for start in range(0, p.columns, TILE):
        v = rows.tile(p, start, tag)
        work[1][1:3] = 0.0
        for row in range(first, stop):
            x, r, dy, _, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if p.weights:
                blocks.weights(p, row, start, n, weights)
            row_general.line_up(x, n, v, z, tag)
            general.to_gradient(z, n, r, dy, w, p.activation, p.slope, tag)
            row_general.reduce_gradient(x, z, n, v, weights, p.weights != 0, s, q, tag)
        blocks.add_up(p, part, 1, start, work[1][1])
        blocks.add_up(p, part, 2, start, work[1][2])


@steering
def spread(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """A block's gradients of x and of a residual, with an activation that is a bend."""
    first, stop = blocks.block(p, part)
    far = ahead.far(p, ahead.FAR_ROWS if p.measure == 0 else ahead.FAR_AGAIN, tag)
    streams = _streams(p, tag)
    for start in range(0, p.columns, TILE):
        v = rows.tile(p, start, tag)
        fours = blocks.fours(p, first, stop, start)
        for row in range(stop - 1, first + 4 * fours - 1, -1):
            x, r, dy = blocks.inputs(p, row, start, tag)
            dx, dr = blocks.outputs(p, row, start, tag)
            n = blocks.length(p, row, start)
            gradients.spread_one(p, x, r, dy, dx, dr, n, v, kind, tag)
        x, r, dy = blocks.inputs(p, first, start, tag)
        dx, dr = blocks.outputs(p, first, start, tag)
        n = blocks.length(p, first, start)
        gradients.spread(p, x, r, dy, dx, dr, n, fours, v, far, streams, kind, tag)
    if streams:
        fence()


@mapping
def spread_general(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """As `spread`, with any activation and mask, and only those gradients that are wanted."""
    first, stop = blocks.block(p, part)
    z, weights = work[0], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    for start in range(0, p.columns, TILE):
        v = rows.tile(p, start, tag)
        for row in range(stop - 1, first - 1, -1):
            x, r, dy, dx, dr = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if p.weights:
                blocks.weights(p, row, start, n, weights)
            row_general.line_up(x, n, v, z, tag)
            general.to_gradient(z, n, r, dy, w, p.activation, p.slope, tag)
            if dx:
                row_general.spread_gradient(x, z, dx, n, v, weights, p.weights != 0, tag)
            if dr:
                general.store_gradient(z, dr, n, tag)


@steering
def backward(
    p: Any, phase: Any, task: Any, work: Any, kind: Any, tag: Any, reduce: Any, spread: Any
) -> None:
    """One task of the channels' sums and of the gradients, by the functions given for a block."""
    if phase == 1 and p.measure:
        reduce(p, task, work, kind, tag)
    elif phase == 3 and (p.out or p.out_residual):
        spread(p, task, work, kind, tag)
    elif phase == 0 or phase == 2:
        first, stop = blocks.some(p, task)
        n, w = stop - first, work[1].ctypes.data
        vector, end = rows.MEAN, rows.A
        constants.line(p, first, n, w)
        if phase == 2:
            vector, end = rows.A, rows.VECTORS
            if p.measure:
                columns.sums(p, first, n, w)
            constants.pulls(p, first, n, w, tag)
        columns.lay_out(p, first, n, vector, end, w, tag)
