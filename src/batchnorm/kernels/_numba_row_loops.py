"""The loops over rows, along which the channel changes from element to element.

v is the address of the columns' constants, vectors of `f` values each in the order below, from the
first column's mean on. s and q are the addresses of a sum for each column, of the type in which
elements are computed, with room for whole vectors; `flush` adds them to others in float64 before
they lose digits. As many rows are done at once as the tuple `rows` has members, `xs`, `dys` and so
on elements apart: what the columns have in common is then touched once for all. With `far`, as
many rows are asked for that come `ROWS` later, or earlier.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels._numba_ahead import ROWS, ask
from batchnorm.kernels._numba_bend import bend, bend_back, bends, flat
from batchnorm.kernels._numba_math import inline_mapping, mapping, summing
from batchnorm.kernels._numba_memory import at, take_back

MEAN, LOW, SCALE, BIAS, A, B, INVSTD = range(7)
VECTORS = 7
ONE, FOUR = (0,), (0, 0, 0, 0)


@mapping
def flush(s: Any, n: Any, sums: Any, tag: Any) -> None:
    """Add n sums to those in float64, and begin them anew."""
    for j in range(n):
        sums[j] += take_back(s, j, tag)


@inline_mapping
def _ask(x: Any, xs: Any, j: Any, first: Any, rows: Any, tag: Any) -> None:
    """Ask for two vectors of rows, of which the first is `first` rows away."""
    for k in range(len(rows)):
        ask(at(x, (first + k) * xs, tag), j, tag)


@inline_mapping
def _parts(n: Any, tag: Any) -> Any:
    """Where the last pair of whole vectors ends, and masks of the two that come after it."""
    width = vectors.lanes(tag)
    whole = n & -2 * width
    return whole, vectors.first(n - whole, tag), vectors.first(n - whole - width, tag)


@inline_mapping
def _measure(
    x: Any, xs: Any, j: Any, v: Any, s: Any, q: Any, rows: Any, mask: Any, tag: Any
) -> None:
    shift = vectors.held(v, j, mask, tag)
    a = b = vectors.filled(0.0, tag)
    for k in range(len(rows)):
        d = vectors.read(x, j + k * xs, mask, tag) - shift
        a, b = a + d, b + d * d
    vectors.add_to(s, q, j, a, b)


@mapping
def measure(
    x: Any, xs: Any, n: Any, v: Any, s: Any, q: Any, far: Any, rows: Any, tag: Any
) -> None:
    """Add ``x - shift`` and its square, upwards; the shift stands where the mean does."""
    width = vectors.lanes(tag)
    whole, mask, rest = _parts(n, tag)
    for j in range(0, whole, 2 * width):
        if far:
            _ask(x, xs, j, ROWS, rows, tag)
        _measure(x, xs, j, v, s, q, rows, None, tag)
        _measure(x, xs, j + width, v, s, q, rows, None, tag)
    if whole < n:
        if far:
            _ask(x, xs, whole, ROWS, rows, tag)
        _measure(x, xs, whole, v, s, q, rows, mask, tag)
    if whole + width < n:
        _measure(x, xs, whole + width, v, s, q, rows, rest, tag)


@inline_mapping
def _line(v: Any, f: Any, j: Any, mask: Any, tag: Any) -> Any:
    """The mean in its two words, scale and bias."""
    return (
        vectors.held(v, j, mask, tag),
        vectors.held(v, j + LOW * f, mask, tag),
        vectors.held(v, j + SCALE * f, mask, tag),
        vectors.held(v, j + BIAS * f, mask, tag),
    )


@inline_mapping
def _line_up(x: Any, r: Any, j: Any, i: Any, line: Any, mask: Any, tag: Any) -> Any:
    """``x - mean`` and ``(x - mean) scale + bias + r``, at j of x and i of the residual."""
    d = vectors.centre(vectors.read(x, j, mask, tag), line[0], line[1])
    z = d * line[2] + line[3]
    if r:
        z = z + vectors.read(r, i, mask, tag)
    return d, z


@inline_mapping
def _normal(x: Any, r: Any, j: Any, i: Any, line: Any, bent: Any, mask: Any, tag: Any) -> Any:
    return bend(_line_up(x, r, j, i, line, mask, tag)[1], bent)


@inline_mapping
def _normalize(
    x: Any, xs: Any, r: Any, rs: Any, y: Any, ys: Any, j: Any, v: Any, f: Any, bent: Any,
    streams: Any, rows: Any, mask: Any, tag: Any,
) -> None:  # fmt: skip
    line = _line(v, f, j, mask, tag)
    first = _normal(x, r, j, j, line, bent, mask, tag)
    if len(rows) == 1:
        vectors.put(y, j, first, mask, streams, tag)
    else:  # all are read before one is written
        second = _normal(x, r, j + xs, j + rs, line, bent, mask, tag)
        third = _normal(x, r, j + 2 * xs, j + 2 * rs, line, bent, mask, tag)
        fourth = _normal(x, r, j + 3 * xs, j + 3 * rs, line, bent, mask, tag)
        vectors.put(y, j, first, mask, streams, tag)
        vectors.put(y, j + ys, second, mask, streams, tag)
        vectors.put(y, j + 2 * ys, third, mask, streams, tag)
        vectors.put(y, j + 3 * ys, fourth, mask, streams, tag)


@inline_mapping
def _normalize_rows(
    x: Any, xs: Any, r: Any, rs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, bent: Any,
    far: Any, streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width = vectors.lanes(tag)
    whole, mask, rest = _parts(n, tag)
    for j in range(0, whole, 2 * width):
        if far:
            _ask(x, xs, j, -ROWS, rows, tag)
            if r:
                _ask(r, rs, j, -ROWS, rows, tag)
        i = j + width
        _normalize(x, xs, r, rs, y, ys, j, v, f, bent, streams, rows, None, tag)
        _normalize(x, xs, r, rs, y, ys, i, v, f, bent, streams, rows, None, tag)
    if whole < n:
        _normalize(x, xs, r, rs, y, ys, whole, v, f, bent, False, rows, mask, tag)
    if whole + width < n:
        _normalize(x, xs, r, rs, y, ys, whole + width, v, f, bent, False, rows, rest, tag)


@mapping
def normalize(
    p: Any, x: Any, xs: Any, r: Any, rs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, far: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)`` in four rows, downwards; r is 0 for no residual."""
    if r and flat(p):
        bent = bends(p, True, tag)
        _normalize_rows(x, xs, r, rs, y, ys, n, v, f, bent, far, streams, FOUR, tag)
    elif r:
        bent = bends(p, False, tag)
        _normalize_rows(x, xs, r, rs, y, ys, n, v, f, bent, far, streams, FOUR, tag)
    elif flat(p):
        bent = bends(p, True, tag)
        _normalize_rows(x, xs, 0, 0, y, ys, n, v, f, bent, far, streams, FOUR, tag)
    else:
        bent = bends(p, False, tag)
        _normalize_rows(x, xs, 0, 0, y, ys, n, v, f, bent, far, streams, FOUR, tag)


@mapping
def normalize_one(p: Any, x: Any, r: Any, y: Any, n: Any, v: Any, f: Any, tag: Any) -> None:
    """As `normalize`, in one row."""
    bent = bends(p, flat(p), tag)
    _normalize_rows(x, 0, r, 0, y, 0, n, v, f, bent, False, False, ONE, tag)


@inline_mapping
def _reduce(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, j: Any, v: Any, f: Any, bent: Any, s: Any,
    q: Any, rows: Any, mask: Any, tag: Any,
) -> None:  # fmt: skip
    line = _line(v, f, j, mask, tag)
    a = b = vectors.filled(0.0, tag)
    for k in range(len(rows)):
        d, z = _line_up(x, r, j + k * xs, j + k * rs, line, mask, tag)
        g = bend_back(vectors.read(dy, j + k * dys, mask, tag), z, bent)
        a, b = a + g, b + g * d
    vectors.add_to(s, q, j, a, b)


@inline_mapping
def _reduce_rows(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, bent: Any,
    s: Any, q: Any, far: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width = vectors.lanes(tag)
    whole, mask, rest = _parts(n, tag)
    for j in range(0, whole, 2 * width):
        if far:
            _ask(x, xs, j, ROWS, rows, tag)
            _ask(dy, dys, j, ROWS, rows, tag)
            if r:
                _ask(r, rs, j, ROWS, rows, tag)
        i = j + width
        _reduce(x, xs, r, rs, dy, dys, j, v, f, bent, s, q, rows, None, tag)
        _reduce(x, xs, r, rs, dy, dys, i, v, f, bent, s, q, rows, None, tag)
    if whole < n:
        _reduce(x, xs, r, rs, dy, dys, whole, v, f, bent, s, q, rows, mask, tag)
    if whole + width < n:
        _reduce(x, xs, r, rs, dy, dys, whole + width, v, f, bent, s, q, rows, rest, tag)


@mapping
def reduce(
    p: Any, x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, s: Any,
    q: Any, far: Any, tag: Any,
) -> None:  # fmt: skip
    """Add g and ``g (x - mean)`` of four rows, upwards."""
    if r and flat(p):
        _reduce_rows(x, xs, r, rs, dy, dys, n, v, f, bends(p, True, tag), s, q, far, FOUR, tag)
    elif r:
        _reduce_rows(x, xs, r, rs, dy, dys, n, v, f, bends(p, False, tag), s, q, far, FOUR, tag)
    elif flat(p):
        _reduce_rows(x, xs, 0, 0, dy, dys, n, v, f, bends(p, True, tag), s, q, far, FOUR, tag)
    else:
        _reduce_rows(x, xs, 0, 0, dy, dys, n, v, f, bends(p, False, tag), s, q, far, FOUR, tag)


@mapping
def reduce_one(
    p: Any, x: Any, r: Any, dy: Any, n: Any, v: Any, f: Any, s: Any, q: Any, tag: Any
) -> None:
    """As `reduce`, of one row."""
    _reduce_rows(x, 0, r, 0, dy, 0, n, v, f, bends(p, flat(p), tag), s, q, False, ONE, tag)


@inline_mapping
def _pull(
    x: Any, r: Any, dy: Any, j: Any, i: Any, k: Any, line: Any, pull: Any, bent: Any, mask: Any,
    tag: Any,
) -> Any:  # fmt: skip
    """``scale g - (a + b xhat)`` and g, at j of x, i of the residual and k of dy."""
    a, b, invstd = pull
    d, z = _line_up(x, r, j, i, line, mask, tag)
    g = bend_back(vectors.read(dy, k, mask, tag), z, bent)
    return line[2] * g - (a + b * (invstd * d)), g


@inline_mapping
def _spread(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, dxs: Any, j: Any,
    v: Any, f: Any, bent: Any, streams: Any, rows: Any, mask: Any, tag: Any,
) -> None:  # fmt: skip
    line = _line(v, f, j, mask, tag)
    a, b = vectors.held(v, j + A * f, mask, tag), vectors.held(v, j + B * f, mask, tag)
    pull = a, b, vectors.held(v, j + INVSTD * f, mask, tag)
    first, g = _pull(x, r, dy, j, j, j, line, pull, bent, mask, tag)
    if len(rows) == 1:
        vectors.put(dx, j, first, mask, streams, tag)
        if dr:
            vectors.put(dr, j, g, mask, streams, tag)
    else:  # all are read before one is written
        second, h = _pull(x, r, dy, j + xs, j + rs, j + dys, line, pull, bent, mask, tag)
        xs2, rs2, dys2 = 2 * xs, 2 * rs, 2 * dys
        third, k = _pull(x, r, dy, j + xs2, j + rs2, j + dys2, line, pull, bent, mask, tag)
        xs3, rs3, dys3 = 3 * xs, 3 * rs, 3 * dys
        fourth, m = _pull(x, r, dy, j + xs3, j + rs3, j + dys3, line, pull, bent, mask, tag)
        vectors.put(dx, j, first, mask, streams, tag)
        vectors.put(dx, j + dxs, second, mask, streams, tag)
        vectors.put(dx, j + 2 * dxs, third, mask, streams, tag)
        vectors.put(dx, j + 3 * dxs, fourth, mask, streams, tag)
        if dr:
            vectors.put(dr, j, g, mask, streams, tag)
            vectors.put(dr, j + dxs, h, mask, streams, tag)
            vectors.put(dr, j + 2 * dxs, k, mask, streams, tag)
            vectors.put(dr, j + 3 * dxs, m, mask, streams, tag)


@inline_mapping
def _spread_rows(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, dxs: Any, n: Any,
    v: Any, f: Any, bent: Any, far: Any, streams: Any, rows: Any, tag: Any,
) -> None:  # fmt: skip
    width = vectors.lanes(tag)
    whole, mask, rest = _parts(n, tag)
    for j in range(0, whole, 2 * width):
        if far:
            _ask(x, xs, j, -ROWS, rows, tag)
            _ask(dy, dys, j, -ROWS, rows, tag)
            if r:
                _ask(r, rs, j, -ROWS, rows, tag)
        i = j + width
        _spread(x, xs, r, rs, dy, dys, dx, dr, dxs, j, v, f, bent, streams, rows, None, tag)
        _spread(x, xs, r, rs, dy, dys, dx, dr, dxs, i, v, f, bent, streams, rows, None, tag)
    if whole < n:
        _spread(x, xs, r, rs, dy, dys, dx, dr, dxs, whole, v, f, bent, False, rows, mask, tag)
    if whole + width < n:
        i = whole + width
        _spread(x, xs, r, rs, dy, dys, dx, dr, dxs, i, v, f, bent, False, rows, rest, tag)


@mapping
def spread(
    p: Any, x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, dxs: Any,
    n: Any, v: Any, f: Any, far: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)``, and ``dr = g`` where dr lies like dx, in four rows."""
    if (r or dr) and flat(p):
        bent = bends(p, True, tag)
        _spread_rows(
            x, xs, r, rs, dy, dys, dx, dr, dxs, n, v, f, bent, far, streams, FOUR, tag
        )  # fmt: skip
    elif r or dr:
        bent = bends(p, False, tag)
        _spread_rows(
            x, xs, r, rs, dy, dys, dx, dr, dxs, n, v, f, bent, far, streams, FOUR, tag
        )  # fmt: skip
    elif flat(p):
        bent = bends(p, True, tag)
        _spread_rows(x, xs, 0, 0, dy, dys, dx, 0, dxs, n, v, f, bent, far, streams, FOUR, tag)
    else:
        bent = bends(p, False, tag)
        _spread_rows(x, xs, 0, 0, dy, dys, dx, 0, dxs, n, v, f, bent, far, streams, FOUR, tag)


@mapping
def spread_one(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, n: Any, v: Any, f: Any, tag: Any
) -> None:
    """As `spread`, in one row."""
    bent = bends(p, flat(p), tag)
    _spread_rows(x, 0, r, 0, dy, 0, dx, dr, 0, n, v, f, bent, False, False, ONE, tag)
