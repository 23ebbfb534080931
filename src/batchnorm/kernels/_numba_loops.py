"""The loops over segments of one channel: everything that must be fast.

x, r (residual, 0 for none), dy, y, dx and dr are addresses of the first of `count` segments of n
elements; `xs`, `dys` and so on are elements from one to the next. `later` is `(beyond, far)`: see
`_numba_ahead`. One pass serves identity, ReLU and leaky ReLU; masks and other activations take
more, in `_numba_general`.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels._numba_ahead import after, ask, before, hop
from batchnorm.kernels._numba_bend import bend, bend_back, bends, flat
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import at
from batchnorm.kernels._numba_scalar import fit, run_length

LINE = 64  # bytes that are written past the caches at once


@inline_mapping
def in_words(line: Any, tag: Any) -> Any:
    """``(mean, scale, bias)`` in vectors, with the mean in two words where one is not enough."""
    mean, scale, bias = line
    low = mean - float(fit(mean, tag))
    return (
        vectors.filled(mean, tag),
        vectors.filled(low, tag),
        vectors.filled(scale, tag),
        vectors.filled(bias, tag),
    )


@inline_mapping
def _deviate(x: Any, j: Any, shift: Any, s: Any, q: Any, mask: Any, tag: Any) -> Any:
    """Add ``x - shift`` and its square."""
    d = vectors.within(mask, vectors.read(x, j, mask, tag) - shift)
    return s + d, q + d * d


@mapping
def measure(
    p: Any, x: Any, xs: Any, beyond: Any, count: Any, n: Any, shift: Any, far: Any, tag: Any
) -> Any:
    """Sums of ``x - shift`` and of its square."""
    width, most, zero = vectors.lanes(tag), run_length(tag), vectors.filled(0.0, tag)
    near = vectors.filled(shift, tag)
    s, q, t, u = zero, zero, zero, zero
    first = second = 0.0
    held, ahead = 0, hop(p, count, n)
    for k in range(count):
        here, later = at(x, k * xs, tag), after(x, xs, beyond, k, ahead, tag) if far else 0
        left = n
        while left > 0:
            m = min(left, most)
            whole = m & -2 * width
            for j in range(0, whole, 2 * width):
                if far:
                    ask(later, j, tag)
                s, q = _deviate(here, j, near, s, q, None, tag)
                t, u = _deviate(here, j + width, near, t, u, None, tag)
            if whole < m:
                if far:
                    ask(later, whole, tag)
                s, q = _deviate(here, whole, near, s, q, vectors.first(m - whole, tag), tag)
            if whole + width < m:
                mask = vectors.first(m - whole - width, tag)
                t, u = _deviate(here, whole + width, near, t, u, mask, tag)
            held += m + 2 * width
            if held >= most:
                first += vectors.total(s) + vectors.total(t)
                second += vectors.total(q) + vectors.total(u)
                s, q, t, u, held = zero, zero, zero, zero, 0
            here, later, left = at(here, m, tag), at(later, m, tag), left - m
    first += vectors.total(s) + vectors.total(t)
    second += vectors.total(q) + vectors.total(u)
    return first, second


@inline_mapping
def _line_up(x: Any, r: Any, j: Any, words: Any, mask: Any, tag: Any) -> Any:
    """``x - mean``, and ``(x - mean) scale + bias + r``."""
    mean, low, scale, bias = words
    d = vectors.centre(vectors.read(x, j, mask, tag), mean, low)
    z = d * scale + bias
    if r:
        z = z + vectors.read(r, j, mask, tag)
    return d, z


@inline_mapping
def _collect(
    x: Any, r: Any, dy: Any, j: Any, words: Any, bent: Any, s: Any, q: Any, mask: Any, tag: Any
) -> Any:
    """Add g and ``g (x - mean)``."""
    d, z = _line_up(x, r, j, words, mask, tag)
    g = bend_back(vectors.read(dy, j, mask, tag), z, bent)
    return s + g, q + g * vectors.within(mask, d)


@inline_mapping
def _reduce(
    p: Any, x: Any, xs: Any, xb: Any, r: Any, rs: Any, rb: Any, dy: Any, dys: Any, dyb: Any,
    count: Any, n: Any, line: Any, bent: Any, far: Any, tag: Any,
) -> Any:  # fmt: skip
    width, most, zero = vectors.lanes(tag), run_length(tag), vectors.filled(0.0, tag)
    words = in_words(line, tag)
    s, q, t, u = zero, zero, zero, zero
    first = second = 0.0
    held, ahead = 0, hop(p, count, n)
    for k in range(count):
        x_then = after(x, xs, xb, k, ahead, tag) if far else 0
        r_then = after(r, rs, rb, k, ahead, tag) if far else 0
        dy_then = after(dy, dys, dyb, k, ahead, tag) if far else 0
        left = n
        while left > 0:
            start, m = n - left, min(left, most)
            left -= m
            here, x_later = at(x, k * xs + start, tag), at(x_then, start, tag)
            added, r_later = at(r, k * rs + start, tag), at(r_then, start, tag)
            there, dy_later = at(dy, k * dys + start, tag), at(dy_then, start, tag)
            whole = m & -2 * width
            for j in range(0, whole, 2 * width):
                if far:
                    ask(x_later, j, tag)
                    ask(dy_later, j, tag)
                    if r:
                        ask(r_later, j, tag)
                s, q = _collect(here, added, there, j, words, bent, s, q, None, tag)
                t, u = _collect(here, added, there, j + width, words, bent, t, u, None, tag)
            if whole < m:
                if far:
                    ask(x_later, whole, tag)
                    ask(dy_later, whole, tag)
                    if r:
                        ask(r_later, whole, tag)
                mask = vectors.first(m - whole, tag)
                s, q = _collect(here, added, there, whole, words, bent, s, q, mask, tag)
            if whole + width < m:
                mask = vectors.first(m - whole - width, tag)
                t, u = _collect(here, added, there, whole + width, words, bent, t, u, mask, tag)
            held += m + 2 * width
            if held >= most:
                first += vectors.total(s) + vectors.total(t)
                second += vectors.total(q) + vectors.total(u)
                s, q, t, u, held = zero, zero, zero, zero, 0
    first += vectors.total(s) + vectors.total(t)
    second += vectors.total(q) + vectors.total(u)
    return first, second


@mapping
def reduce(
    p: Any, x: Any, xs: Any, xb: Any, r: Any, rs: Any, rb: Any, dy: Any, dys: Any, dyb: Any,
    count: Any, n: Any, line: Any, far: Any, tag: Any,
) -> Any:  # fmt: skip
    """Sums of g and of ``g (x - mean)``."""
    if r:
        if flat(p):
            return _reduce(p, x, xs, xb, r, rs, rb, dy, dys, dyb, count, n, line, bends(p, True, tag), far, tag)
        return _reduce(p, x, xs, xb, r, rs, rb, dy, dys, dyb, count, n, line, bends(p, False, tag), far, tag)
    if flat(p):
        return _reduce(p, x, xs, xb, 0, 0, 0, dy, dys, dyb, count, n, line, bends(p, True, tag), far, tag)
    return _reduce(p, x, xs, xb, 0, 0, 0, dy, dys, dyb, count, n, line, bends(p, False, tag), far, tag)


@inline_mapping
def _head(y: Any, n: Any, streams: Any, tag: Any) -> Any:
    """How many elements come before the first whole line of an output that goes past the caches."""
    return min(-y % LINE // (at(LINE, 1, tag) - LINE), n) if streams else 0


@inline_mapping
def _put(y: Any, j: Any, value: Any, after: Any, streams: Any, tag: Any) -> None:
    """Write two whole vectors."""
    i = j + vectors.lanes(tag)
    if streams:
        vectors.stream(y, j, value, tag)
        vectors.stream(y, i, after, tag)
    else:
        vectors.write(y, j, value, None, tag)
        vectors.write(y, i, after, None, tag)


@inline_mapping
def _normal(x: Any, r: Any, j: Any, words: Any, bent: Any, mask: Any, tag: Any) -> Any:
    """``f((x - mean) scale + bias + r)``."""
    return bend(_line_up(x, r, j, words, mask, tag)[1], bent)


@inline_mapping
def _normalize(
    p: Any, x: Any, xs: Any, r: Any, rs: Any, rb: Any, y: Any, ys: Any, count: Any, n: Any,
    line: Any, bent: Any, asks: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    width, words = vectors.lanes(tag), in_words(line, tag)
    ahead = hop(p, count, n)
    for k in range(count - 1, -1, -1):
        here, added, there = at(x, k * xs, tag), at(r, k * rs, tag), at(y, k * ys, tag)
        later = before(r, rs, rb, k, ahead, tag) if asks else 0
        head = _head(there, n, streams, tag)
        for j in range(0, head, width):
            mask = vectors.first(head - j, tag)
            value = _normal(here, added, j, words, bent, mask, tag)
            vectors.write(there, j, value, mask, tag)
        whole = head + (n - head & -2 * width)
        for j in range(head, whole, 2 * width):
            if asks:
                ask(later, j, tag)
            value = _normal(here, added, j, words, bent, None, tag)
            after = _normal(here, added, j + width, words, bent, None, tag)
            _put(there, j, value, after, streams, tag)
        for j in range(whole, n, width):
            mask = vectors.first(n - j, tag)
            value = _normal(here, added, j, words, bent, mask, tag)
            vectors.write(there, j, value, mask, tag)


@mapping
def normalize(
    p: Any, x: Any, xs: Any, r: Any, rs: Any, rb: Any, y: Any, ys: Any, count: Any, n: Any,
    line: Any, asks: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)`` for ``line = (mean, scale, bias)``, downwards."""
    if r:
        if flat(p):
            _normalize(p, x, xs, r, rs, rb, y, ys, count, n, line, bends(p, True, tag), asks, streams, tag)
        else:
            _normalize(p, x, xs, r, rs, rb, y, ys, count, n, line, bends(p, False, tag), asks, streams, tag)
    elif flat(p):
        _normalize(p, x, xs, 0, 0, 0, y, ys, count, n, line, bends(p, True, tag), False, streams, tag)
    else:
        _normalize(p, x, xs, 0, 0, 0, y, ys, count, n, line, bends(p, False, tag), False, streams, tag)


@inline_mapping
def _pulled(
    x: Any, r: Any, dy: Any, j: Any, words: Any, pull: Any, bent: Any, mask: Any, tag: Any
) -> Any:
    """``scale g - (a + b xhat)``, and g."""
    a, b, invstd = pull
    d, z = _line_up(x, r, j, words, mask, tag)
    g = bend_back(vectors.read(dy, j, mask, tag), z, bent)
    return words[2] * g - (a + b * (invstd * d)), g


@inline_mapping
def _pull(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, j: Any, words: Any, pull: Any, bent: Any,
    mask: Any, tag: Any,
) -> None:  # fmt: skip
    """Write some of dx and dr."""
    value, g = _pulled(x, r, dy, j, words, pull, bent, mask, tag)
    vectors.write(dx, j, value, mask, tag)
    if dr:
        vectors.write(dr, j, g, mask, tag)


@inline_mapping
def _spread(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, dxs: Any, count: Any,
    n: Any, line: Any, pull: Any, bent: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    width, words = vectors.lanes(tag), in_words(line, tag)
    pulls = (
        vectors.filled(pull[0], tag), vectors.filled(pull[1], tag), vectors.filled(pull[2], tag)
    )  # fmt: skip
    for k in range(count - 1, -1, -1):
        here, added, there = at(x, k * xs, tag), at(r, k * rs, tag), at(dy, k * dys, tag)
        of_x, of_r = at(dx, k * dxs, tag), at(dr, k * dxs, tag)
        head = _head(of_x, n, streams, tag)
        for j in range(0, head, width):
            mask = vectors.first(head - j, tag)
            _pull(here, added, there, of_x, of_r, j, words, pulls, bent, mask, tag)
        whole = head + (n - head & -2 * width)
        for j in range(head, whole, 2 * width):
            value, g = _pulled(here, added, there, j, words, pulls, bent, None, tag)
            i = j + width
            after, h = _pulled(here, added, there, i, words, pulls, bent, None, tag)
            _put(of_x, j, value, after, streams, tag)
            if dr:
                _put(of_r, j, g, h, streams, tag)
        for j in range(whole, n, width):
            mask = vectors.first(n - j, tag)
            _pull(here, added, there, of_x, of_r, j, words, pulls, bent, mask, tag)


@mapping
def spread(
    p: Any, x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, dxs: Any,
    count: Any, n: Any, line: Any, pull: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)`` with ``pull = (a, b, invstd)``, and ``dr = g``, downwards."""
    if r or dr:
        if flat(p):
            _spread(x, xs, r, rs, dy, dys, dx, dr, dxs, count, n, line, pull, bends(p, True, tag), streams, tag)
        else:
            _spread(x, xs, r, rs, dy, dys, dx, dr, dxs, count, n, line, pull, bends(p, False, tag), streams, tag)
    elif flat(p):
        _spread(x, xs, 0, 0, dy, dys, dx, 0, dxs, count, n, line, pull, bends(p, True, tag), streams, tag)
    else:
        _spread(x, xs, 0, 0, dy, dys, dx, 0, dxs, count, n, line, pull, bends(p, False, tag), streams, tag)
