"""Memory asked for before it is read: hardware sees a stream late, and loses it at each page.

Lines are asked for a few at a time, between the loops that read others: many at once fill the
queue of misses, behind which these loops would wait.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_machine import prefetch
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import at

AHEAD = 2048  # elements
ROWS = 8  # rows of channels, of up to `TILE` elements
FAR = 2**21  # bytes of a tensor: what the second caches hold is not worth asking for
FAR_ROWS = 2 * FAR  # rows do it strip by strip, for which constants and sums are read more often


@mapping
def far(p: Any, least: Any, tag: Any) -> Any:
    """Whether a tensor has at least so many bytes; by shape alone, as sums are divided."""
    return at(p.x, p.outer * p.channels * p.inner, tag) - p.x >= least


@mapping
def segment(p: Any, x: Any, step: Any, beyond: Any, k: Any, count: Any, n: Any, tag: Any) -> Any:
    """The address of the segment of n that comes `AHEAD` elements after a part's k-th of `count`.

    After a channel of one part comes the next channel, `beyond` elements further on.
    """
    return _at(p, x, step, beyond, k + max(AHEAD // n, 1), count, n, tag)


@mapping
def segment_before(
    p: Any, x: Any, step: Any, beyond: Any, k: Any, count: Any, n: Any, tag: Any
) -> Any:
    """As `segment`, on the way back."""
    return _at(p, x, step, beyond, k - max(AHEAD // n, 1), count, n, tag)


@mapping
def _at(p: Any, x: Any, step: Any, beyond: Any, k: Any, count: Any, n: Any, tag: Any) -> Any:
    if p.inner > p.span:  # parts of one segment
        return at(x, k * n, tag)
    channels = k // count if p.parts == 1 else 0
    return at(x, channels * beyond + (k - channels * count) * step, tag)


@mapping
def fetch(x: Any, n: Any, tag: Any) -> None:
    """Ask for n elements, which need not be ours."""
    for byte in range(x, at(x, n, tag), 64):
        prefetch(byte)
