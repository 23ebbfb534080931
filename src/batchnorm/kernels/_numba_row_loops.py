"""The inner loops over rows, along which the channel changes from element to element.

v is the address of the columns' constants, vectors of `f` values each in the order below, from the
first column's mean on. s and q are the addresses of a sum for each column, of the type in which
elements are computed; `flush` adds them to others in float64 before they lose digits. Where `rows`
is given, as many rows are done at once as that tuple has members, `xs`, `dys` and so on elements
apart: what the columns have in common is then touched once for all.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import bend, bend_back, mapping, summing
from batchnorm.kernels._numba_memory import add_to, constant, load, read, store, take_back
from batchnorm.kernels._numba_scalar import centre, fit

MEAN, LOW, SCALE, BIAS, A, B, INVSTD = range(7)
VECTORS = 7
ONE, FOUR = (0,), (0, 0, 0, 0)


@mapping
def centred(x: Any, j: Any, v: Any, f: Any, tag: Any) -> Any:
    """``x - mean`` at column j."""
    return centre(read(x, j, tag), constant(v, j, tag), constant(v, j + LOW * f, tag), tag)


@mapping
def lined_up(d: Any, j: Any, v: Any, f: Any, tag: Any) -> Any:
    """``d scale + bias`` at column j."""
    return d * constant(v, j + SCALE * f, tag) + constant(v, j + BIAS * f, tag)


@mapping
def flush(s: Any, n: Any, sums: Any, tag: Any) -> None:
    """Add n sums to those in float64, and begin them anew."""
    for j in range(n):
        sums[j] += take_back(s, j, tag)


@summing
def measure(x: Any, xs: Any, n: Any, v: Any, s: Any, q: Any, rows: Any, tag: Any) -> None:
    """Add ``x - shift`` and its square; the shift stands where the mean does."""
    for j in range(n):
        shift = constant(v, j, tag)
        a = b = fit(0.0, tag)
        for k in range(len(rows)):
            d = read(x, j + k * xs, tag) - shift
            a += d
            b += d * d
        add_to(s, q, j, a, b)


@summing
def measure_weighted(x: Any, w: Any, n: Any, v: Any, t: Any, s: Any, q: Any, tag: Any) -> None:
    """One row with the weights w of its elements; t, s and q are buffers, t of the weights."""
    for j in range(n):
        weight = w[j]
        d = load(x, j, tag) - constant(v, j, tag) if weight > 0 else 0.0
        t[j] += weight
        s[j] += weight * d
        q[j] += weight * d * d


@mapping
def normalize(
    x: Any, xs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, bent: Any, rows: Any, tag: Any
) -> None:
    """``y = f((x - mean) scale + bias)``."""
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        for k in range(len(rows)):
            z = centre(read(x, j + k * xs, tag), mean, low, tag) * scale + bias
            store(y, j + k * ys, bend(z, bent), tag)


@mapping
def normalize_add(
    x: Any, xs: Any, r: Any, rs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, bent: Any,
    rows: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)``."""
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        for k in range(len(rows)):
            z = centre(read(x, j + k * xs, tag), mean, low, tag) * scale + bias
            store(y, j + k * ys, bend(z + read(r, j + k * rs, tag), bent), tag)


@summing
def reduce(
    x: Any, xs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, bent: Any, s: Any, q: Any,
    rows: Any, tag: Any,
) -> None:  # fmt: skip
    """Add g and ``g (x - mean)``."""
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        a = b = fit(0.0, tag)
        for k in range(len(rows)):
            d = centre(read(x, j + k * xs, tag), mean, low, tag)
            g = bend_back(read(dy, j + k * dys, tag), d * scale + bias, bent)
            a += g
            b += g * d
        add_to(s, q, j, a, b)


@summing
def reduce_add(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, bent: Any,
    s: Any, q: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    """As `reduce`, where a residual was added before the activation."""
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        a = b = fit(0.0, tag)
        for k in range(len(rows)):
            d = centre(read(x, j + k * xs, tag), mean, low, tag)
            z = d * scale + bias + read(r, j + k * rs, tag)
            g = bend_back(read(dy, j + k * dys, tag), z, bent)
            a += g
            b += g * d
        add_to(s, q, j, a, b)


@mapping
def pulled(d: Any, j: Any, v: Any, f: Any, tag: Any) -> Any:
    """``a + b xhat`` at column j."""
    xhat = constant(v, j + INVSTD * f, tag) * d
    return constant(v, j + A * f, tag) + constant(v, j + B * f, tag) * xhat


@mapping
def spread(
    x: Any, xs: Any, dy: Any, dys: Any, dx: Any, dxs: Any, n: Any, v: Any, f: Any, bent: Any,
    rows: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)``."""
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        a, b = constant(v, j + A * f, tag), constant(v, j + B * f, tag)
        invstd = constant(v, j + INVSTD * f, tag)
        for k in range(len(rows)):
            d = centre(read(x, j + k * xs, tag), mean, low, tag)
            g = bend_back(read(dy, j + k * dys, tag), d * scale + bias, bent)
            store(dx, j + k * dxs, scale * g - (a + b * (invstd * d)), tag)


@mapping
def spread_add(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, dxs: Any, n: Any,
    v: Any, f: Any, bent: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    """As `spread`, with ``dr = g`` for the residual, which lies like dx."""
    for j in range(n):
        mean, low = constant(v, j, tag), constant(v, j + LOW * f, tag)
        scale, bias = constant(v, j + SCALE * f, tag), constant(v, j + BIAS * f, tag)
        a, b = constant(v, j + A * f, tag), constant(v, j + B * f, tag)
        invstd = constant(v, j + INVSTD * f, tag)
        for k in range(len(rows)):
            d = centre(read(x, j + k * xs, tag), mean, low, tag)
            z = d * scale + bias + read(r, j + k * rs, tag)
            g = bend_back(read(dy, j + k * dys, tag), z, bent)
            store(dx, j + k * dxs, scale * g - (a + b * (invstd * d)), tag)
            store(dr, j + k * dxs, g, tag)


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
