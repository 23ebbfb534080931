"""Segments of one channel: where they lie, and sums over many short ones."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_loops import in_words
from batchnorm.kernels._numba_machine import prefetch
from batchnorm.kernels._numba_math import bend_back, mapping, summing
from batchnorm.kernels._numba_memory import WIDE, at, read
from batchnorm.kernels._numba_scalar import centre, fit

SHORT = 256  # elements: adding up each segment by itself would cost as much as reading it
UNSEEN = 1024  # elements: below this, hardware sees no stream to fetch ahead of
AHEAD = 4  # segments: 2 and 8 are slower


@mapping
def bounds(p: Any, part: Any) -> Any:
    """Where a part begins (outer and inner), how many segments it has, and their length."""
    if p.inner == 0:
        return 0, 0, 0, 0
    if p.inner <= p.span:
        each = p.span // p.inner
        return part * each, 0, min(each, p.outer - part * each), p.inner
    pieces = (p.inner + p.span - 1) // p.span
    o = part // pieces
    i = (part - o * pieces) * p.span
    return o, i, 1, min(p.span, p.inner - i)


@mapping
def offsets(p: Any, o: Any, c: Any, i: Any, tag: Any) -> Any:
    """Addresses of x, residual, dy, out, the residual's gradient and the weights."""
    written = (o * p.channels + c) * p.inner + i
    return (
        at(p.x, o * p.x_outer + c * p.x_channel + i, tag),
        at(p.residual, o * p.residual_outer + c * p.residual_channel + i, tag),
        at(p.dy, o * p.dy_outer + c * p.dy_channel + i, tag),
        at(p.out, written, tag),
        at(p.out_residual, written, tag),
        at(p.weights, o * p.inner + i, WIDE),
    )


@mapping
def ahead(x: Any, k: Any, step: Any, count: Any, n: Any, tag: Any) -> None:
    """Fetch a segment that comes later than the k-th: 7 x 7 images take 20 % less time."""
    if n < UNSEEN and k + AHEAD < count:
        start = at(x, (k + AHEAD) * step, tag)
        for byte in range(0, at(start, n, tag) - start, 64):
            prefetch(start + byte)


@summing
def _measure(x: Any, step: Any, n: Any, shift: Any, s: Any, q: Any, tag: Any) -> None:
    """Add four segments, `step` elements apart, to sums of their columns."""
    for j in range(n):
        d0 = read(x, j, tag) - shift
        d1 = read(x, j + step, tag) - shift
        d2 = read(x, j + 2 * step, tag) - shift
        d3 = read(x, j + 3 * step, tag) - shift
        s[j] += (d0 + d1) + (d2 + d3)
        q[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@summing
def _measure_one(x: Any, n: Any, shift: Any, s: Any, q: Any, tag: Any) -> None:
    for j in range(n):
        d = read(x, j, tag) - shift
        s[j] += d
        q[j] += d * d


@summing
def _total(s: Any, q: Any, n: Any) -> Any:
    first = second = 0.0
    for j in range(n):
        first += s[j]
        second += q[j]
    return first, second


@mapping
def measure(x: Any, step: Any, count: Any, n: Any, shift: Any, s: Any, q: Any, tag: Any) -> Any:
    """Sums of ``x - shift`` and of its square over `count` short segments; s and q are buffers."""
    s[:n] = 0.0
    q[:n] = 0.0
    near = fit(shift, tag)
    k = 0
    while k < count:
        here = at(x, k * step, tag)
        if k + 4 <= count:
            for later in range(k, k + 4):
                ahead(x, later, step, count, n, tag)
            _measure(here, step, n, near, s, q, tag)
            k += 4
        else:
            _measure_one(here, n, near, s, q, tag)
            k += 1
    return _total(s, q, n)


@summing
def _reduce(
    x: Any, xs: Any, dy: Any, dys: Any, n: Any, line: Any, slope: Any, s: Any, q: Any, tag: Any
) -> None:
    """Add two segments, `xs` and `dys` elements apart, to sums of their columns."""
    mean, low, scale, bias = line
    zero = fit(0.0, tag)
    for j in range(n):
        d0 = centre(read(x, j, tag), mean, low, tag)
        d1 = centre(read(x, j + xs, tag), mean, low, tag)
        g0 = bend_back(read(dy, j, tag), d0 * scale + bias > zero, zero, slope)
        g1 = bend_back(read(dy, j + dys, tag), d1 * scale + bias > zero, zero, slope)
        s[j] += g0 + g1
        q[j] += g0 * d0 + g1 * d1


@summing
def _reduce_one(x: Any, dy: Any, n: Any, line: Any, slope: Any, s: Any, q: Any, tag: Any) -> None:
    mean, low, scale, bias = line
    zero = fit(0.0, tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = bend_back(read(dy, j, tag), d * scale + bias > zero, zero, slope)
        s[j] += g
        q[j] += g * d


@mapping
def reduce(
    x: Any,
    xs: Any,
    dy: Any,
    dys: Any,
    count: Any,
    n: Any,
    line: Any,
    slope: Any,
    s: Any,
    q: Any,
    tag: Any,
) -> Any:
    """Sums of g and of ``g (x - mean)`` over `count` short segments; s and q are buffers."""
    s[:n] = 0.0
    q[:n] = 0.0
    words, slope = in_words(line, tag), fit(slope, tag)
    k = 0
    while k < count:
        here, there = at(x, k * xs, tag), at(dy, k * dys, tag)
        if k + 2 <= count:
            for later in range(k, k + 2):
                ahead(x, later, xs, count, n, tag)
                ahead(dy, later, dys, count, n, tag)
            _reduce(here, xs, there, dys, n, words, slope, s, q, tag)
            k += 2
        else:
            _reduce_one(here, there, n, words, slope, s, q, tag)
            k += 1
    return _total(s, q, n)
