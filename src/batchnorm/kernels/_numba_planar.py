"""Parts of channels that lie in contiguous segments (NCL, NCHW, NCDHW): summed and written.

All functions do some channels from c on, of which w is the address of the constants.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_ahead as ahead
from batchnorm.kernels import _numba_constants as constants
from batchnorm.kernels import _numba_general as general
from batchnorm.kernels import _numba_segment_gradients as gradients
from batchnorm.kernels import _numba_segment_normal as normal
from batchnorm.kernels import _numba_segment_sums as sums
from batchnorm.kernels import _numba_segments as segments
from batchnorm.kernels._numba_machine import fence
from batchnorm.kernels._numba_math import mapping, steering
from batchnorm.kernels._numba_memory import TILE, at

WHOLE = 4096  # bytes: of so many, those of broken lines do not count


@mapping
def measure(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """Add a part's count and sums, for some channels from c on."""
    o, i, count, n = segments.bounds(p, part)
    x, far = segments.inputs(p, o, c, i, tag)[0], ahead.far(p, ahead.FAR, tag)
    sums.measure(p, x, channels, count, n, w, far, tag)


@mapping
def measure_weighted(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, tag: Any) -> None:
    """As `measure`, under a mask if there is one."""
    if p.weights == 0:
        measure(p, c, channels, part, w, work, tag)
        return
    o, i, count, n = segments.bounds(p, part)
    for b in range(channels):
        shift, total, s, q = constants.shift_of(w, b), 0.0, 0.0, 0.0
        for k in range(count):
            x, _, _, _, _, weights = segments.offsets(p, o + k, c + b, i, tag)
            more, ds, dq = general.measure_weighted(x, weights, n, shift, tag)
            total, s, q = total + more, s + ds, q + dq
        constants.add_to(w, b, total, s, q)


@mapping
def _streams(p: Any, n: Any, tag: Any) -> Any:
    """Whether a part goes past the caches: in whole lines, or with few that are not."""
    size = at(64, n, tag) - 64
    return p.streams != 0 and (size % 64 == 0 or size >= WHOLE)


@steering
def write(p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any) -> None:
    """Normalize a part, with an activation that is a bend."""
    o, i, count, n = segments.bounds(p, part)
    x, r, _ = segments.inputs(p, o, c, i, tag)
    y, _ = segments.outputs(p, o, c, i, tag)
    streams = _streams(p, n, tag)
    normal.normalize(p, x, r, y, channels, count, n, w, streams, kind, tag)
    if streams:
        fence()


@mapping
def write_general(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """Normalize a part, with any activation and mask."""
    o, i, count, n = segments.bounds(p, part)
    for k in range(count):
        for b in range(channels):
            line = constants.line_of(w, b)
            for start in range(0, n, TILE):
                m = min(TILE, n - start)
                x, r, _, y, _, weights = segments.offsets(p, o + k, c + b, i + start, tag)
                general.line_up(x, m, line, work[0], tag)
                general.complete(work[0], m, r, weights, y, p.activation, p.slope, tag)


@steering
def reduce(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """Add a part's sums of g and ``g (x - mean)``, with an activation that is a bend."""
    o, i, count, n = segments.bounds(p, part)
    x, r, dy = segments.inputs(p, o, c, i, tag)
    far = ahead.far(p, ahead.FAR, tag)
    sums.reduce(p, x, r, dy, channels, count, n, w, far, kind, tag)


@mapping
def reduce_general(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """As `reduce`, with any activation and mask."""
    o, i, count, n = segments.bounds(p, part)
    for b in range(channels):
        line, s, q = constants.line_of(w, b), 0.0, 0.0
        for k in range(count):
            for start in range(0, n, TILE):
                m = min(TILE, n - start)
                x, r, dy, _, _, weights = segments.offsets(p, o + k, c + b, i + start, tag)
                general.line_up(x, m, line, work[0], tag)
                general.to_gradient(work[0], m, r, dy, weights, p.activation, p.slope, tag)
                ds, dq = general.reduce_gradient(x, work[0], weights, m, line[0], tag)
                s, q = s + ds, q + dq
        constants.add_to(w, b, 0.0, s, q)


@steering
def spread(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """A part's gradients of x and of a residual, with an activation that is a bend."""
    o, i, count, n = segments.bounds(p, part)
    x, r, dy = segments.inputs(p, o, c, i, tag)
    dx, dr = segments.outputs(p, o, c, i, tag)
    streams = _streams(p, n, tag)
    gradients.spread(p, x, r, dy, dx, dr, channels, count, n, w, streams, kind, tag)
    if streams:
        fence()


@mapping
def spread_general(
    p: Any, c: Any, channels: Any, part: Any, w: Any, work: Any, kind: Any, tag: Any
) -> None:
    """As `spread`, with any activation and mask, and only those gradients that are wanted."""
    o, i, count, n = segments.bounds(p, part)
    for k in range(count):
        for b in range(channels):
            line, pull = constants.line_of(w, b), constants.pull_of(w, b)
            for start in range(0, n, TILE):
                m = min(TILE, n - start)
                x, r, dy, dx, dr, weights = segments.offsets(p, o + k, c + b, i + start, tag)
                general.line_up(x, m, line, work[0], tag)
                general.to_gradient(work[0], m, r, dy, weights, p.activation, p.slope, tag)
                if dx:
                    general.spread_gradient(x, work[0], weights, dx, m, line, pull, tag)
                if dr:
                    general.store_gradient(work[0], dr, m, tag)
