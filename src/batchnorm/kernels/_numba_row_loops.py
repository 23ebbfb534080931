"""The inner loops over rows, along which the channel changes from element to element.

v is the address of the columns' constants, vectors of `f` values each in the order below, from the
first column's mean on. s, q and t are accumulators in float64, one for each column.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import bend, bend_back, mapping, summing
from batchnorm.kernels._numba_memory import constant, load, read, store
from batchnorm.kernels._numba_scalar import centre, fit

MEAN, LOW, SCALE, BIAS, A, B, INVSTD = range(7)
VECTORS = 7


@mapping
def centred(x: Any, j: Any, v: Any, f: Any, tag: Any) -> Any:
    """``x - mean`` at column j."""
    return centre(read(x, j, tag), constant(v, j, tag), constant(v, j + LOW * f, tag), tag)


@mapping
def lined_up(d: Any, j: Any, v: Any, f: Any, tag: Any) -> Any:
    """``d scale + bias`` at column j."""
    return d * constant(v, j + SCALE * f, tag) + constant(v, j + BIAS * f, tag)


@summing
def measure(x: Any, n: Any, v: Any, s: Any, q: Any, tag: Any) -> None:
    """Add one row's ``x - shift`` and its square; the shift stands where the mean does."""
    for j in range(n):
        d = read(x, j, tag) - constant(v, j, tag)
        s[j] += d
        q[j] += d * d


@summing
def measure_four(x: Any, step: Any, n: Any, v: Any, s: Any, q: Any, tag: Any) -> None:
    """Four rows, `step` elements apart, so that the accumulators are touched once for all."""
    for j in range(n):
        shift = constant(v, j, tag)
        d0 = read(x, j, tag) - shift
        d1 = read(x, j + step, tag) - shift
        d2 = read(x, j + 2 * step, tag) - shift
        d3 = read(x, j + 3 * step, tag) - shift
        s[j] += (d0 + d1) + (d2 + d3)
        q[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@summing
def measure_weighted(x: Any, w: Any, n: Any, v: Any, t: Any, s: Any, q: Any, tag: Any) -> None:
    """One row with the weights w of its elements; t adds the weights up."""
    for j in range(n):
        weight = w[j]
        d = load(x, j, tag) - constant(v, j, tag) if weight > 0 else 0.0
        t[j] += weight
        s[j] += weight * d
        q[j] += weight * d * d


@mapping
def normalize(x: Any, y: Any, n: Any, v: Any, f: Any, relu: Any, slope: Any, tag: Any) -> None:
    """``y = f((x - mean) scale + bias)``."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        z = lined_up(centred(x, j, v, f, tag), j, v, f, tag)
        store(y, j, bend(z, zero, relu, slope), tag)


@mapping
def normalize_two(
    x: Any, xs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, relu: Any, slope: Any, tag: Any
) -> None:
    """Two rows, `xs` and `ys` elements apart, so that all vectors are read once for both."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        z0 = centre(read(x, j, tag), mean, low, tag) * scale + bias
        z1 = centre(read(x, j + xs, tag), mean, low, tag) * scale + bias
        store(y, j, bend(z0, zero, relu, slope), tag)
        store(y, j + ys, bend(z1, zero, relu, slope), tag)


@mapping
def normalize_add(
    x: Any, r: Any, y: Any, n: Any, v: Any, f: Any, relu: Any, slope: Any, tag: Any
) -> None:
    """``y = f((x - mean) scale + bias + r)``."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        z = lined_up(centred(x, j, v, f, tag), j, v, f, tag) + read(r, j, tag)
        store(y, j, bend(z, zero, relu, slope), tag)


@summing
def reduce(x: Any, dy: Any, n: Any, v: Any, f: Any, slope: Any, s: Any, q: Any, tag: Any) -> None:
    """Add one row's g and ``g (x - mean)``."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        d = centred(x, j, v, f, tag)
        g = read(dy, j, tag)
        g = bend_back(g, lined_up(d, j, v, f, tag) > zero, zero, slope)
        s[j] += g
        q[j] += g * d


@summing
def reduce_two(
    x: Any, xs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, slope: Any, s: Any, q: Any, tag: Any
) -> None:
    """Two rows, `xs` and `dys` elements apart, so that all vectors are touched once for both."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        d0 = centred(x, j, v, f, tag)
        d1 = centre(read(x, j + xs, tag), constant(v, j, tag), constant(v, j + LOW * f, tag), tag)
        g0, g1 = read(dy, j, tag), read(dy, j + dys, tag)
        g0 = bend_back(g0, lined_up(d0, j, v, f, tag) > zero, zero, slope)
        g1 = bend_back(g1, lined_up(d1, j, v, f, tag) > zero, zero, slope)
        s[j] += g0 + g1
        q[j] += g0 * d0 + g1 * d1


@summing
def reduce_add(
    x: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, slope: Any, s: Any, q: Any, tag: Any
) -> None:
    """As `reduce`, where a residual was added before the activation."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        d = centred(x, j, v, f, tag)
        g = read(dy, j, tag)
        g = bend_back(g, lined_up(d, j, v, f, tag) + read(r, j, tag) > zero, zero, slope)
        s[j] += g
        q[j] += g * d


@mapping
def pulled(d: Any, j: Any, v: Any, f: Any, tag: Any) -> Any:
    """``a + b xhat`` at column j."""
    xhat = constant(v, j + INVSTD * f, tag) * d
    return constant(v, j + A * f, tag) + constant(v, j + B * f, tag) * xhat


@mapping
def spread(x: Any, dy: Any, dx: Any, n: Any, v: Any, f: Any, slope: Any, tag: Any) -> None:
    """``dx = scale g - (a + b xhat)``."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        d = centred(x, j, v, f, tag)
        g = read(dy, j, tag)
        g = bend_back(g, lined_up(d, j, v, f, tag) > zero, zero, slope)
        store(dx, j, constant(v, j + SCALE * f, tag) * g - pulled(d, j, v, f, tag), tag)


@mapping
def spread_two(
    x: Any,
    xs: Any,
    dy: Any,
    dys: Any,
    dx: Any,
    dxs: Any,
    n: Any,
    v: Any,
    f: Any,
    slope: Any,
    tag: Any,
) -> None:
    """As `normalize_two`."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        a, b = constant(v, j + A * f, tag), constant(v, j + B * f, tag)
        invstd = constant(v, j + INVSTD * f, tag)
        d0 = centre(read(x, j, tag), mean, low, tag)
        d1 = centre(read(x, j + xs, tag), mean, low, tag)
        g0, g1 = read(dy, j, tag), read(dy, j + dys, tag)
        g0 = bend_back(g0, d0 * scale + bias > zero, zero, slope)
        g1 = bend_back(g1, d1 * scale + bias > zero, zero, slope)
        store(dx, j, scale * g0 - (a + b * (invstd * d0)), tag)
        store(dx, j + dxs, scale * g1 - (a + b * (invstd * d1)), tag)


@mapping
def spread_add(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, slope: Any, tag: Any
) -> None:
    """As `spread`, with ``dr = g`` for the residual."""
    zero, slope = fit(0.0, tag), fit(slope, tag)
    for j in range(n):
        d = centred(x, j, v, f, tag)
        g = read(dy, j, tag)
        g = bend_back(g, lined_up(d, j, v, f, tag) + read(r, j, tag) > zero, zero, slope)
        store(dx, j, constant(v, j + SCALE * f, tag) * g - pulled(d, j, v, f, tag), tag)
        store(dr, j, g, tag)


@mapping
def line_up(x: Any, n: Any, v: Any, f: Any, z: Any, tag: Any) -> None:
    """``z = (x - mean) scale + bias``."""
    for j in range(n):
        z[j] = lined_up(centred(x, j, v, f, tag), j, v, f, tag)


@summing
def reduce_gradient(
    x: Any, g: Any, n: Any, v: Any, f: Any, w: Any, masked: Any, s: Any, q: Any, tag: Any
) -> None:
    """Add one row's g, a buffer, and ``g (x - mean)``."""
    for j in range(n):
        d = centred(x, j, v, f, tag)
        d = 0.0 if masked and not w[j] > 0 else d
        s[j] += g[j]
        q[j] += g[j] * d


@mapping
def spread_gradient(
    x: Any, g: Any, dx: Any, n: Any, v: Any, f: Any, w: Any, masked: Any, tag: Any
) -> None:
    """``dx = scale g - w (a + b xhat)``, where g is a buffer."""
    for j in range(n):
        weight = w[j] if masked else 1.0
        pull = weight * pulled(centred(x, j, v, f, tag), j, v, f, tag)
        value = constant(v, j + SCALE * f, tag) * g[j] - pull
        store(dx, j, value if weight > 0 else 0.0, tag)
