"""Activations over a buffer: one plain loop for each, so that each vectorizes.

Exponential and error function are written out because a call into the C library would not
vectorize. They work in the type of their argument, float32 or float64, to its last digits or two.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from batchnorm.kernels._activation import KINDS
from batchnorm.kernels._numba_scalar import either, like, polynomial, power_of_two

# No one calls these from Python or C, for which Numba would compile a wrapper to each.
_INSIDE: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# Sums may be reordered, and nothing else; NaN, infinities and signed zeros keep their meaning.
summing: Any = numba.njit(fastmath={"reassoc", "contract"}, **_INSIDE)
mapping: Any = numba.njit(fastmath={"contract"}, **_INSIDE)
# The same as part of whatever calls them: no vector goes through a call.
inline_mapping: Any = numba.njit(fastmath={"contract"}, forceinline=True, **_INSIDE)
# Put into its caller before there are types, for what has no arithmetic: of each function that is
# compiled by itself, LLVM optimizes anew all that it calls.
steering: Any = numba.njit(inline="always", **_INSIDE)

_KIND = {kind: code for code, kind in enumerate(KINDS)}
IDENTITY, RELU, RELU6, LEAKY = (_KIND[k] for k in ("identity", "relu", "relu6", "leaky_relu"))
ELU, SILU, HARDSWISH = (_KIND[k] for k in ("elu", "silu", "hardswish"))
GELU, GELU_TANH, SIGMOID = (_KIND[k] for k in ("gelu", "gelu_tanh", "sigmoid"))

_LOG2E = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 0.693145751953125, math.log(2) - 0.693145751953125  # 11 and 53 bits
_ROOT, _CUBIC = math.sqrt(2 / math.pi), 0.044715
_HALF_ROOT, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)

# (exp(r) - 1 - r) / r^2 by its series: for |r| <= ln(2) / 2 what is left out is below rounding
_EXP = [1 / math.factorial(k) for k in range(2, 14)]
_exp_rest: Any = polynomial(_EXP[:6], _EXP)

# exp(x^2) erfc(x) / t in powers of 2 t - 1, where t = 2 / (2 + x) or 4 / (4 + x): Chebyshev fits,
# of relative error 1.2e-8 and 2.7e-15 (scipy.special.erfcx at 400 Chebyshev nodes)
_erfc: Any = polynomial(
    [
        0.5107913569,
        0.3435803187,
        0.1397357335,
        0.01822166943,
        -0.01075162619,
        -0.003243451918,
        0.001529157161,
        0.0004306704884,
        -0.000299382712,
        -3.660187692e-05,
        4.216119719e-05,
    ],
    [
        0.27399891525012265,
        0.24413718227021924,
        0.19330217556629159,
        0.13521345782827821,
        0.082712896970650679,
        0.043502734311359724,
        0.019095378707063675,
        0.0065925133173206866,
        0.0015280140853406292,
        7.0239828448180895e-05,
        -0.00011376399876134956,
        -4.4203606636900419e-05,
        -9.0632104557600761e-07,
        4.7160939616442186e-06,
        1.1688850192333192e-06,
        -3.5720405672124606e-07,
        -2.0580787175922125e-07,
        1.9772307183861768e-08,
        2.6787013632499186e-08,
        -5.546709479648101e-10,
        -2.1803540677441113e-09,
    ],
)


@mapping
def _split(x: Any) -> Any:
    """2^k and r with ``x = k ln 2 + r`` and r small, for x clipped to where 2^k is normal."""
    most = either(87.0, 708.0, x)
    x = min(max(x, -most), most)
    k = np.floor(x * like(_LOG2E, x) + like(0.5, x))
    return power_of_two(k), (x - k * like(LN2_HIGH, x)) - k * like(LN2_LOW, x)


@mapping
def exp(x: Any) -> Any:
    """``exp(x)``; at the ends of the range it stops short of 0 and of infinity."""
    scale, r = _split(x)
    value = scale * (like(1.0, x) + (r + r * r * _exp_rest(r)))
    return value if x == x else x


@mapping
def expm1(x: Any) -> Any:
    """``exp(x) - 1`` without cancellation near zero."""
    scale, r = _split(x)
    value = scale * (r + r * r * _exp_rest(r)) + (scale - like(1.0, x))
    return value if x == x else x


@mapping
def sigmoid(z: Any) -> Any:
    """``1 / (1 + exp(-z))``."""
    return like(1.0, z) / (like(1.0, z) + exp(-z))


@mapping
def logistic(z: Any) -> Any:
    """`sigmoid` and its slope, without cancellation where that is flat."""
    e = exp(-abs(z))
    whole = like(1.0, z) + e
    return (like(1.0, z) if z > like(0.0, z) else e) / whole, e / (whole * whole)


@mapping
def bounded(z: Any) -> Any:
    """Bounds below, and on both sides, for a product with what vanishes there; NaN stays NaN."""
    most = either(128.0, 1024.0, z)
    low = -most if z < -most else z
    return low, most if low > most else low


@mapping
def tanh(z: Any) -> Any:
    """``tanh(z)`` from expm1, which keeps the digits near zero."""
    m = expm1(like(2.0, z) * min(abs(z), like(20.0, z)))
    m = m / (m + like(2.0, z))
    m = -m if z < like(0.0, z) else m
    return m if z == z else z


@mapping
def gaussian(z: Any) -> Any:
    """The normal distribution's density and its integral up to z."""
    x = min(abs(z), either(12.0, 37.0, z)) * like(_HALF_ROOT, z)
    e = exp(-x * x)
    shift = either(2.0, 4.0, z)
    t = shift / (shift + x)
    tail = like(0.5, z) * t * e * _erfc(t + t - like(1.0, z))
    return like(_DENSITY, z) * e, like(1.0, z) - tail if z > like(0.0, z) else tail


@mapping
def twice_cubic(z: Any) -> Any:
    """The u and u' of ``u = sqrt(8 / pi) (z + 0.044715 z^3)``: tanh(u / 2) is 2 sigmoid(u) - 1."""
    square = z * z
    u = like(2 * _ROOT, z) * (z + like(_CUBIC, z) * square * z)
    return u, like(2 * _ROOT, z) + like(6 * _ROOT * _CUBIC, z) * square


@mapping
def activate(z: Any, n: Any, kind: Any, parameter: Any) -> None:
    """``z = f(z)`` over the first n."""
    zero, three, six = like(0.0, z[0]), like(3.0, z[0]), like(6.0, z[0])
    parameter = like(parameter, z[0])
    if kind == RELU:
        for i in range(n):
            z[i] = zero if z[i] < zero else z[i]
    elif kind == RELU6:
        for i in range(n):
            low = zero if z[i] < zero else z[i]
            z[i] = six if low > six else low
    elif kind == LEAKY:
        for i in range(n):
            z[i] = z[i] if z[i] > zero else parameter * z[i]
    elif kind == ELU:
        for i in range(n):
            z[i] = z[i] if z[i] > zero else parameter * expm1(z[i])
    elif kind == SILU:
        for i in range(n):
            z[i] = bounded(z[i])[0] * sigmoid(z[i])
    elif kind == HARDSWISH:
        for i in range(n):
            up = zero if z[i] < -three else z[i] + three
            z[i] = z[i] * (six if up > six else up) / six
    elif kind == GELU:
        for i in range(n):
            z[i] = bounded(z[i])[0] * gaussian(z[i])[1]
    elif kind == GELU_TANH:
        for i in range(n):
            z[i] = bounded(z[i])[0] * sigmoid(twice_cubic(bounded(z[i])[1])[0])
    elif kind == SIGMOID:
        for i in range(n):
            z[i] = sigmoid(z[i])
    elif kind != IDENTITY:
        for i in range(n):
            z[i] = tanh(z[i])


@mapping
def differentiate(z: Any, n: Any, kind: Any, parameter: Any) -> None:
    """``z = f'(z)`` over the first n; at a kink the value that torch takes."""
    zero, half, one = like(0.0, z[0]), like(0.5, z[0]), like(1.0, z[0])
    three, six, parameter = like(3.0, z[0]), like(6.0, z[0]), like(parameter, z[0])
    if kind == IDENTITY:
        for i in range(n):
            z[i] = one
    elif kind == RELU:
        for i in range(n):
            z[i] = one if z[i] > zero else zero
    elif kind == RELU6:
        for i in range(n):
            z[i] = one if (z[i] > zero) & (z[i] < six) else zero
    elif kind == LEAKY:
        for i in range(n):
            z[i] = one if z[i] > zero else parameter
    elif kind == ELU:
        for i in range(n):
            z[i] = one if z[i] > zero else parameter * exp(z[i])
    elif kind == SILU:
        for i in range(n):
            s, slope = logistic(z[i])
            z[i] = s + bounded(z[i])[1] * slope
    elif kind == HARDSWISH:
        for i in range(n):
            inner = z[i] / three + half if z[i] > -three else zero
            z[i] = one if z[i] >= three else inner
    elif kind == GELU:
        for i in range(n):
            density, below = gaussian(z[i])
            z[i] = below + bounded(z[i])[1] * density
    elif kind == GELU_TANH:
        for i in range(n):
            near = bounded(z[i])[1]
            u, du = twice_cubic(near)
            s, slope = logistic(u)
            z[i] = s + near * slope * du
    else:  # tanh(z) is 2 sigmoid(2 z) - 1
        times = one if kind == SIGMOID else one + one
        for i in range(n):
            z[i] = times * times * logistic(times * z[i])[1]
