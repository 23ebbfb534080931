"""The inner loops over contiguous elements of one channel: everything that must be fast.

x, r (residual), dy, y, dx, dr and w (weights of positions) are addresses; z is a buffer.
The loops with `slope` serve identity, ReLU and leaky ReLU in one pass; other activations and masks
go through z, a tile at a time.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import activate, bend, bend_back, differentiate, mapping, summing
from batchnorm.kernels._numba_memory import WIDE, at, load, read, store, stream_line
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


@summing
def measure_weighted(x: Any, w: Any, n: Any, shift: Any, tag: Any) -> Any:
    """The total weight, and the weighted sums of ``x - shift`` and of its square."""
    total = s = q = 0.0
    for j in range(n):
        weight = load(w, j, WIDE)
        d = load(x, j, tag) - shift if weight > 0 else 0.0
        total += weight
        s += weight * d
        q += weight * d * d
    return total, s, q


@mapping
def in_words(line: Any, tag: Any) -> Any:
    """``(mean, scale, bias)`` with the mean in two words where one is not enough."""
    mean, scale, bias = line
    high = fit(mean, tag)
    return high, fit(mean - high, tag), fit(scale, tag), fit(bias, tag)


@mapping
def normalize(x: Any, y: Any, n: Any, line: Any, relu: Any, slope: Any, tag: Any) -> None:
    """``y = f((x - mean) scale + bias)`` with ``line = (mean, scale, bias)``."""
    mean, low, scale, bias = in_words(line, tag)
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        z = centre(read(x, j, tag), mean, low, tag) * scale + bias
        store(y, j, bend(z, zero, relu, slope), tag)


@mapping
def normalize_add(
    x: Any, r: Any, y: Any, n: Any, line: Any, relu: Any, slope: Any, tag: Any
) -> None:
    """``y = f((x - mean) scale + bias + r)``."""
    mean, low, scale, bias = in_words(line, tag)
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        z = centre(read(x, j, tag), mean, low, tag) * scale + bias + read(r, j, tag)
        store(y, j, bend(z, zero, relu, slope), tag)


@summing
def _reduce(x: Any, dy: Any, n: Any, line: Any, slope: Any, tag: Any) -> Any:
    mean, low, scale, bias = line
    s = q = zero = fit(0.0, tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias > zero, zero, slope)
        s += g
        q += g * d
    return s, q


@summing
def _reduce_add(x: Any, r: Any, dy: Any, n: Any, line: Any, slope: Any, tag: Any) -> Any:
    mean, low, scale, bias = line
    s = q = zero = fit(0.0, tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias + read(r, j, tag) > zero, zero, slope)
        s += g
        q += g * d
    return s, q


@summing
def reduce(x: Any, r: Any, dy: Any, n: Any, line: Any, slope: Any, tag: Any) -> Any:
    """Sums of g and of ``g (x - mean)``; r is 0 if no residual was added."""
    words, slope = in_words(line, tag), fit(slope, tag)
    s = q = 0.0
    for start in range(0, n, run_length(tag)):
        m = min(run_length(tag), n - start)
        here, there = at(x, start, tag), at(dy, start, tag)
        if r:
            ds, dq = _reduce_add(here, at(r, start, tag), there, m, words, slope, tag)
        else:
            ds, dq = _reduce(here, there, m, words, slope, tag)
        s += ds
        q += dq
    return s, q


@mapping
def spread(x: Any, dy: Any, dx: Any, n: Any, line: Any, pull: Any, slope: Any, tag: Any) -> None:
    """``dx = scale g - (a + b xhat)`` with ``pull = (a, b, invstd)``."""
    mean, low, scale, bias = in_words(line, tag)
    zero, slope = fit(0.0, tag), fit(slope, tag)
    a, b, invstd = fit(pull[0], tag), fit(pull[1], tag), fit(pull[2], tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias > zero, zero, slope)
        store(dx, j, scale * g - (a + b * (invstd * d)), tag)


@mapping
def spread_add(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, line: Any, pull: Any, slope: Any, tag: Any
) -> None:
    """As `spread`, with ``dr = g`` for the residual."""
    mean, low, scale, bias = in_words(line, tag)
    zero, slope = fit(0.0, tag), fit(slope, tag)
    a, b, invstd = fit(pull[0], tag), fit(pull[1], tag), fit(pull[2], tag)
    for j in range(n):
        d = centre(read(x, j, tag), mean, low, tag)
        g = read(dy, j, tag)
        g = bend_back(g, d * scale + bias + read(r, j, tag) > zero, zero, slope)
        store(dx, j, scale * g - (a + b * (invstd * d)), tag)
        store(dr, j, g, tag)


@mapping
def line_up(x: Any, n: Any, line: Any, z: Any, tag: Any) -> None:
    """``z = (x - mean) scale + bias``."""
    mean, scale, bias = line
    for j in range(n):
        z[j] = (load(x, j, tag) - mean) * scale + bias


@mapping
def complete(z: Any, n: Any, r: Any, w: Any, y: Any, kind: Any, parameter: Any, tag: Any) -> None:
    """``y = f(z + r)``, 0 where the mask leaves positions out."""
    if r:
        for j in range(n):
            z[j] += load(r, j, tag)
    activate(z, n, kind, parameter)
    if w:
        for j in range(n):
            z[j] = z[j] if load(w, j, WIDE) > 0 else 0.0
    for j in range(n):
        store(y, j, z[j], tag)


@mapping
def to_gradient(
    z: Any, n: Any, r: Any, dy: Any, w: Any, kind: Any, parameter: Any, tag: Any
) -> None:
    """``z = f'(z + r) dy``, 0 where the mask leaves positions out or f is flat."""
    if r:
        for j in range(n):
            z[j] += load(r, j, tag)
    differentiate(z, n, kind, parameter)
    for j in range(n):
        z[j] = z[j] * load(dy, j, tag) if z[j] != 0 else 0.0
    if w:
        for j in range(n):
            z[j] = z[j] if load(w, j, WIDE) > 0 else 0.0


@summing
def reduce_gradient(x: Any, g: Any, w: Any, n: Any, mean: Any, tag: Any) -> Any:
    """Sums of g and of ``g (x - mean)``, where g is a buffer."""
    s = q = 0.0
    if w:
        for j in range(n):
            d = load(x, j, tag) - mean if load(w, j, WIDE) > 0 else 0.0
            s += g[j]
            q += g[j] * d
    else:
        for j in range(n):
            s += g[j]
            q += g[j] * (load(x, j, tag) - mean)
    return s, q


@mapping
def spread_gradient(
    x: Any, g: Any, w: Any, dx: Any, n: Any, line: Any, pull: Any, tag: Any
) -> None:
    """``dx = scale g - w (a + b xhat)``, where g is a buffer."""
    mean, scale, _ = line
    a, b, invstd = pull
    if w:
        for j in range(n):
            weight = load(w, j, WIDE)
            pulled = weight * (a + b * (invstd * (load(x, j, tag) - mean)))
            store(dx, j, scale * g[j] - pulled if weight > 0 else 0.0, tag)
    else:
        for j in range(n):
            store(dx, j, scale * g[j] - (a + b * (invstd * (load(x, j, tag) - mean))), tag)


@mapping
def store_gradient(g: Any, dr: Any, n: Any, tag: Any) -> None:
    """``dr = g``."""
    for j in range(n):
        store(dr, j, g[j], tag)


@mapping
def stream(tile: Any, y: Any, n: Any, tag: Any) -> None:
    """Copy n elements from a tile to an output that no cache would hold."""
    size = at(64, 1, tag) - 64
    head = min(-y % 64 // size, n)
    for j in range(head):
        store(y, j, read(tile, j, tag), tag)
    lines = (n - head) * size // 64
    start = head * size
    for k in range(lines):
        stream_line(y + start + 64 * k, tile + start + 64 * k)
    for j in range(head + lines * 64 // size, n):
        store(y, j, read(tile, j, tag), tag)
