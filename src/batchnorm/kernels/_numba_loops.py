"""The inner loops over contiguous elements of one channel: everything that must be fast.

x, r (residual), dy, y, dx and dr are addresses. One pass serves identity, ReLU and leaky ReLU;
masks and other activations take more, in `_numba_general`.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_machine import stream_line
from batchnorm.kernels._numba_math import bend, bend_back, mapping, summing
from batchnorm.kernels._numba_memory import at, read, store, written
from batchnorm.kernels._numba_scalar import centre, fit, run_length


@summing
def _measure(x: Any, n: Any, shift: Any, tag: Any) -> Any:
    s = q = fit(0.0, tag)
    for j in range(n):
        d = read(x, j, tag) - shift
        s += d
        q += d * d
    return s, q


@summing
def measure(x: Any, n: Any, shift: Any, tag: Any) -> Any:
    """Sums of ``x - shift`` and of its square."""
    s = q = 0.0
    for start in range(0, n, run_length(tag)):
        ds, dq = _measure(at(x, start, tag), min(run_length(tag), n - start), fit(shift, tag), tag)
        s += ds
        q += dq
    return s, q


@mapping
def in_words(line: Any, tag: Any) -> Any:
    """``(mean, scale, bias)`` with the mean in two words where one is not enough."""
    mean, scale, bias = line
    high = fit(mean, tag)
    return high, fit(mean - high, tag), fit(scale, tag), fit(bias, tag)


@mapping
def normalize(
    x: Any, xs: Any, y: Any, ys: Any, count: Any, n: Any, line: Any, bent: Any, tag: Any
) -> None:
    """``y = f((x - mean) scale + bias)`` in `count` segments, `xs` and `ys` elements apart.

    Here ``line = (mean, scale, bias)``, and `bent` is what `bend` takes.
    """
    mean, low, scale, bias = in_words(line, tag)
    for k in range(count - 1, -1, -1):
        here, there = at(x, k * xs, tag), at(y, k * ys, tag)
        for j in range(n):
            z = centre(read(here, j, tag), mean, low, tag) * scale + bias
            store(there, j, bend(z, bent), tag)


@mapping
def normalize_add(x: Any, r: Any, y: Any, n: Any, line: Any, bent: Any, tag: Any) -> None:
    """``y = f((x - mean) scale + bias + r)``."""
    mean, low, scale, bias = in_words(line, tag)
    for j in range(n):
        z = centre(read(x, j, tag), mean, low, tag) * scale + bias + read(r, j, tag)
        store(y, j, bend(z, bent), tag)


@summing
def _reduce(x: Any, dy: Any, n: Any, line: Any, bent: Any, tag: Any) -> Any:
    mean, low, scale, bias = line
    s = q = fit(0.0, tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias, bent)
        s += g
        q += g * d
    return s, q


@summing
def _reduce_add(x: Any, r: Any, dy: Any, n: Any, line: Any, bent: Any, tag: Any) -> Any:
    mean, low, scale, bias = line
    s = q = fit(0.0, tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias + read(r, j, tag), bent)
        s += g
        q += g * d
    return s, q


@summing
def reduce(x: Any, r: Any, dy: Any, n: Any, line: Any, bent: Any, tag: Any) -> Any:
    """Sums of g and of ``g (x - mean)``; r is 0 if no residual was added."""
    words = in_words(line, tag)
    s = q = 0.0
    for start in range(0, n, run_length(tag)):
        m = min(run_length(tag), n - start)
        here, there = at(x, start, tag), at(dy, start, tag)
        if r:
            ds, dq = _reduce_add(here, at(r, start, tag), there, m, words, bent, tag)
        else:
            ds, dq = _reduce(here, there, m, words, bent, tag)
        s += ds
        q += dq
    return s, q


@mapping
def spread(
    x: Any,
    xs: Any,
    dy: Any,
    dys: Any,
    dx: Any,
    dxs: Any,
    count: Any,
    n: Any,
    line: Any,
    pull: Any,
    bent: Any,
    tag: Any,
) -> None:
    """``dx = scale g - (a + b xhat)`` with ``pull = (a, b, invstd)``, in segments."""
    mean, low, scale, bias = in_words(line, tag)
    a, b, invstd = fit(pull[0], tag), fit(pull[1], tag), fit(pull[2], tag)
    for k in range(count - 1, -1, -1):
        here, there, out = at(x, k * xs, tag), at(dy, k * dys, tag), at(dx, k * dxs, tag)
        for j in range(n):
            d = centre(read(here, j, tag), mean, low, tag)
            g = bend_back(read(there, j, tag), d * scale + bias, bent)
            store(out, j, scale * g - (a + b * (invstd * d)), tag)


@mapping
def spread_add(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, line: Any, pull: Any, bent: Any, tag: Any
) -> None:
    """As `spread`, with ``dr = g`` for the residual."""
    mean, low, scale, bias = in_words(line, tag)
    a, b, invstd = fit(pull[0], tag), fit(pull[1], tag), fit(pull[2], tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias + read(r, j, tag), bent)
        store(dx, j, scale * g - (a + b * (invstd * d)), tag)
        store(dr, j, g, tag)


@mapping
def stream(tile: Any, y: Any, n: Any, tag: Any) -> None:
    """Copy n elements from a tile to an output that no cache would hold."""
    size = at(64, 1, tag) - 64
    head = min(-y % 64 // size, n)
    for j in range(head):
        store(y, j, written(tile, j, tag), tag)
    lines = (n - head) * size // 64
    start = head * size
    for k in range(lines):
        stream_line(y + start + 64 * k, tile + start + 64 * k)
    for j in range(head + lines * 64 // size, n):
        store(y, j, written(tile, j, tag), tag)
