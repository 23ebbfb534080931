"""Segments of one channel: where they lie, and sums over many short ones."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_loops import in_words
from batchnorm.kernels._numba_machine import prefetch
from batchnorm.kernels._numba_math import bend_back, mapping, summing
from batchnorm.kernels._numba_memory import WIDE, add_to, at, read, take_back
from batchnorm.kernels._numba_scalar import centre, fit

SHORT = 256  # elements: adding up each segment by itself would cost as much as reading it
UNSEEN = 1024  # elements: below this, hardware sees no stream to fetch ahead of
AHEAD = 4  # segments: 2 and 8 are slower
FEW = 64  # segments summed in the type in which elements are computed
ONE, FOUR = (0,), (0, 0, 0, 0)


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


@mapping
def _zeros(work: Any, n: Any) -> Any:
    """Two buffers for sums of columns."""
    work[1][4][:n] = 0.0
    work[1][5][:n] = 0.0
    return work[1][4].ctypes.data, work[1][5].ctypes.data


@summing
def _total(s: Any, n: Any, tag: Any) -> Any:
    """The sum of a buffer, which begins anew."""
    total = 0.0
    for j in range(n):
        total += take_back(s, j, tag)
    return total


@summing
def _measure(
    x: Any, step: Any, n: Any, shift: Any, s: Any, q: Any, segments: Any, tag: Any
) -> None:
    """Add as many segments as that tuple has members, `step` elements apart, column by column."""
    for j in range(n):
        a = b = fit(0.0, tag)
        for k in range(len(segments)):
            d = read(x, j + k * step, tag) - shift
            a += d
            b += d * d
        add_to(s, q, j, a, b)


@mapping
def measure(x: Any, step: Any, count: Any, n: Any, shift: Any, work: Any, tag: Any) -> Any:
    """Sums of ``x - shift`` and of its square over `count` short segments."""
    s, q = _zeros(work, n)
    first = second = 0.0
    near = fit(shift, tag)
    k = 0
    while k < count:
        here = at(x, k * step, tag)
        if k + 4 <= count:
            for later in range(k, k + 4):
                ahead(x, later, step, count, n, tag)
            _measure(here, step, n, near, s, q, FOUR, tag)
            k += 4
        else:
            _measure(here, step, n, near, s, q, ONE, tag)
            k += 1
        if k % FEW == 0 or k == count:
            first += _total(s, n, tag)
            second += _total(q, n, tag)
    return first, second


@summing
def _reduce(
    x: Any, xs: Any, dy: Any, dys: Any, n: Any, line: Any, bent: Any, s: Any, q: Any,
    segments: Any, tag: Any,
) -> None:  # fmt: skip
    """Add as many segments as that tuple has members, `xs` and `dys` elements apart."""
    mean, low, scale, bias = line
    for j in range(n):
        a = b = fit(0.0, tag)
        for k in range(len(segments)):
            d = centre(read(x, j + k * xs, tag), mean, low, tag)
            g = bend_back(read(dy, j + k * dys, tag), d * scale + bias, bent)
            a += g
            b += g * d
        add_to(s, q, j, a, b)


@mapping
def reduce(
    x: Any, xs: Any, dy: Any, dys: Any, count: Any, n: Any, line: Any, bent: Any, work: Any,
    tag: Any,
) -> Any:  # fmt: skip
    """Sums of g and of ``g (x - mean)`` over `count` short segments."""
    s, q = _zeros(work, n)
    words = in_words(line, tag)
    first = second = 0.0
    k = 0
    while k < count:
        here, there = at(x, k * xs, tag), at(dy, k * dys, tag)
        if k + 4 <= count:
            for later in range(k, k + 4):
                ahead(x, later, xs, count, n, tag)
                ahead(dy, later, dys, count, n, tag)
            _reduce(here, xs, there, dys, n, words, bent, s, q, FOUR, tag)
            k += 4
        else:
            _reduce(here, xs, there, dys, n, words, bent, s, q, ONE, tag)
            k += 1
        if k % FEW == 0 or k == count:
            first += _total(s, n, tag)
            second += _total(q, n, tag)
    return first, second
