"""Normalization over segments, downwards: a pass begins with what was read last.

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
    asks,
    far,
    fetch,
    hop_on,
    next_written,
    own,
    together,
)
from batchnorm.kernels._numba_bend import bends, if_residual
from batchnorm.kernels._numba_constants import line_of
from batchnorm.kernels._numba_line import in_words, normal
from batchnorm.kernels._numba_machine import lay_stack
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_segment_pairs import ask_at, bounds, next_or_none, own_at, put
from batchnorm.kernels._numba_segments import place


@inline_mapping
def _normalize_one(
    a: Any, b: Any, later: Any, out: Any, n: Any, words: Any, bent: Any, streams: Any, tag: Any
) -> None:
    """Write one segment; `later` are addresses of x, r and y to be asked for."""
    width = vectors.lanes(tag)
    head, whole = bounds(out, n, streams, tag)
    for j in range(0, head, width):
        mask = vectors.first(head - j, tag)
        memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)
    for j in range(head, whole, 2 * width):
        ask_at(later[0], j, tag)
        if b is not None:
            ask_at(later[1], j, tag)
        own_at(later[2], j, tag)
        one = normal(a, j, b, j, words, bent, None, tag)
        two = normal(a, j + width, b, j + width, words, bent, None, tag)
        put(out, j, one, two, streams, tag)
    for j in range(whole, n, width):
        mask = vectors.first(n - j, tag)
        memory.write(out, j, normal(a, j, b, j, words, bent, mask, tag), mask, tag)


@inline_mapping
def _normalize_short(
    x: Any, r: Any, y: Any, channels: Any, count: Any, n: Any, w: Any, bent: Any, hop: Any,
    reads: Any, more: Any, owns: Any, tag: Any,
) -> None:  # fmt: skip
    """Write segments so short that a question about each would cost as much as its vectors."""
    width, few = vectors.lanes(tag), together(n)
    whole = n & -2 * width
    for k in range(count - 1, -1, -1):
        for first in range(0, channels, few):
            if reads:
                fetch(next_written(x, k, first, hop, tag), few * n, tag)
            if r is not None and more:
                fetch(next_written(r, k, first, hop, tag), few * n, tag)
            if owns:
                own(next_written(y, k, first, hop, tag), few * n, tag)
            for c in range(first, min(first + few, channels)):
                words = in_words(line_of(w, c), tag)
                a, b, out = place(x, k, c, tag), place(r, k, c, tag), place(y, k, c, tag)
                for j in range(0, whole, 2 * width):
                    one = normal(a, j, b, j, words, bent, None, tag)
                    two = normal(a, j + width, b, j + width, words, bent, None, tag)
                    put(out, j, one, two, False, tag)
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
    if short and not streams:
        _normalize_short(x, r, y, channels, count, n, w, bent, hop, reads, more, owns, tag)
        return
    for k in range(count - 1, -1, -1):
        for c in range(channels):
            later = (
                next_or_none(x, k, c, hop, reads, tag),
                0 if r is None else next_or_none(r, k, c, hop, more, tag),
                next_or_none(y, k, c, hop, owns, tag),
            )
            words = in_words(line_of(w, c), tag)
            a, b, out = place(x, k, c, tag), place(r, k, c, tag), place(y, k, c, tag)
            _normalize_one(a, b, later, out, n, words, bent, streams, tag)


@mapping
def normalize(
    p: Any, x: Any, r: Any, y: Any, channels: Any, count: Any, n: Any, w: Any, streams: Any,
    kind: Any, tag: Any,
) -> None:  # fmt: skip
    """``y = f((x - mean) scale + bias + r)``."""
    lay_stack()
    _normalize(
        p, x, if_residual(kind, r), y, channels, count, n, w, bends(p, kind, tag), streams, tag
    )
