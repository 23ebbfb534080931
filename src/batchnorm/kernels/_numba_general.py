"""The inner loops for masks and for activations that are no bend: through a buffer.

x, r (residual), dy, y, dx, dr and w (weights of positions) are addresses; z and g are buffers.
"""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import activate, differentiate, mapping, summing
from batchnorm.kernels._numba_memory import WIDE, load, store


@summing
def measure_weighted(x: Any, w: Any, n: Any, shift: Any, tag: Any) -> Any:
    """The total weight, and the weighted sums of ``x - shift`` and of its square."""
    total = s = q = 0.0
    for j in range(n):
        weight = load(w, j, WIDE)
        d = load(x, j, tag) - shift if weight > 0 else 0.0
        total += weight
        s += weight * d
        q += weight * d * d
    return total, s, q


@mapping
def line_up(x: Any, n: Any, line: Any, z: Any, tag: Any) -> None:
    """``z = (x - mean) scale + bias``."""
    mean, scale, bias = line
    for j in range(n):
        z[j] = (load(x, j, tag) - mean) * scale + bias


@mapping
def complete(z: Any, n: Any, r: Any, w: Any, y: Any, kind: Any, parameter: Any, tag: Any) -> None:
    """``y = f(z + r)``, 0 where the mask leaves positions out."""
    if r:
        for j in range(n):
            z[j] += load(r, j, tag)
    activate(z, n, kind, parameter)
    if w:
        for j in range(n):
            z[j] = z[j] if load(w, j, WIDE) > 0 else 0.0
    for j in range(n):
        store(y, j, z[j], tag)


@mapping
def to_gradient(
    z: Any, n: Any, r: Any, dy: Any, w: Any, kind: Any, parameter: Any, tag: Any
) -> None:
    """``z = f'(z + r) dy``, 0 where the mask leaves positions out or f is flat."""
    if r:
        for j in range(n):
            z[j] += load(r, j, tag)
    differentiate(z, n, kind, parameter)
    for j in range(n):
        z[j] = z[j] * load(dy, j, tag) if z[j] != 0 else 0.0
    if w:
        for j in range(n):
            z[j] = z[j] if load(w, j, WIDE) > 0 else 0.0


@summing
def reduce_gradient(x: Any, g: Any, w: Any, n: Any, mean: Any, tag: Any) -> Any:
    """Sums of g and of ``g (x - mean)``, where g is a buffer."""
    s = q = 0.0
    if w:
        for j in range(n):
            d = load(x, j, tag) - mean if load(w, j, WIDE) > 0 else 0.0
            s += g[j]
            q += g[j] * d
    else:
        for j in range(n):
            s += g[j]
            q += g[j] * (load(x, j, tag) - mean)
    return s, q


@mapping
def spread_gradient(
    x: Any, g: Any, w: Any, dx: Any, n: Any, line: Any, pull: Any, tag: Any
) -> None:
    """``dx = scale g - w (a + b xhat)``, where g is a buffer."""
    mean, scale, _ = line
    a, b, invstd = pull
    if w:
        for j in range(n):
            weight = load(w, j, WIDE)
            pulled = weight * (a + b * (invstd * (load(x, j, tag) - mean)))
            store(dx, j, scale * g[j] - pulled if weight > 0 else 0.0, tag)
    else:
        for j in range(n):
            store(dx, j, scale * g[j] - (a + b * (invstd * (load(x, j, tag) - mean))), tag)


@mapping
def store_gradient(g: Any, dr: Any, n: Any, tag: Any) -> None:
    """``dr = g``."""
    for j in range(n):
        store(dr, j, g[j], tag)
