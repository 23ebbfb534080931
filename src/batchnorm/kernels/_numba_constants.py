"""The constants of some channels, several at a time: a root or a division takes no longer for all.

w is the address of a buffer of float64: the vectors that `_numba_row_columns` names, `STEP` apart,
with a number for each of n channels from the first on. Sums are put where A and B will stand.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from batchnorm.kernels import _numba_row_columns as rows
from batchnorm.kernels import _numba_vector as vectors
from batchnorm.kernels import _numba_vector_memory as memory
from batchnorm.kernels._layout import GROUP
from batchnorm.kernels._numba_call import parameter, put_parameter
from batchnorm.kernels._numba_math import inline_mapping, mapping
from batchnorm.kernels._numba_memory import WIDE, load, put
from batchnorm.kernels._numba_scalar import fit, narrow, roomy

STEP = GROUP + 8  # a load waits for an earlier store whose address ends in the same 12 bits
COUNT = rows.LOW  # until that is needed
FLOAT = np.float32(0)
FEW = 16  # values whose mean sums start from where they are taken in float32


@inline_mapping
def _get(w: Any, row: Any, k: Any, mask: Any) -> Any:
    return memory.read(w, row * STEP + k, mask, WIDE)


@inline_mapping
def _set(w: Any, row: Any, k: Any, value: Any, mask: Any) -> None:
    memory.write(w, row * STEP + k, value, mask, WIDE)


@mapping
def shifts(p: Any, first: Any, n: Any, w: Any, tag: Any) -> None:
    """What sums start from, where the mean will stand: near the values, and equal to equal ones.

    The first value that counts, or where sums are taken in float32 the mean of a few.
    """
    x, start, step = p.x, p.first + first * p.x_channel, p.x_channel
    if p.outer * p.inner == 0:
        for k in range(n):
            put(w, k, 0.0, WIDE)
        return
    for k in range(n):
        put(w, k, load(x, start + k * step, tag), WIDE)
    if narrow(tag) and p.weights == 0:
        _mean_of_few(p, start, n, w, tag)
    for k in range(n):
        put(w, k, load(w, k, WIDE) if np.isfinite(load(w, k, WIDE)) else 0.0, WIDE)


@mapping
def _mean_of_few(p: Any, start: Any, n: Any, w: Any, tag: Any) -> None:
    """The mean of the first few values, of which one is there already, in that one's place.

    Without the least and the largest, so that an outlier among them costs the others no digits:
    squares of numbers that are nearly equal are all rounded the same way.
    """
    few, apart = min(p.inner, FEW), 1
    if p.columns != 0:
        few, apart = min(p.outer, FEW), p.x_outer
    least, most = STEP * rows.SCALE, STEP * rows.BIAS  # until these are needed
    for k in range(n):
        put(w, k + least, load(w, k, WIDE), WIDE)
        put(w, k + most, load(w, k, WIDE), WIDE)
    for j in range(1, few):
        for k in range(n):
            value = load(p.x, start + j * apart + k * p.x_channel, tag)
            put(w, k, load(w, k, WIDE) + value, WIDE)
            put(w, k + least, min(load(w, k + least, WIDE), value), WIDE)
            put(w, k + most, max(load(w, k + most, WIDE), value), WIDE)
    for k in range(n):
        total, count = load(w, k, WIDE), few
        if few > 2:
            total, count = total - load(w, k + least, WIDE) - load(w, k + most, WIDE), few - 2
        put(w, k, float(fit(total / count, tag)), WIDE)


@mapping
def moments(p: Any, first: Any, n: Any, w: Any) -> None:
    """The moments from the sums of ``x - shift`` and of its square, where `shifts` has been.

    The shift is a value or the mean of a few, so that ``q / n`` is at most n times the variance: in
    float64 the difference keeps its digits, and a constant channel gives its value and 0 exactly.
    """
    zero, size = vectors.filled(0.0, WIDE), float(p.outer * p.inner)
    counts, means, variances = p.moments, p.moments + 8 * p.channels, p.moments + 16 * p.channels
    for j in range(0, n, vectors.lanes(WIDE)):
        mask = vectors.first(n - j, WIDE)
        count = vectors.filled(size, WIDE)
        if p.weights:
            count = _get(w, COUNT, j, mask)
        m = _get(w, rows.A, j, mask) / count
        var = _get(w, rows.B, j, mask) / count - m * m
        var = vectors.choose(var < zero, zero, var)
        mean = _get(w, rows.MEAN, j, mask) + m
        memory.write(counts, first + j, count, mask, WIDE)
        memory.write(means, first + j, vectors.choose(count > zero, mean, zero), mask, WIDE)
        memory.write(variances, first + j, vectors.choose(count > zero, var, zero), mask, WIDE)


@mapping
def _parameter(
    address: Any, kind: Any, step: Any, missing: Any, first: Any, n: Any, w: Any, row: Any
) -> None:
    """A parameter in float64, in vectors for the common kind."""
    if address != 0 and kind == 0 and step == 1:
        for j in range(0, n, vectors.lanes(WIDE)):
            mask = vectors.first(n - j, WIDE)
            _set(w, row, j, memory.read(address, first + j, mask, FLOAT), mask)
    else:
        for k in range(n):
            put(w, row * STEP + k, parameter(address, kind, (first + k) * step, missing), WIDE)


@mapping
def _put_parameter(address: Any, kind: Any, first: Any, n: Any, w: Any, row: Any) -> None:
    """Sums as the gradient of a parameter, if there is one."""
    if address != 0 and kind == 0:
        for j in range(0, n, vectors.lanes(WIDE)):
            mask = vectors.first(n - j, WIDE)
            memory.write(address, first + j, _get(w, row, j, mask), mask, FLOAT)
    else:
        for k in range(n):
            put_parameter(address, kind, first + k, load(w, row * STEP + k, WIDE))


@mapping
def line(p: Any, first: Any, n: Any, w: Any) -> None:
    """``(x - mean) scale + bias``; for `recover` the bias stands where the mean does."""
    _parameter(p.weight, p.weight_type, p.weight_step, 1.0, first, n, w, rows.SCALE)
    _parameter(p.bias, p.bias_type, p.bias_step, 0.0, first, n, w, rows.BIAS)
    one, eps = vectors.filled(1.0, WIDE), vectors.filled(p.eps, WIDE)
    means, variances = p.moments + 8 * p.channels, p.moments + 16 * p.channels
    for j in range(0, n, vectors.lanes(WIDE)):
        mask = vectors.first(n - j, WIDE)
        unit = one / vectors.root(memory.read(variances, first + j, mask, WIDE) + eps)
        weight = _get(w, rows.SCALE, j, mask)
        _set(w, rows.SCALE, j, weight * unit, mask)
        if p.recover:
            _set(w, rows.MEAN, j, _get(w, rows.BIAS, j, mask), mask)
            _set(w, rows.INVSTD, j, one / weight, mask)
        else:
            _set(w, rows.MEAN, j, memory.read(means, first + j, mask, WIDE), mask)
            _set(w, rows.INVSTD, j, unit, mask)


@mapping
def sums(p: Any, first: Any, n: Any, w: Any) -> None:
    """``sum(g)`` and ``sum(g xhat)``, also the gradients of bias and weight, where `line` has been.

    The latter from ``sum(g (x - mean))``.
    """
    of_a, of_b = p.sums, p.sums + 8 * p.channels
    for j in range(0, n, vectors.lanes(WIDE)):
        mask = vectors.first(n - j, WIDE)
        b = _get(w, rows.B, j, mask) * _get(w, rows.INVSTD, j, mask)
        memory.write(of_a, first + j, _get(w, rows.A, j, mask), mask, WIDE)
        memory.write(of_b, first + j, b, mask, WIDE)
        _set(w, rows.B, j, b, mask)
    _put_parameter(p.dbias, p.bias_type, first, n, w, rows.A)
    _put_parameter(p.dweight, p.weight_type, first, n, w, rows.B)


@mapping
def pulls(p: Any, first: Any, n: Any, w: Any, tag: Any) -> None:
    """The a and b of ``dx = scale g - w (a + b xhat)``, where `line` has been.

    Where there is room for it b takes invstd in, and invstd is 1.
    """
    least, zero = vectors.filled(1e-300, WIDE), vectors.filled(0.0, WIDE)
    one = vectors.filled(1.0, WIDE)
    of_a, of_b = p.sums, p.sums + 8 * p.channels
    for j in range(0, n, vectors.lanes(WIDE)):
        mask = vectors.first(n - j, WIDE)
        if p.fixed:
            _set(w, rows.A, j, zero, mask)
            _set(w, rows.B, j, zero, mask)
        else:
            count = memory.read(p.moments, first + j, mask, WIDE)
            scale = _get(w, rows.SCALE, j, mask) / vectors.choose(count > least, count, least)
            _set(w, rows.A, j, scale * memory.read(of_a, first + j, mask, WIDE), mask)
            b = scale * memory.read(of_b, first + j, mask, WIDE)
            if roomy(tag):
                b = b * _get(w, rows.INVSTD, j, mask)
            _set(w, rows.B, j, b, mask)
        if roomy(tag):
            _set(w, rows.INVSTD, j, one, mask)


@mapping
def clear(w: Any, n: Any) -> None:
    """Begin the channels' sums."""
    for k in range(n):
        put(w, COUNT * STEP + k, 0.0, WIDE)
        put(w, rows.A * STEP + k, 0.0, WIDE)
        put(w, rows.B * STEP + k, 0.0, WIDE)


@inline_mapping
def add_to(w: Any, k: Any, count: Any, s: Any, q: Any) -> None:
    """Add a part's sums to the k-th channel's: the same additions where parts are other tasks."""
    put(w, COUNT * STEP + k, load(w, COUNT * STEP + k, WIDE) + count, WIDE)
    put(w, rows.A * STEP + k, load(w, rows.A * STEP + k, WIDE) + s, WIDE)
    put(w, rows.B * STEP + k, load(w, rows.B * STEP + k, WIDE) + q, WIDE)


@inline_mapping
def sums_of(w: Any, k: Any) -> Any:
    """What `add_to` has added."""
    s, q = load(w, rows.A * STEP + k, WIDE), load(w, rows.B * STEP + k, WIDE)
    return load(w, COUNT * STEP + k, WIDE), s, q


@inline_mapping
def shift_of(w: Any, k: Any) -> Any:
    """What the k-th channel's sums start from."""
    return load(w, rows.MEAN * STEP + k, WIDE)


@inline_mapping
def line_of(w: Any, k: Any) -> Any:
    """Mean, scale and bias of the k-th channel."""
    mean, scale = load(w, rows.MEAN * STEP + k, WIDE), load(w, rows.SCALE * STEP + k, WIDE)
    return mean, scale, load(w, rows.BIAS * STEP + k, WIDE)


@inline_mapping
def pull_of(w: Any, k: Any) -> Any:
    """The a and b of the k-th channel, and 1 / sqrt(var + eps) unless b has taken it in."""
    a, b = load(w, rows.A * STEP + k, WIDE), load(w, rows.B * STEP + k, WIDE)
    return a, b, load(w, rows.INVSTD * STEP + k, WIDE)
