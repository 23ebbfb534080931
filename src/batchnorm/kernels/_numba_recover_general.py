"""The backward pass from the output for ELU, whose inverse is a logarithm: in plain loops.

LLVM makes vectors of them. ``z = f^-1(y)``, ``xhat = (z - bias) / weight``; f' comes from y too.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_ahead as ahead
from batchnorm.kernels import _numba_constants as constants
from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_row_columns as columns
from batchnorm.kernels import _numba_row_general as row_general
from batchnorm.kernels._numba_inverse import elu
from batchnorm.kernels._numba_math import mapping, summing
from batchnorm.kernels._numba_memory import TILE, at, constant, read, store
from batchnorm.kernels._numba_scalar import centre, fit
from batchnorm.kernels._numba_segments import bounds, offsets

RUN = 256  # elements summed between questions for those to come
ROWS = 8  # rows of channels, of up to `TILE` elements, that are asked for ahead


@summing
def _sum(y: Any, dy: Any, n: Any, words: Any, alphas: Any, tag: Any) -> Any:
    high, low = words
    s = q = zero = fit(0.0, tag)
    one = fit(1.0, tag)
    for j in range(n):
        z, slope = elu(read(y, j, tag), alphas[0], alphas[1], zero, one)
        g = slope * read(dy, j, tag)
        s += g
        q += g * centre(z, high, low, tag)
    return s, q


@mapping
def _in_words(bias: Any, alpha: Any, tag: Any) -> Any:
    """The bias in two words where one is not enough; alpha and its inverse."""
    high = fit(bias, tag)
    return (high, fit(bias - high, tag)), (fit(alpha, tag), fit(1 / alpha, tag))


@mapping
def planar_reduce(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """Add a part's sums of g and ``g (z - bias)``; the bias stands where the mean does."""
    o, i, count, n = bounds(p, part)
    far, hop = ahead.far(p, ahead.FAR, tag), ahead.hop(p, count, n)
    for b in range(channels):
        words, alphas = _in_words(constants.line_of(w, b)[0], p.slope, tag)
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
                ds, dq = _sum(y, dy, m, words, alphas, tag)
                s, q = s + ds, q + dq
        constants.add_to(w, b, 0.0, s, q)


@mapping
def _write(y: Any, dy: Any, dx: Any, n: Any, words: Any, alphas: Any, pull: Any, tag: Any) -> None:
    """``dx = scale g - (a + b xhat)`` with ``pull = (scale, a, b / weight)``."""
    high, low = words
    scale, a, b = fit(pull[0], tag), fit(pull[1], tag), fit(pull[2], tag)
    zero, one = fit(0.0, tag), fit(1.0, tag)
    for j in range(n):
        z, slope = elu(read(y, j, tag), alphas[0], alphas[1], zero, one)
        g = slope * read(dy, j, tag)
        store(dx, j, scale * g - (a + b * centre(z, high, low, tag)), tag)


@mapping
def planar_spread(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """A part's gradient of x."""
    o, i, count, n = bounds(p, part)
    for k in range(count):
        for b in range(channels):
            (bias, scale, _), (first, second, unit) = (
                constants.line_of(w, b),
                constants.pull_of(w, b),
            )
            words, alphas = _in_words(bias, p.slope, tag)
            y, _, dy, dx, _, _ = offsets(p, o + k, c + b, i, tag)
            _write(y, dy, dx, n, words, alphas, (scale, first, second * unit), tag)


@mapping
def _centred(y: Any, j: Any, v: Any, alphas: Any, tag: Any) -> Any:
    """``z - bias`` at column j, and the slope there."""
    z, slope = elu(read(y, j, tag), alphas[0], alphas[1], fit(0.0, tag), fit(1.0, tag))
    return centre(
        z, constant(v, j, tag), constant(v, j + columns.LOW * columns.STRIDE, tag), tag
    ), slope


@summing
def _sum_row(y: Any, dy: Any, n: Any, v: Any, alphas: Any, s: Any, q: Any, tag: Any) -> None:
    for j in range(n):
        d, slope = _centred(y, j, v, alphas, tag)
        g = slope * read(dy, j, tag)
        s[j] += g
        q[j] += g * d


@mapping
def _write_row(y: Any, dy: Any, dx: Any, n: Any, v: Any, alphas: Any, tag: Any) -> None:
    for j in range(n):
        d, slope = _centred(y, j, v, alphas, tag)
        g = slope * read(dy, j, tag)
        pull = row_general.pulled(d, j, v, tag)
        store(dx, j, constant(v, j + columns.SCALE * columns.STRIDE, tag) * g - pull, tag)


@mapping
def rows_reduce(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """A block's sums of g and ``g (z - bias)``; the bias stands where the mean does."""
    first, stop = blocks.block(p, part)
    _, alphas = _in_words(0.0, p.slope, tag)
    s, q = work[1][1], work[1][2]
    blocks.clear(p, part)
    far = ahead.far(p, ahead.FAR_ROWS, tag)
    for start in range(0, p.columns, TILE):
        v = columns.tile(p, start, tag)
        work[1][1:3] = 0.0
        for row in range(first, stop):
            y, _, dy, _, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if far:
                ahead.fetch(at(y, ROWS * p.joined * p.x_outer, tag), n, tag)
                ahead.fetch(at(dy, ROWS * p.joined * p.dy_outer, tag), n, tag)
            _sum_row(y, dy, n, v, alphas, s, q, tag)
        blocks.add_up(p, part, 1, start, work[1][1])
        blocks.add_up(p, part, 2, start, work[1][2])


@mapping
def rows_spread(p: Any, part: Any, work: Any, kind: Any, tag: Any) -> None:
    """A block's gradient of x."""
    first, stop = blocks.block(p, part)
    _, alphas = _in_words(0.0, p.slope, tag)
    far = ahead.far(p, ahead.FAR_AGAIN, tag)
    for start in range(0, p.columns, TILE):
        v = columns.tile(p, start, tag)
        for row in range(stop - 1, first - 1, -1):
            y, _, dy, dx, _ = blocks.addresses(p, row, start, tag)
            n = blocks.length(p, row, start)
            if far:
                ahead.fetch(at(y, -ROWS * p.joined * p.x_outer, tag), n, tag)
                ahead.fetch(at(dy, -ROWS * p.joined * p.dy_outer, tag), n, tag)
            _write_row(y, dy, dx, n, v, alphas, tag)
