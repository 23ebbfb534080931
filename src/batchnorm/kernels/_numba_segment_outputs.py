"""Outputs over segments, downwards: a pass begins with what was read last.

Arguments are those of `_numba_segment_sums`. Of short segments, those of a few channels that lie
side by side are written one after the other: the same channel's others may be so far apart, by a
power of two, that a cache holds but some of them at a time.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import (
    FAR,
    ask,
    asks_first,
    far,
    fetch_next,
    hop_on,
    next_written,
)
from batchnorm.kernels._numba_bend import (
    FLAT,
    PLAIN,
    SLOPED,
    bends,
    flat,
    plain,
    unbends,
)
from batchnorm.kernels._numba_constants import line_of, pull_of
from batchnorm.kernels._numba_line import in_vectors, in_words, normal, pulled
from batchnorm.kernels._numba_machine import lay_stack
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
def _normalize_one(
    a: Any, b: Any, later: Any, out: Any, n: Any, words: Any, bent: Any, asks: Any, streams: Any,
    tag: Any,
) -> None:  # fmt: skip
    """Write one segment."""
    width = vectors.lanes(tag)
    head, whole = _bounds(out, n, streams, tag)
    for j in range(0, head, width):
        mask = vectors.first(head - j, tag)
        memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)
    for j in range(head, whole, 2 * width):
        if asks and b is not None:
            ask(later, j, tag)
        one = normal(a, j, b, j, words, bent, None, tag)
        two = normal(a, j + width, b, j + width, words, bent, None, tag)
        _put(out, j, one, two, streams, tag)
    for j in range(whole, n, width):
        mask = vectors.first(n - j, tag)
        memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)


@inline_mapping
def _normalize(
    p: Any, x: Any, r: Any, y: Any, channels: Any, count: Any, n: Any, w: Any, bent: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    hop, asks = hop_on(p, channels, count, n), asks_first(p, n, tag)
    reads = r is not None and far(p, FAR, tag)  # statistics did not need it
    for k in range(count - 1, -1, -1):
        for c in range(channels):
            if asks:
                fetch_next(x, k, c, n, hop, tag)
            later = next_written(r, k, c, hop, tag) if reads else 0
            words = in_words(line_of(w, c), tag)
            a, b, out = place(x, k, c, tag), place(r, k, c, tag), place(y, k, c, tag)
            _normalize_one(a, b, later, out, n, words, bent, reads, streams, tag)


@mapping
def normalize(
    p: Any, x: Any, r: Any, y: Any, channels: Any, count: Any, n: Any, w: Any, streams: Any,
    tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)``."""
    lay_stack()
    if r[0] != 0 and flat(p):
        _normalize(p, x, r, y, channels, count, n, w, bends(p, FLAT, tag), streams, tag)
    elif r[0] != 0:
        _normalize(p, x, r, y, channels, count, n, w, bends(p, SLOPED, tag), streams, tag)
    elif flat(p):
        _normalize(p, x, None, y, channels, count, n, w, bends(p, FLAT, tag), streams, tag)
    elif plain(p):
        _normalize(p, x, None, y, channels, count, n, w, bends(p, PLAIN, tag), streams, tag)
    else:
        _normalize(p, x, None, y, channels, count, n, w, bends(p, SLOPED, tag), streams, tag)


@inline_mapping
def _pull(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, j: Any, words: Any, pull: Any, bent: Any,
    mask: Any, both: Any, tag: Any,
) -> None:  # fmt: skip
    """Write less than a vector."""
    value, g = pulled(x, j, r, j, dy, j, words, pull, bent, mask, tag)
    memory.write(dx, j, value, mask, tag)
    if dr is not None and both:
        memory.write(dr, j, g, mask, tag)


@inline_mapping
def _spread_one(
    a: Any, b: Any, c: Any, out: Any, of_r: Any, n: Any, words: Any, pull: Any, bent: Any,
    both: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """Write one segment, of the residual's gradient too if both are wanted."""
    width = vectors.lanes(tag)
    head, whole = _bounds(out, n, streams, tag)
    for j in range(0, head, width):
        mask = vectors.first(head - j, tag)
        _pull(a, b, c, out, of_r, j, words, pull, bent, mask, both, tag)
    for j in range(head, whole, 2 * width):
        i = j + width
        one, g = pulled(a, j, b, j, c, j, words, pull, bent, None, tag)
        two, h = pulled(a, i, b, i, c, i, words, pull, bent, None, tag)
        _put(out, j, one, two, streams, tag)
        if of_r is not None and both:
            _put(of_r, j, g, h, streams, tag)
    for j in range(whole, n, width):
        mask = vectors.first(n - j, tag)
        _pull(a, b, c, out, of_r, j, words, pull, bent, mask, both, tag)


@inline_mapping
def _spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    bent: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    hop, asks = hop_on(p, channels, count, n), asks_first(p, n, tag)
    both = dr is not None and dr[0] != 0
    for k in range(count - 1, -1, -1):
        for c in range(channels):
            if asks:
                fetch_next(x, k, c, n, hop, tag)
                fetch_next(dy, k, c, n, hop, tag)
            words, pull = in_words(line_of(w, c), tag), in_vectors(pull_of(w, c), tag)
            a, b, g = place(x, k, c, tag), place(r, k, c, tag), place(dy, k, c, tag)
            out, of_r = place(dx, k, c, tag), place(dr, k, c, tag)
            _spread_one(a, b, g, out, of_r, n, words, pull, bent, both, streams, tag)


@mapping
def spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)``, and ``dr = g``.

    The residual's gradient is left out where its address is 0.
    """
    lay_stack()
    m = channels
    if dr[0] != 0:
        streams = streams and (dx[0] - dr[0]) % LINE == 0
    if r[0] != 0 and flat(p):
        _spread(p, x, r, dy, dx, dr, m, count, n, w, bends(p, FLAT, tag), streams, tag)
    elif r[0] != 0:
        _spread(p, x, r, dy, dx, dr, m, count, n, w, bends(p, SLOPED, tag), streams, tag)
    elif flat(p):
        _spread(p, x, None, dy, dx, None, m, count, n, w, bends(p, FLAT, tag), streams, tag)
    elif plain(p):
        _spread(p, x, None, dy, dx, None, m, count, n, w, bends(p, PLAIN, tag), streams, tag)
    else:
        _spread(p, x, None, dy, dx, None, m, count, n, w, bends(p, SLOPED, tag), streams, tag)


@mapping
def spread_from_output(
    p: Any, y: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """As `spread`, from the output; no residual."""
    lay_stack()
    if plain(p):
        _spread(
            p, y, None, dy, dx, None, channels, count, n, w, unbends(p, PLAIN, tag), streams, tag
        )
    else:
        _spread(
            p, y, None, dy, dx, None, channels, count, n, w, unbends(p, SLOPED, tag), streams, tag
        )
