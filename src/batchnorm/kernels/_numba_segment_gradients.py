"""Gradients over segments, downwards; arguments and order are those of `_numba_segment_normal`."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import asks, fetch, hop_on, next_written, own, together
from batchnorm.kernels._numba_bend import bends, if_residual
from batchnorm.kernels._numba_constants import line_of, pull_of
from batchnorm.kernels._numba_line import in_vectors, in_words, pulled
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_segment_pairs import LINE, ask_at, bounds, next_or_none, own_at, put
from batchnorm.kernels._numba_segments import place


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
def _pull_pair(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, j: Any, words: Any, pull: Any, bent: Any,
    both: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """Write a pair of vectors."""
    i = j + vectors.lanes(tag)
    one, g = pulled(x, j, r, j, dy, j, words, pull, bent, None, tag)
    two, h = pulled(x, i, r, i, dy, i, words, pull, bent, None, tag)
    put(dx, j, one, two, streams, tag)
    if dr is not None and both:
        put(dr, j, g, h, streams, tag)


@inline_mapping
def _spread_one(
    a: Any, b: Any, c: Any, later: Any, out: Any, of_r: Any, n: Any, words: Any, pull: Any,
    bent: Any, both: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    """Write one segment, of the residual's gradient too if both are wanted.

    `later` are addresses of x, dy, r, dx and dr to be asked for.
    """
    width = vectors.lanes(tag)
    head, whole = bounds(out, n, streams, tag)
    for j in range(0, head, width):
        mask = vectors.first(head - j, tag)
        _pull(a, b, c, out, of_r, j, words, pull, bent, mask, both, tag)
    for j in range(head, whole, 2 * width):
        ask_at(later[0], j, tag)
        ask_at(later[1], j, tag)
        own_at(later[3], j, tag)
        if b is not None:
            ask_at(later[2], j, tag)
            own_at(later[4], j, tag)
        _pull_pair(a, b, c, out, of_r, j, words, pull, bent, both, streams, tag)
    for j in range(whole, n, width):
        mask = vectors.first(n - j, tag)
        _pull(a, b, c, out, of_r, j, words, pull, bent, mask, both, tag)


@inline_mapping
def _spread_short(
    x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    bent: Any, both: Any, hop: Any, reads: Any, owns: Any, tag: Any,
) -> None:  # fmt: skip
    """Write segments so short that a question about each would cost as much as its vectors."""
    width, few = vectors.lanes(tag), together(n)
    whole = n & -2 * width
    for k in range(count - 1, -1, -1):
        for first in range(0, channels, few):
            if reads:
                fetch(next_written(x, k, first, hop, tag), few * n, tag)
                fetch(next_written(dy, k, first, hop, tag), few * n, tag)
                if r is not None:
                    fetch(next_written(r, k, first, hop, tag), few * n, tag)
            if owns:
                own(next_written(dx, k, first, hop, tag), few * n, tag)
                if dr is not None and both:
                    own(next_written(dr, k, first, hop, tag), few * n, tag)
            for c in range(first, min(first + few, channels)):
                words, pull = in_words(line_of(w, c), tag), in_vectors(pull_of(w, c), tag)
                a, b, g = place(x, k, c, tag), place(r, k, c, tag), place(dy, k, c, tag)
                out, of_r = place(dx, k, c, tag), place(dr, k, c, tag)
                for j in range(0, whole, 2 * width):
                    _pull_pair(a, b, g, out, of_r, j, words, pull, bent, both, False, tag)
                for j in range(whole, n, width):
                    mask = vectors.first(n - j, tag)
                    _pull(a, b, g, out, of_r, j, words, pull, bent, mask, both, tag)


@inline_mapping
def _spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    bent: Any, streams: Any, tag: Any,
) -> None:  # fmt: skip
    both = dr is not None and dr[0] != 0
    if dr is not None and both:
        streams = streams and (dx[0] - dr[0]) % LINE == 0
    hop, (reads, owns, short) = hop_on(p, channels, count, n), asks(p, n, streams, tag)
    if short and not streams:
        _spread_short(x, r, dy, dx, dr, channels, count, n, w, bent, both, hop, reads, owns, tag)
        return
    for k in range(count - 1, -1, -1):
        for c in range(channels):
            later = (
                next_or_none(x, k, c, hop, reads, tag),
                next_or_none(dy, k, c, hop, reads, tag),
                0 if r is None else next_or_none(r, k, c, hop, reads, tag),
                next_or_none(dx, k, c, hop, owns, tag),
                0 if dr is None else next_or_none(dr, k, c, hop, owns and both, tag),
            )
            words, pull = in_words(line_of(w, c), tag), in_vectors(pull_of(w, c), tag)
            a, b, g = place(x, k, c, tag), place(r, k, c, tag), place(dy, k, c, tag)
            out, of_r = place(dx, k, c, tag), place(dr, k, c, tag)
            _spread_one(a, b, g, later, out, of_r, n, words, pull, bent, both, streams, tag)


@mapping
def spread(
    p: Any, x: Any, r: Any, dy: Any, dx: Any, dr: Any, channels: Any, count: Any, n: Any, w: Any,
    streams: Any, kind: Any, tag: Any,
) -> None:  # fmt: skip
    """``dx = scale g - (a + b xhat)``; of a residual it is g, written unless its address is 0."""
    lay_stack()
    added, of_added = if_residual(kind, r), if_residual(kind, dr)
    _spread(p, x, added, dy, dx, of_added, channels, count, n, w, bends(p, kind, tag), streams, tag)
