"""Segments of one channel: where they lie, and which comes next."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, at, prefetch

SHORT = 1024  # elements: below this, hardware sees no stream to fetch ahead of
AHEAD = 4  # segments: 2 and 8 are slower


@mapping
def bounds(p: Any, part: Any) -> Any:
    """The first position of a part, where it lies (outer and inner), and where the part ends."""
    position = part * p.span
    o = position // p.inner if p.inner else 0
    return o, position - o * p.inner, min(p.span, p.outer * p.inner - position)


@mapping
def offsets(p: Any, o: Any, c: Any, i: Any, tag: Any) -> Any:
    """Addresses of x, residual, dy, out, the residual's gradient and the weights."""
    written = (o * p.channels + c) * p.inner + i
    return (
        at(p.x, o * p.x_outer + c * p.x_channel + i, tag),
        at(p.residual, o * p.residual_outer + c * p.residual_channel + i, tag),
        at(p.dy, o * p.dy_outer + c * p.dy_channel + i, tag),
        at(p.out, written, tag),
        at(p.out_residual, written, tag),
        at(p.weights, o * p.inner + i, WIDE),
    )


@mapping
def following(p: Any, o: Any, i: Any, left: Any, n: Any) -> Any:
    """The segment after one of n."""
    return (o, i + n, left - n) if i + n < p.inner else (o + 1, 0, left - n)


@mapping
def ahead(p: Any, o: Any, x: Any, outer_step: Any, tag: Any) -> None:
    """Fetch a segment that comes later, if they are short: 7 x 7 images take 20 % less time."""
    if p.inner < SHORT and o + AHEAD < p.outer:
        start = at(x, AHEAD * outer_step, tag)
        for byte in range(0, at(start, p.inner, tag) - start, 64):
            prefetch(start + byte)
