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
    ask_own,
    asks,
    far,
    fetch,
    hop_on,
    next_written,
    own,
    together,
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
def _next(of: Any, k: Any, c: Any, hop: Any, asks: Any, tag: Any) -> Any:
    """Where the segment lies that is to be asked for next, or 0."""
    return next_written(of, k, c, hop, tag) if asks else 0


@inline_mapping
def _ask(address: Any, j: Any, tag: Any) -> None:
    if address != 0:
        ask(address, j, tag)


@inline_mapping
def _ask_own(address: Any, j: Any, tag: Any) -> None:
    if address != 0:
        ask_own(address, j, tag)


@inline_mapping
def _normalize_one(
    a: Any, b: Any, later: Any, out: Any, n: Any, words: Any, bent: Any, streams: Any, tag: Any
) -> None:
    """Write one segment; `later` are addresses of x, r and y to be asked for."""
    width = vectors.lanes(tag)
    head, whole = _bounds(out, n, streams, tag)
    for j in range(0, head, width):
        mask = vectors.first(head - j, tag)
        memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)
    for j in range(head, whole, 2 * width):
        _ask(later[0], j, tag)
        if b is not None:
            _ask(later[1], j, tag)
        _ask_own(later[2], j, tag)
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
    hop, (reads, owns, short) = hop_on(p, channels, count, n), asks(p, n, streams, tag)
    more = r is not None and far(p, FAR, tag)  # no statistics have read it
    few = together(n)
    for k in range(count - 1, -1, -1):
        due = 0
        for c in range(channels):
            if short and c == due:
                due += few
                if reads:
                    fetch(next_written(x, k, c, hop, tag), few * n, tag)
                if owns:
                    own(next_written(y, k, c, hop, tag), few * n, tag)
            later = (
                _next(x, k, c, hop, reads and not short, tag),
                0 if r is None else _next(r, k, c, hop, more, tag),
                _next(y, k, c, hop, owns and not short, tag),
            )
            words = in_words(line_of(w, c), tag)
            a, b, out = place(x, k, c, tag), place(r, k, c, tag), place(y, k, c, tag)
            _normalize_one(a, b, later, out, n, words, bent, streams, tag)


@mapping
def normalize(
    p: Any, x: Any, r: Any, y: Any, channels: Any, count: Any, n: Any, w: Any, streams: Any,
    tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias)``; no residual."""
    lay_stack()
    if flat(p):
        _normalize(p, x, None, y, channels, count, n, w, bends(p, FLAT, tag), streams, tag)
    elif plain(p):
        _normalize(p, x, None, y, channels, count, n, w, bends(p, PLAIN, tag), streams, tag)
    else:
        _normalize(p, x, None, y, channels, count, n, w, bends(p, SLOPED, tag), streams, tag)


@mapping
def normalize_residual(
    p: Any, x: Any, r: Any, y: Any, channels: Any, count: Any, n: Any, w: Any, streams: Any,
    tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)``."""
    lay_stack()
    if flat(p):
        _normalize(p, x, r, y, channels, count, n, w, bends(p, FLAT, tag), streams, tag)
    else:
        _normalize(p, x, r, y, channels, count, n, w, bends(p, SLOPED, tag), streams, tag)


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
    a: Any, b: Any, c: Any, later: Any, out: Any, of_r: Any, n: Any, words: Any, pull: Any,
    bent: Any, both: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """Write one segment, of the residual's gradient too if both are wanted.

    `later` are addresses of x, dy, r, dx and dr to be asked for.
    """
    width = vectors.lanes(tag)
    head, whole = _bounds(out, n, streams, tag)
    for j in range(0, head, width):
        mask = vectors.first(head - j, tag)
        _pull(a, b, c, out, of_r, j, words, pull, bent, mask, both, tag)
    for j in range(head, whole, 2 * width):
        _ask(later[0], j, tag)
        _ask(later[1], j, tag)
        _ask_own(later[3], j, tag)
        if b is not None:
            _ask(later[2], j, tag)
            _ask_own(later[4], j, tag)
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
    hop, (reads, owns, short) = hop_on(p, channels, count, n), asks(p, n, streams, tag)
    both = dr is not None and dr[0] != 0
    few, long = together(n), not short
    for k in range(count - 1, -1, -1):
        due = 0
        for c in range(channels):
            if short and c == due:
                due += few
                if reads:
                    fetch(next_written(x, k, c, hop, tag), few * n, tag)
                    fetch(next_written(dy, k, c, hop, tag), few * n, tag)
                    if r is not None:
                        fetch(next_written(r, k, c, hop, tag), few * n, tag)
                if owns:
                    own(next_written(dx, k, c, hop, tag), few * n, tag)
                    if both:
                        own(next_written(dr, k, c, hop, tag), few * n, tag)
            later = (
                _next(x, k, c, hop, reads and long, tag),
                _next(dy, k, c, hop, reads and long, tag),
                0 if r is None else _next(r, k, c, hop, reads and long, tag),
                _next(dx, k, c, hop, owns and long, tag),
                0 if dr is None else _next(dr, k, c, hop, owns and long and both, tag),
            )
            words, pull = in_words(line_of(w, c), tag), in_vectors(pull_of(w, c), tag)
            a, b, g = place(x, k, c, tag), place(r, k, c, tag), place(dy, k, c, tag)
            out, of_r = place(dx, k, c, tag), place(dr, k, c, tag)
            _spread_one(a, b, g, later, out, of_r, n, words, pull, bent, both, streams, tag)


@mapping
def spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)``; no residual."""
    lay_stack()
    m = channels
    if flat(p):
        _spread(p, x, None, dy, dx, None, m, count, n, w, bends(p, FLAT, tag), streams, tag)
    elif plain(p):
        _spread(p, x, None, dy, dx, None, m, count, n, w, bends(p, PLAIN, tag), streams, tag)
    else:
        _spread(p, x, None, dy, dx, None, m, count, n, w, bends(p, SLOPED, tag), streams, tag)


@mapping
def spread_residual(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    streams: Any, tag: Any,
) -> None:  # fmt: skip
    """As `spread`, with a residual, of which the gradient is g: written unless its address is 0."""
    lay_stack()
    m = channels
    if dr[0] != 0:
        streams = streams and (dx[0] - dr[0]) % LINE == 0
    if flat(p):
        _spread(p, x, r, dy, dx, dr, m, count, n, w, bends(p, FLAT, tag), streams, tag)
    else:
        _spread(p, x, r, dy, dx, dr, m, count, n, w, bends(p, SLOPED, tag), streams, tag)


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
