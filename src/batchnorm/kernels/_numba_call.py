"""One kernel launch as a record in memory, which Python packs and compiled code reads by name.

Packing a buffer costs less than a microsecond, of which the addresses that vary from call to call
are the smaller part; Numba's own conversion of as many arguments costs ten.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch

from batchnorm.kernels._numba_math import mapping
from batchnorm.kernels._numba_memory import WIDE, constant_size, load, put
from batchnorm.kernels._numba_scalar import fit

# Tensors are seen as (outer, channels, inner), `inner` being contiguous; an address of 0 is None.
VARYING = (
    *("x", "residual", "dy", "out", "out_residual", "weights", "moments", "sums", "scratch"),
    *("weight", "bias", "dweight", "dbias", "first", "streams"),
)
CONSTANT = (
    *("x_outer", "residual_outer", "dy_outer", "x_channel", "residual_channel", "dy_channel"),
    *("outer", "channels", "inner"),
    *("parts", "span", "columns", "joined", "group"),  # how sums are divided: by shape alone
    *("weight_type", "weight_step", "bias_type", "bias_step"),
    *("measure", "fixed", "activation", "recover"),
    *("threads", "thread_number", "cursors", "rest", "phase", "phase_end"),
)
_INTEGERS = VARYING + CONSTANT
FIELDS = np.dtype([(n, np.int64) for n in _INTEGERS] + [(n, np.float64) for n in ("slope", "eps")])
PACK_VARYING = struct.Struct(f"{len(VARYING)}q")
PACK_CONSTANT = struct.Struct(f"{len(CONSTANT)}q2d")
PARAMETER_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

CURSOR = 64  # bytes: a cache line to each counter


@mapping
def parameter(address: Any, kind: Any, index: Any, missing: Any) -> Any:
    """Element `index` of a parameter of the type `kind`, or `missing` if there is none."""
    if address == 0:
        return missing
    if kind == 0:
        return load(address, index, np.float32(0))
    if kind == 1:
        return load(address, index, WIDE)
    if kind == 2:
        return load(address, index, np.uint16(0))
    return load(address, index, np.int16(0))


@mapping
def put_parameter(address: Any, kind: Any, index: Any, value: Any) -> None:
    """Write element `index` of a parameter, if there is one."""
    if address == 0:
        return
    if kind == 0:
        put(address, index, value, np.float32(0))
    elif kind == 1:
        put(address, index, value, WIDE)
    elif kind == 2:
        put(address, index, value, np.uint16(0))
    else:
        put(address, index, value, np.int16(0))


@mapping
def constants(p: Any, c: Any) -> Any:
    """mean, 1 / sqrt(var + eps), weight and bias of channel c."""
    mean = load(p.moments, p.channels + c, WIDE)
    invstd = 1 / np.sqrt(load(p.moments, 2 * p.channels + c, WIDE) + p.eps)
    weight = parameter(p.weight, p.weight_type, c * p.weight_step, 1.0)
    return mean, invstd, weight, parameter(p.bias, p.bias_type, c * p.bias_step, 0.0)


@mapping
def put_moments(p: Any, c: Any, shift: Any, n: Any, s: Any, q: Any) -> None:
    """Moments of channel c from the sums of ``x - shift`` and of its square.

    The shift is one of the values, so that ``q / n`` is at most n times the variance: in float64
    the difference keeps its digits, and a constant channel gives its value and 0 exactly.
    """
    m = s / n if n > 0 else 0.0
    var = q / n - m * m if n > 0 else 0.0
    put(p.moments, c, n, WIDE)
    put(p.moments, p.channels + c, shift + m if n > 0 else 0.0, WIDE)
    put(p.moments, 2 * p.channels + c, 0.0 if var < 0 else var, WIDE)


@mapping
def put_sums(p: Any, c: Any, first: Any, second: Any) -> None:
    """``sum(g)`` and ``sum(g xhat)``, which are also the gradients of bias and weight."""
    put(p.sums, c, first, WIDE)
    put(p.sums, p.channels + c, second, WIDE)
    put_parameter(p.dbias, p.bias_type, c, first)
    put_parameter(p.dweight, p.weight_type, c, second)


@mapping
def pulls(p: Any, c: Any, invstd: Any, weight: Any) -> Any:
    """``(a, b, invstd)`` of ``dx = weight invstd g - w (a + b xhat)``."""
    if p.fixed:
        return 0.0, 0.0, invstd
    scale = invstd * weight / max(load(p.moments, c, WIDE), 1e-300)
    first, second = load(p.sums, c, WIDE), load(p.sums, p.channels + c, WIDE)
    return scale * first, scale * second, invstd


@mapping
def shift_of(p: Any, c: Any, tag: Any) -> Any:
    """A value near those of channel c, and equal to all if they are equal: what sums start from.

    The first that counts, and where sums are taken in float32 the mean of a few, so that an
    outlier that happens to be first costs the others no digits.
    """
    if p.outer * p.inner == 0:
        return 0.0
    start = p.first + c * p.x_channel
    value = load(p.x, start, tag)
    if constant_size(tag) == 4 and p.weights == 0:
        few = min(p.inner if p.columns == 0 else p.outer, 64)
        step = 1 if p.columns == 0 else p.x_outer
        for k in range(1, few):
            value += load(p.x, start + k * step, tag)
        value = float(fit(value / few, tag))
    return value if np.isfinite(value) else 0.0
