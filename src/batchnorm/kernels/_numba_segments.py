"""Segments of one channel: how many a part has, and where they lie."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import WIDE, at


@mapping
def bounds(p: Any, part: Any) -> Any:
    """Where a part begins (outer and inner), how many segments it has, and their length."""
    if p.parts == 1 or p.inner == 0:
        return 0, 0, p.outer, p.inner
    if p.inner <= p.span:
        each = p.span // p.inner
        return part * each, 0, min(each, p.outer - part * each), p.inner
    pieces = (p.inner + p.span - 1) // p.span
    o = part // pieces
    i = (part - o * pieces) * p.span
    return o, i, 1, min(p.span, p.inner - i)


@inline_mapping
def place(of: Any, k: Any, c: Any, tag: Any) -> Any:
    """The address of channel c in the k-th of some segments; None of None."""
    if of is None:
        return None
    return at(of[0], k * of[1] + c * of[2], tag)


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
def inputs(p: Any, o: Any, c: Any, i: Any, tag: Any) -> Any:
    """x, residual and dy from a position on, each with its steps to the next segment, channel."""
    x, r, dy = offsets(p, o, c, i, tag)[:3]
    return (
        (x, p.x_outer, p.x_channel),
        (r, p.residual_outer, p.residual_channel),
        (dy, p.dy_outer, p.dy_channel),
    )


@mapping
def outputs(p: Any, o: Any, c: Any, i: Any, tag: Any) -> Any:
    """The output, and the residual's gradient."""
    _, _, _, out, of_r, _ = offsets(p, o, c, i, tag)
    return (out, p.channels * p.inner, p.inner), (of_r, p.channels * p.inner, p.inner)
