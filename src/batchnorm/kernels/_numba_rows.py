"""Channels that change from element to element (NC, channels_last): rows at a time.

A row is one or more outer positions with all channels, p.columns elements; every column has its
own constants and accumulators, so that short channels and few channels vectorize as well as long
ones. Phase 0 lays out the columns' constants, 1 sums blocks of rows, 2 adds the blocks up, 3
writes, backwards to begin with what was read last. Phases 0 and 2 divide by channels.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_general as general
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_row_loops as rows
from batchnorm.kernels._numba_call import anchors, constants, pulls, put_moments, put_sums, shift_of
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import TILE, constant_size


@mapping
def measure(p: Any, part: Any, work: Any, tag: Any) -> None:
    """Sum a block."""
    first, stop = blocks.block(p, part)
    s, q = work[1][1], work[1][2]
    step = p.joined * p.x_outer
    blocks.clear(p, part)
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        row = first
        while row < stop:
            x = blocks.addresses(p, row, start, tag)[0]
            n = blocks.length(p, row, start)
            if row + 4 <= stop and blocks.length(p, row + 3, start) == n:
                rows.measure_four(x, step, n, v, s, q, tag)
                row += 4
            else:
                rows.measure(x, n, v, s, q, tag)
                row += 1
        blocks.add_up(p, part, 1, start, s)
        blocks.add_up(p, part, 2, start, q)


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
            rows.measure_weighted(x, w, n, p.scratch + constant_size(tag) * start, t, s, q, tag)
        blocks.add_up(p, part, 0, start, t)
        blocks.add_up(p, part, 1, start, s)
        blocks.add_up(p, part, 2, start, q)


@mapping
def write(p: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a block, with an activation that is a bend."""
    first, stop = blocks.block(p, part)
    f = p.columns
    xs, ys = p.joined * p.x_outer, p.columns
    for start in range(0, f, TILE):
        v = p.scratch + constant_size(tag) * start
        row = stop - 1
        while row >= first:
            other = row if p.residual else blocks.before(p, row, first, start)
            x, r, _, y, _ = blocks.addresses(p, other, start, tag)
            n = blocks.length(p, row, start)
            if r:
                rows.normalize_add(x, r, y, n, v, f, p.relu, p.slope, tag)
            elif other == row:
                rows.normalize(x, y, n, v, f, p.relu, p.slope, tag)
            else:
                rows.normalize_two(x, xs, y, ys, n, v, f, p.relu, p.slope, tag)
            row = other - 1


@mapping
def write_general(p: Any, part: Any, work: Any, tag: Any) -> None:
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
            rows.line_up(x, n, p.scratch + constant_size(tag) * start, p.columns, z, tag)
            general.complete(z, n, r, w, y, p.activation, p.slope, tag)


@mapping
def forward(p: Any, phase: Any, task: Any, work: Any, tag: Any, measure: Any, write: Any) -> None:
    """One task of statistics and normalization, by the functions given for a block."""
    if phase == 1 and p.measure:
        measure(p, task, work, tag)
    elif phase == 3 and p.out:
        write(p, task, work, tag)
    elif phase == 0 or (phase == 2 and p.measure):
        start, stop = task * blocks.SOME, min((task + 1) * blocks.SOME, p.channels)
        for c in range(start, stop):
            if phase == 0 and p.measure:
                blocks.fill(p, c, rows.MEAN, shift_of(p, c, tag), tag)
                continue
            if phase == 2:
                n = blocks.total(p, 0, c) if p.weights else float(p.outer * p.inner)
                put_moments(
                    p, c, shift_of(p, c, tag), n, blocks.total(p, 1, c), blocks.total(p, 2, c)
                )
            mean, invstd, weight, bias = constants(p, c)
            blocks.fill_mean(p, c, mean, tag)
            blocks.fill(p, c, rows.SCALE, invstd * weight, tag)
            blocks.fill(p, c, rows.BIAS, bias, tag)
        blocks.repeat(p, start, stop, rows.MEAN, rows.A, tag)


@mapping
def reduce(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's sums of g and ``g (x - mean)``, with an activation that is a bend."""
    first, stop = blocks.block(p, part)
    s, q = work[1][1], work[1][2]
    f, xs, dys = p.columns, p.joined * p.x_outer, p.joined * p.dy_outer
    blocks.clear(p, part)
    for start in range(0, f, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        row = first
        while row < stop:
            x, r, dy, _, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if r:
                rows.reduce_add(x, r, dy, n, v, f, p.slope, s, q, tag)
            elif row + 2 <= stop and blocks.length(p, row + 1, start) == n:
                rows.reduce_two(x, xs, dy, dys, n, v, f, p.slope, s, q, tag)
                row += 1
            else:
                rows.reduce(x, dy, n, v, f, p.slope, s, q, tag)
            row += 1
        blocks.add_up(p, part, 1, start, s)
        blocks.add_up(p, part, 2, start, q)


@mapping
def reduce_general(p: Any, part: Any, work: Any, tag: Any) -> None:
    """As `reduce`, with any activation and mask."""
    first, stop = blocks.block(p, part)
    z, s, q, weights = work[0], work[1][1], work[1][2], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    blocks.clear(p, part)
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        for row in range(first, stop):
            x, r, dy, _, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if p.weights:
                blocks.weights(p, row, start, n, weights)
            rows.line_up(x, n, v, p.columns, z, tag)
            general.to_gradient(z, n, r, dy, w, p.activation, p.slope, tag)
            rows.reduce_gradient(x, z, n, v, p.columns, weights, p.weights != 0, s, q, tag)
        blocks.add_up(p, part, 1, start, s)
        blocks.add_up(p, part, 2, start, q)


@mapping
def spread(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's gradient of x, and of the residual if there is one."""
    first, stop = blocks.block(p, part)
    f = p.columns
    xs, dys, dxs = p.joined * p.x_outer, p.joined * p.dy_outer, p.columns
    for start in range(0, f, TILE):
        v = p.scratch + constant_size(tag) * start
        row = stop - 1
        while row >= first:
            other = row if p.residual else blocks.before(p, row, first, start)
            x, r, dy, dx, dr = blocks.addresses(p, other, start, tag)
            n = blocks.length(p, row, start)
            if r:
                rows.spread_add(x, r, dy, dx, dr, n, v, f, p.slope, tag)
            elif other == row:
                rows.spread(x, dy, dx, n, v, f, p.slope, tag)
            else:
                rows.spread_two(x, xs, dy, dys, dx, dxs, n, v, f, p.slope, tag)
            row = other - 1


@mapping
def spread_general(p: Any, part: Any, work: Any, tag: Any) -> None:
    """As `spread`, with any activation and mask, and only those gradients that are wanted."""
    first, stop = blocks.block(p, part)
    z, weights = work[0], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        for row in range(stop - 1, first - 1, -1):
            x, r, dy, dx, dr = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if p.weights:
                blocks.weights(p, row, start, n, weights)
            rows.line_up(x, n, v, p.columns, z, tag)
            general.to_gradient(z, n, r, dy, w, p.activation, p.slope, tag)
            if dx:
                rows.spread_gradient(x, z, dx, n, v, p.columns, weights, p.weights != 0, tag)
            if dr:
                general.store_gradient(z, dr, n, tag)


@mapping
def backward(p: Any, phase: Any, task: Any, work: Any, tag: Any, reduce: Any, spread: Any) -> None:
    """One task of the channels' sums and of the gradients, by the functions given for a block."""
    if phase == 1 and p.measure:
        reduce(p, task, work, tag)
    elif phase == 3 and (p.out or p.out_residual):
        spread(p, task, work, tag)
    elif phase == 0 or phase == 2:
        start, stop = task * blocks.SOME, min((task + 1) * blocks.SOME, p.channels)
        for c in range(start, stop):
            _, invstd, weight, bias = constants(p, c)
            middle, unit = anchors(p, c)
            if phase == 0:
                blocks.fill_mean(p, c, middle, tag)
                blocks.fill(p, c, rows.SCALE, invstd * weight, tag)
                blocks.fill(p, c, rows.BIAS, bias, tag)
                continue
            if p.measure:
                put_sums(p, c, blocks.total(p, 1, c), blocks.total(p, 2, c) * unit)
            a, b, _ = pulls(p, c, invstd, weight)
            blocks.fill(p, c, rows.INVSTD, unit, tag)
            blocks.fill(p, c, rows.A, a, tag)
            blocks.fill(p, c, rows.B, b, tag)
        vector, end = (rows.MEAN, rows.A) if phase == 0 else (rows.A, rows.VECTORS)
        blocks.repeat(p, start, stop, vector, end, tag)
