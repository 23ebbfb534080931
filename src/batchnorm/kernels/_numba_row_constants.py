"""The constants of rows of channels, some channels at a time: phases 0 and 2 of `_numba_rows`.

w is the address of a buffer of float64: the vectors of `_numba_row_columns`, `TILE` apart, of n
channels from the first on. Plain loops over them vectorize where nothing that a loop needs could
be overwritten in it: what the record holds is read before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm.kernels import _numba_row_blocks as blocks
from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels._numba_call import (
    parameter,
    put_moments,
    put_parameter,
    shift_of,
)
from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import (
    TILE,
    WIDE,
    constant_size,
    load,
    put,
    put_constant,
)
from batchnorm.kernels._numba_scalar import fit

COUNT = rows.LOW  # until that is needed
FLOAT = np.float32(0)


@mapping
def _totals(p: Any, kind: Any, first: Any, n: Any, w: Any) -> None:
    """A sum over all blocks."""
    for k in range(n):
        put(w, k, 0.0, WIDE)
    for part in range(p.parts):
        there = p.scratch + 8 * blocks.partial(p, part, kind, first)
        for k in range(n):
            put(w, k, load(w, k, WIDE) + load(there, k, WIDE), WIDE)


@mapping
def _parameters(p: Any, first: Any, n: Any, w: Any) -> None:
    """Weight and bias in float64, in loops of their own for the common kind.

    The others look at the record anew each time: no loop is compiled for every kind.
    """
    scale, bias = w + 8 * TILE * rows.SCALE, w + 8 * TILE * rows.BIAS
    if p.weight != 0 and p.weight_type == 0 and p.weight_step == 1:
        address = p.weight
        for k in range(n):
            put(scale, k, load(address, first + k, FLOAT), WIDE)
    else:
        for k in range(n):
            value = parameter(p.weight, p.weight_type, (first + k) * p.weight_step, 1.0)
            put(scale, k, value, WIDE)
    if p.bias != 0 and p.bias_type == 0 and p.bias_step == 1:
        address = p.bias
        for k in range(n):
            put(bias, k, load(address, first + k, FLOAT), WIDE)
    else:
        for k in range(n):
            value = parameter(p.bias, p.bias_type, (first + k) * p.bias_step, 0.0)
            put(bias, k, value, WIDE)


@mapping
def _put_parameters(p: Any, first: Any, n: Any, w: Any) -> None:
    """The sums as gradients of bias and weight."""
    a, b = w + 8 * TILE * rows.A, w + 8 * TILE * rows.B
    for k in range(n):
        put_parameter(p.dbias, p.bias_type, first + k, load(a, k, WIDE))
        put_parameter(p.dweight, p.weight_type, first + k, load(b, k, WIDE))


@mapping
def shifts(p: Any, first: Any, n: Any, w: Any, tag: Any) -> None:
    """What sums start from, where the mean will stand."""
    for k in range(n):
        put(w, k, shift_of(p, first + k, tag), WIDE)


@mapping
def moments(p: Any, first: Any, n: Any, w: Any) -> None:
    """The moments from the blocks' sums, where `shifts` has been."""
    count, s, q = w + 8 * TILE * COUNT, w + 8 * TILE * rows.A, w + 8 * TILE * rows.B
    _totals(p, 1, first, n, s)
    _totals(p, 2, first, n, q)
    if p.weights:
        _totals(p, 0, first, n, count)
    size = float(p.outer * p.inner)
    for k in range(n):
        weight = load(count, k, WIDE) if p.weights else size
        put_moments(p, first + k, load(w, k, WIDE), weight, load(s, k, WIDE), load(q, k, WIDE))


@mapping
def line(p: Any, first: Any, n: Any, w: Any) -> None:
    """``(x - mean) scale + bias``; for `recover` the bias stands where the mean does."""
    scale, unit = w + 8 * TILE * rows.SCALE, w + 8 * TILE * rows.INVSTD
    _parameters(p, first, n, w)
    mean, var, eps = p.moments + 8 * (p.channels + first), p.moments + 8 * first, p.eps
    var += 16 * p.channels
    for k in range(n):
        put(w, k, load(mean, k, WIDE), WIDE)
    for k in range(n):
        put(unit, k, 1 / np.sqrt(load(var, k, WIDE) + eps), WIDE)
    if p.recover:
        for k in range(n):
            weight = load(scale, k, WIDE)
            put(w, k, load(w, k + TILE * rows.BIAS, WIDE), WIDE)
            put(scale, k, weight * load(unit, k, WIDE), WIDE)
            put(unit, k, 1 / weight, WIDE)
    else:
        for k in range(n):
            put(scale, k, load(scale, k, WIDE) * load(unit, k, WIDE), WIDE)


@mapping
def sums(p: Any, first: Any, n: Any, w: Any) -> None:
    """The channels' sums from the blocks', where `line` has been."""
    a, b = w + 8 * TILE * rows.A, w + 8 * TILE * rows.B
    _totals(p, 1, first, n, a)
    _totals(p, 2, first, n, b)
    for k in range(n):
        put(b, k, load(b, k, WIDE) * load(w, k + TILE * rows.INVSTD, WIDE), WIDE)
    of_a, of_b = p.sums + 8 * first, p.sums + 8 * (p.channels + first)
    for k in range(n):
        put(of_a, k, load(a, k, WIDE), WIDE)
    for k in range(n):
        put(of_b, k, load(b, k, WIDE), WIDE)
    _put_parameters(p, first, n, w)


@mapping
def pulls(p: Any, first: Any, n: Any, w: Any) -> None:
    """The a and b of ``dx = scale g - w (a + b xhat)``, where `line` has been."""
    if p.fixed:
        for k in range(n):
            put(w, k + TILE * rows.A, 0.0, WIDE)
            put(w, k + TILE * rows.B, 0.0, WIDE)
        return
    count, of_a, of_b = p.moments + 8 * first, p.sums + 8 * first, p.sums + 8 * p.channels
    of_b += 8 * first
    for k in range(n):
        scale = load(w, k + TILE * rows.SCALE, WIDE) / max(load(count, k, WIDE), 1e-300)
        put(w, k + TILE * rows.A, scale * load(of_a, k, WIDE), WIDE)
        put(w, k + TILE * rows.B, scale * load(of_b, k, WIDE), WIDE)


@mapping
def lay_out(p: Any, first: Any, n: Any, vector: Any, end: Any, w: Any, tag: Any) -> None:
    """Write vectors up to `end` for all positions of a row."""
    if vector == rows.MEAN and constant_size(tag) == 4:
        for k in range(n):
            mean = load(w, k + TILE * rows.MEAN, WIDE)
            put(w, k + TILE * rows.LOW, mean - fit(mean, tag), WIDE)
    for row in range(vector, end):
        _copy(w + 8 * TILE * row, p.scratch, row * p.columns + first * p.inner, n, p.inner, tag)
    blocks.repeat(p, first, first + n, vector, end, tag)


@mapping
def _copy(w: Any, target: Any, start: Any, n: Any, inner: Any, tag: Any) -> None:
    if inner == 1:
        for k in range(n):
            put_constant(target, start + k, load(w, k, WIDE), tag)
    else:
        for k in range(n):
            for j in range(k * inner, (k + 1) * inner):
                put_constant(target, start + j, load(w, k, WIDE), tag)
