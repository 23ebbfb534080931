"""Four rows of channels at once, strip by strip, while as many that come later are asked for.

A strip is so short that a call for each would show: the loops are part of these functions, which
is what lets LLVM count on its length. Those with a residual, which read more, are called.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels import _numba_row_loops as rows
from batchnorm.kernels._numba_ahead import ROWS
from batchnorm.kernels._numba_machine import prefetch_four, stream_line
from batchnorm.kernels._numba_math import inline_mapping, inline_summing, mapping
from batchnorm.kernels._numba_memory import STRIP, at, constant_size

_measure = inline_summing(rows.measure.py_func)
_normalize = inline_mapping(rows.normalize.py_func)
_reduce = inline_summing(rows.reduce.py_func)
_spread = inline_mapping(rows.spread.py_func)


@mapping
def tile(p: Any, work: Any, tag: Any) -> Any:
    """Memory for two strips of four rows if outputs go past the caches, in whole lines; else 0."""
    odd = (p.out | p.out_residual | (at(64, p.columns, tag) - 64)) % 64
    return work[0].ctypes.data if p.streams and odd == 0 else 0


@mapping
def _stream(held: Any, y: Any, ys: Any, tag: Any) -> None:
    """Copy a strip of four rows to an output that no cache would hold."""
    for k in range(4):
        there = at(y, k * ys, tag)
        for byte in range(0, at(there, STRIP, tag) - there, 64):
            stream_line(there + byte, at(held, k * STRIP, tag) + byte)


@mapping
def measure(x: Any, xs: Any, n: Any, v: Any, s: Any, q: Any, tag: Any) -> None:
    """`_numba_row_loops.measure` of four rows, upwards."""
    whole = n // STRIP * STRIP
    for j in range(0, whole, STRIP):
        a, w = at(x, j, tag), constant_size(tag) * j
        prefetch_four(at(a, ROWS * xs, tag), xs, tag)
        _measure(a, xs, STRIP, v + w, s + w, q + w, rows.FOUR, tag)
    w = constant_size(tag) * whole
    rows.measure(at(x, whole, tag), xs, n - whole, v + w, s + w, q + w, rows.FOUR, tag)


@mapping
def normalize(
    x: Any, xs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, bent: Any, held: Any, tag: Any
) -> None:
    """`_numba_row_loops.normalize` of four rows, downwards."""
    whole = n // STRIP * STRIP
    for j in range(0, whole, STRIP):
        a, w = at(x, j, tag), v + constant_size(tag) * j
        prefetch_four(at(a, -ROWS * xs, tag), xs, tag)
        out, step = (held, STRIP) if held else (at(y, j, tag), ys)
        _normalize(a, xs, out, step, STRIP, w, f, bent, rows.FOUR, tag)
        if held:
            _stream(held, at(y, j, tag), ys, tag)
    a, b, w = at(x, whole, tag), at(y, whole, tag), v + constant_size(tag) * whole
    rows.normalize(a, xs, b, ys, n - whole, w, f, bent, rows.FOUR, tag)


@mapping
def reduce(
    x: Any, xs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, bent: Any, s: Any, q: Any, tag: Any
) -> None:
    """`_numba_row_loops.reduce` of four rows, upwards."""
    whole = n // STRIP * STRIP
    for j in range(0, whole, STRIP):
        a, b, w = at(x, j, tag), at(dy, j, tag), constant_size(tag) * j
        prefetch_four(at(a, ROWS * xs, tag), xs, tag)
        prefetch_four(at(b, ROWS * dys, tag), dys, tag)
        _reduce(a, xs, b, dys, STRIP, v + w, f, bent, s + w, q + w, rows.FOUR, tag)
    a, b, w = at(x, whole, tag), at(dy, whole, tag), constant_size(tag) * whole
    rows.reduce(a, xs, b, dys, n - whole, v + w, f, bent, s + w, q + w, rows.FOUR, tag)


@mapping
def spread(
    x: Any, xs: Any, dy: Any, dys: Any, dx: Any, n: Any, v: Any, f: Any, bent: Any, held: Any,
    tag: Any,
) -> None:  # fmt: skip
    """`_numba_row_loops.spread` of four rows, downwards."""
    whole = n // STRIP * STRIP
    for j in range(0, whole, STRIP):
        a, b, w = at(x, j, tag), at(dy, j, tag), v + constant_size(tag) * j
        prefetch_four(at(a, -ROWS * xs, tag), xs, tag)
        prefetch_four(at(b, -ROWS * dys, tag), dys, tag)
        out, step = (held, STRIP) if held else (at(dx, j, tag), f)
        _spread(a, xs, b, dys, out, step, STRIP, w, f, bent, rows.FOUR, tag)
        if held:
            _stream(held, at(dx, j, tag), f, tag)
    a, b, w = at(x, whole, tag), at(dy, whole, tag), v + constant_size(tag) * whole
    rows.spread(a, xs, b, dys, at(dx, whole, tag), f, n - whole, w, f, bent, rows.FOUR, tag)


@mapping
def normalize_add(
    x: Any, xs: Any, r: Any, rs: Any, y: Any, ys: Any, n: Any, v: Any, f: Any, bent: Any,
    held: Any, tag: Any,
) -> None:  # fmt: skip
    """`_numba_row_loops.normalize_add` of four rows, downwards."""
    for j in range(0, n, STRIP):
        a, b, w, m = at(x, j, tag), at(r, j, tag), v + constant_size(tag) * j, min(STRIP, n - j)
        prefetch_four(at(a, -ROWS * xs, tag), xs, tag)
        prefetch_four(at(b, -ROWS * rs, tag), rs, tag)
        streams = held != 0 and m == STRIP
        out, step = (held, STRIP) if streams else (at(y, j, tag), ys)
        rows.normalize_add(a, xs, b, rs, out, step, m, w, f, bent, rows.FOUR, tag)
        if streams:
            _stream(held, at(y, j, tag), ys, tag)


@mapping
def reduce_add(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, n: Any, v: Any, f: Any, bent: Any,
    s: Any, q: Any, tag: Any,
) -> None:  # fmt: skip
    """`_numba_row_loops.reduce_add` of four rows, upwards."""
    for j in range(0, n, STRIP):
        a, b, c, m = at(x, j, tag), at(r, j, tag), at(dy, j, tag), min(STRIP, n - j)
        w = constant_size(tag) * j
        prefetch_four(at(a, ROWS * xs, tag), xs, tag)
        prefetch_four(at(b, ROWS * rs, tag), rs, tag)
        prefetch_four(at(c, ROWS * dys, tag), dys, tag)
        rows.reduce_add(a, xs, b, rs, c, dys, m, v + w, f, bent, s + w, q + w, rows.FOUR, tag)


@mapping
def spread_add(
    x: Any, xs: Any, r: Any, rs: Any, dy: Any, dys: Any, dx: Any, dr: Any, n: Any, v: Any,
    f: Any, bent: Any, held: Any, tag: Any,
) -> None:  # fmt: skip
    """`_numba_row_loops.spread_add` of four rows, downwards."""
    for j in range(0, n, STRIP):
        a, b, c, m = at(x, j, tag), at(r, j, tag), at(dy, j, tag), min(STRIP, n - j)
        w, of_x, of_r, step = v + constant_size(tag) * j, at(dx, j, tag), at(dr, j, tag), f
        prefetch_four(at(a, -ROWS * xs, tag), xs, tag)
        prefetch_four(at(b, -ROWS * rs, tag), rs, tag)
        prefetch_four(at(c, -ROWS * dys, tag), dys, tag)
        streams = held != 0 and m == STRIP
        if streams:
            of_x, of_r, step = held, at(held, 4 * STRIP, tag), STRIP
        rows.spread_add(a, xs, b, rs, c, dys, of_x, of_r, step, m, w, f, bent, rows.FOUR, tag)
        if streams:
            _stream(of_x, at(dx, j, tag), f, tag)
            _stream(of_r, at(dr, j, tag), f, tag)
