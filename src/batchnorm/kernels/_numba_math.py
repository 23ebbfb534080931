"""Activations over a buffer of float64: one plain loop for each, so that each vectorizes.

The exponential is written out because a call into the C library would not vectorize.
"""

from __future__ import annotations

import math
from typing import Any

import numba

from batchnorm.kernels._activation import KINDS
from batchnorm.kernels._numba_memory import power_of_two

# Sums may be reordered, and nothing else; NaN, infinities and signed zeros keep their meaning.
summing: Any = numba.njit(fastmath={"reassoc", "contract"}, error_model="numpy", nogil=True)
mapping: Any = numba.njit(fastmath={"contract"}, error_model="numpy", nogil=True)

_KIND = {kind: code for code, kind in enumerate(KINDS)}
IDENTITY, RELU, RELU6, LEAKY = (_KIND[k] for k in ("identity", "relu", "relu6", "leaky_relu"))
ELU, SILU, HARDSWISH = (_KIND[k] for k in ("elu", "silu", "hardswish"))
GELU, GELU_TANH, SIGMOID = (_KIND[k] for k in ("gelu", "gelu_tanh", "sigmoid"))

_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10
_ROOT, _CUBIC = math.sqrt(2 / math.pi), 0.044715
_HALF_ROOT, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


@mapping
def _reduce(x: Any) -> Any:
    """Find k and r with ``x = k ln 2 + r`` and r small, for x clipped to where 2^k is normal."""
    x = min(max(x, -708.0), 709.0)
    k = math.floor(x * _LOG2E + 0.5)
    return k, (x - k * _LN2_HIGH) - k * _LN2_LOW


@mapping
def _small_expm1(r: Any) -> Any:
    """``exp(r) - 1`` for ``|r| <= ln(2) / 2`` by its series; the first term left out is 2e-18."""
    p = 1 / 6227020800.0
    p = p * r + 1 / 479001600.0
    p = p * r + 1 / 39916800.0
    p = p * r + 1 / 3628800.0
    p = p * r + 1 / 362880.0
    p = p * r + 1 / 40320.0
    p = p * r + 1 / 5040.0
    p = p * r + 1 / 720.0
    p = p * r + 1 / 120.0
    p = p * r + 1 / 24.0
    p = p * r + 1 / 6.0
    p = p * r + 0.5
    return r + r * r * p


@mapping
def exp(x: Any) -> Any:
    """``exp(x)``, but 3e-308 below it and 8e307 above it at the ends of the range."""
    k, r = _reduce(x)
    value = power_of_two(k) * (1 + _small_expm1(r))
    return value if x == x else x


@mapping
def expm1(x: Any) -> Any:
    """``exp(x) - 1`` without cancellation near zero."""
    k, r = _reduce(x)
    scale = power_of_two(k)
    value = scale * _small_expm1(r) + (scale - 1)
    return value if x == x else x


@mapping
def sigmoid(z: Any) -> Any:
    """``1 / (1 + exp(-z))``."""
    return 1 / (1 + exp(-z))


@mapping
def tanh(z: Any) -> Any:
    """``tanh(z)`` from expm1, which keeps the digits near zero."""
    m = expm1(2 * min(abs(z), 20.0))
    return math.copysign(m / (m + 2), z) if z == z else z


@mapping
def bend(z: Any, zero: Any, relu: Any, slope: Any) -> Any:
    """ReLU, or leaky ReLU with `slope`, which for a slope of 1 is the identity."""
    if relu:
        return zero if z < zero else z
    return z if z > zero else slope * z


@mapping
def activate(z: Any, n: Any, kind: Any, parameter: Any) -> None:
    """``z = f(z)`` over the first n."""
    if kind == RELU:
        for i in range(n):
            z[i] = 0.0 if z[i] < 0 else z[i]
    elif kind == RELU6:
        for i in range(n):
            low = 0.0 if z[i] < 0 else z[i]
            z[i] = 6.0 if low > 6 else low
    elif kind == LEAKY:
        for i in range(n):
            z[i] = z[i] if z[i] > 0 else parameter * z[i]
    elif kind == ELU:
        for i in range(n):
            z[i] = z[i] if z[i] > 0 else parameter * expm1(z[i])
    elif kind == SILU:
        for i in range(n):
            z[i] = z[i] * sigmoid(z[i])
    elif kind == HARDSWISH:
        for i in range(n):
            up = 0.0 if z[i] < -3 else z[i] + 3
            z[i] = z[i] * (6.0 if up > 6 else up) / 6
    elif kind == GELU:
        for i in range(n):
            z[i] = 0.5 * z[i] * (1 + math.erf(z[i] * _HALF_ROOT))
    elif kind == GELU_TANH:
        for i in range(n):
            z[i] = 0.5 * z[i] * (1 + tanh(_ROOT * (z[i] + _CUBIC * z[i] * z[i] * z[i])))
    elif kind == SIGMOID:
        for i in range(n):
            z[i] = sigmoid(z[i])
    elif kind != IDENTITY:
        for i in range(n):
            z[i] = tanh(z[i])


@mapping
def differentiate(z: Any, n: Any, kind: Any, parameter: Any) -> None:
    """``z = f'(z)`` over the first n; at a kink the value that torch takes."""
    if kind == IDENTITY:
        z[:n] = 1.0
    elif kind == RELU:
        for i in range(n):
            z[i] = 1.0 if z[i] > 0 else 0.0
    elif kind == RELU6:
        for i in range(n):
            z[i] = 1.0 if (z[i] > 0) & (z[i] < 6) else 0.0
    elif kind == LEAKY:
        for i in range(n):
            z[i] = 1.0 if z[i] > 0 else parameter
    elif kind == ELU:
        for i in range(n):
            z[i] = 1.0 if z[i] > 0 else parameter * exp(z[i])
    elif kind == SILU:
        for i in range(n):
            s = sigmoid(z[i])
            z[i] = s * (1 + z[i] * (1 - s))
    elif kind == HARDSWISH:
        for i in range(n):
            inner = z[i] / 3 + 0.5 if z[i] > -3 else 0.0
            z[i] = 1.0 if z[i] >= 3 else inner
    else:
        _differentiate_smooth(z, n, kind)


@mapping
def _differentiate_smooth(z: Any, n: Any, kind: Any) -> None:
    if kind == GELU:
        for i in range(n):
            v = z[i]
            z[i] = 0.5 * (1 + math.erf(v * _HALF_ROOT)) + v * _DENSITY * exp(-0.5 * v * v)
    elif kind == GELU_TANH:
        for i in range(n):
            v = z[i]
            t = tanh(_ROOT * (v + _CUBIC * v * v * v))
            z[i] = 0.5 * (1 + t) + 0.5 * v * (1 - t * t) * _ROOT * (1 + 3 * _CUBIC * v * v)
    elif kind == SIGMOID:
        for i in range(n):
            s = sigmoid(z[i])
            z[i] = s * (1 - s)
    else:
        for i in range(n):
            t = tanh(z[i])
            z[i] = 1 - t * t
