"""Segments of one channel: how many a part has, and where they lie."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, at


@mapping
def bounds(p: Any, part: Any) -> Any:
    """Where a part begins (outer and inner), how many segments it has, and their length."""
    if p.inner == 0:
        return 0, 0, 0, 0
    if p.inner <= p.span:
        each = p.span // p.inner
        return part * each, 0, min(each, p.outer - part * each), p.inner
    pieces = (p.inner + p.span - 1) // p.span
    o = part // pieces
    i = (part - o * pieces) * p.span
    return o, i, 1, min(p.span, p.inner - i)


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
