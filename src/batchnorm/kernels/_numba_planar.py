"""Parts of channels that lie in contiguous segments (NCL, NCHW, NCDHW): summed and written."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_ahead as ahead
from batchnorm.kernels import _numba_general as general
from batchnorm.kernels import _numba_long as long
from batchnorm.kernels import _numba_loops as loops
from batchnorm.kernels import _numba_segments as segments
from batchnorm.kernels._numba_call import (
    bends,
    constants,
    pulls,
)
from batchnorm.kernels._numba_machine import fence
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import TILE, at

WHOLE = 4096  # bytes: of so many, those of broken lines do not count


@mapping
def measure(p: Any, c: Any, part: Any, shift: Any, work: Any, tag: Any) -> Any:
    """How many values a part holds, and their sums."""
    o, i, count, n = segments.bounds(p, part)
    x, step = segments.offsets(p, o, c, i, tag)[0], p.x_outer
    s = q = 0.0
    if n <= segments.SHORT:
        far = ahead.far(p, ahead.FAR, tag)
        s, q = segments.measure(p, x, step, p.x_channel, count, n, shift, far, work, tag)
    elif ahead.far(p, ahead.FAR, tag):
        s, q = long.measure(p, x, step, p.x_channel, count, n, shift, work, tag)
    else:
        for k in range(count):
            ds, dq = loops.measure(at(x, k * step, tag), n, shift, tag)
            s, q = s + ds, q + dq
    return float(count * n), s, q


@mapping
def measure_weighted(p: Any, c: Any, part: Any, shift: Any, work: Any, tag: Any) -> Any:
    """As `measure`, under a mask if there is one."""
    if p.weights == 0:
        return measure(p, c, part, shift, work, tag)
    o, i, count, n = segments.bounds(p, part)
    total = s = q = 0.0
    for k in range(count):
        x, _, _, _, _, w = segments.offsets(p, o + k, c, i, tag)
        more, ds, dq = general.measure_weighted(x, w, n, shift, tag)
        total, s, q = total + more, s + ds, q + dq
    return total, s, q


@mapping
def _streams(p: Any, n: Any, tag: Any) -> Any:
    """Whether a part goes past the caches: in whole lines, or with few that are not."""
    size = at(64, n, tag) - 64
    return p.streams != 0 and (size % 64 == 0 or size >= WHOLE)


@mapping
def write(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a part, with an activation that is a bend."""
    mean, invstd, weight, bias = constants(p, c)
    line, bent = (mean, invstd * weight, bias), bends(p, tag)
    o, i, count, n = segments.bounds(p, part)
    streams = _streams(p, n, tag)
    if not streams and p.residual == 0:
        x, _, _, y, _, _ = segments.offsets(p, o, c, i, tag)
        loops.normalize(x, p.x_outer, y, p.channels * p.inner, count, n, line, bent, tag)
        return
    tile, far = work[0].ctypes.data, ahead.far(p, ahead.FAR, tag)
    first = segments.offsets(p, o, c, i, tag)[1]
    most = TILE // 2 if streams or far else max(n, 1)
    for k in range(count - 1, -1, -1):
        for start in range(0, n, most):
            m = min(most, n - start)
            x, r, _, y, _, _ = segments.offsets(p, o + k, c, i + start, tag)
            target = tile if streams else y
            if r:
                if far:  # statistics did not need it
                    before = ahead.segment_before(
                        p, first, p.residual_outer, p.residual_channel, k, count, n, tag
                    )
                    ahead.fetch(at(before, start, tag), m, tag)
                loops.normalize_add(x, r, target, m, line, bent, tag)
            else:
                loops.normalize(x, 0, target, 0, 1, m, line, bent, tag)
            if streams:
                loops.stream(tile, y, m, tag)
    if streams:
        fence()


@mapping
def write_general(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a part, with any activation and mask."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, count, n = segments.bounds(p, part)
    for k in range(count):
        for start in range(0, n, TILE):
            m = min(TILE, n - start)
            x, r, _, y, _, w = segments.offsets(p, o + k, c, i + start, tag)
            general.line_up(x, m, line, work[0], tag)
            general.complete(work[0], m, r, w, y, p.activation, p.slope, tag)


@mapping
def reduce(p: Any, c: Any, part: Any, work: Any, tag: Any) -> Any:
    """A part's sums of g and ``g xhat``, with an activation that is a bend."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, count, n = segments.bounds(p, part)
    x, r, dy, _, _, _ = segments.offsets(p, o, c, i, tag)
    xs, rs, dys = p.x_outer, p.residual_outer, p.dy_outer
    xb, dyb, bent, far = p.x_channel, p.dy_channel, bends(p, tag), ahead.far(p, ahead.FAR, tag)
    s = q = 0.0
    if n <= segments.SHORT and r == 0:
        s, q = segments.reduce(p, x, xs, xb, dy, dys, dyb, count, n, line, bent, far, work, tag)
    elif far and r == 0:
        s, q = long.reduce(p, x, xs, xb, dy, dys, dyb, count, n, line, bent, work, tag)
    elif far:
        s, q = long.reduce_add(
            p, x, xs, xb, r, rs, p.residual_channel, dy, dys, dyb, count, n, line, bent, tag
        )
    else:
        for k in range(count):
            here, there = at(x, k * xs, tag), at(dy, k * dys, tag)
            ds, dq = loops.reduce(here, at(r, k * rs, tag), there, n, line, bent, tag)
            s, q = s + ds, q + dq
    return s, q * invstd


@mapping
def reduce_general(p: Any, c: Any, part: Any, work: Any, tag: Any) -> Any:
    """As `reduce`, with any activation and mask."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, count, n = segments.bounds(p, part)
    s = q = 0.0
    for k in range(count):
        for start in range(0, n, TILE):
            m = min(TILE, n - start)
            x, r, dy, _, _, w = segments.offsets(p, o + k, c, i + start, tag)
            general.line_up(x, m, line, work[0], tag)
            general.to_gradient(work[0], m, r, dy, w, p.activation, p.slope, tag)
            ds, dq = general.reduce_gradient(x, work[0], w, m, mean, tag)
            s, q = s + ds, q + dq
    return s, q * invstd


@mapping
def spread(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """A part's gradient of x, and of the residual if there is one."""
    mean, invstd, weight, bias = constants(p, c)
    line, pull = (mean, invstd * weight, bias), pulls(p, c, invstd, weight)
    bent = bends(p, tag)
    o, i, count, n = segments.bounds(p, part)
    streams = _streams(p, n, tag)
    if not streams and p.residual == 0:
        x, _, dy, dx, _, _ = segments.offsets(p, o, c, i, tag)
        steps = p.channels * p.inner
        loops.spread(x, p.x_outer, dy, p.dy_outer, dx, steps, count, n, line, pull, bent, tag)
        return
    tile = work[0].ctypes.data
    most = TILE // 2 if streams else max(n, 1)
    for k in range(count - 1, -1, -1):
        for start in range(0, n, most):
            m = min(most, n - start)
            x, r, dy, dx, dr, _ = segments.offsets(p, o + k, c, i + start, tag)
            target, of_r = (tile, at(tile, most, tag)) if streams else (dx, dr)
            if r:
                loops.spread_add(x, r, dy, target, of_r, m, line, pull, bent, tag)
            else:
                loops.spread(x, 0, dy, 0, target, 0, 1, m, line, pull, bent, tag)
            if streams:
                loops.stream(tile, dx, m, tag)
            if streams and r:
                loops.stream(of_r, dr, m, tag)
    if streams:
        fence()


@mapping
def spread_general(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """As `spread`, with any activation and mask, and only those gradients that are wanted."""
    mean, invstd, weight, bias = constants(p, c)
    line, pull = (mean, invstd * weight, bias), pulls(p, c, invstd, weight)
    o, i, count, n = segments.bounds(p, part)
    for k in range(count):
        for start in range(0, n, TILE):
            m = min(TILE, n - start)
            x, r, dy, dx, dr, w = segments.offsets(p, o + k, c, i + start, tag)
            general.line_up(x, m, line, work[0], tag)
            general.to_gradient(work[0], m, r, dy, w, p.activation, p.slope, tag)
            if dx:
                general.spread_gradient(x, work[0], w, dx, m, line, pull, tag)
            if dr:
                general.store_gradient(work[0], dr, m, tag)
