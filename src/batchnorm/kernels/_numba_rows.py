"""Channels that change from element to element (NC, channels_last): rows at a time.

A row is one or more outer positions with all channels, p.columns elements; every column has its
own constants and accumulators, so that short channels and few channels vectorize as well as long
ones. Phase 0 lays out the columns' constants, 1 sums blocks of rows, 2 adds the blocks up, 3
writes, backwards to begin with what was read last. Phases 0 and 2 divide by channels.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_loops as loops
from batchnorm.kernels import _numba_row_loops as rows
from batchnorm.kernels._numba_call import (
    constants,
    pulls,
    put_moments,
    put_sums,
    shift_of,
)
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import (
    TILE,
    WIDE,
    at,
    constant_size,
    fit,
    load,
    put,
    put_constant,
)

SOME = 64  # channels in a task of phases 0 and 2


@mapping
def _partial(p: Any, part: Any, kind: Any, c: Any) -> Any:
    """Where in the scratch memory a block's sum for a channel lies."""
    return rows.VECTORS * p.columns + (3 * part + kind) * p.channels + c


@mapping
def _fill(p: Any, c: Any, vector: Any, value: Any, tag: Any) -> None:
    """Set `vector` in all columns of channel c."""
    if p.columns == p.channels:
        put_constant(p.scratch, vector * p.columns + c, value, tag)
        return
    width = p.channels * p.inner
    for start in range(c * p.inner, p.columns, width):
        for j in range(start, start + p.inner):
            put_constant(p.scratch, vector * p.columns + j, value, tag)


@mapping
def _fill_mean(p: Any, c: Any, mean: Any, tag: Any) -> None:
    """Set the mean, in two words where one is not enough."""
    _fill(p, c, rows.MEAN, mean, tag)
    if constant_size(tag) == 4:
        _fill(p, c, rows.LOW, mean - fit(mean, tag), tag)


@mapping
def _addresses(p: Any, row: Any, start: Any, tag: Any) -> Any:
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
def _length(p: Any, row: Any, start: Any) -> Any:
    """How many elements a row has from column `start` on, a tile at most; the last has fewer."""
    left = p.outer * p.channels * p.inner - row * p.columns
    return max(min(TILE, min(p.columns, left) - start), 0)


@mapping
def _block(p: Any, part: Any) -> Any:
    count = (p.outer * p.channels * p.inner + p.columns - 1) // p.columns
    return part * p.span, min((part + 1) * p.span, count)


@mapping
def _weights(p: Any, row: Any, start: Any, n: Any, w: Any) -> None:
    """Spread the positions' weights over n columns."""
    width = p.channels * p.inner
    for j in range(n):
        o = row * p.joined + (start + j) // width
        w[j] = load(p.weights, o * p.inner + (start + j) % p.inner, WIDE)


@mapping
def _add_up(p: Any, part: Any, kind: Any, start: Any, sums: Any) -> None:
    """Add columns' sums to the block's sums for their channels."""
    n = min(TILE, p.columns - start)
    if p.columns == p.channels:  # one column is one channel, and none has been here before
        for j in range(n):
            put(p.scratch, _partial(p, part, kind, start) + j, sums[j], WIDE)
        return
    c, i = start // p.inner % p.channels, start % p.inner
    for j in range(n):
        k = _partial(p, part, kind, c)
        put(p.scratch, k, load(p.scratch, k, WIDE) + sums[j], WIDE)
        i += 1
        if i == p.inner:
            c, i = c + 1, 0
        if c == p.channels:
            c = 0


@mapping
def _clear(p: Any, part: Any) -> None:
    """Begin a block's sums."""
    if p.columns == p.channels:
        return
    for k in range(_partial(p, part, 0, 0), _partial(p, part + 1, 0, 0)):
        put(p.scratch, k, 0.0, WIDE)


@mapping
def measure(p: Any, part: Any, work: Any, tag: Any) -> None:
    """Sum a block."""
    first, stop = _block(p, part)
    s, q = work[1][1], work[1][2]
    step = p.joined * p.x_outer
    _clear(p, part)
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        row = first
        while row < stop:
            x = _addresses(p, row, start, tag)[0]
            n = _length(p, row, start)
            if row + 4 <= stop and _length(p, row + 3, start) == n:
                rows.measure_four(x, step, n, v, s, q, tag)
                row += 4
            else:
                rows.measure(x, n, v, s, q, tag)
                row += 1
        _add_up(p, part, 1, start, s)
        _add_up(p, part, 2, start, q)


@mapping
def measure_weighted(p: Any, part: Any, work: Any, tag: Any) -> None:
    """As `measure`, under a mask if there is one."""
    if p.weights == 0:
        measure(p, part, work, tag)
        return
    first, stop = _block(p, part)
    t, s, q, w = work[1][0], work[1][1], work[1][2], work[1][3]
    _clear(p, part)
    for start in range(0, p.columns, TILE):
        work[1][:3] = 0.0
        for row in range(first, stop):
            n = _length(p, row, start)
            _weights(p, row, start, n, w)
            x = _addresses(p, row, start, tag)[0]
            rows.measure_weighted(x, w, n, p.scratch + constant_size(tag) * start, t, s, q, tag)
        _add_up(p, part, 0, start, t)
        _add_up(p, part, 1, start, s)
        _add_up(p, part, 2, start, q)


@mapping
def _before(p: Any, row: Any, first: Any, start: Any) -> Any:
    """The row before this one to go with it, or this one alone."""
    fits = row > first and _length(p, row, start) == _length(p, row - 1, start)
    return row - 1 if fits else row


@mapping
def write(p: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a block, with an activation that is a bend."""
    first, stop = _block(p, part)
    f = p.columns
    xs, ys = p.joined * p.x_outer, p.columns
    for start in range(0, f, TILE):
        v = p.scratch + constant_size(tag) * start
        row = stop - 1
        while row >= first:
            other = row if p.residual else _before(p, row, first, start)
            x, r, _, y, _ = _addresses(p, other, start, tag)
            n = _length(p, row, start)
            if r:
                rows.normalize_add(x, r, y, n, v, f, p.relu, p.slope, tag)
            else:
                k = row - other
                rows.normalize(x, k * xs, y, k * ys, n, v, f, p.relu, p.slope, tag)
            row = other - 1


@mapping
def write_general(p: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a block, with any activation and mask."""
    first, stop = _block(p, part)
    z, weights = work[0], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    for start in range(0, p.columns, TILE):
        for row in range(stop - 1, first - 1, -1):
            x, r, _, y, _ = _addresses(p, row, start, tag)
            n = _length(p, row, start)
            if p.weights:
                _weights(p, row, start, n, weights)
            rows.line_up(x, n, p.scratch + constant_size(tag) * start, p.columns, z, tag)
            loops.complete(z, n, r, w, y, p.activation, p.slope, tag)


@mapping
def reduce(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's sums of g and ``g (x - mean)``, with an activation that is a bend."""
    first, stop = _block(p, part)
    s, q = work[1][1], work[1][2]
    f, xs, dys = p.columns, p.joined * p.x_outer, p.joined * p.dy_outer
    _clear(p, part)
    for start in range(0, f, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        row = first
        while row < stop:
            x, r, dy, _, _ = _addresses(p, row, start, tag)
            n = _length(p, row, start)
            if r:
                rows.reduce_add(x, r, dy, n, v, f, p.slope, s, q, tag)
            elif row + 2 <= stop and _length(p, row + 1, start) == n:
                rows.reduce_two(x, xs, dy, dys, n, v, f, p.slope, s, q, tag)
                row += 1
            else:
                rows.reduce(x, dy, n, v, f, p.slope, s, q, tag)
            row += 1
        _add_up(p, part, 1, start, s)
        _add_up(p, part, 2, start, q)


@mapping
def reduce_general(p: Any, part: Any, work: Any, tag: Any) -> None:
    """As `reduce`, with any activation and mask."""
    first, stop = _block(p, part)
    z, s, q, weights = work[0], work[1][1], work[1][2], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    _clear(p, part)
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        for row in range(first, stop):
            x, r, dy, _, _ = _addresses(p, row, start, tag)
            n = _length(p, row, start)
            if p.weights:
                _weights(p, row, start, n, weights)
            rows.line_up(x, n, v, p.columns, z, tag)
            loops.to_gradient(z, n, r, dy, w, p.activation, p.slope, tag)
            rows.reduce_gradient(x, z, n, v, p.columns, weights, p.weights != 0, s, q, tag)
        _add_up(p, part, 1, start, s)
        _add_up(p, part, 2, start, q)


@mapping
def spread(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's gradient of x, and of the residual if there is one."""
    first, stop = _block(p, part)
    f = p.columns
    xs, dys, dxs = p.joined * p.x_outer, p.joined * p.dy_outer, p.columns
    for start in range(0, f, TILE):
        v = p.scratch + constant_size(tag) * start
        row = stop - 1
        while row >= first:
            other = row if p.residual else _before(p, row, first, start)
            x, r, dy, dx, dr = _addresses(p, other, start, tag)
            n = _length(p, row, start)
            if r:
                rows.spread_add(x, r, dy, dx, dr, n, v, f, p.slope, tag)
            else:
                k = row - other
                rows.spread(x, k * xs, dy, k * dys, dx, k * dxs, n, v, f, p.slope, tag)
            row = other - 1


@mapping
def spread_general(p: Any, part: Any, work: Any, tag: Any) -> None:
    """As `spread`, with any activation and mask, and only those gradients that are wanted."""
    first, stop = _block(p, part)
    z, weights = work[0], work[1][3]
    w = weights.ctypes.data if p.weights else 0
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        for row in range(stop - 1, first - 1, -1):
            x, r, dy, dx, dr = _addresses(p, row, start, tag)
            n = _length(p, row, start)
            if p.weights:
                _weights(p, row, start, n, weights)
            rows.line_up(x, n, v, p.columns, z, tag)
            loops.to_gradient(z, n, r, dy, w, p.activation, p.slope, tag)
            if dx:
                rows.spread_gradient(x, z, dx, n, v, p.columns, weights, p.weights != 0, tag)
            if dr:
                loops.store_gradient(z, dr, n, tag)


@mapping
def _total(p: Any, kind: Any, c: Any) -> Any:
    total = 0.0
    for part in range(p.parts):
        total += load(p.scratch, _partial(p, part, kind, c), WIDE)
    return total


@mapping
def forward(p: Any, phase: Any, task: Any, work: Any, tag: Any, measure: Any, write: Any) -> None:
    """One task of statistics and normalization, by the functions given for a block."""
    if phase == 1 and p.measure:
        measure(p, task, work, tag)
    elif phase == 3 and p.out:
        write(p, task, work, tag)
    elif phase == 0 or (phase == 2 and p.measure):
        for c in range(task * SOME, min((task + 1) * SOME, p.channels)):
            if phase == 0 and p.measure:
                _fill(p, c, rows.MEAN, shift_of(p, c, tag), tag)
                continue
            if phase == 2:
                n = _total(p, 0, c) if p.weights else float(p.outer * p.inner)
                put_moments(p, c, shift_of(p, c, tag), n, _total(p, 1, c), _total(p, 2, c))
            mean, invstd, weight, bias = constants(p, c)
            _fill_mean(p, c, mean, tag)
            _fill(p, c, rows.SCALE, invstd * weight, tag)
            _fill(p, c, rows.BIAS, bias, tag)


@mapping
def backward(p: Any, phase: Any, task: Any, work: Any, tag: Any, reduce: Any, spread: Any) -> None:
    """One task of the channels' sums and of the gradients, by the functions given for a block."""
    if phase == 1 and p.measure:
        reduce(p, task, work, tag)
    elif phase == 3 and (p.out or p.out_residual):
        spread(p, task, work, tag)
    elif phase == 0 or phase == 2:
        for c in range(task * SOME, min((task + 1) * SOME, p.channels)):
            mean, invstd, weight, bias = constants(p, c)
            if phase == 0:
                _fill_mean(p, c, mean, tag)
                _fill(p, c, rows.SCALE, invstd * weight, tag)
                _fill(p, c, rows.BIAS, bias, tag)
                continue
            if p.measure:
                put_sums(p, c, _total(p, 1, c), _total(p, 2, c) * invstd)
            a, b, invstd = pulls(p, c)
            _fill(p, c, rows.INVSTD, invstd, tag)
            _fill(p, c, rows.A, a, tag)
            _fill(p, c, rows.B, b, tag)


@mapping
def tasks(p: Any, phase: Any) -> Any:
    """How many tasks a phase has."""
    if phase == 0 or phase == 2:
        return (p.channels + SOME - 1) // SOME
    return p.parts
