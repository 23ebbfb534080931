"""Segments of one channel: where they lie, and sums over many short ones."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_ahead import fetch, segment
from batchnorm.kernels._numba_loops import in_words
from batchnorm.kernels._numba_math import bend_back, mapping, summing
from batchnorm.kernels._numba_memory import WIDE, add_to, at, read, take_back
from batchnorm.kernels._numba_scalar import centre, fit

SHORT = 256  # elements: adding up each segment by itself would cost as much as reading it
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
def zeros(work: Any, n: Any) -> Any:
    """Two buffers for sums of columns."""
    work[1][4][:n] = 0.0
    work[1][5][:n] = 0.0
    return work[1][4].ctypes.data, work[1][5].ctypes.data


@summing
def total(s: Any, n: Any, tag: Any) -> Any:
    """The sum of a buffer, which begins anew."""
    held = 0.0
    for j in range(n):
        held += take_back(s, j, tag)
    return held


@summing
def add(x: Any, step: Any, n: Any, shift: Any, s: Any, q: Any, segments: Any, tag: Any) -> None:
    """Add as many segments as that tuple has members, `step` elements apart, column by column."""
    for j in range(n):
        a = b = fit(0.0, tag)
        for k in range(len(segments)):
            d = read(x, j + k * step, tag) - shift
            a += d
            b += d * d
        add_to(s, q, j, a, b)


@mapping
def measure(
    p: Any, x: Any, step: Any, beyond: Any, count: Any, n: Any, shift: Any, far: Any, work: Any,
    tag: Any,
) -> Any:  # fmt: skip
    """Sums of ``x - shift`` and of its square over `count` short segments."""
    s, q = zeros(work, n)
    first = second = 0.0
    near = fit(shift, tag)
    k = 0
    while k < count:
        here = at(x, k * step, tag)
        if k + 4 <= count:
            if far:
                for j in range(k, k + 4):
                    fetch(segment(p, x, step, beyond, j, count, n, tag), n, tag)
            add(here, step, n, near, s, q, FOUR, tag)
            k += 4
        else:
            add(here, step, n, near, s, q, ONE, tag)
            k += 1
        if k % FEW == 0 or k == count:
            first += total(s, n, tag)
            second += total(q, n, tag)
    return first, second


@summing
def add_gradient(
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
    p: Any, x: Any, xs: Any, xb: Any, dy: Any, dys: Any, dyb: Any, count: Any, n: Any, line: Any,
    bent: Any, far: Any, work: Any, tag: Any,
) -> Any:  # fmt: skip
    """Sums of g and of ``g (x - mean)`` over `count` short segments."""
    s, q = zeros(work, n)
    words = in_words(line, tag)
    first = second = 0.0
    k = 0
    while k < count:
        here, there = at(x, k * xs, tag), at(dy, k * dys, tag)
        if k + 4 <= count:
            if far:
                for j in range(k, k + 4):
                    fetch(segment(p, x, xs, xb, j, count, n, tag), n, tag)
                    fetch(segment(p, dy, dys, dyb, j, count, n, tag), n, tag)
            add_gradient(here, xs, there, dys, n, words, bent, s, q, FOUR, tag)
            k += 4
        else:
            add_gradient(here, xs, there, dys, n, words, bent, s, q, ONE, tag)
            k += 1
        if k % FEW == 0 or k == count:
            first += total(s, n, tag)
            second += total(q, n, tag)
    return first, second
