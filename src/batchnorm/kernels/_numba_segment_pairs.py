"""Segments written a pair of vectors at a time: where pairs lie, and what is asked for before."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._numba_ahead import ask, ask_own, next_written
from batchnorm.kernels._numba_math import inline_mapping
from batchnorm.kernels._numba_memory import at

LINE = 64  # bytes that go past the caches at once


@inline_mapping
def bounds(y: Any, n: Any, streams: Any, tag: Any) -> Any:
    """Where pairs of whole vectors begin and end; what goes past the caches begins with a line."""
    head = min(-y % LINE // (at(LINE, 1, tag) - LINE), n) if streams else 0
    return head, head + (n - head & -2 * vectors.lanes(tag))


@inline_mapping
def put(y: Any, j: Any, one: Any, two: Any, streams: Any, tag: Any) -> None:
    """Write a pair of vectors."""
    if streams:
        memory.stream(y, j, one, tag)
        memory.stream(y, j + vectors.lanes(tag), two, tag)
    else:
        memory.write(y, j, one, None, tag)
        memory.write(y, j + vectors.lanes(tag), two, None, tag)


@inline_mapping
def next_or_none(of: Any, k: Any, c: Any, hop: Any, asks: Any, tag: Any) -> Any:
    """Where the segment lies that is to be asked for next, or 0."""
    return next_written(of, k, c, hop, tag) if asks else 0


@inline_mapping
def ask_at(address: Any, j: Any, tag: Any) -> None:
    """Ask for two vectors of a segment that may be none."""
    if address != 0:
        ask(address, j, tag)


@inline_mapping
def own_at(address: Any, j: Any, tag: Any) -> None:
    """As `ask_at`, of what will be written."""
    if address != 0:
        ask_own(address, j, tag)
