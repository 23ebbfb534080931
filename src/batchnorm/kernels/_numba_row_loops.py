"""The inner loops over rows, along which the channel changes from element to element.

v is the address of the columns' constants, float64 vectors of p.columns each in the order MEAN,
SCALE, BIAS, A, B; a call passes the address of the first column's mean and the distance `f` from
one vector to the next. s, q and t are accumulators, one element for each column.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import bend, mapping, summing
from batchnorm.kernels._numba_memory import WIDE, load, store

MEAN, SCALE, BIAS, A, B = range(5)
VECTORS = 5


@summing
def measure(x: Any, n: Any, v: Any, s: Any, q: Any, tag: Any) -> None:
    """Add one row's ``x - shift`` and its square; the shift stands where the mean does."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        s[j] += d
        q[j] += d * d


@summing
def measure_four(x: Any, step: Any, n: Any, v: Any, s: Any, q: Any, tag: Any) -> None:
    """Four rows, `step` elements apart, so that the accumulators are touched once for all."""
    for j in range(n):
        shift = load(v, j, WIDE)
        d0 = load(x, j, tag) - shift
        d1 = load(x, j + step, tag) - shift
        d2 = load(x, j + 2 * step, tag) - shift
        d3 = load(x, j + 3 * step, tag) - shift
        s[j] += (d0 + d1) + (d2 + d3)
        q[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@summing
def measure_weighted(x: Any, w: Any, n: Any, v: Any, t: Any, s: Any, q: Any, tag: Any) -> None:
    """One row with the weights w of its elements; t adds the weights up."""
    for j in range(n):
        weight = w[j]
        d = load(x, j, tag) - load(v, j, WIDE) if weight > 0 else 0.0
        t[j] += weight
        s[j] += weight * d
        q[j] += weight * d * d


@mapping
def normalize(x: Any, y: Any, n: Any, v: Any, f: Any, relu: Any, slope: Any, tag: Any) -> None:
    """``y = f((x - mean) scale + bias)``."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        z = d * load(v, j + SCALE * f, WIDE) + load(v, j + BIAS * f, WIDE)
        store(y, j, bend(z, relu, slope), tag)


@mapping
def normalize_add(
    x: Any, r: Any, y: Any, n: Any, v: Any, f: Any, relu: Any, slope: Any, tag: Any
) -> None:
    """``y = f((x - mean) scale + bias + r)``."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        z = d * load(v, j + SCALE * f, WIDE) + load(v, j + BIAS * f, WIDE) + load(r, j, tag)
        store(y, j, bend(z, relu, slope), tag)


@summing
def reduce(x: Any, dy: Any, n: Any, v: Any, f: Any, slope: Any, s: Any, q: Any, tag: Any) -> None:
    """Add one row's g and ``g (x - mean)``."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        z = d * load(v, j + SCALE * f, WIDE) + load(v, j + BIAS * f, WIDE)
        g = load(dy, j, tag)
        g = g if z > 0 else slope * g
        s[j] += g
        q[j] += g * d


@summing
def reduce_two(
    x: Any, xs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, slope: Any, s: Any, q: Any, tag: Any
) -> None:
    """Two rows, `xs` and `dys` elements apart, so that all vectors are touched once for both."""
    for j in range(n):
        mean, scale = load(v, j, WIDE), load(v, j + SCALE * f, WIDE)
        bias = load(v, j + BIAS * f, WIDE)
        d0, d1 = load(x, j, tag) - mean, load(x, j + xs, tag) - mean
        g0, g1 = load(dy, j, tag), load(dy, j + dys, tag)
        g0 = g0 if d0 * scale + bias > 0 else slope * g0
        g1 = g1 if d1 * scale + bias > 0 else slope * g1
        s[j] += g0 + g1
        q[j] += g0 * d0 + g1 * d1


@summing
def reduce_add(
    x: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, slope: Any, s: Any, q: Any, tag: Any
) -> None:
    """As `reduce`, where a residual was added before the activation."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        z = d * load(v, j + SCALE * f, WIDE) + load(v, j + BIAS * f, WIDE) + load(r, j, tag)
        g = load(dy, j, tag)
        g = g if z > 0 else slope * g
        s[j] += g
        q[j] += g * d


@mapping
def spread(x: Any, dy: Any, dx: Any, n: Any, v: Any, f: Any, slope: Any, tag: Any) -> None:
    """``dx = scale g - (a + b (x - mean))``."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        scale = load(v, j + SCALE * f, WIDE)
        g = load(dy, j, tag)
        g = g if d * scale + load(v, j + BIAS * f, WIDE) > 0 else slope * g
        pull = load(v, j + A * f, WIDE) + load(v, j + B * f, WIDE) * d
        store(dx, j, scale * g - pull, tag)


@mapping
def spread_add(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, slope: Any, tag: Any
) -> None:
    """As `spread`, with ``dr = g`` for the residual."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        scale = load(v, j + SCALE * f, WIDE)
        z = d * scale + load(v, j + BIAS * f, WIDE) + load(r, j, tag)
        g = load(dy, j, tag)
        g = g if z > 0 else slope * g
        pull = load(v, j + A * f, WIDE) + load(v, j + B * f, WIDE) * d
        store(dx, j, scale * g - pull, tag)
        store(dr, j, g, tag)


@mapping
def line_up(x: Any, n: Any, v: Any, f: Any, z: Any, tag: Any) -> None:
    """``z = (x - mean) scale + bias``."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        z[j] = d * load(v, j + SCALE * f, WIDE) + load(v, j + BIAS * f, WIDE)


@summing
def reduce_gradient(
    x: Any, g: Any, n: Any, v: Any, w: Any, masked: Any, s: Any, q: Any, tag: Any
) -> None:
    """Add one row's g, a buffer, and ``g (x - mean)``."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        d = 0.0 if masked and not w[j] > 0 else d
        s[j] += g[j]
        q[j] += g[j] * d


@mapping
def spread_gradient(
    x: Any, g: Any, dx: Any, n: Any, v: Any, f: Any, w: Any, masked: Any, tag: Any
) -> None:
    """``dx = scale g - w (a + b (x - mean))``, where g is a buffer."""
    for j in range(n):
        d = load(x, j, tag) - load(v, j, WIDE)
        weight = w[j] if masked else 1.0
        pull = weight * (load(v, j + A * f, WIDE) + load(v, j + B * f, WIDE) * d)
        value = load(v, j + SCALE * f, WIDE) * g[j] - pull
        store(dx, j, value if weight > 0 else 0.0, tag)
