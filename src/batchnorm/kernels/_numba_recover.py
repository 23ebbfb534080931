"""The backward pass from the output, which was written over the input.

``z = f^-1(y)`` and ``xhat = (z - bias) / weight``; the derivative f' comes from y too.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_ahead as ahead
from batchnorm.kernels import _numba_constants as constants
from batchnorm.kernels import _numba_inverse as undo
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels import _numba_row_general as row_general
from batchnorm.kernels._numba_math import ELU, mapping, summing
from batchnorm.kernels._numba_memory import TILE, at, constant, constant_size, read, store
from batchnorm.kernels._numba_scalar import centre, fit
from batchnorm.kernels._numba_segments import bounds, offsets

RUN = 256  # elements summed between questions for those to come


@summing
def _sum(y: Any, dy: Any, n: Any, words: Any, slopes: Any, inverse: Any, tag: Any) -> Any:
    high, low = words
    s = q = zero = fit(0.0, tag)
    one = fit(1.0, tag)
    for j in range(n):
        z, slope = inverse(read(y, j, tag), slopes[0], slopes[1], zero, one)
        g = slope * read(dy, j, tag)
        s += g
        q += g * centre(z, high, low, tag)
    return s, q


@mapping
def _in_words(bias: Any, parameter: Any, tag: Any) -> Any:
    """The bias in two words where one is not enough; the slope and its inverse."""
    high = fit(bias, tag)
    return (high, fit(bias - high, tag)), (fit(parameter, tag), fit(1 / parameter, tag))


@mapping
def planar_reduce(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """Add a part's sums of g and ``g (z - bias)``; the bias stands where the mean does."""
    o, i, count, n = bounds(p, part)
    far, hop = ahead.far(p, ahead.FAR, tag), ahead.hop(p, count, n)
    for b in range(channels):
        words, slopes = _in_words(constants.line_of(w, b)[0], p.slope, tag)
        first, s, q = offsets(p, o, c + b, i, tag), 0.0, 0.0
        for k in range(count):
            for start in range(0, n, RUN):
                m = min(RUN, n - start)
                y, _, dy, _, _, _ = offsets(p, o + k, c + b, i + start, tag)
                if far:
                    later = ahead.after(first[0], p.x_outer, p.x_channel, k, hop, tag)
                    ahead.fetch(at(later, start, tag), m, tag)
                    later = ahead.after(first[2], p.dy_outer, p.dy_channel, k, hop, tag)
                    ahead.fetch(at(later, start, tag), m, tag)
                if p.activation == ELU:
                    ds, dq = _sum(y, dy, m, words, slopes, undo.elu, tag)
                else:
                    ds, dq = _sum(y, dy, m, words, slopes, undo.bend, tag)
                s, q = s + ds, q + dq
        constants.add_to(w, b, 0.0, s, q)


@mapping
def _write(
    y: Any, dy: Any, dx: Any, n: Any, words: Any, slopes: Any, pull: Any, inverse: Any, tag: Any
) -> None:
    """``dx = scale g - (a + b xhat)`` with ``pull = (scale, a, b / weight)``."""
    high, low = words
    scale, a, b = fit(pull[0], tag), fit(pull[1], tag), fit(pull[2], tag)
    zero, one = fit(0.0, tag), fit(1.0, tag)
    for j in range(n):
        z, slope = inverse(read(y, j, tag), slopes[0], slopes[1], zero, one)
        g = slope * read(dy, j, tag)
        store(dx, j, scale * g - (a + b * centre(z, high, low, tag)), tag)


@mapping
def planar_spread(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """A part's gradient of x."""
    o, i, count, n = bounds(p, part)
    for k in range(count):
        for b in range(channels):
            (bias, scale, _), (first, second, unit) = (
                constants.line_of(w, b),
                constants.pull_of(w, b),
            )
            words, slopes = _in_words(bias, p.slope, tag)
            pull = (scale, first, second * unit)
            y, _, dy, dx, _, _ = offsets(p, o + k, c + b, i, tag)
            if p.activation == ELU:
                _write(y, dy, dx, n, words, slopes, pull, undo.elu, tag)
            else:
                _write(y, dy, dx, n, words, slopes, pull, undo.bend, tag)


@summing
def _sum_row(
    y: Any, dy: Any, n: Any, v: Any, f: Any, slopes: Any, s: Any, q: Any, inverse: Any, tag: Any
) -> None:
    zero, one = fit(0.0, tag), fit(1.0, tag)
    for j in range(n):
        z, slope = inverse(read(y, j, tag), slopes[0], slopes[1], zero, one)
        g = slope * read(dy, j, tag)
        d = centre(z, constant(v, j, tag), constant(v, j + rows.LOW * f, tag), tag)
        s[j] += g
        q[j] += g * d


@mapping
def _write_row(
    y: Any, dy: Any, dx: Any, n: Any, v: Any, f: Any, slopes: Any, inverse: Any, tag: Any
) -> None:
    zero, one = fit(0.0, tag), fit(1.0, tag)
    for j in range(n):
        z, slope = inverse(read(y, j, tag), slopes[0], slopes[1], zero, one)
        d = centre(z, constant(v, j, tag), constant(v, j + rows.LOW * f, tag), tag)
        g = slope * read(dy, j, tag)
        pull = row_general.pulled(d, j, v, f, tag)
        store(dx, j, constant(v, j + rows.SCALE * f, tag) * g - pull, tag)


@mapping
def rows_reduce(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's sums of g and ``g (z - bias)``; the bias stands where the mean does."""
    first, stop = blocks.block(p, part)
    _, slopes = _in_words(0.0, p.slope, tag)
    s, q = work[1][1], work[1][2]
    blocks.clear(p, part)
    far = ahead.far(p, ahead.FAR_ROWS, tag)
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        work[1][1:3] = 0.0
        for row in range(first, stop):
            y, _, dy, _, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if far:
                ahead.fetch(at(y, ahead.ROWS * p.joined * p.x_outer, tag), n, tag)
                ahead.fetch(at(dy, ahead.ROWS * p.joined * p.dy_outer, tag), n, tag)
            if p.activation == ELU:
                _sum_row(y, dy, n, v, p.columns, slopes, s, q, undo.elu, tag)
            else:
                _sum_row(y, dy, n, v, p.columns, slopes, s, q, undo.bend, tag)
        blocks.add_up(p, part, 1, start, work[1][1])
        blocks.add_up(p, part, 2, start, work[1][2])


@mapping
def rows_spread(p: Any, part: Any, work: Any, tag: Any) -> None:
    """A block's gradient of x."""
    first, stop = blocks.block(p, part)
    _, slopes = _in_words(0.0, p.slope, tag)
    far = ahead.far(p, ahead.FAR_AGAIN, tag)
    for start in range(0, p.columns, TILE):
        v = p.scratch + constant_size(tag) * start
        for row in range(stop - 1, first - 1, -1):
            y, _, dy, dx, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if far:
                ahead.fetch(at(y, -ahead.ROWS * p.joined * p.x_outer, tag), n, tag)
                ahead.fetch(at(dy, -ahead.ROWS * p.joined * p.dy_outer, tag), n, tag)
            if p.activation == ELU:
                _write_row(y, dy, dx, n, v, p.columns, slopes, undo.elu, tag)
            else:
                _write_row(y, dy, dx, n, v, p.columns, slopes, undo.bend, tag)
