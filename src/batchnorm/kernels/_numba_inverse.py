"""From ELU's output to its argument and to its derivative there."""

from __future__ import annotations

from typing import Any

from batchnorm.kernels._numba_math import LN2_HIGH, LN2_LOW, mapping
from batchnorm.kernels._numba_scalar import exponent_of, like, polynomial, power_of_two

# 2 atanh(s) / s in powers of s^2, for |s| <= 0.172: what is left out is below rounding
_ATANH = [2 / (2 * k + 1) for k in range(11)]
_atanh_rest: Any = polynomial(_ATANH[:5], _ATANH)


@mapping
def log1p(x: Any) -> Any:
    """``log(1 + x)`` for x above -1, without cancellation near zero."""
    one = like(1.0, x)
    w = one + x
    k = exponent_of(w)
    f = w * power_of_two(-k) - one
    s = f / (f + like(2.0, x))
    log = s * _atanh_rest(s * s) + (x - (w - one)) / w
    return k * like(LN2_HIGH, x) + (log + k * like(LN2_LOW, x))


@mapping
def elu(y: Any, parameter: Any, inverse: Any, zero: Any, one: Any) -> Any:
    """The argument and the derivative, of an output, alpha and its inverse."""
    return (y, one) if y > zero else (log1p(y * inverse), y + parameter)
