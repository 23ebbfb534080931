"""Parts of channels that lie in contiguous segments (NCL, NCHW, NCDHW): summed and written."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_ahead as ahead
from batchnorm.kernels import _numba_general as general
from batchnorm.kernels import _numba_segment_outputs as outputs
from batchnorm.kernels import _numba_segment_sums as sums
from batchnorm.kernels import _numba_segments as segments
from batchnorm.kernels._numba_call import constants, pulls
from batchnorm.kernels._numba_machine import fence
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import TILE, at

WHOLE = 4096  # bytes: of so many, those of broken lines do not count


@mapping
def measure(p: Any, c: Any, part: Any, shift: Any, work: Any, tag: Any) -> Any:
    """How many values a part holds, and their sums."""
    o, i, count, n = segments.bounds(p, part)
    x, far = segments.inputs(p, o, c, i, tag)[0], ahead.far(p, ahead.FAR, tag)
    s, q = sums.measure(p, x, count, n, shift, far, tag)
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
    line = (mean, invstd * weight, bias)
    o, i, count, n = segments.bounds(p, part)
    x, r, _ = segments.inputs(p, o, c, i, tag)
    y, _ = segments.outputs(p, o, c, i, tag)
    asks = ahead.far(p, ahead.FAR, tag)  # for the residual: statistics did not need it
    streams = _streams(p, n, tag)
    outputs.normalize(p, x, r, y, count, n, line, asks, streams, tag)
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
    x, r, dy = segments.inputs(p, o, c, i, tag)
    s, q = sums.reduce(p, x, r, dy, count, n, line, ahead.far(p, ahead.FAR, tag), tag)
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
    o, i, count, n = segments.bounds(p, part)
    x, r, dy = segments.inputs(p, o, c, i, tag)
    dx, dr = segments.outputs(p, o, c, i, tag)
    streams = _streams(p, n, tag)
    outputs.spread(p, x, r, dy, dx, dr, count, n, line, pull, streams, tag)
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
