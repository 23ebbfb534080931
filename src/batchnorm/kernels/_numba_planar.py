"""Channels whose values lie in contiguous segments (NCL, NCHW, NCDHW): a channel at a time.

A channel stays in the cache between the pass that sums and the pass that writes, which goes
backwards to begin with what was read last. Where there are too few channels for the threads, the
parts of a channel are summed as tasks of their own: phase 0 does whole channels, or 1 sums parts,
2 adds them up and 3 writes. Either way the same sums are added in the same order.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_loops as loops
from batchnorm.kernels._numba_call import (
    constants,
    pulls,
    put_moments,
    put_sums,
    shift_of,
)
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import TILE, WIDE, fence, load, put
from batchnorm.kernels._numba_segments import ahead, bounds, following, offsets


@mapping
def measure(p: Any, c: Any, part: Any, shift: Any, tag: Any) -> Any:
    """How many values a part holds, and their sums."""
    o, i, left = bounds(p, part)
    count = float(max(left, 0))
    s = q = 0.0
    while left > 0:
        n = min(p.inner - i, left)
        x = offsets(p, o, c, i, tag)[0]
        ahead(p, o, x, p.x_outer, tag)
        ds, dq = loops.measure(x, n, shift, tag)
        s, q = s + ds, q + dq
        o, i, left = following(p, o, i, left, n)
    return count, s, q


@mapping
def measure_weighted(p: Any, c: Any, part: Any, shift: Any, tag: Any) -> Any:
    """As `measure`, under a mask if there is one."""
    if p.weights == 0:
        return measure(p, c, part, shift, tag)
    o, i, left = bounds(p, part)
    count = s = q = 0.0
    while left > 0:
        n = min(p.inner - i, left)
        x, _, _, _, _, w = offsets(p, o, c, i, tag)
        more, ds, dq = loops.measure_weighted(x, w, n, shift, tag)
        count, s, q = count + more, s + ds, q + dq
        o, i, left = following(p, o, i, left, n)
    return count, s, q


@mapping
def write(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a part, with an activation that is a bend."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, left = bounds(p, part)
    tile = work[0].ctypes.data
    most = p.inner if p.streams == 0 else TILE
    while left > 0:
        n = min(p.inner - i, left, most)
        x, r, _, y, _, _ = offsets(p, o, c, i, tag)
        target = tile if p.streams else y
        if r:
            loops.normalize_add(x, r, target, n, line, p.relu, p.slope, tag)
        else:
            loops.normalize(x, target, n, line, p.relu, p.slope, tag)
        if p.streams:
            loops.stream(tile, y, n, tag)
        o, i, left = following(p, o, i, left, n)
    if p.streams:
        fence()


@mapping
def write_general(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """Normalize a part, with any activation and mask."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, left = bounds(p, part)
    while left > 0:
        n = min(p.inner - i, left, TILE)
        x, r, _, y, _, w = offsets(p, o, c, i, tag)
        loops.line_up(x, n, line, work[0], tag)
        loops.complete(work[0], n, r, w, y, p.activation, p.slope, tag)
        o, i, left = following(p, o, i, left, n)


@mapping
def forward(p: Any, phase: Any, task: Any, work: Any, tag: Any, measure: Any, write: Any) -> None:
    """One task of statistics and normalization, by the functions given for a part."""
    c = task if phase == 0 or phase == 2 else task // p.parts
    part = task - c * p.parts
    shift = shift_of(p, c, tag) if p.measure else 0.0
    if phase == 1:
        if p.measure:
            n, s, q = measure(p, c, part, shift, tag)
            put(p.scratch, 3 * task, n, WIDE)
            put(p.scratch, 3 * task + 1, s, WIDE)
            put(p.scratch, 3 * task + 2, q, WIDE)
        return
    if phase != 3 and p.measure:
        n = s = q = 0.0
        for k in range(p.parts):
            if phase == 0:
                dn, ds, dq = measure(p, c, k, shift, tag)
            else:
                there = p.scratch + 24 * (c * p.parts + k)
                dn, ds, dq = load(there, 0, WIDE), load(there, 1, WIDE), load(there, 2, WIDE)
            n, s, q = n + dn, s + ds, q + dq
        put_moments(p, c, shift, n, s, q)
    if p.out and phase != 2:
        first, last = (0, p.parts) if phase == 0 else (part, part + 1)
        for k in range(last - 1, first - 1, -1):
            write(p, c, k, work, tag)


@mapping
def reduce(p: Any, c: Any, part: Any, work: Any, tag: Any) -> Any:
    """A part's sums of g and ``g xhat``, with an activation that is a bend."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, left = bounds(p, part)
    s = q = 0.0
    while left > 0:
        n = min(p.inner - i, left)
        x, r, dy, _, _, _ = offsets(p, o, c, i, tag)
        ahead(p, o, x, p.x_outer, tag)
        ahead(p, o, dy, p.dy_outer, tag)
        ds, dq = loops.reduce(x, r, dy, n, line, p.slope, tag)
        s, q = s + ds, q + dq
        o, i, left = following(p, o, i, left, n)
    return s, q * invstd


@mapping
def reduce_general(p: Any, c: Any, part: Any, work: Any, tag: Any) -> Any:
    """As `reduce`, with any activation and mask."""
    mean, invstd, weight, bias = constants(p, c)
    line = (mean, invstd * weight, bias)
    o, i, left = bounds(p, part)
    s = q = 0.0
    while left > 0:
        n = min(p.inner - i, left, TILE)
        x, r, dy, _, _, w = offsets(p, o, c, i, tag)
        loops.line_up(x, n, line, work[0], tag)
        loops.to_gradient(work[0], n, r, dy, w, p.activation, p.slope, tag)
        ds, dq = loops.reduce_gradient(x, work[0], w, n, mean, tag)
        s, q = s + ds, q + dq
        o, i, left = following(p, o, i, left, n)
    return s, q * invstd


@mapping
def spread(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """A part's gradient of x, and of the residual if there is one."""
    mean, invstd, weight, bias = constants(p, c)
    line, pull = (mean, invstd * weight, bias), pulls(p, c)
    o, i, left = bounds(p, part)
    tile = work[0].ctypes.data
    most = p.inner if p.streams == 0 else TILE
    while left > 0:
        n = min(p.inner - i, left, most)
        x, r, dy, dx, dr, _ = offsets(p, o, c, i, tag)
        target = tile if p.streams else dx
        if r:
            loops.spread_add(x, r, dy, target, dr, n, line, pull, p.slope, tag)
        else:
            loops.spread(x, dy, target, n, line, pull, p.slope, tag)
        if p.streams:
            loops.stream(tile, dx, n, tag)
        o, i, left = following(p, o, i, left, n)
    if p.streams:
        fence()


@mapping
def spread_general(p: Any, c: Any, part: Any, work: Any, tag: Any) -> None:
    """As `spread`, with any activation and mask, and only those gradients that are wanted."""
    mean, invstd, weight, bias = constants(p, c)
    line, pull = (mean, invstd * weight, bias), pulls(p, c)
    o, i, left = bounds(p, part)
    while left > 0:
        n = min(p.inner - i, left, TILE)
        x, r, dy, dx, dr, w = offsets(p, o, c, i, tag)
        loops.line_up(x, n, line, work[0], tag)
        loops.to_gradient(work[0], n, r, dy, w, p.activation, p.slope, tag)
        if dx:
            loops.spread_gradient(x, work[0], w, dx, n, line, pull, tag)
        if dr:
            loops.store_gradient(work[0], dr, n, tag)
        o, i, left = following(p, o, i, left, n)


@mapping
def backward(p: Any, phase: Any, task: Any, work: Any, tag: Any, reduce: Any, spread: Any) -> None:
    """One task of a channel's sums and of the gradients, by the functions given for a part."""
    c = task if phase == 0 or phase == 2 else task // p.parts
    part = task - c * p.parts
    if phase == 1:
        if p.measure:
            s, q = reduce(p, c, part, work, tag)
            put(p.scratch, 2 * task, s, WIDE)
            put(p.scratch, 2 * task + 1, q, WIDE)
        return
    if phase != 3 and p.measure:
        s = q = 0.0
        for k in range(p.parts):
            if phase == 0:
                ds, dq = reduce(p, c, k, work, tag)
            else:
                there = p.scratch + 16 * (c * p.parts + k)
                ds, dq = load(there, 0, WIDE), load(there, 1, WIDE)
            s, q = s + ds, q + dq
        put_sums(p, c, s, q)
    if phase != 2 and (p.out or p.out_residual):
        first, last = (0, p.parts) if phase == 0 else (part, part + 1)
        for k in range(last - 1, first - 1, -1):
            spread(p, c, k, work, tag)


@mapping
def tasks(p: Any, phase: Any) -> Any:
    """How many tasks a phase has."""
    return p.channels if phase == 0 or phase == 2 else p.channels * p.parts
