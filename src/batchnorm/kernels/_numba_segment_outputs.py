"""Outputs over segments of one channel, downwards: a pass begins with what was read last.

Tensors are given as in `_numba_segment_sums`.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import ask, before, hop
from batchnorm.kernels._numba_bend import bends, flat
from batchnorm.kernels._numba_line import in_words, normal, pulled
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import at
from batchnorm.kernels._numba_segments import place

LINE = 64  # bytes that go past the caches at once


@inline_mapping
def _bounds(y: Any, n: Any, streams: Any, tag: Any) -> Any:
    """Where pairs of whole vectors begin and end; what goes past the caches begins with a line."""
    head = min(-y % LINE // (at(LINE, 1, tag) - LINE), n) if streams else 0
    return head, head + (n - head & -2 * vectors.lanes(tag))


@inline_mapping
def _put(y: Any, j: Any, one: Any, two: Any, streams: Any, tag: Any) -> None:
    """Write a pair of vectors."""
    if streams:
        memory.stream(y, j, one, tag)
        memory.stream(y, j + vectors.lanes(tag), two, tag)
    else:
        memory.write(y, j, one, None, tag)
        memory.write(y, j + vectors.lanes(tag), two, None, tag)


@inline_mapping
def _normalize(
    p: Any, x: Any, r: Any, y: Any, count: Any, n: Any, line: Any, bent: Any, asks: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    width, words, ahead = vectors.lanes(tag), in_words(line, tag), hop(p, count, n)
    for k in range(count - 1, -1, -1):
        a, b, out = place(x, k, tag), place(r, k, tag), place(y, k, tag)
        head, whole = _bounds(out, n, streams, tag)
        later = 0
        if r is not None:
            later = before(r[0], r[1], r[2], k, ahead, tag) if asks else 0
        for j in range(0, head, width):
            mask = vectors.first(head - j, tag)
            memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)
        for j in range(head, whole, 2 * width):
            if asks:
                ask(later, j, tag)
            one = normal(a, j, b, j, words, bent, None, tag)
            two = normal(a, j + width, b, j + width, words, bent, None, tag)
            _put(out, j, one, two, streams, tag)
        for j in range(whole, n, width):
            mask = vectors.first(n - j, tag)
            memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)


@mapping
def normalize(
    p: Any, x: Any, r: Any, y: Any, count: Any, n: Any, line: Any, asks: Any, streams: Any,
    tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)`` for ``line = (mean, scale, bias)``."""
    if r[0] != 0 and flat(p):
        _normalize(p, x, r, y, count, n, line, bends(p, True, tag), asks, streams, tag)
    elif r[0] != 0:
        _normalize(p, x, r, y, count, n, line, bends(p, False, tag), asks, streams, tag)
    elif flat(p):
        _normalize(p, x, None, y, count, n, line, bends(p, True, tag), False, streams, tag)
    else:
        _normalize(p, x, None, y, count, n, line, bends(p, False, tag), False, streams, tag)


@inline_mapping
def _pull(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, j: Any, words: Any, pull: Any, bent: Any,
    mask: Any, tag: Any,
) -> None:  # fmt: skip
    """Write less than a vector."""
    value, g = pulled(x, j, r, j, dy, j, words, pull, bent, mask, tag)
    memory.write(dx, j, value, mask, tag)
    if dr is not None:
        memory.write(dr, j, g, mask, tag)


@inline_mapping
def _spread(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, count: Any, n: Any, line: Any, pull: Any,
    bent: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    width, words = vectors.lanes(tag), in_words(line, tag)
    pull = (
        vectors.filled(pull[0], tag), vectors.filled(pull[1], tag), vectors.filled(pull[2], tag)
    )  # fmt: skip
    for k in range(count - 1, -1, -1):
        a, b, c = place(x, k, tag), place(r, k, tag), place(dy, k, tag)
        out, of_r = place(dx, k, tag), place(dr, k, tag)
        head, whole = _bounds(out, n, streams, tag)
        for j in range(0, head, width):
            mask = vectors.first(head - j, tag)
            _pull(a, b, c, out, of_r, j, words, pull, bent, mask, tag)
        for j in range(head, whole, 2 * width):
            i = j + width
            one, g = pulled(a, j, b, j, c, j, words, pull, bent, None, tag)
            two, h = pulled(a, i, b, i, c, i, words, pull, bent, None, tag)
            _put(out, j, one, two, streams, tag)
            if dr is not None:
                _put(of_r, j, g, h, streams, tag)
        for j in range(whole, n, width):
            mask = vectors.first(n - j, tag)
            _pull(a, b, c, out, of_r, j, words, pull, bent, mask, tag)


@mapping
def spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, count: Any, n: Any, line: Any, pull: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)`` with ``pull = (a, b, invstd)``, and ``dr = g``.

    There is a gradient of the residual where there is one.
    """
    if r[0] != 0:
        streams = streams and (dx[0] - dr[0]) % LINE == 0
    if r[0] != 0 and flat(p):
        _spread(x, r, dy, dx, dr, count, n, line, pull, bends(p, True, tag), streams, tag)
    elif r[0] != 0:
        _spread(x, r, dy, dx, dr, count, n, line, pull, bends(p, False, tag), streams, tag)
    elif flat(p):
        _spread(x, None, dy, dx, None, count, n, line, pull, bends(p, True, tag), streams, tag)
    else:
        _spread(x, None, dy, dx, None, count, n, line, pull, bends(p, False, tag), streams, tag)
