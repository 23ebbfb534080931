"""Rows of channels for masks and for activations that are no bend: through a buffer.

v, s and q are as in `_numba_row_columns`; z, g and t are buffers, w those of the weights of a row's
elements.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import mapping, summing
from batchnorm.kernels._numba_memory import constant, load, read, store
from batchnorm.kernels._numba_row_columns import BIAS, INVSTD, LOW, SCALE, STRIDE, A, B
from batchnorm.kernels._numba_scalar import centre


@mapping
def centred(x: Any, j: Any, v: Any, tag: Any) -> Any:
    """``x - mean`` at column j."""
    return centre(read(x, j, tag), constant(v, j, tag), constant(v, j + LOW * STRIDE, tag), tag)


@mapping
def lined_up(d: Any, j: Any, v: Any, tag: Any) -> Any:
    """``d scale + bias`` at column j."""
    return d * constant(v, j + SCALE * STRIDE, tag) + constant(v, j + BIAS * STRIDE, tag)


@mapping
def pulled(d: Any, j: Any, v: Any, tag: Any) -> Any:
    """``a + b xhat`` at column j; or ``a + b d`` where b has taken invstd in, which is 1 then."""
    xhat = constant(v, j + INVSTD * STRIDE, tag) * d
    return constant(v, j + A * STRIDE, tag) + constant(v, j + B * STRIDE, tag) * xhat


@summing
def measure_weighted(x: Any, w: Any, n: Any, v: Any, t: Any, s: Any, q: Any, tag: Any) -> None:
    """One row with the weights w of its elements; t, s and q are buffers, t of the weights."""
    for j in range(n):
        weight = w[j]
        d = load(x, j, tag) - constant(v, j, tag) if weight > 0 else 0.0
        t[j] += weight
        s[j] += weight * d
        q[j] += weight * d * d


@mapping
def line_up(x: Any, n: Any, v: Any, z: Any, tag: Any) -> None:
    """``z = (x - mean) scale + bias``."""
    for j in range(n):
        z[j] = lined_up(centred(x, j, v, tag), j, v, tag)


@summing
def reduce_gradient(
    x: Any, g: Any, n: Any, v: Any, w: Any, masked: Any, s: Any, q: Any, tag: Any
) -> None:
    """Add one row's g, a buffer, and ``g (x - mean)``."""
    for j in range(n):
        d = centred(x, j, v, tag)
        d = 0.0 if masked and not w[j] > 0 else d
        s[j] += g[j]
        q[j] += g[j] * d


@mapping
def spread_gradient(x: Any, g: Any, dx: Any, n: Any, v: Any, w: Any, masked: Any, tag: Any) -> None:
    """``dx = scale g - w (a + b xhat)``, where g is a buffer."""
    for j in range(n):
        weight = w[j] if masked else 1.0
        pull = weight * pulled(centred(x, j, v, tag), j, v, tag)
        value = constant(v, j + SCALE * STRIDE, tag) * g[j] - pull
        store(dx, j, value if weight > 0 else 0.0, tag)
